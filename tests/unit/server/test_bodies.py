"""The readers of bodies, fed piece by piece, beside a reader that has everything at once."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from grokflask.server import bodies
from grokflask.server.bodies import (
    CALL_BYTES,
    LINE_BYTES,
    SKIP_BYTES,
    SURPLUS_BYTES,
    TRAILER_BYTES,
    TURN_BYTES,
    Body,
    ChunkedBody,
    LengthBody,
)
from grokflask.sockets import BrokenBodyError


class Connection:
    """A socket, and gunicorn's reader of it. Each piece is what one receive brings, unless it asks for less.

    Attributes:
        pieces: what will come. Behind them the connection has ended, or is silent if `open`.
        sent: what was sent to the client.
        turns: the bytes and calls of each turn.
    """

    def __init__(self, *pieces: bytes, buffered: bytes = b"", is_open: bool = False) -> None:
        self.pieces = list(pieces)
        self.buffered = buffered
        self.is_open = is_open
        self.sent = b""
        self.timeouts: list[float | None] = []
        self.turns = [[0, 0]]
        self.sock = self

    def settimeout(self, timeout_s: float | None) -> None:
        self.timeouts.append(timeout_s)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, most: int) -> bytes:
        if not self.pieces:
            if self.is_open:
                raise BlockingIOError
            return b""
        data = self.pieces.pop(0)
        if len(data) > most:
            self.pieces.insert(0, data[most:])
        turn = self.turns[-1]
        turn[0] += len(data[:most])
        turn[1] += 1
        return data[:most]

    def take_buffered(self) -> bytes:
        data, self.buffered = self.buffered, b""
        return data

    def unread(self, data: bytes) -> None:
        self.buffered = data + self.buffered

    @property
    def rest(self) -> bytes:
        """What a next request would find."""
        return self.buffered + b"".join(self.pieces)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Callable[[Connection], None]:
    """Notes the turns of a connection's reader."""

    def note(connection: Connection) -> None:
        monkeypatch.setattr(bodies, "step_aside", lambda: connection.turns.append([0, 0]))

    return note


def read_all(body: Body, size: int = 65536) -> bytes:
    """The body, by reads of `size`. Raises BrokenBodyError."""
    return b"".join(iter(lambda: body.read(size), b""))


def decode(wire: bytes) -> tuple[bytes, bytes] | None:
    """The body in chunks at the beginning of `wire`, and what is behind it; None if it is broken or cut."""
    body = b""
    while True:
        line, end, wire = wire.partition(b"\r\n")
        if not end or not re.fullmatch(rb"[0-9a-fA-F]{1,16}([ \t]*;[\t -~\x80-\xff]*)?", line):
            return None
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            break
        if wire[size : size + 2] != b"\r\n":
            return None
        body, wire = body + wire[:size], wire[size + 2 :]
    while not wire.startswith(b"\r\n"):
        line, end, wire = wire.partition(b"\r\n")
        if not end or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*", line):
            return None
        if line.lower().partition(b":")[0] in (b"host", b"content-length", b"te"):
            return None
    return body, wire[2:]


def get_chunked(*pieces: bytes, size: int = 65536) -> tuple[bytes, bytes] | None:
    """As `decode`, by ChunkedBody."""
    connection = Connection(*pieces)
    body = ChunkedBody(connection, None)
    try:
        got = read_all(body, size)
    except BrokenBodyError:
        assert not body.complete
        with pytest.raises(BrokenBodyError):  # as often as it is read
            body.read(1)
        return None
    assert body.complete
    assert body.read(1) == b""
    return got, connection.rest


