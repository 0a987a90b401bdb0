"""What a request and an event cost, counted in calls: a guard that no machine's speed can sway.

Each bound is what was counted when it was set, with a tenth for other versions of Python. When a test here
fails, the way of a request or of an event has grown: find out by what, and whether it is worth it.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any, Self

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY
from werkzeug.test import EnvironBuilder

from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.delivery.meter import LOOK_BYTES
from grokflask.delivery.relay import Relay
from grokflask.delivery.terms import Terms
from grokflask.protocol.usage import Settlement
from grokflask.upstream.client import UpstreamClient
from grokflask.upstream.connections import Attempt
from grokflask.upstream.parser import AnswerParser
from grokflask.upstream.stream import TURN_BYTES, UpstreamStream

ROUNDS = 20

EVENT = (
    b'data: {"id":"b1f3e0a2","object":"chat.completion.chunk","created":1780000000,"model":"grok-4.3",'
    b'"choices":[{"index":0,"delta":{"content":" upon"}}],"system_fingerprint":"fp_0123456789"}\n\n'
)
USAGE = b'{"prompt_tokens":12,"completion_tokens":64,"total_tokens":76,"cost_in_usd_ticks":8750}'
LAST = b'data: {"id":"b1f3e0a2","model":"grok-4.3","choices":[],"usage":' + USAGE + b"}\n\ndata: [DONE]\n\n"
REPLY = b'{"id":"b1f3e0a2","model":"grok-4.3","choices":[{"message":{"content":"x"}}],"usage":' + USAGE + b"}"


def count_calls(action: Callable[[], object]) -> int:
    """Calls of functions, in Python and in C, that `action` makes in this thread."""
    number = 0

    def note(_frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return number


class CountingSocket:
    """A socket of upstream's side that has everything ready; each call of it would be one to the system."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.calls = 0

    def settimeout(self, _timeout_s: float) -> None:
        """Costs no call to the system under gevent, and none worth naming elsewhere."""

    def recv(self, _size: int) -> bytes:
        self.calls += 1
        return self.pieces.pop(0)


def frame(*datas: bytes) -> bytes:
    """Chunks as an upstream sends them, one an event."""
    return b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in datas)


def relay(pieces: list[bytes]) -> tuple[list[bytes], CountingSocket, int]:
    """What a client gets of a stream that comes in `pieces`, and the calls that it took."""
    sock = CountingSocket([*pieces, frame(LAST) + b"0\r\n\r\n"])
    parser = AnswerParser()
    parser.feed_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = SimpleNamespace(sock=sock, parser=parser, received=b"", wait=None, close=lambda **_: None)
    response: Any = SimpleNamespace(
        raw=answer, status_code=200, headers={"content-type": "text/event-stream"}
    )
    stream = UpstreamStream(response, Attempt())
    call: Any = SimpleNamespace(cancelled=None, wait=lambda _s: stream, cancel=lambda _reason: None)
    settled: list[Settlement] = []
    relay = Relay(
        call,
        Terms(False, False, heartbeat_s=15, first_event_timeout_s=60, idle_timeout_s=60, total_timeout_s=600),
        Departure(ClientWatcher(), None, lambda _: None, total_s=600, drains=threading.Semaphore(1)),
        lambda _: None,
        settled.append,
        started_at=0.0,
        clock=lambda: 0.0,
    )
    relay.wait_for_answer(1)
    out: list[bytes] = []
    calls = count_calls(lambda: out.extend(relay))
    relay.close()
    assert settled[0].outcome.value == "complete"
    return out, sock, calls


def test_an_event_by_itself() -> None:
    """An event that comes alone is one read, one write and few calls."""
    few, _, few_calls = relay([frame(EVENT)] * 100)
    many, sock, many_calls = relay([frame(EVENT)] * 1100)
    assert many[:1100] == [EVENT] * 1100
    assert (len(many) - len(few), sock.calls) == (1000, 1101)
    assert (many_calls - few_calls) / 1000 <= 36


def test_events_that_come_together() -> None:
    """They go out together, and no call is made for any of them."""
    _, _, few_calls = relay([frame(*[EVENT] * 100)])
    many, _, many_calls = relay([frame(*[EVENT] * 1100)])
    assert many[0] == EVENT * 1100
    assert many_calls - few_calls < 10


def test_events_that_come_in_one_chunk() -> None:
    """Where upstream frames them together a hundred cost what ten do, but for stepping aside at times."""
    _, _, few_calls = relay([frame(EVENT * 10)] * 10)
    _, _, many_calls = relay([frame(EVENT * 100)] * 10)
    # The meter looks at a few events of every 32 kB.
    assert (
        many_calls <= few_calls + 2 * len(EVENT * 1000) // TURN_BYTES + 12 * len(EVENT * 1000) // LOOK_BYTES
    )


@pytest.mark.parametrize(("stream", "bound"), [(False, 1250), (True, 1420)])
def test_a_request(client: FlaskClient, monkeypatch: pytest.MonkeyPatch, stream: bool, bound: int) -> None:
    """From the WSGI server's call to the settled row, without gunicorn and the way to upstream."""
    pieces = [EVENT * 7 + LAST] if stream else [REPLY]
    media_type = "text/event-stream" if stream else "application/json"

    def call(*_: Any, **__: Any) -> ReadyCall:
        return ReadyCall(ReadyStream(list(pieces), media_type))

    monkeypatch.setattr(UpstreamClient, "call", call)
    body = b'{"model":"grok-4.3","messages":[{"role":"user","content":"hello"}],"stream":%s}'
    app: Any = client.application

    def ask() -> None:
        builder = EnvironBuilder(
            "/api/v1/chat/completions",
            method="POST",
            headers={"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"},
            data=body % (b"true" if stream else b"false"),
        )
        environs.append(builder.get_environ())

    def serve() -> None:
        for environ in environs:
            chunks = app.wsgi_app(environ, lambda *_: None)
            replies.append(b"".join(chunks))
            chunks.close()

    environs: list[Any] = []
    replies: list[bytes] = []

    def prepare() -> None:
        environs.clear()
        replies.clear()
        for _ in range(ROUNDS):
            ask()

    prepare()
    serve()  # what is made at the first use is made by now
    prepare()
    calls = count_calls(serve)
    assert replies == [EVENT * 7 + b"data: [DONE]\n\n" if stream else REPLY] * ROUNDS
    assert calls / ROUNDS <= bound

    # What only the collector takes away costs memory until it runs. Other threads may leave some.
    prepare()
    gc.collect()
    gc.disable()
    try:
        serve()
        assert gc.collect() < 4 * ROUNDS
    finally:
        gc.enable()


class ReadyCall:
    """A call that has been answered."""

    cancelled = None
    reached = "answered"

    def __init__(self, stream: ReadyStream) -> None:
        self._stream = stream

    def wait(self, _timeout_s: float) -> ReadyStream:
        return self._stream

    def cancel(self, _reason: Exception) -> None:
        pass


class ReadyStream:
    """An answer that has come."""

    status = 200
    retried = False

    def __init__(self, pieces: list[bytes], media_type: str) -> None:
        self.headers: dict[str, str] = {}
        self.media_type = media_type
        self._pieces = pieces

    def read(self, _timeout_s: float) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        pass

    finish = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
