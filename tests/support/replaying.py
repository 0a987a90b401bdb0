"""Requests with an Idempotency-Key, and an upstream that goes on when it is told to."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Protocol

import requests

from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.wire import CHAT

STREAM = {"stream": True}
DONE = b"data: [DONE]\n\n"

Headers = dict[str, str]

_OPEN: list[requests.Response] = []


class Addressed(Protocol):
    """Something that answers at an address."""

    @property
    def url(self) -> str: ...


def close_replies() -> None:
    """Closes what `ask` has opened."""
    for reply in _OPEN:
        reply.close()
    _OPEN.clear()


def ask(gateway: Addressed, key: Headers, name: str, **more: Any) -> requests.Response:
    """A chat with an Idempotency-Key; `more` are headers with `_` for `-`, `body` fields of the body."""
    body = {"messages": [{"role": "user", "content": "hello"}], **more.pop("body", {})}
    headers = {**key, "Idempotency-Key": name, **{k.replace("_", "-"): v for k, v in more.items()}}
    reply = requests.post(f"{gateway.url}{CHAT}", json=body, headers=headers, stream=True, timeout=WAIT_S)
    _OPEN.append(reply)
    return reply


class Story:
    """An upstream that tells event by event, each when the test lets it."""

    def __init__(self, upstream: ScriptedUpstream, words: int = 4) -> None:
        self.asked = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.left = threading.Event()
        self.left_at = 0.0
        self.words = words
        self.calls = 0
        upstream.handler = self.tell

    def tell(self, exchange: Exchange) -> None:
        self.calls += 1
        self.asked.release()
        exchange.start()
        for number in range(self.words):
            self._wait(exchange)
            exchange.event(chat_chunk(f" w{number}"))
        self._wait(exchange)
        exchange.event(chat_chunk("", choices=[], usage=USAGE))
        exchange.event("[DONE]")
        exchange.end()

    def _wait(self, exchange: Exchange) -> None:
        while not self.go.acquire(timeout=0.02):
            exchange.sock.settimeout(0.001)
            try:
                gone = exchange.sock.recv(1) == b""
            except TimeoutError:
                gone = False
            except OSError:
                gone = True
            exchange.sock.settimeout(WAIT_S)
            if gone:
                self.left_at = time.monotonic()
                self.left.set()
                exchange.close()
                raise ConnectionError


def cut_off(reply: requests.Response) -> None:
    """The client drops: its connection is closed, not drained."""
    sock = socket.socket(fileno=os.dup(reply.raw.fileno()))
    with sock:
        sock.shutdown(socket.SHUT_RDWR)
    reply.close()


def read_event(reply: requests.Response) -> bytes:
    """The next event, byte by byte; comments are left out."""
    lines = []
    while True:
        line = reply.raw.readline()
        assert line, f"ended inside {lines}"
        if line.startswith(b":"):
            continue
        lines.append(line)
        if line == b"\n":
            return b"".join(lines)


def read_rest(reply: requests.Response) -> bytes:
    """All further events."""
    return b"".join(line for line in iter(reply.raw.readline, b"") if not line.startswith(b":"))
