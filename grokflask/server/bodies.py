"""Request bodies, read off the connection in place of gunicorn's own readers.

gunicorn's readers copy all that they hold with each read, and do not limit extensions of chunks and trailers.
While there is something to read, no other greenlet runs. The readers here take linear time, have limits, and
let others run after TURN_BYTES.
"""

from __future__ import annotations

import io
import re
import time
from contextlib import suppress
from socket import SHUT_WR
from typing import Any, NoReturn

import gevent

from grokflask.runtime import step_aside
from grokflask.sockets import BrokenBodyError, shut_down

TURN_BYTES, CALL_BYTES, CHUNK_BYTES = 32 * 1024, 1024, 32
"""The work that is done before other greenlets run, which is 2 ms at most, and what each call to receive and
each chunk count as, besides their bytes."""
FRAMING_BYTES = 8192
"""The most that is received at once where it may be chunks of one byte."""
SKIP_BYTES = 64 * 1024
"""How much of an unread body may be discarded to keep its connection."""
LINE_BYTES, SURPLUS_BYTES, TRAILER_BYTES = 4096, 16 * 1024, 8192
"""The limits for a line with a chunk's size and extensions, for what all such lines take beyond 16 bytes each
and twice the body, and for the trailer section."""
LINGER_S, LINGER_GAP_S, LINGER_BYTES = 30.0, 5.0, 256 * 2**20
"""Limits for discarding what a client sends after its last answer: in all, between two reads, in bytes."""
LINGER_READ_BYTES, LINGER_PAUSE_S = 64 * 1024, 0.001
"""What is read at once then, and the pause after it: a fast client takes a few percent of the processor."""

# The end of the last chunk, then the size of the next and its extensions (RFC 9112, section 7.1).
_SIZE_LINE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")
_TRAILER = re.compile(rb"([!#-'*+.^_`|~0-9A-Za-z-]+):[^\x00-\x08\x0a-\x1f\x7f]*")
# Fields that frame, route or authenticate a message must not come behind it (RFC 9110, section 6.5.1).
_FORBIDDEN = frozenset(b"authorization content-length host te trailer transfer-encoding".split())


class Body(io.RawIOBase):
    """One request's body, as `wsgi.input`. `io.RawIOBase` makes all ways to read from `readinto`.

    A read may return less than was asked for; b"" is the end of the body. It raises BrokenBodyError for a
    body that ends early or breaks the rules of HTTP, and OSError when the connection fails.

    Args:
        unreader: gunicorn's reader of the connection, which has what came with the head.
        length: its bytes; None if only its chunks tell.
        expects_continue: the client waits for `100 Continue`, which the first read sends.

    Attributes:
        complete: all of the body has been received, so a next request may follow.
    """

    _turn_bytes = 0

    def __init__(self, unreader: Any, length: int | None, *, expects_continue: bool = False) -> None:
        self.complete = length == 0
        self._unreader = unreader
        self._left = length or 0  # of the body, or of the current chunk
        self._expects_continue = expects_continue

    def readable(self) -> bool:
        """True."""
        return True

    def skip(self) -> bool:
        """Discards up to SKIP_BYTES of what has already arrived. Returns `complete`."""
        if self._expects_continue:
            return False  # the client may send the body or not
        left, scratch, sock = SKIP_BYTES, bytearray(TURN_BYTES), self._unreader.sock
        sock.settimeout(0.0)
        try:
            while left > 0 and (size := self.readinto(scratch)):
                left -= size
        except (OSError, BrokenBodyError):
            pass
        finally:
            sock.settimeout(None)
        return self.complete

    def _receive(self, most: int) -> bytes:
        """What comes next on the connection, at most `most` bytes."""
        data: bytes = self._unreader.take_buffered()
        if data:
            if len(data) > most:
                self._unreader.unread(data[most:])
            return data[:most]
        sock = self._unreader.sock
        if self._expects_continue:
            self._expects_continue = False
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._turn_bytes >= TURN_BYTES:
            self._turn_bytes = 0
            step_aside()
        data = sock.recv(most)
        if not data:
            raise BrokenBodyError("The request's body ended early.")
        self._turn_bytes += len(data) + CALL_BYTES
        return data


