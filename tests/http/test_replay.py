"""Idempotency-Key through Flask's test client: what counts, what is logged, what is ignored."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from flask.testing import FlaskClient
from support.processes import CLIENT_KEY
from support.scripted import ScriptedUpstream
from werkzeug.test import TestResponse

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def post(client: FlaskClient, name: str = "k1", path: str = "chat/completions", **more: Any) -> TestResponse:
    headers = {
        "Authorization": f"Bearer {CLIENT_KEY}",
        "Accept": "application/json",
        "Idempotency-Key": name,
        **more.pop("headers", {}),
    }
    return client.post(f"/api/v1/{path}", json={**BODY, **more}, headers=headers)


def test_a_replay_counts_as_a_request(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """It takes one of the key's requests, says so in its own headers, and is no second exchange."""
    first, second = post(client), post(client)
    assert first.data == second.data
    assert len(upstream.exchanges) == 1
    left = [int(reply.headers["X-RateLimit-Remaining"]) for reply in (first, second)]
    assert left[0] - left[1] == 1
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert second.headers["Idempotent-Replayed"] == "true"


def test_the_log(client: FlaskClient, logged: io.StringIO) -> None:
    """One line for each request: the exchange, what repeats it and names it, and what is turned away."""
    post(client, headers={"X-Request-ID": "one"})
    post(client, headers={"X-Request-ID": "two"})
    post(client, headers={"X-Request-ID": "three"}, temperature=1)
    lines = [line for line in logged.getvalue().splitlines() if "request_id=" in line]
    assert [line.split("msg=")[1].split()[0] for line in lines] == ["exchange", "replay", "replay"]
    assert "of=one" in lines[1]
    assert "outcome=complete" in lines[1]
    assert "outcome=idempotency_key_reused" in lines[2]


def test_the_same_picture_by_its_other_name(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Two paths of one route are one request; another route is another."""
    upstream.handler = lambda exchange: exchange.reply({"data": [{"url": "x"}]})
    assert post(client, path="images/generate", prompt="a cat").status_code == 200
    again = post(client, path="images/generations", prompt="a cat")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert post(client, prompt="a cat").status_code == 422
    assert len(upstream.exchanges) == 1


def test_turned_off(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """With no bytes to keep the header is ignored, however it looks."""
    client = make_client(GROKFLASK_REPLAY_BYTES="0")
    for name in ("k1", "k1", "x" * 999):
        reply = post(client, name, headers={"Last-Event-ID": "a-1"})
        assert reply.status_code == 200
        assert "Idempotent-Replayed" not in reply.headers
    assert len(upstream.exchanges) == 3


def test_a_get_is_no_matter(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Only a POST may be repeated so."""
    upstream.handler = lambda exchange: exchange.reply({"data": []})
    headers = {"Authorization": f"Bearer {CLIENT_KEY}", "Idempotency-Key": "k1"}
    for _ in range(2):
        reply = client.get("/api/v1/models", headers=headers)
        assert reply.status_code == 200
        assert "Idempotent-Replayed" not in reply.headers


def test_a_refusal_is_not_kept(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """What the gateway itself refuses, before upstream was asked, may be sent again at once."""
    client = make_client()
    assert post(client, messages=[]).status_code == 400
    assert post(client).status_code == 200
    assert len(upstream.exchanges) == 1
