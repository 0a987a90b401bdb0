"""An upstream that does exactly what a test says, byte by byte, over real sockets.

Each request is handed, in a thread of its own, to the handler that the test has set. The handler may wait
for the test (an Event of its own) between two sends, so order is tested by order and never by the clock.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 60.0
"""How long a test waits for what must come: far longer than that takes on the busiest machine."""


@dataclass
class Exchange:
    """One request as upstream received it, and the means to answer it."""

    sock: socket.socket
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    closing: bool = field(default=False)
    reader: Any = field(default=None, repr=False)

    def read_body(self) -> None:
        """Takes the body, where the server does not do it by itself."""
        self.body = self.reader.read(int(self.headers.get("content-length", 0)))

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def start(self, status: int = 200, *headers: str, media_type: str = "text/event-stream") -> None:
        """Status line and headers of a chunked answer."""
        lines = [
            f"HTTP/1.1 {status} X",
            f"Content-Type: {media_type}",
            "Transfer-Encoding: chunked",
            *headers,
        ]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, data: bytes | str | dict[str, Any]) -> None:
        if isinstance(data, dict):
            data = json.dumps(data)
        self.chunk(b"data: " + (data.encode() if isinstance(data, str) else data) + b"\n\n")

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def reply(self, document: Any, status: int = 200, *headers: str) -> None:
        """A whole JSON answer; bytes go out as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
        if not any(line.lower().startswith("content-type") for line in headers):
            lines.append("Content-Type: application/json")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def close(self) -> None:
        self.closing = True

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.closing = True

    def wait_until_left(self) -> bool:
        """Blocks until the gateway has closed this connection. False when it never does."""
        self.sock.settimeout(WAIT_S)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        self.closing = True
        return True


Handler = Callable[[Exchange], None]


class ScriptedUpstream:
    """Listens on 127.0.0.1. Set `handler`, look at `exchanges`. Errors in a handler surface in `close`."""

    def __init__(self, handler: Handler | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.early = False  # the handler is called before the body is read
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._tls = tls
        self._errors: list[BaseException] = []
        self._socks: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def base_url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}/v1"

    def forget(self) -> None:
        self.handler = None
        self.early = False
        self.exchanges.clear()
        self.connections = 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.check()

    def check(self) -> None:
        if self._errors:
            raise AssertionError("a handler failed") from self._errors.pop()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
        except OSError:
            sock.close()
            return
        self._socks.add(sock)
        try:
            with sock, sock.makefile("rb") as reader:
                for exchange in _read_requests(sock, reader):
                    if not self.early:
                        exchange.read_body()
                    self.exchanges.append(exchange)
                    assert self.handler is not None, f"nobody expected {exchange.path}"
                    self.handler(exchange)
                    if exchange.closing:
                        return
        except (ConnectionError, TimeoutError, ssl.SSLError):
            pass  # the gateway has gone: what that means is for the test to say
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._socks.discard(sock)


def _read_requests(sock: socket.socket, reader: Any) -> Iterator[Exchange]:
    while line := reader.readline():
        method, path, _ = line.decode().split(" ")
        headers = {}
        while (line := reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        yield Exchange(sock, method, path, headers, b"", reader=reader)


def chat_chunk(content: str, **extra: Any) -> dict[str, Any]:
    """A chunk as xAI sends it."""
    return {
        "id": "f00d",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": "grok-4.3",
        "choices": [{"index": 0, "delta": {"content": content}}],
        **extra,
    }


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost_in_usd_ticks": 8750}


def stream_story(exchange: Exchange) -> None:
    """A short stream as xAI sends it: two deltas, the finish, usage, [DONE]."""
    exchange.start()
    for chunk in (
        chat_chunk("Once"),
        chat_chunk(" upon"),
        chat_chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        chat_chunk("", choices=[], usage=USAGE),
    ):
        exchange.event(chunk)
    exchange.event("[DONE]")
    exchange.end()


def reply_story(exchange: Exchange) -> None:
    """The same, whole."""
    message = {"role": "assistant", "content": "Once upon", "refusal": None}
    exchange.reply(
        {
            "id": "f00d",
            "object": "chat.completion",
            "created": 1795000000,
            "model": "grok-4.3",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": USAGE,
        }
    )


def answer_chat(exchange: Exchange) -> None:
    """Streams when asked to."""
    (stream_story if exchange.document.get("stream") else reply_story)(exchange)
