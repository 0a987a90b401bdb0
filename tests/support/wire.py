"""A client made of a bare socket, for what no HTTP library lets one do."""

from __future__ import annotations

import json
import socket

from support.processes import CLIENT_KEY, GatewayServer
from support.scripted import WAIT_S

CHAT = "/api/v1/chat/completions"
AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}


def connect(gateway: GatewayServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), WAIT_S)


def build_request(
    *headers: str, stream: bool = True, version: str = "1.1", extra: str = "", **fields: object
) -> bytes:
    """A chat as alice sends it; `extra` comes behind the body, `fields` into it."""
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": stream, **fields})
    lines = [
        f"POST {CHAT} HTTP/{version}",
        "Host: x",
        f"Authorization: Bearer {CLIENT_KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body + extra).encode()


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """What the gateway sends, up to the piece that brings `wanted`."""
    got = b""
    while wanted not in got:
        data = sock.recv(65536)
        assert data, f"closed before {wanted!r}; got {got!r}"
        got += data
    return got


def read_all(sock: socket.socket) -> bytes:
    """What the gateway sends until it closes."""
    got = b""
    while data := sock.recv(65536):
        got += data
    return got
