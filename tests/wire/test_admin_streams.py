"""Open streams as an admin sees them on real workers, and how one of them is ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests
from support.processes import wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.stores import ADMIN, KeyedGateway

BODY: dict[str, Any] = {
    "model": "grok-4.3",
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
}


@pytest.fixture
def left(upstream: ScriptedUpstream) -> dict[str, threading.Event]:
    """Upstream sends two events and then nothing; by the user of a request: the gateway has left."""
    seen: dict[str, threading.Event] = {}

    def hold(exchange: Exchange) -> None:
        event = seen.setdefault(exchange.document["user"], threading.Event())
        if exchange.document["user"] != "silent":
            exchange.start()
            exchange.event(chat_chunk("Once"))
            exchange.event(chat_chunk(" upon"))
        if exchange.wait_until_left():
            event.set()

    upstream.handler = hold
    return seen


class Open:
    """A stream of which the first events have been read."""

    def __init__(self, gateway: KeyedGateway, key: dict[str, str], name: str) -> None:
        headers = {**key, "X-Request-ID": name}
        url = f"{gateway.url}/v1/chat/completions"
        self.reply = requests.post(url, json={**BODY, "user": name}, headers=headers, stream=True, timeout=60)
        assert self.reply.status_code == 200
        self._got = self.reply.raw.read1()

    def read_rest(self) -> str:
        return (self._got + self.reply.raw.read()).decode()


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test has open."""
    with ExitStack() as stack:
        yield stack


def find_streams(gateway: KeyedGateway) -> dict[str, dict[str, Any]]:
    """What any worker says is open, by request id."""
    reply = requests.get(f"{gateway.url}/admin/api/streams", headers=ADMIN, timeout=WAIT_S)
    assert reply.status_code == 200, reply.text
    assert reply.json()["complete"]
    return {stream["request_id"]: stream for stream in reply.json()["streams"]}


def stop(gateway: KeyedGateway, name: str) -> requests.Response:
    return requests.delete(f"{gateway.url}/admin/api/streams/{name}", headers=ADMIN, timeout=WAIT_S)


def test_a_stream_is_seen_and_ended(
    keyed: KeyedGateway, left: dict[str, threading.Event], opened: ExitStack
) -> None:
    """Its upstream call ends, its client is told and gets no `[DONE]`, the ledger says so, its place is free.

    It matters neither which worker has it nor which is asked. The other streams go on.
    """
    key = keyed.make_key("holder", streams=8)
    streams = {name: Open(keyed, key, name) for name in (f"s{number}" for number in range(8))}
    for stream in streams.values():
        opened.callback(stream.reply.close)
    wait_for(lambda: len(keyed.find_rows()) == 8, "all workers to know of all")
    assert len(find_streams(keyed)) == 8
    for name, shown in find_streams(keyed).items():
        assert (shown["key"], shown["model"]) == ("holder", "grok-4.3")
        assert shown["age_s"] >= 0
        assert shown["events"] in (None, 1, 2)
        assert (shown["bytes_out"] is None) == (shown["events"] is None), name
    begun = time.monotonic()
    for name in ("s1", "s2", "s3", "s4"):
        reply = stop(keyed, name)
        assert reply.status_code in (200, 202), reply.text
        document = reply.json()
        assert (document["stopped"], document["asked"]) == ((1, 0) if reply.status_code == 200 else (0, 1))
        told = streams[name].read_rest()
        assert "[DONE]" not in told
        error = json.loads(told.strip().splitlines()[-1].removeprefix("data: "))["error"]
        assert error["code"] == "stream_stopped"
        assert left[name].wait(WAIT_S)
    print(f"\n4 streams ended in {time.monotonic() - begun:.1f} s")
    wait_for(lambda: len(keyed.find_rows(outcome="shutdown")) == 4, "their rows")
    rows = {row["request_id"]: row for row in keyed.find_rows(outcome="shutdown")}
    assert {row["code"] for row in rows.values()} == {"stream_stopped"}
    assert {row["estimated"] for row in rows.values()} == {True}
    assert set(rows) == {"s1", "s2", "s3", "s4"}
    wait_for(lambda: keyed.show_usage(key)["remaining"]["streams"] == 4, "their places")
    assert not any(left[name].is_set() for name in ("s0", "s5", "s6", "s7"))
    wait_for(lambda: set(find_streams(keyed)) == {"s0", "s5", "s6", "s7"}, "them to be gone from the list")
    assert stop(keyed, "s1").status_code == 404


def test_a_stream_is_ended_before_its_first_byte(
    make_keyed: Callable[..., KeyedGateway], left: dict[str, threading.Event]
) -> None:
    """A client that still waits for the status gets it with the error, and SDKs are told not to repeat it."""
    gateway = make_keyed()
    key = gateway.make_key("waiter")
    replies: list[requests.Response] = []

    def ask() -> None:
        headers = {**key, "X-Request-ID": "silent"}
        url = f"{gateway.url}/v1/chat/completions"
        replies.append(requests.post(url, json={**BODY, "user": "silent"}, headers=headers, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: "silent" in find_streams(gateway) and "silent" in left, "the stream")
    shown = find_streams(gateway)["silent"]
    assert (shown["events"], shown["bytes_out"]) == (0, 0)
    assert stop(gateway, "silent").json()["stopped"] == 1
    thread.join()
    (reply,) = replies
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "stream_stopped")
    assert reply.headers["x-should-retry"] == "false"
    assert left["silent"].wait(WAIT_S)
    (row,) = gateway.wait_for_rows(1, key="waiter")
    assert (row["outcome"], row["status"], row["code"]) == ("shutdown", 503, "stream_stopped")
