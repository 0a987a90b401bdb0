"""Steps: what is done to a connection while an answer is sent, and the wire that does it.

A stream is an iterator of steps, so a fault is a function from steps to steps. The wire owns the pace,
chunked transfer coding, and the ways to break off.
"""

import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

_SLICE_S = 0.05  # a pause checks at this interval whether the client is still connected


class Head(NamedTuple):
    """Write the status line and the headers; a body without a `length` in bytes is chunked if possible."""

    status: int
    headers: Mapping[str, str]
    length: int | None = None


class Event(NamedTuple):
    """Send the bytes of `events` SSE events, after the pace's pause; `done` if that ends the answer.

    With 0 events the bytes complete none, and are sent without a pause.
    """

    data: bytes
    tokens: int = 0
    usage: dict[str, Any] | None = None
    events: int = 1
    done: bool = False


class Pause(NamedTuple):
    """Send nothing for some seconds."""

    seconds: float


class Cut(NamedTuple):
    """Close the connection before the body's end; with an RST, or in order (FIN).

    The connection's owner closes it afterwards; an RST is sent only then.
    """

    reset: bool


Step = Head | Event | Pause | Cut


@dataclass
class Progress:
    """What was sent: the status, whole events, their tokens, the last usage, the end."""

    status: int = 0
    events: int = 0
    tokens: int = 0
    usage: dict[str, Any] | None = None
    done: bool = False


class ClientLeftError(Exception):
    """The client closed its side, or a write timed out because it did not read."""


@dataclass
class Wire:
    """The sending side of one connection. `open` is False once it was cut; HTTP/1.0 gets no chunks."""

    connection: socket.socket
    may_chunk: bool = True
    open: bool = True
    extra_headers: dict[str, str] = field(default_factory=dict)
    _chunked: bool = False

    def _send(self, data: bytes) -> None:
        try:
            self.connection.sendall(data)
        except OSError:
            raise ClientLeftError from None

    def _send_head(self, head: Head) -> None:
        self._chunked = head.length is None and self.may_chunk
        headers = {**head.headers, **self.extra_headers}
        if self._chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif head.length is not None:
            headers["Content-Length"] = str(head.length)
        lines = [f"HTTP/1.1 {head.status} {HTTPStatus(head.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._send("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    def _pause(self, seconds: float) -> None:
        """Wait; raises ClientLeftError soon after the client has left."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
            self._check_client()

    def play(self, steps: Iterable[Step], progress: Progress, pause_s: float = 0.0) -> None:
        """Do an answer's steps in order, with `pause_s` before each event but the first; stops at a cut.

        Raises ClientLeftError.
        """
        for step in steps:
            if isinstance(step, Pause):
                self._pause(step.seconds)
            elif isinstance(step, Head):
                self._send_head(step)
                progress.status = step.status
            elif isinstance(step, Cut):
                self.open = False
                if step.reset:  # linger for 0 s: closing then discards and resets (socket(7), SO_LINGER)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                if step.events and progress.events:
                    self._pause(pause_s)
                if step.data:  # in one call, so that it travels in one segment where it fits
                    chunk = b"%x\r\n%b\r\n" % (len(step.data), step.data)
                    self._send(chunk if self._chunked else step.data)
                progress.events += step.events
                progress.tokens += step.tokens
                progress.usage = step.usage or progress.usage
                progress.done = progress.done or step.done
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def _check_client(self) -> None:
        """Look for the client's FIN or RST without reading bytes of a next request."""
        before = self.connection.gettimeout()
        try:
            self.connection.settimeout(0)
            if self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise ClientLeftError
        except BlockingIOError:
            pass
        except OSError:
            raise ClientLeftError from None
        finally:
            self.connection.settimeout(before)


def reply_whole(status: int, headers: Mapping[str, str], body: bytes) -> tuple[Step, ...]:
    """Return the steps of a whole answer."""
    return Head(status, headers, len(body)), Event(body, events=0, done=True)