NEXT = b"GET / HTTP/1.1\r\n\r\n"
CHUNKED = [
    b"5\r\nhello\r\n0\r\n\r\n" + NEXT,
    b"5;a=b;c\r\nhello\r\n00a\r\n 0123456\r\n\r\n0\r\n\r\n",
    b'5 \t; x="y z"\r\nhello\r\nA\r\n0123456789\r\n000\r\nX-Sum: 1\r\nDone:\r\n\r\n' + NEXT,
    b"0\r\n\r\n",
    b"0;last\r\nX: \xe4\t.\r\n\r\n" + NEXT,
    b"1\r\n\r\r\n1\r\n\n\r\n2\r\n\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("wire", CHUNKED)
def test_chunks_cut_anywhere(wire: bytes) -> None:
    """Whatever a receive brings, and however little is read at once."""
    expected = decode(wire)
    assert expected is not None
    for place in range(len(wire) + 1):
        assert get_chunked(*filter(None, (wire[:place], wire[place:]))) == expected
    pieces = [wire[place : place + 1] for place in range(len(wire))]
    for size in (1, 2, 7):
        assert get_chunked(*pieces, size=size) == expected
        assert get_chunked(wire, size=size) == expected


@pytest.mark.parametrize("wire", CHUNKED)
def test_chunks_that_end_early(wire: bytes) -> None:
    """Every beginning of a body is refused, and never taken for a shorter one."""
    end = len(wire.removesuffix(NEXT))
    for place in range(end):
        assert get_chunked(wire[:place]) is None, wire[:place]


BROKEN = [
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b"x\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b";a\r\nhello\r\n0\r\n\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"6\r\nhello\r\n0\r\n\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nhost: a\r\n\r\n",
    b"0\r\nTE: trailers\r\n\r\n",
    b"0\r\nNo colon\r\n\r\n",
    b"0\r\n: no name\r\n\r\n",
    b"0\r\nA name: x\r\n\r\n",
    b"0\r\nX: a\r\n folded\r\n\r\n",
    b"0\r\nX: \x00\r\n\r\n",
    b"0\r\nX: a\nY: b\r\n\r\n",
]


@pytest.mark.parametrize("wire", BROKEN)
def test_chunks_that_are_broken(wire: bytes) -> None:
    """Behind good ones, too, and however they come."""
    assert decode(wire) is None
    for start in (b"", b"3\r\nabc\r\n"):
        assert get_chunked(start + wire + NEXT) is None
        assert get_chunked(*[bytes([byte]) for byte in start + wire + NEXT]) is None


def write_chunks(random: random.Random) -> bytes:
    """Some body in chunks, with extensions and trailers."""
    wire = b""
    for _ in range(random.randrange(6)):
        data = bytes(random.choice(b"ab0\r\n;:") for _ in range(random.randrange(1, 40)))
        wire += b"%x%s\r\n%s\r\n" % (len(data), random.choice([b"", b";x", b" ; y=1"]), data)
    return wire + random.choice([b"0\r\n\r\n", b"0;z\r\nX: 1\r\nY: 2\r\n\r\n"]) + random.choice([b"", NEXT])


def test_any_chunks() -> None:
    """What a reader that has everything at once makes of them, or of ones with a byte changed."""
    numbers = random.Random(14)
    outcomes = set()
    for _ in range(3000):
        wire = bytearray(write_chunks(numbers))
        for _ in range(numbers.randrange(3)):
            wire[numbers.randrange(len(wire))] = numbers.choice(b"09afF\r\n;: x\x00")
        cuts = sorted(numbers.randrange(len(wire)) for _ in range(numbers.randrange(5)))
        pieces = [bytes(wire[a:b]) for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if a < b]
        expected = decode(bytes(wire))
        assert get_chunked(*pieces) == expected, (bytes(wire), cuts)
        outcomes.add(expected is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    "wire",
    [
        b"5;" + b"x" * LINE_BYTES,
        b"0" * LINE_BYTES,
        b"1;xxxxxxxxxx" + b"x" * 1000 + b"\r\na\r\n",
        b"0\r\nX: " + b"x" * TRAILER_BYTES,
        b"0\r\n" + b"X: 1\r\n" * TRAILER_BYTES,
    ],
)
def test_endless_framing(wire: bytes) -> None:
    """No line, no trailers and not all extensions together take more than their limit."""
    for size in (100, 10_000):
        connection = Connection(*[wire[at : at + size] for at in range(0, len(wire), size)] * 1000)
        with pytest.raises(BrokenBodyError, match="not valid HTTP"):
            read_all(ChunkedBody(connection, None))
        assert sum(turn[0] for turn in connection.turns) <= SURPLUS_BYTES * 2 + 10_000


def test_signed_chunks() -> None:
    """Extensions as some clients send them are far from the limit, however many there are."""
    chunk = b"400;chunk-signature=" + b"0" * 64 + b"\r\n" + b"x" * 1024 + b"\r\n"
    assert get_chunked(chunk * 1000 + b"0\r\n\r\n") == (b"x" * 1024_000, b"")


@pytest.mark.parametrize("length", [0, 1, 5, 70_000])
def test_a_length(length: int) -> None:
    """What is behind the body stays for the next request."""
    content = random.Random(length).randbytes(length)
    for cut in {0, 1, length // 2, length, length + 1}:
        wire = content + NEXT
        for connection in (
            Connection(*filter(None, [wire[:cut], wire[cut:]])),
            Connection(*filter(None, [wire[cut:]]), buffered=wire[:cut]),
        ):
            body = LengthBody(connection, length)
            assert body.complete is (length == 0)
            assert read_all(body, 1000) == content
            assert body.complete
            assert connection.rest == NEXT


def test_a_length_that_ends_early() -> None:
    """An error, as often as it is read."""
    body = LengthBody(Connection(b"hell"), 5)
    assert body.read(10) == b"hell"
    for _ in range(2):
        with pytest.raises(BrokenBodyError, match="ended early"):
            body.read(10)
    assert not body.complete


def test_other_ways_to_read() -> None:
    """All that WSGI asks for, with lines that chunks divide."""
    wire = b"3\r\none\r\n5\r\n\ntwo\n\r\n5\r\nthree\r\n0\r\n\r\n"
    assert ChunkedBody(Connection(wire), None).read() == b"one\ntwo\nthree"
    assert ChunkedBody(Connection(wire), None).readlines() == [b"one\n", b"two\n", b"three"]
    assert list(ChunkedBody(Connection(wire), None)) == [b"one\n", b"two\n", b"three"]
    assert ChunkedBody(Connection(wire), None).readline(2) == b"on"
    assert LengthBody(Connection(b"a\nb"), 3).readlines() == [b"a\n", b"b"]


def make_body(kind: str, size: int, piece: int) -> tuple[Body, Connection]:
    """A body of that size, of which each receive brings `piece` bytes."""
    wire = b"x" * size if kind == "length" else b"1\r\nx\r\n" * size + b"0\r\n\r\n"
    connection = Connection(*[wire[at : at + piece] for at in range(0, len(wire), piece)])
    return LengthBody(connection, size) if kind == "length" else ChunkedBody(connection, None), connection


@pytest.mark.parametrize("piece", [1, 1500, 2**20])
@pytest.mark.parametrize("kind", ["length", "tiny chunks"])
def test_others_run_meanwhile(turns: Callable[[Connection], None], kind: str, piece: int) -> None:
    """After TURN_BYTES, or as many calls as come to that, though there is always more."""
    body, connection = make_body(kind, 10_000 if piece == 1 else 2**20, piece)
    turns(connection)
    read_all(body)
    assert len(connection.turns) > 1
    assert max(size for size, _ in connection.turns) < (2 * TURN_BYTES if kind == "length" else TURN_BYTES)
    assert max(calls for _, calls in connection.turns) <= TURN_BYTES // CALL_BYTES


@pytest.mark.parametrize("kind", ["length", "tiny chunks"])
def test_cost_is_linear(kind: str) -> None:
    """A body that is ten times as large takes ten times as many steps."""

    def count(size: int) -> int:
        body, _ = make_body(kind, size, 1500)
        lines = 0

        def note(frame: FrameType, _event: str, _arg: Any) -> Any:
            nonlocal lines
            lines += frame.f_code.co_filename == bodies.__file__
            return note

        sys.settrace(note)
        try:
            read_all(body)
        finally:
            sys.settrace(None)
        return lines

    assert count(100_000) < 12 * count(10_000)


def test_nothing_waits_for_a_small_body(turns: Callable[[Connection], None]) -> None:
    """It takes one receive, and no turn of others."""
    for body, connection in (make_body("length", 2000, 2000), make_body("tiny chunks", 100, 2000)):
        turns(connection)
        read_all(body)
        assert len(connection.turns) == 1
        assert connection.turns[0][1] == 1


def test_continue_is_sent_when_it_is_needed() -> None:
    """By the first read that has to wait for the client, once."""
    connection = Connection(b"llo")
    body = LengthBody(connection, 5, expects_continue=True)
    connection.unread(b"he")
    assert body.read(2) == b"he"
    assert connection.sent == b""
    assert read_all(body) == b"llo"
    assert connection.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    refused = Connection(b"hello")
    assert not LengthBody(refused, 5, expects_continue=True).skip()
    assert (refused.sent, refused.pieces) == (b"", [b"hello"])


@pytest.mark.parametrize(
    ("make", "wire", "kept"),
    [
        (lambda c: LengthBody(c, 5), b"hello" + NEXT, True),
        (lambda c: LengthBody(c, 5), b"hell", False),
        (lambda c: LengthBody(c, SKIP_BYTES), b"x" * SKIP_BYTES + NEXT, True),
        (lambda c: LengthBody(c, 10**9), b"x" * 10**6, False),
        (lambda c: ChunkedBody(c, None), b"5\r\nhello\r\n0\r\n\r\n" + NEXT, True),
        (lambda c: ChunkedBody(c, None), b"5\r\nhello\r\n0\r\n", False),
        (lambda c: ChunkedBody(c, None), b"5\r\nhello!\r\n", False),
        (lambda c: ChunkedBody(c, None), b"f4240\r\n" + b"x" * 10**6 + b"\r\n0\r\n\r\n", False),
        (lambda c: ChunkedBody(c, None), b"1;" + b"x" * 1000 + b"\r\na\r\n" * 10**4, False),
    ],
)
def test_unread_bodies_are_skipped(make: Callable[[Any], Body], wire: bytes, kept: bool) -> None:
    """If all has arrived and it is not much; nothing waits for more."""
    connection = Connection(wire, is_open=True)
    body = make(connection)
    assert body.skip() is body.complete is kept
    assert connection.timeouts == [0.0, None]
    if kept:
        assert connection.rest == NEXT
    else:
        assert sum(turn[0] for turn in connection.turns) <= SKIP_BYTES + 2 * TURN_BYTES
