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


Step = Event | Pause | Cut


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

    def send(self, data: bytes) -> None:
        """Write all of `data`; raises ClientLeftError."""
        try:
            self.connection.sendall(data)
        except OSError:
            raise ClientLeftError from None

    def send_head(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        """Write the status line and the headers; a body without a length is chunked if possible."""
        self._chunked = length is None and self.may_chunk
        headers = {**headers, **self.extra_headers}
        if self._chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif length is not None:
            headers["Content-Length"] = str(length)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    def send_part(self, data: bytes) -> None:
        """Write a part of the body in one call, so that it travels in one segment where it fits."""
        if data:
            self.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def send_whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Write a whole answer; raises ClientLeftError."""
        self.send_head(status, headers, len(body))
        self.send_part(body)

    def pause(self, seconds: float) -> None:
        """Wait; raises ClientLeftError soon after the client has left."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
            self._check_client()

    def play(self, steps: Iterable[Step], pause_s: float, progress: Progress) -> None:
        """Do the steps in order, with `pause_s` before each event but the first; stops at a cut."""
        for step in steps:
            if isinstance(step, Pause):
                self.pause(step.seconds)
            elif isinstance(step, Cut):
                self.open = False
                if step.reset:  # linger for 0 s: closing then discards and resets (socket(7), SO_LINGER)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                if step.events and progress.events:
                    self.pause(pause_s)
                self.send_part(step.data)
                progress.events += step.events
                progress.tokens += step.tokens
                progress.usage = step.usage or progress.usage
                progress.done = progress.done or step.done

    def end_body(self) -> None:
        """Write the last chunk."""
        if self._chunked and self.open:
            self.send(b"0\r\n\r\n")

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
