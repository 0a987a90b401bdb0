"""GET /diagnose/stream: who gets it, what it sends, and how many at once."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY
from support.stores import ADMIN, ADMIN_TOKEN

from grokflask.web import diagnose
from grokflask.web.attempts import LIMITS

ALICE = {"Authorization": f"Bearer {CLIENT_KEY}"}
PATH = diagnose.PATH


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent between two events is of no interest here."""
    monkeypatch.setattr(diagnose, "INTERVAL_S", 0.001)


def test_events(client: FlaskClient) -> None:
    """Numbered events with their send times, the first with what has arrived of the request, then [DONE]."""
    headers = {
        **ALICE,
        "X-Request-ID": "r1",
        "X-Forwarded-For": "1.2.3.4, 5.6.7.8",
        "X-Forwarded-Proto": "https",
    }
    reply = client.get(PATH, headers=headers, buffered=True)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in reply.headers
    *blocks, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert [event["number"] for event in events] == list(range(1, diagnose.EVENTS + 1))
    sent = [event["sent_ms"] for event in events]
    assert sent == sorted(sent)
    assert events[0] == {
        "number": 1,
        "of": 5,
        "sent_ms": sent[0],
        "request_id": "r1",
        "scheme": "http",
        "forwarded_for": 2,
        "forwarded_proto": "https",
        "trusted_proxies": 0,
        "heartbeat_s": 15.0,
    }
    assert "1.2.3.4" not in reply.text


def test_who_gets_it(make_client: Callable[..., FlaskClient]) -> None:
    """Holders of a key and of the admin's token; where anybody may chat, anybody."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong-key-12345"}, {"Authorization": "Basic x"}):
        refused = client.get(PATH, headers=headers)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert refused.json is not None
    for headers in (ADMIN, ALICE):
        assert client.get(PATH, headers=headers, buffered=True).status_code == 200
    anybody = make_client(GROKFLASK_AUTH="open", GROKFLASK_KEYS="")
    assert anybody.get(PATH, buffered=True).status_code == 200
    assert client.post(PATH, headers=ALICE).status_code == 405


@pytest.mark.usefixtures("standing_windows")
def test_wrong_ones_are_counted_as_keys(make_client: Callable[..., FlaskClient]) -> None:
    """They end with a 429; a key and the admin token go on."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    most = LIMITS["API key"][0].amount
    guesses = [{"Authorization": f"Bearer wrong-token-{number:016}"} for number in range(most + 1)]
    assert [client.get(PATH, headers=each).status_code for each in guesses] == [401] * most + [429]
    for headers in (ALICE, ADMIN):
        assert client.get(PATH, headers=headers, buffered=True).status_code == 200


def test_few_at_once(client: FlaskClient) -> None:
    """One more than MAX_OPEN is a 429 with its wait; each ending gives its place back, once."""
    for _ in range(2):
        replies = [client.get(PATH, headers=ALICE, buffered=False) for _ in range(diagnose.MAX_OPEN)]
        assert {reply.status_code for reply in replies} == {200}
        refused = client.get(PATH, headers=ALICE)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "3")
        next(iter(replies[0].response))
        for reply in replies:
            reply.close()
            reply.close()
    for _ in range(diagnose.MAX_OPEN + 1):
        with client.head(PATH, headers=ALICE) as reply:
            assert reply.status_code == 200
    assert client.get(PATH, headers=ALICE, buffered=True).status_code == 200


def test_not_while_it_drains(client: FlaskClient) -> None:
    """A process that is about to end begins no diagnosis."""
    client.application.extensions["gateway"].exchanges.drain(5)
    assert client.get(PATH, headers=ALICE).status_code == 503


@pytest.mark.parametrize("silence", ["-1", "121", "nan", "inf", "soon", ""])
def test_how_long_a_silence(client: FlaskClient, silence: str) -> None:
    """Two minutes at the most."""
    refused = client.get(PATH, query_string={"silence_s": silence}, headers=ALICE)
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "silence_s")


def test_a_silence(make_client: Callable[..., FlaskClient]) -> None:
    """Two events, and between them heartbeats alone, as in any stream."""
    client = make_client(GROKFLASK_HEARTBEAT_S="1")
    body = client.get(f"{PATH}?silence_s=1.5", headers=ALICE, buffered=True).text
    assert body.count(diagnose.HEARTBEAT.decode()) == 1
    assert body.count("data: {") == 2
    assert body.endswith("data: [DONE]\n\n")


def test_a_silence_ends_with_the_process(make_client: Callable[..., FlaskClient]) -> None:
    """Within a heartbeat of the announcement, and without [DONE]."""
    client = make_client(GROKFLASK_HEARTBEAT_S="1")
    reply = client.get(f"{PATH}?silence_s=100", headers=ALICE)
    pieces = iter(reply.response)
    assert b"data: {" in next(pieces)
    client.application.extensions["gateway"].exchanges.draining = True
    assert list(pieces) == []
    reply.close()
