"""An answer that never lets its reader wait: other streams get their turn, counted in bytes, not in time."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from grokflask.errors import UpstreamProtocolError
from grokflask.upstream import stream as stream_module
from grokflask.upstream.connections import Attempt
from grokflask.upstream.parser import UNPACKED_BYTES, AnswerParser
from grokflask.upstream.sending import RECEIVE_BYTES
from grokflask.upstream.stream import TURN_BYTES, UpstreamStream


class Firehose:
    """A socket that always has more, up to the end of `pieces`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.reads = 0

    def settimeout(self, _timeout_s: float) -> None:
        pass

    def recv(self, _size: int) -> bytes:
        self.reads += 1
        return next(self._pieces, b"")


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each time that the stream has let others go on."""
    turns: list[None] = []
    monkeypatch.setattr(stream_module, "step_aside", lambda: turns.append(None))
    return turns


def open_stream(pieces: list[bytes], *lines: str) -> tuple[UpstreamStream, Firehose]:
    parser = AnswerParser()
    head = parser.feed_head("\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode())
    assert head is not None
    sock = Firehose(iter(pieces))
    raw = SimpleNamespace(sock=sock, parser=parser, received=b"", wait=None, close=lambda **_: None)
    response: Any = SimpleNamespace(raw=raw, status_code=200, headers={})
    return UpstreamStream(response, Attempt()), sock


def frame(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(frame(b"x" * 60_000), id="large-chunks"),
        pytest.param(frame(b"x") * 10_000, id="one-byte-chunks"),
        pytest.param(b"1;" + b"y" * 8000 + b"\r\nx\r\n", id="extensions"),
    ],
)
def test_a_firehose_steps_aside(turns: list[None], piece: bytes) -> None:
    """After every TURN_BYTES on the wire, whatever they are."""
    stream, _ = open_stream([piece] * 100, "Transfer-Encoding: chunked")
    for number in range(1, 101):
        assert stream.read(60)
        assert len(turns) >= number * len(piece) // (TURN_BYTES + RECEIVE_BYTES)


def test_a_body_that_unpacks_a_thousandfold_steps_aside(turns: list[None]) -> None:
    """It is given out in steps, and others go on after each of them; only then more is read."""
    size = 20 * 2**20
    stream, sock = open_stream([gzip.compress(b"data: x\n\n" * (size // 9))], "Content-Encoding: gzip")
    got = 0
    while got < size - 9:
        data = stream.read(60)
        assert data
        assert len(data) <= UNPACKED_BYTES
        got += len(data)
        assert len(turns) >= got // UNPACKED_BYTES - 1
    assert sock.reads == 1
    assert stream.read(60) == b""


def test_what_was_packed_comes_before_what_is_invalid_behind_it() -> None:
    """As with a body that is not packed."""
    size = 5 * UNPACKED_BYTES
    pieces = [frame(gzip.compress(b"x" * size)) + b"zz\r\n"]
    stream, _ = open_stream(pieces, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    got = 0
    with pytest.raises(UpstreamProtocolError):
        while data := stream.read(60):
            got += len(data)
    assert got == size


def test_a_body_that_unpacks_to_nothing_steps_aside(turns: list[None]) -> None:
    """Thousands of members without a byte are thousands of steps."""
    stream, _ = open_stream([gzip.compress(b"") * 3000 + gzip.compress(b"x")], "Content-Encoding: gzip")
    assert stream.read(60) == b"x"
    assert len(turns) >= 3000


def test_an_error_body_in_single_bytes() -> None:
    """It is collected whole, with one read for each piece."""
    stream, sock = open_stream([frame(b"x")] * 50_000 + [b"0\r\n\r\n"], "Transfer-Encoding: chunked")
    assert stream.read_what_comes(60, 10**6) == b"x" * 50_000
    assert sock.reads == 50_001
