"""The relay on the wire: real gunicorn, raw sockets, and order instead of clocks."""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from support.processes import GatewayServer
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.wire import AUTH, build_request, connect, read_all, read_until

BODY = '{"messages":[{"role":"user","content":"hello"}],"stream":true}'


def test_an_event_arrives_before_upstream_sends_the_next(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """Upstream sends each event only after the client has seen the one before it."""
    seen = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for number in range(20):
            exchange.event(chat_chunk(f"token-{number:02d}"))
            assert seen.acquire(timeout=WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = answer
    with connect(gateway) as sock:
        sock.sendall(build_request())
        for number in range(20):
            read_until(sock, f"token-{number:02d}".encode())
            seen.release()
        read_until(sock, b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_flood_leaves_others_their_turn(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """A stream whose next bytes are always there already does not keep the worker to itself."""
    answered = threading.Event()
    block = (b"data: " + json.dumps(chat_chunk("x" * 200)).encode() + b"\n\n") * 20_000

    def flood(exchange: Exchange) -> None:
        exchange.start()
        exchange.sock.settimeout(WAIT_S)
        while not answered.is_set():
            exchange.chunk(block)
        exchange.event("[DONE]")
        exchange.end()

    def take(sock: socket.socket) -> None:
        buffer = bytearray(2**20)
        tail = b""
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            size = sock.recv_into(buffer)
            assert size
            tail = (tail + buffer[max(0, size - 100) : size])[-100:]

    shared_upstream.handler = flood
    with connect(gateway) as sock, ThreadPoolExecutor(1) as pool:
        sock.sendall(build_request())
        taken = pool.submit(take, sock)
        try:
            for _ in range(20):
                assert requests.get(f"{gateway.url}/health", timeout=WAIT_S).status_code == 200
        finally:
            answered.set()
        taken.result(WAIT_S)


def test_an_event_cut_into_bytes_is_whole(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """Upstream's segments are invisible: one event, one write, also when its bytes dribble in."""
    event = 'data: {"choices":[{"delta":{"content":"größe"}}]}\n\n'.encode()
    seen = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for at in range(len(event)):
            exchange.chunk(event[at : at + 1])
        assert seen.acquire(timeout=WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = answer
    with connect(gateway) as sock:
        sock.sendall(build_request())
        got = read_until(sock, b"}\n\n\r\n")
        seen.release()
        read_until(sock, b"0\r\n\r\n")
    head = f"{len(event):x}\r\n".encode()
    assert got.lower().endswith(b"\r\n\r\n" + head + event + b"\r\n")


def test_the_response_ends_with_done(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """After [DONE] the client's response is over, though upstream's connection lingers."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.event("[DONE]")
        assert exchange.wait_until_left()
        left.set()

    shared_upstream.handler = answer
    with connect(gateway) as sock:
        sock.sendall(build_request())
        read_until(sock, b"[DONE]\n\n\r\n0\r\n\r\n")
        assert left.wait(WAIT_S), "the lingering connection was kept"


def test_keep_alive_goes_on_after_a_stream(gateway: GatewayServer) -> None:
    """One client connection takes stream after stream."""
    with connect(gateway) as sock:
        for _ in range(3):
            sock.sendall(build_request())
            got = read_until(sock, b"0\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_http_1_0(gateway: GatewayServer) -> None:
    """An HTTP/1.0 client (nginx's default) gets the same events, unchunked, to the connection's end."""
    with connect(gateway) as sock:
        sock.sendall(build_request(version="1.0"))
        got = read_all(sock)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"}\n\ndata: [DONE]\n\n")


def test_a_client_that_leaves_ends_the_upstream_call(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """The next event after the client has gone closes upstream's connection, and the log says so."""
    left = threading.Event()
    gone = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        assert gone.wait(WAIT_S)
        try:
            for _ in range(200):
                exchange.event(chat_chunk("more"))
                if exchange.sock.recv(1) == b"":
                    break
        except OSError:
            pass
        left.set()
        exchange.close()

    def send(exchange: Exchange) -> None:
        exchange.sock.settimeout(0.05)
        answer(exchange)

    shared_upstream.handler = send
    with connect(gateway) as sock:
        sock.sendall(build_request("X-Request-ID: leaver-1"))
        read_until(sock, b"Once")
    gone.set()
    assert left.wait(WAIT_S)
    gateway.wait_for_line("leaver-1", "outcome=client_abort")


def _odd_stream(number: int) -> list[bytes]:
    """A stream of its own for each client: lengths, characters and spacing differ."""
    events = []
    for at in range(30):
        text = ("ü✓𝄞" * (number % 5)) + f" {number}-{at} " + "x" * ((number * 7 + at * 13) % 300)
        spaces = " " * (at % 3)
        events.append(f'{{"choices":{spaces}[{{"delta":{{"content":"{text}"}}}}]}}'.encode())
    return events


def test_200_parallel_streams_are_byte_for_byte(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """200 streams at once, each compared with what upstream sent to it."""

    def answer(exchange: Exchange) -> None:
        number = int(exchange.document["messages"][0]["content"])
        exchange.start()
        wire = b"".join(b"data: " + event + b"\n\n" for event in [*_odd_stream(number), b"[DONE]"])
        step = 50 + number
        for at in range(0, len(wire), step):  # HTTP chunks that cut events and characters anywhere
            exchange.chunk(wire[at : at + step])
        exchange.end()

    shared_upstream.handler = answer

    def ask(number: int) -> bytes:
        body = {"messages": [{"role": "user", "content": str(number)}], "stream": True}
        url = f"{gateway.url}/api/v1/chat/completions"
        with requests.post(url, json=body, headers=AUTH, stream=True, timeout=60) as reply:
            return reply.content

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    for number, got in enumerate(answers):
        assert got == b"".join(b"data: " + event + b"\n\n" for event in [*_odd_stream(number), b"[DONE]"])


def test_a_large_event(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """An event of 1 MiB arrives whole."""
    event = b'{"choices":[{"delta":{"content":"' + b"y" * 2**20 + b'"}}]}'

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(event)
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = answer
    reply = requests.post(
        f"{gateway.url}/api/v1/chat/completions",
        data=BODY,
        headers={**AUTH, "Content-Type": "application/json"},
        timeout=60,
    )
    assert reply.content == b"data: " + event + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("size", [70_000_000, 10**15])
def test_a_body_over_the_limit_is_refused_unread(gateway: GatewayServer, size: int) -> None:
    """A stated length over the limit is answered at once, without taking the body in."""
    with connect(gateway) as sock:
        sock.sendall(re.sub(rb"Content-Length: \d+", f"Content-Length: {size}".encode(), build_request()))
        got = read_until(sock, b"body_too_large")
    assert got.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """A body without a length is taken in chunks; upstream gets it with one."""

    def send_in_pieces() -> Any:
        for at in range(0, len(BODY), 7):
            yield BODY[at : at + 7].encode()

    reply = requests.post(
        f"{gateway.url}/api/v1/chat/completions",
        data=send_in_pieces(),
        headers={**AUTH, "Content-Type": "application/json"},
        timeout=60,
    )
    assert reply.content.endswith(b"[DONE]\n\n")
    assert int(shared_upstream.exchanges[0].headers["content-length"]) == len(
        shared_upstream.exchanges[0].body
    )


def test_an_endless_chunked_body_is_refused(gateway: GatewayServer) -> None:
    """A body that only turns out too large while it comes is refused when it passes the limit."""
    piece = b"x" * 2**20

    def send_for_ever() -> Any:
        for _ in range(80):
            yield piece

    try:
        reply = requests.post(
            f"{gateway.url}/api/v1/chat/completions",
            data=send_for_ever(),
            headers={**AUTH, "Content-Type": "application/json"},
            timeout=60,
        )
    except requests.ConnectionError:
        return  # the gateway answered and closed while we were still sending
    assert reply.status_code == 413


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b'GET /health HTTP/1.1\r\nHost: x\r\n"\xff\\: y\r\n\r\n',
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_json(gateway: GatewayServer, data: bytes) -> None:
    """gunicorn refuses it before the app sees it, and the client still gets an error of the API."""
    with connect(gateway) as sock:
        sock.sendall(data)
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert error["code"] == "malformed_request"
    assert error["message"]
