"""What callers without a key, or with one, can take from the others: connections, places, memory."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import requests
from support.processes import GatewayServer, wait_for
from support.scripted import WAIT_S
from support.stores import ADMIN_TOKEN
from support.wire import AUTH, CHAT, connect, read_all


def is_served(server: GatewayServer) -> bool:
    """Whether a new connection gets an answer."""
    try:
        return requests.get(f"{server.url}/health", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def test_pages_that_nobody_reads_do_not_fill_the_worker(make_gateway: Callable[..., GatewayServer]) -> None:
    """A connection whose client does not read its answers ends after the send timeout, key or not."""
    server = make_gateway(GROKFLASK_WORKER_CONNECTIONS="20", GROKFLASK_SEND_TIMEOUT_S="1")
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        wait_for(lambda: is_served(server), "a place to be free")


def test_a_large_body_without_a_key_is_not_read(make_gateway: Callable[..., GatewayServer]) -> None:
    """A refused body is looked at for the shape of the error: above 64 KiB only with a valid key."""
    server = make_gateway(GROKFLASK_RATE_LIMIT="1/day")
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert requests.post(f"{server.url}{CHAT}", json=chat, headers=AUTH, timeout=WAIT_S).status_code == 200
    shapes = {}
    for headers in ({}, AUTH):
        for size in (60_000, 70_000):
            reply = requests.post(
                f"{server.url}{CHAT}",
                json={"stream": True, "pad": "x" * size},
                headers=headers,
                timeout=WAIT_S,
            )
            shapes[len(headers), size] = (reply.status_code, reply.headers["Content-Type"].split(";")[0])
    assert shapes == {
        (0, 60_000): (401, "text/event-stream"),
        (0, 70_000): (401, "application/json"),
        (1, 60_000): (429, "text/event-stream"),
        (1, 70_000): (429, "text/event-stream"),
    }


def test_a_slow_form_is_not_waited_for(make_gateway: Callable[..., GatewayServer]) -> None:
    """Anybody can send one: it has 5 s, not the 120 s of other bodies, which this socket does not wait."""
    server = make_gateway(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    head = "POST /admin/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    with connect(server) as sock:
        sock.sendall(f"{head}Content-Length: 100\r\n\r\nt".encode())
        assert read_all(sock).startswith(b"HTTP/1.1 408 ")
