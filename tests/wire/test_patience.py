"""Heartbeat, commit, deadlines, admission, and slow uploads, on real gunicorn."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import openai
import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.stores import ADMIN, ADMIN_TOKEN
from support.wire import AUTH, CHAT, build_request, connect, read_all, read_until

BODY = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
HEARTBEAT = b": keep-alive\n"
SHAPES = {"json": "application/json", "guide": "text/event-stream"}


def ask(server: GatewayServer, shape: str = "guide", *, wait: bool = True, **extra: Any) -> requests.Response:
    """The reply, whole unless the caller does not `wait` for that."""
    headers = {**AUTH, "Accept": SHAPES[shape]}
    url = f"{server.url}{CHAT}"
    return requests.post(url, json={**BODY, **extra}, headers=headers, stream=not wait, timeout=WAIT_S)


def read_error(data: bytes, shape: str) -> tuple[str, str]:
    """Message and code of the last event; the guide's shape has no code."""
    error = json.loads(data.rstrip(b"\n").rpartition(b"data: ")[2])["error"]
    return (error["message"], error["code"]) if shape == "json" else (error, "")


def test_heartbeats_fill_the_silence(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """Upstream goes on only after the client has seen three heartbeats; no event is torn by one."""
    server = make_gateway(GROKFLASK_HEARTBEAT_S="0.1")
    seen = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.chunk(b'data: {"choices":[{"delta":{"content":"On')
        assert seen.wait(WAIT_S)
        exchange.chunk(b'ce"}}]}\n\n')
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    got = b""
    with requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, stream=True, timeout=60) as reply:
        for data in reply.iter_content(None):
            got += data
            if got.count(HEARTBEAT) >= 3:
                seen.set()
    beats = got.count(HEARTBEAT)
    assert got == HEARTBEAT * beats + b'data: {"choices":[{"delta":{"content":"Once"}}]}\n\ndata: [DONE]\n\n'