class LengthBody(Body):
    """A body whose length the head has."""

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` with what comes next, and returns its size; 0 at the end."""
        if not self._left:
            return 0
        data = self._receive(min(len(buffer), self._left, TURN_BYTES))
        size = len(data)
        buffer[:size] = data
        self._left -= size
        self.complete = not self._left
        return size


class ChunkedBody(Body):
    """A body in chunks. Extensions and trailers are checked and dropped."""

    _ready = memoryview(b"")
    _kept = b"\r\n"  # the beginning of what is not complete; before each size there is a line's end
    _surplus = 0
    _in_trailers = False
    _problem = ""

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` with what comes next, and returns its size; 0 at the end."""
        while not self._ready and not self.complete:
            if self._problem:
                self._fail(self._problem)
            # Inside of a large chunk more can be taken at once than where many small ones may come.
            most = min(max(self._left, FRAMING_BYTES), TURN_BYTES)
            self._ready = memoryview(self._decode(self._receive(most)))
        data = self._ready[: len(buffer)]
        self._ready = self._ready[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def _decode(self, data: bytes) -> bytes:
        """The bytes of the body in `data`."""
        parts: list[bytes] = []
        data, self._kept, place, left = self._kept + data, b"", 0, self._left
        while not self._in_trailers:
            end = place + left
            if left:
                parts.append(data[place:end])
            left = max(0, end - len(data))
            if left:
                break
            found = _SIZE_LINE.match(data, end)
            if found is None:
                self._kept = line = data[end:]
                if len(line) > LINE_BYTES or b"\r\n" in line[2:] or not b"\r\n".startswith(line[:2]):
                    self._fail("the size of a chunk is wrong")
                break
            place, left = found.end(), int(found[1], 16)
            self._surplus = max(0, self._surplus + place - end - 20 - 2 * left)
            if self._surplus > SURPLUS_BYTES or place - end > LINE_BYTES:
                self._fail("the extensions of its chunks are too long")
            self._in_trailers = not left
        self._left = left
        self._turn_bytes += CHUNK_BYTES * len(parts)
        if self._in_trailers:
            self._read_trailers(data[place:])
        return b"".join(parts)

    def _read_trailers(self, data: bytes) -> None:
        """Ends the body, if `data` has all of the trailer section."""
        # The line of the last size ends in front of it, so that an empty section looks like others.
        end = (b"\r\n" + data[: TRAILER_BYTES + 4]).find(b"\r\n\r\n")
        if end < 0:
            if len(data) > TRAILER_BYTES:
                self._fail("its trailers are too long")
            self._kept = data
            return
        for line in data[: end - 2].split(b"\r\n") if end else ():
            field = _TRAILER.fullmatch(line)
            if field is None or field[1].lower() in _FORBIDDEN:
                self._fail("it has a wrong or forbidden trailer")
        self.complete = True
        self._unreader.unread(data[end + 2 :])

    def _fail(self, problem: str) -> NoReturn:
        self._problem = problem
        raise BrokenBodyError(f"The request's body is not valid HTTP: {problem}.")


def linger(sock: Any) -> None:
    """Discards what the client still sends, so that it can read its answer. The caller closes the socket.

    If bytes are unread when a connection closes, or come later, the kernel resets it, and the client loses
    what it has not read yet. nginx calls this a lingering close.
    """
    shut_down(sock, SHUT_WR)
    left, ends_at = LINGER_BYTES, time.monotonic() + LINGER_S
    with suppress(OSError):  # a timeout is one, too
        while left > 0 and (left_s := ends_at - time.monotonic()) > 0:
            sock.settimeout(min(left_s, LINGER_GAP_S))
            size = len(sock.recv(LINGER_READ_BYTES))
            if not size:
                return
            left -= size
            gevent.sleep(LINGER_PAUSE_S)
