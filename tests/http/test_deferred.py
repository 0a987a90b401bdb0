"""Deferred chats: asked for now, fetched later by the key that asked, and paid once."""

from __future__ import annotations

from typing import Any

import pytest
from support.kept import Door, door

__all__ = ["door"]

MESSAGES = [{"role": "user", "content": "Tell me a story about a whale"}]
CHAT = {"model": "grok-4.3", "messages": MESSAGES}


def ask(door: Door, key: dict[str, str] | None = None, **extra: Any) -> str:
    """Asks for a deferred answer; its id."""
    reply = door.call("POST", "chat/completions", key, json={**CHAT, "deferred": True, **extra})
    assert (reply.status_code, list(reply.json)) == (200, ["request_id"])
    id: str = reply.json["request_id"]
    return id


def fetch(door: Door, id: str, key: dict[str, str] | None = None) -> Any:
    return door.call("GET", f"chat/deferred-completion/{id}", key)


def test_asked_and_fetched(door: Door) -> None:
    """Pending it is a 202 without a body, then the answer, then no more."""
    id = ask(door)
    pending = fetch(door, id)
    assert (pending.status_code, pending.data, pending.content_type) == (202, b"", None)
    done = fetch(door, id)
    assert done.status_code == 200
    assert done.json["choices"][0]["message"]["content"]
    assert fetch(door, id).status_code == 404


def test_it_is_paid_when_it_is_fetched(door: Door) -> None:
    """Its cost stands in the row of the fetch that brought it, to the tick, and nowhere else."""
    id = ask(door)
    for _ in range(3):
        fetch(door, id)
    rows = door.list_rows()
    assert [(row["route"], row["status"]) for row in rows] == [
        ("chat", 200),
        ("deferred", 202),
        ("deferred", 200),
        ("deferred", 404),
    ]
    [charge] = door.find_charges(1)
    assert [row["cost_ticks"] for row in rows] == [0, 0, charge.cost_ticks, 0]
    assert not any(row["estimated"] for row in rows)
    assert rows[2]["prompt_tokens"] == charge.prompt_tokens
    assert rows[2]["model_served"] == "grok-4.3"


def test_paid_once_though_told_twice(door: Door) -> None:
    """Should upstream give the same answer out again, it is not booked again."""
    id = ask(door)
    fetch(door, id)
    shelf = door.sandbox.kept.deferred
    job = shelf.find(id)
    for _ in range(2):
        assert fetch(door, id).status_code == 200
        shelf.add(id, job)
    paid = [row["cost_ticks"] for row in door.list_rows(outcome="complete") if row["cost_ticks"]]
    assert paid == [door.find_charges(1)[0].cost_ticks]


def test_nobody_elses(door: Door) -> None:
    """Another key gets what it would get for an id that there never was, before and after."""
    id = ask(door)
    unknown = fetch(door, "0b5f3c1e-0000-4000-8000-000000000000", door.bob)
    for _ in range(2):
        refused = fetch(door, id, door.bob)
        assert (refused.status_code, refused.json) == (404, unknown.json)
    assert fetch(door, id).status_code == 202
    assert fetch(door, id).status_code == 200
    assert fetch(door, id, door.bob).status_code == 404
    assert not [row for row in door.list_rows() if row["key"] == "bob"]


@pytest.mark.parametrize("stream", [False, True])
def test_deferred_is_not_streamed(door: Door, stream: bool) -> None:
    """There is nothing yet to stream: it is answered whole, and says so."""
    reply = door.call(
        "POST", "chat/completions", json={**CHAT, "deferred": True, "stream": stream, "stream_options": {}}
    )
    assert list(reply.json) == ["request_id"]
    assert reply.headers.get("X-Stream-Fallback") == ("deferred" if stream else None)


def test_deferred_false_is_a_chat(door: Door) -> None:
    """And costs what a chat costs, at once."""
    reply = door.call("POST", "chat/completions", json={**CHAT, "deferred": False})
    assert reply.json["choices"]
    [row] = door.list_rows()
    assert row["cost_ticks"] == door.find_charges(1)[0].cost_ticks


@pytest.mark.parametrize("id", ["..", "%2e%2e", "a%2Fb", "a%3Fb", "a;b", "x" * 201, "a%20b", "%00", "é"])
def test_an_id_that_steers(door: Door, id: str) -> None:
    """It leads nowhere, and upstream is not asked."""
    assert fetch(door, id).status_code in (404, 405)
    assert not door.list_rows()


def test_a_budget_holds(door: Door) -> None:
    """A deferred chat is refused when its budget is spent, and counts once it has been fetched."""
    cyd = door.make_key("cyd", budget_day_ticks=10**9)
    id = ask(door, cyd)
    for _ in range(2):
        fetch(door, id, cyd)
    spent = door.call("GET", "usage", cyd).json["spent"]["day_ticks"]
    assert spent == door.find_charges(1)[0].cost_ticks
    broke = door.make_key("broke", budget_day_ticks=1)
    refused = door.call("POST", "chat/completions", broke, json={**CHAT, "deferred": True})
    assert refused.json["error"]["code"] == "insufficient_quota"


def test_without_the_database(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent upstream whose answer could not be kept apart, and nothing is shown."""
    id = ask(door)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(door.app.extensions["database"], "_open", fail)
    door.app.extensions["keys"]._cache._store.count_changes = lambda: 0
    assert door.call("POST", "chat/completions", json=CHAT).status_code == 200  # ann is remembered
    door.app.extensions["ownership"]._known.clear()  # as in a worker that was not asked
    noted = len(door.sandbox.journal.wait_until_idle())
    refused = door.call("POST", "chat/completions", json={**CHAT, "deferred": True})
    assert refused.status_code == 503
    assert fetch(door, id).status_code == 503
    assert len(door.sandbox.journal.wait_until_idle()) == noted


def test_tokens_of_a_text(door: Door) -> None:
    """`/tokenize-text` is relayed, costs nothing, and keeps to the key's models."""
    text = {"model": "grok-4.3", "text": "Once upon a time"}
    reply = door.call("POST", "tokenize-text", json=text)
    assert "".join(token["string_token"] for token in reply.json["token_ids"]) == text["text"]
    assert door.call("POST", "tokenize-text", json={"text": "x"}).status_code == 422
    narrow = door.make_key("narrow", models=("grok-4.7",))
    assert door.call("POST", "tokenize-text", narrow, json=text).json["error"]["code"] == "model_not_allowed"
    assert [row["cost_ticks"] for row in door.list_rows()] == [0, 0]