def test_sdk_survives_heartbeats(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """OpenAI's SDK takes comments for what they are, before and between events."""
    server = make_gateway(GROKFLASK_HEARTBEAT_S="0.1", GROKFLASK_COMMIT_S="0.1")
    pause = threading.Event()

    def answer(exchange: Exchange) -> None:
        pause.wait(0.5)
        exchange.start()
        exchange.event(chat_chunk("Once"))
        pause.wait(0.5)
        exchange.event(chat_chunk(" upon"))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    with (
        openai.OpenAI(api_key=CLIENT_KEY, base_url=f"{server.url}/v1", max_retries=0) as client,
        client.chat.completions.create(model="grok-4.3", messages=BODY["messages"], stream=True) as stream,
    ):
        assert [chunk.choices[0].delta.content for chunk in stream] == ["Once", " upon"]


def test_a_late_answer_is_committed(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """Upstream answers only after the client has its status and first comment; then all goes on."""
    server = make_gateway(GROKFLASK_COMMIT_S="0.2")
    committed = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert committed.wait(WAIT_S)
        answer_chat(exchange)

    upstream.handler = answer
    with requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, stream=True, timeout=60) as reply:
        assert reply.status_code == 200
        stream = reply.iter_content(None)
        first = next(stream)
        assert first == HEARTBEAT
        committed.set()
        rest = b"".join(stream)
    assert rest.endswith(b"data: [DONE]\n\n")


def fail_late(exchange: Exchange) -> None:
    """As the model's name says."""
    kind = exchange.document["model"]
    if kind == "status":
        exchange.reply({"code": "permission-denied", "error": "no credits"}, 403)
    elif kind == "json":
        exchange.reply({"code": "unavailable", "error": "later"})
    elif kind == "garbage":
        exchange.send(b"nonsense\r\n\r\n")
    exchange.close()


def test_failure_after_the_commit_is_told_in_the_stream(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """Once the response has begun, whatever upstream answers becomes an error event in the client's shape."""
    server = make_gateway(GROKFLASK_COMMIT_S="0.1")
    messages = {
        "status": "no credits",
        "json": "later",
        "cut": "closed the connection without an answer",
        "garbage": "cannot read",
    }
    for (kind, message), shape in product(messages.items(), SHAPES):
        committed = threading.Event()

        def answer(exchange: Exchange, committed: threading.Event = committed) -> None:
            assert committed.wait(WAIT_S)
            fail_late(exchange)

        upstream.handler = answer
        with ask(server, shape, wait=False, model=kind) as reply:
            assert reply.status_code == 200
            pieces = reply.iter_content(None)
            assert next(pieces) == HEARTBEAT
            committed.set()
            rest = b"".join(pieces)
        assert message in read_error(rest, shape)[0]
        assert b"[DONE]" not in rest


def hang(exchange: Exchange) -> None:
    assert exchange.wait_until_left()


def start_and_hang(exchange: Exchange) -> None:
    exchange.start()
    exchange.chunk(b": thinking\n\n")
    assert exchange.wait_until_left()


def begin_and_hang(exchange: Exchange) -> None:
    exchange.start()
    exchange.event(chat_chunk("Once"))
    assert exchange.wait_until_left()


def dribble(exchange: Exchange) -> None:
    exchange.start()
    pause = threading.Event()
    try:
        while True:
            exchange.event(chat_chunk("drip"))
            pause.wait(0.05)
    except OSError:
        exchange.close()


@pytest.mark.parametrize(
    ("setting", "seconds", "handlers"),
    [
        ("FIRST_EVENT", "0.5", {hang: 504, start_and_hang: 200}),
        ("IDLE", "0.5", {begin_and_hang: 200}),
        ("TOTAL", "1.5", {dribble: 200, hang: 200}),
    ],
)
def test_deadlines(
    make_gateway: Callable[..., GatewayServer],
    upstream: ScriptedUpstream,
    setting: str,
    seconds: str,
    handlers: dict[Callable[[Exchange], None], int],
) -> None:
    """Each deadline has its own code, interrupts a blocked read, and closes upstream's connection."""
    code = f"{setting.lower()}_timeout"
    commit = "0.1" if setting == "TOTAL" else "50"
    server = make_gateway(**{f"GROKFLASK_{setting}_TIMEOUT_S": seconds}, GROKFLASK_COMMIT_S=commit)
    for (handler, status), shape in product(handlers.items(), SHAPES):
        upstream.handler = handler
        reply = ask(server, shape)
        assert reply.status_code == status
        if shape == "json":
            told = reply.json()["error"]["code"] if status == 504 else read_error(reply.content, shape)[1]
            assert told == code
    lines = 2 * len(handlers)
    wait_for(lambda: len(server.find_lines("outcome=timeout", f"code={code}")) == lines, "all their lines")


def test_deadlines_of_a_whole_reply(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """A reply that never begins, one that stops, one that dribbles: 504 with the code of each."""

    def stop_inside(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        hang(exchange)

    server = make_gateway(GROKFLASK_FIRST_EVENT_TIMEOUT_S="0.4", GROKFLASK_IDLE_TIMEOUT_S="0.4")
    for handler, code in ((hang, "first_event_timeout"), (stop_inside, "idle_timeout")):
        upstream.handler = handler
        reply = ask(server, stream=False)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, code)


def test_a_slow_reader_does_not_outlast_the_total(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """A client that takes what it was given drop by drop is hung up on when all time is over."""
    server = make_gateway(GROKFLASK_TOTAL_TIMEOUT_S="1")
    left = threading.Event()

    def flood(exchange: Exchange) -> None:
        exchange.start()
        exchange.sock.settimeout(WAIT_S)
        with contextlib.suppress(ConnectionError):
            while True:
                exchange.event(chat_chunk("x" * 20_000_000))
        left.set()
        exchange.close()

    upstream.handler = flood
    with connect(server) as sock:
        sock.sendall(build_request("X-Request-ID: drop.by.drop"))
        while not left.wait(0.05):
            assert sock.recv(4096), "the answer ended before upstream was left"
    server.wait_for_line("request_id=drop.by.drop", "outcome=timeout", "code=total_timeout")


def test_connect_timeout(make_gateway: Callable[..., GatewayServer]) -> None:
    """An upstream whose TLS handshake never ends is given up after the connect timeout."""
    with socket.create_server(("127.0.0.1", 0), backlog=5) as silent:
        base = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
        server = make_gateway(XAI_API_BASE=base, GROKFLASK_CONNECT_TIMEOUT_S="0.3")
        reply = ask(server, "json")
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "connect_timeout")


def test_above_capacity_is_refused_at_once(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """With all places taken the next request gets 503 with Retry-After, is not counted, and costs nothing."""
    server = make_gateway(
        GROKFLASK_CAPACITY="3", GROKFLASK_RATE_LIMIT="4/hour", GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN
    )
    go_on = threading.Event()
    waiting = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        waiting.release()
        assert go_on.wait(WAIT_S)
        answer_chat(exchange)

    upstream.handler = answer
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(ask, server) for _ in range(3)]
        for _ in held:
            assert waiting.acquire(timeout=WAIT_S)
        refused = ask(server, "json")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_full")
        assert refused.headers["Retry-After"] == "1"
        assert requests.get(f"{server.url}/ready", headers=ADMIN, timeout=WAIT_S).json()["open"] == 3
        go_on.set()
        assert [each.result().status_code for each in held] == [200] * 3
    assert len(upstream.exchanges) == 3
    assert ask(server).status_code == 200
    assert ask(server).status_code == 429
    assert requests.get(f"{server.url}/ready", headers=ADMIN, timeout=WAIT_S).json()["open"] == 0


def test_a_slow_upload_does_not_hold_its_place(make_gateway: Callable[..., GatewayServer]) -> None:
    """A body that dribbles in gets a 408 when its time is over, and its connection ends."""
    server = make_gateway(GROKFLASK_BODY_TIMEOUT_S="0.5", GROKFLASK_KEEPALIVE_S="2")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CLIENT_KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(head.encode() + b"{")
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in got
    server.wait_for_line("msg=refused", "code=body_timeout")


def test_slow_uploads_take_places(make_gateway: Callable[..., GatewayServer]) -> None:
    """While as many bodies dribble in as there are places, the next client gets its 503 at once."""
    server = make_gateway(GROKFLASK_CAPACITY="3")
    request = build_request("Expect: 100-continue")
    socks = [connect(server) for _ in range(3)]
    try:
        for sock in socks:
            sock.sendall(request[:-1])
            assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        wait_for(lambda: ask(server).status_code == 503, "every place to be taken")
        socks[0].sendall(request[-1:])
        read_until(socks[0], b"[DONE]")
        wait_for(lambda: ask(server).status_code == 200, "a place to be free")
    finally:
        for sock in socks:
            sock.close()


def test_a_slow_upload_without_a_key_does_not_hold_its_place(
    make_gateway: Callable[..., GatewayServer],
) -> None:
    """A refused request's body is looked at, for the shape of the error, but not waited for."""
    server = make_gateway(GROKFLASK_BODY_TIMEOUT_S="0.5", GROKFLASK_KEEPALIVE_S="2")
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with connect(server) as sock:
        sock.sendall(head.encode() + b"{")
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 401 ")


def test_a_slow_head_does_not_hold_its_place(make_gateway: Callable[..., GatewayServer]) -> None:
    """A request whose head never ends is hung up on."""
    server = make_gateway(GROKFLASK_KEEPALIVE_S="1")
    with connect(server) as sock:
        sock.sendall(b"POST /api/v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert sock.recv(65536) == b""


def test_idle_connections_do_not_fill_the_worker(make_gateway: Callable[..., GatewayServer]) -> None:
    """When idle connections take nearly all places, the oldest make room for a new client."""
    server = make_gateway(GROKFLASK_WORKER_CONNECTIONS="40")
    socks = [connect(server) for _ in range(60)]
    try:
        assert ask(server).status_code == 200
    finally:
        for sock in socks:
            sock.close()


def test_a_full_worker_answers_everybody(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """With every place taken by streams, 60 clients that stay connected each get their 503 at once."""
    server = make_gateway(GROKFLASK_WORKER_CONNECTIONS="20")
    go_on = threading.Event()
    waiting = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        waiting.release()
        assert go_on.wait(WAIT_S)
        answer_chat(exchange)

    upstream.handler = answer
    with ThreadPoolExecutor(18) as pool:
        held = [pool.submit(ask, server) for _ in range(18)]
        for _ in held:
            assert waiting.acquire(timeout=WAIT_S)
        socks = [connect(server) for _ in range(60)]
        try:
            for sock in socks:
                sock.sendall(build_request())
            for sock in socks:
                assert sock.recv(65536).startswith(b"HTTP/1.1 503 ")
        finally:
            for sock in socks:
                sock.close()
        go_on.set()
        assert [each.result().status_code for each in held] == [200] * 18


def test_retry_is_counted_in_the_log(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """The one retry on a kept connection that had died is in the exchange's line."""
    server = make_gateway()
    assert ask(server).status_code == 200
    good = upstream.handler

    def die_once(exchange: Exchange) -> None:
        upstream.handler = good
        exchange.reset()

    upstream.handler = die_once
    assert ask(server).content.endswith(b"[DONE]\n\n")
    server.wait_for_line("outcome=complete", "retries=1")
