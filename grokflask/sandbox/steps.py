"""Steps: what is done to a connection while an answer is told, and the wire that does it.

A stream is an iterator of steps, so a fault is a function from steps to steps. The wire owns pace, chunked
transfer coding, and the ways to break off.
"""

import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

_SLICE_S = 0.05  # how often a pause looks whether the client is still there


class Event(NamedTuple):
    """Send the bytes of `events` SSE events, after the pause that the pace asks for."""

    data: bytes
    kind: str
    tokens: int = 0
    usage: dict[str, Any] | None = None
    events: int = 1


class Data(NamedTuple):
    """Send bytes that complete no event, without a pause."""

    data: bytes


class Pause(NamedTuple):
    """Send nothing for so many seconds."""

    seconds: float


class Cut(NamedTuple):
    """Close the connection without ending the body; with an RST, or in order (FIN)."""

    reset: bool


Step = Event | Data | Pause | Cut


@dataclass
class Progress:
    """How far an answer got: whole events, their tokens, the last usage, [DONE] sent, cut on purpose."""

    events: int = 0
    tokens: int = 0
    usage: dict[str, Any] | None = None
    done: bool = False
    cut: bool = False


class ClientLeftError(Exception):
    """The client closed its side, or stopped reading for so long that the write timed out."""


@dataclass
class Wire:
    """The sending side of one connection; `chunked` frames a body, `open` is False once it was cut."""

    connection: socket.socket
    chunked: bool = False
    open: bool = True
    extra_headers: dict[str, str] = field(default_factory=dict)

    def send(self, data: bytes) -> None:
        """Write all of `data`; raises ClientLeftError."""
        try:
            self.connection.sendall(data)
        except OSError:
            raise ClientLeftError from None

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Write the status line and the headers."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **self.extra_headers}.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    def send_part(self, data: bytes) -> None:
        """Write a part of the body in one call, so that it travels in one segment where it fits."""
        if data:
            self.send(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def end_body(self) -> None:
        """Write what ends the body."""
        if self.chunked:
            self.send(b"0\r\n\r\n")

    def pause(self, seconds: float) -> None:
        """Wait; raises ClientLeftError as soon as the client is seen to have gone."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
            self._check_client()

    def cut(self, reset: bool) -> None:
        """Break off; the connection's owner closes it afterwards, which is when an RST goes out."""
        self.open = False
        if reset:  # linger for 0 s: closing then discards and resets (socket(7), SO_LINGER)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def play(self, steps: Iterable[Step], pause_s: float, progress: Progress) -> None:
        """Do the steps in order, `pause_s` before each event but the first; stops at a cut."""
        for step in steps:
            if isinstance(step, Event):
                if progress.events:
                    self.pause(pause_s)
                self.send_part(step.data)
                progress.events += step.events
                progress.tokens += step.tokens
                progress.usage = step.usage or progress.usage
                progress.done = progress.done or step.kind == "done"
            elif isinstance(step, Data):
                self.send_part(step.data)
            elif isinstance(step, Pause):
                self.pause(step.seconds)
            else:
                progress.cut = True
                self.cut(step.reset)
                return
        self.end_body()

    def _check_client(self) -> None:
        """Look for the client's FIN or RST without taking bytes of a next request."""
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
