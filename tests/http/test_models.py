"""The lists of models through the app, over the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY, UPSTREAM_KEY, wait_for

from grokflask.sandbox import Sandbox

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
LISTS = ["models", "language-models", "image-generation-models", "video-generation-models"]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def make(make_client: Callable[..., FlaskClient], sandbox: Sandbox) -> Callable[..., FlaskClient]:
    return lambda **environ: make_client(XAI_API_BASE=sandbox.base_url, **environ)


def make_key(client: FlaskClient, *models: str) -> dict[str, str]:
    """The header of a new key that may use these models."""
    name = f"key{len(client.application.extensions['key_store'].list())}"
    _, secret = client.application.extensions["key_store"].create(name, {"models": models})
    return {"Authorization": f"Bearer {secret}"}


def get(client: FlaskClient, path: str, headers: dict[str, str] = AUTH) -> Any:
    reply = client.get(f"/api/v1/{path}", headers=headers)
    reply.close()
    return reply


def list_ids(reply: Any) -> list[str]:
    return [item["id"] for item in reply.json.get("data", reply.json.get("models"))]


@pytest.mark.parametrize("path", LISTS)
def test_each_list_and_its_models(make: Callable[..., FlaskClient], path: str) -> None:
    """Each list is there, and every model of it by itself; one that there is not is a 404."""
    client = make()
    reply = get(client, path)
    assert (reply.status_code, reply.headers["Age"]) == (200, "0")
    assert list_ids(reply)
    for id in list_ids(reply):
        assert get(client, f"{path}/{id}").json["id"] == id
    assert get(client, f"{path}/grok-none").status_code == 404
    assert client.post(f"/api/v1/{path}", headers=AUTH).status_code == 405


@pytest.mark.parametrize("short", [False, True])
def test_a_list_is_given_again(make: Callable[..., FlaskClient], sandbox: Sandbox, short: bool) -> None:
    """Within the setting's time upstream is not asked again, whichever form it speaks; `Age` says so."""
    sandbox.short_models = short
    client = make()
    first = get(client, "models")
    assert ("aliases" in first.json["data"][0]) is not short
    sandbox.close()
    again = get(client, "models")
    assert (again.status_code, again.data) == (200, first.data)
    assert int(again.headers["Age"]) >= 0
    assert get(client, "models/grok-4.3").status_code == 502


def test_what_is_asked_each_time(make: Callable[..., FlaskClient], sandbox: Sandbox) -> None:
    """With the setting at 0 nothing is kept."""
    client = make(GROKFLASK_MODELS_CACHE_S="0")
    assert get(client, "models").status_code == 200
    sandbox.close()
    assert get(client, "models").status_code == 502


def test_an_error_is_not_kept(make: Callable[..., FlaskClient], sandbox: Sandbox) -> None:
    """What went wrong is asked again."""
    client = make()
    sandbox.key = "another"
    assert get(client, "models").status_code == 400
    sandbox.key = UPSTREAM_KEY
    assert get(client, "models").status_code == 200


def test_a_key_sees_what_it_may_use(make: Callable[..., FlaskClient]) -> None:
    """Also of a list that another key has had fetched; a model by itself that it may not use is a 403."""
    client = make()
    assert len(list_ids(get(client, "models"))) > 3
    bob = make_key(client, "grok-4", "grok-imagine-image")
    for _ in range(2):
        assert list_ids(get(client, "models", bob)) == ["grok-4.3", "grok-imagine-image"]
        assert list_ids(get(client, "language-models", bob)) == ["grok-4.3"]
        assert list_ids(get(client, "video-generation-models", bob)) == []
        for path in ("models/grok-4.3", "models/grok-4", "language-models/grok-4"):
            assert get(client, path, bob).json["id"] == "grok-4.3"
        refused = get(client, "models/grok-4.7", bob)
        assert (refused.status_code, refused.json["error"]["code"]) == (403, "model_not_allowed")
    assert len(list_ids(get(client, "models"))) > 3
    body = {"model": "x" * 10**6, "messages": [{"role": "user", "content": "hello"}]}
    refused = client.post("/api/v1/chat/completions", json=body, headers=bob)
    assert (refused.status_code, len(refused.data) < 500) == (403, True)  # it is not quoted whole


def test_rows(make: Callable[..., FlaskClient]) -> None:
    """What upstream was asked has a row that costs nothing; what was given again has none."""
    client = make(GROKFLASK_ADMIN_TOKEN="admin-token-0123456789")
    for _ in range(3):
        get(client, "models")
    ledger = client.application.extensions["ledger_writer"]
    assert ledger.flush(30)
    reply = client.get("/admin/api/ledger", headers={"Authorization": "Bearer admin-token-0123456789"})
    [row] = reply.json["rows"]
    assert (row["route"], row["cost_ticks"], row["outcome"]) == ("models", 0, "complete")
    wait_for(lambda: len(client.application.extensions["gateway"].exchanges) == 0, "the end of the exchange")
