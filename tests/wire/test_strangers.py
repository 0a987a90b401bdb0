"""What callers without a key, or with one, can take from the others: connections, places, memory."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import requests
from support.processes import CLIENT_KEY, GatewayServer, wait_for
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


KEYS = f"alice:{CLIENT_KEY},bob:bob-secret-key"
BOB = {"Authorization": "Bearer bob-secret-key"}


def make_stalled(size: int, arrived: int) -> bytes:
    """A chat of alice's, of which only some bytes have arrived."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n"
    head += f"Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b" " * arrived


def find_code(server: GatewayServer, headers: dict[str, str], size: int = 10) -> str:
    """How a whole body of that size is answered: with an error's code, or "" for a success."""
    body = {"messages": [{"role": "user", "content": "x" * size}]}
    headers = {**headers, "Accept": "application/json"}
    reply = requests.post(f"{server.url}{CHAT}", json=body, headers=headers, timeout=WAIT_S)
    return "" if reply.status_code == 200 else str(reply.json()["error"]["code"])


def test_a_key_holds_half_the_places_of_bodies(make_gateway: Callable[..., GatewayServer]) -> None:
    """Bodies that stand still take places from their own key; another key has the rest."""
    server = make_gateway(GROKFLASK_KEYS=KEYS, GROKFLASK_CAPACITY="20")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(30)]
        for sock in socks:
            sock.sendall(make_stalled(100, 1))
        wait_for(lambda: find_code(server, AUTH) == "gateway_full", "alice to have no place")
        assert find_code(server, BOB) == ""
    wait_for(lambda: find_code(server, AUTH) == "", "alice's places to be free")


def test_a_key_holds_half_the_memory_of_bodies(make_gateway: Callable[..., GatewayServer]) -> None:
    """As with places: the key that fills the memory is refused, and another one is not."""
    server = make_gateway(
        GROKFLASK_KEYS=KEYS, GROKFLASK_MAX_BODY_BYTES="1000000", GROKFLASK_BODIES_TOTAL_BYTES="4000000"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = stack.enter_context(connect(server))
            sock.sendall(make_stalled(1_000_000, 200_000))
        wait_for(lambda: find_code(server, AUTH, 400_000) == "bodies_full", "alice to have no memory")
        assert find_code(server, BOB, 500_000) == ""
    wait_for(lambda: find_code(server, AUTH, 500_000) == "", "alice's memory to be free")


def test_strangers_hold_half_the_places_of_bodies(make_gateway: Callable[..., GatewayServer]) -> None:
    """All together, with forms: the rest of their forms is refused at once, and keys have the other half."""
    server = make_gateway(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN, GROKFLASK_CAPACITY="20")
    head = "POST /admin/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(30)]
        for sock in socks:
            sock.sendall(f"{head}Content-Length: 100\r\n\r\nt".encode())
        assert find_code(server, AUTH) == ""
        assert {read_all(sock)[9:12] for sock in socks} == {b"408", b"503"}
