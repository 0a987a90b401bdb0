"""What an attacker of a gateway works with: a socket, and any bytes at any pace."""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from support.wire import CHAT

BLOCK = 64 * 1024
SHORT_S, LONG_S = 4.0, 8.0
"""How long an attack lasts that waits for nothing."""
ANSWER_S = 30.0
"""How long an attack waits for an answer."""

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d) ")


class Then:
    """Pieces of bytes, one after the other. It can be iterated again."""

    def __init__(self, *parts: bytes | Iterable[bytes]) -> None:
        self._parts = [[part] if isinstance(part, bytes) else part for part in parts]

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(self._parts)


def forever(piece: bytes) -> Iterable[bytes]:
    """The same bytes again and again, in blocks."""
    return itertools.repeat(piece * (BLOCK // len(piece) + 1))


@dataclass(frozen=True)
class Target:
    """The gateway, and the secrets that an attacker may have."""

    port: int
    key: str
    admin: str

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), ANSWER_S)

    def head(self, path: str = CHAT, *headers: str, method: str = "POST", token: str | None = None) -> bytes:
        """A request's head with the key, or with another token; none with ""."""
        token = self.key if token is None else token
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
        lines += [f"Authorization: Bearer {token}"] if token else []
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def get(self, path: str, *headers: str, token: str = "") -> bytes:
        return self.head(path, *headers, method="GET", token=token)

    def post(
        self, body: bytes | Iterable[bytes], *headers: str, size: int | None = None, **where: Any
    ) -> Iterable[bytes]:
        """A chat with that body, or a request to another path; `size` is what its head says."""
        size = len(body) if isinstance(body, bytes) and size is None else size
        lengths = ("Content-Type: application/json", f"Content-Length: {size}")
        return Then(self.head(where.pop("path", CHAT), *lengths, *headers, **where), body)

    def chunked(self, body: bytes | Iterable[bytes], **where: Any) -> Iterable[bytes]:
        """The same with a chunked body, whose bytes are `body`, framing and all."""
        lengths = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        return Then(self.head(where.pop("path", CHAT), *lengths, **where), body)


@dataclass(frozen=True)
class Attack:
    """One attack. What `make` returns is sent with `talk`, unless it is the text of what was seen already."""

    name: str
    expects: str  #: a pattern for all of what is seen
    make: Callable[[Target], bytes | str | Iterable[bytes]]
    seconds: float = ANSWER_S
    pause_s: float = 0.0
    reads: bool = True
    half_closes: bool = False

    def carry_out(self, target: Target) -> dict[str, Any]:
        """What happened, with monotonic times."""
        start = time.monotonic()
        try:
            made = self.make(target)
            options = (self.seconds, self.pause_s, self.reads, self.half_closes)
            saw = made if isinstance(made, str) else talk(target, made, *options)
        except OSError as error:
            saw = type(error).__name__
        fine = re.fullmatch(self.expects, saw) is not None
        times = {"start": start, "end": time.monotonic()}
        return {"name": self.name, "fine": fine, "saw": saw, "expects": self.expects, **times}


def talk(
    target: Target,
    pieces: bytes | Iterable[bytes],
    seconds: float = ANSWER_S,
    pause_s: float = 0.0,
    reads: bool = True,
    half_closes: bool = False,
) -> str:
    """Sends and reads on one connection until the answer is whole, the gateway closes, or time is over.

    Returns the status (`none` without one) and whether the connection was `closed` or still `open`. If it
    half-closes behind the last piece, or the answer says `Connection: close`, it waits for the end.
    """
    waiting = iter([pieces] if isinstance(pieces, bytes) else pieces)
    end = time.monotonic() + seconds
    left: memoryview | None = memoryview(b"")  # of the piece being sent; None behind the last one
    got, closed, next_at = b"", False, 0.0
    with target.connect() as sock:
        sock.setblocking(False)
        while not closed and (now := time.monotonic()) < end:
            if left is not None and not left and now >= next_at:
                piece = next(waiting, None)
                left, next_at = None if piece is None else memoryview(piece), now + pause_s
                if left is None and half_closes:
                    sock.shutdown(socket.SHUT_WR)
            if left is None and not half_closes and _is_whole(got):
                break
            readable, writable, _ = select.select([sock] * reads, [sock] * bool(left), [], 0.05)
            try:
                if readable:
                    data = sock.recv(BLOCK)
                    got, closed = _add(got, data), not data
                if left and writable:
                    left = left[sock.send(left[:BLOCK]) :]
            except BlockingIOError:
                pass
            except OSError:
                closed = True
                with contextlib.suppress(OSError):  # an answer may be there all the same
                    got = _add(got, sock.recv(BLOCK))
        if not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    status = _STATUS.search(got)
    return f"{status[1].decode() if status else 'none'} {'closed' if closed else 'open'}"


def ask_many(target: Target, requests: Iterable[bytes]) -> str:
    """The different statuses of requests over a connection each, in order of their first appearance."""
    return ",".join(dict.fromkeys(talk(target, request).split()[0] for request in requests))


def _add(got: bytes, data: bytes) -> bytes:
    """What is kept of an answer: its beginning and its end."""
    got += data
    return got if len(got) < 3 * BLOCK else got[:BLOCK] + got[-BLOCK:]


def _is_whole(got: bytes) -> bool:
    """A whole answer is there, and the connection stays open."""
    while got.startswith(b"HTTP/1.1 1"):
        got = got.partition(b"\r\n\r\n")[2]
    head, end, body = got.partition(b"\r\n\r\n")
    if not end or b"connection: close" in head.lower():
        return False
    length = LENGTH.search(head)
    return len(body) >= int(length[1]) if length else got.endswith(b"0\r\n\r\n")
