"""What goes wrong around a recorded answer: workers and stores that die, slow readers, bounds, races."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, RedisServer, wait_for
from support.replaying import DONE, STREAM, Story, ask, close_replies, cut_off, read_event, read_rest
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk, reply_story
from support.stores import ADMIN, ADMIN_TOKEN
from support.wire import build_request, read_until

ALICE = {"Authorization": f"Bearer {CLIENT_KEY}", "Accept": "application/json"}
BEAT = {"GROKFLASK_HEARTBEAT_S": "0.3"}

Make = Callable[..., GatewayServer]


@pytest.fixture(autouse=True)
def _replies() -> Iterator[None]:
    """No test leaves a reply open."""
    yield
    close_replies()


@pytest.fixture
def two(make_gateway: Make, redis_server: RedisServer) -> tuple[GatewayServer, GatewayServer]:
    """Two gateways on one Redis, so that a test knows which worker carries what."""
    settings = {"REDIS_URL": redis_server.url, **BEAT}
    return make_gateway(**settings), make_gateway(**settings)


def begin_on_both(
    two: tuple[GatewayServer, GatewayServer], story: Story, **more: str
) -> tuple[requests.Response, requests.Response]:
    """A stream that the first carries and the second reads along, after one event."""
    first = ask(two[0], ALICE, "k1", body=STREAM, **more)
    story.go.release()
    head = read_event(first)
    second = ask(two[1], ALICE, "k1", body=STREAM, **more)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert read_event(second) == head
    return first, second


def read_error(rest: bytes) -> str:
    """The code of the error event that a stream ends with."""
    assert DONE not in rest
    code: str = json.loads(rest.rstrip(b"\n").rpartition(b"data: ")[2])["error"]["code"]
    return code


def test_the_carrier_is_killed(two: tuple[GatewayServer, GatewayServer], upstream: ScriptedUpstream) -> None:
    """Who reads along elsewhere gets an error event, and the key is usable again."""
    story = Story(upstream)
    _, second = begin_on_both(two, story)
    os.killpg(two[0].process.pid, signal.SIGKILL)
    assert read_error(read_rest(second)) == "recording_lost"
    for _ in range(9):
        story.go.release()
    assert ask(two[1], ALICE, "k1", body=STREAM).content.endswith(DONE)
    assert story.calls == 2


def test_the_carrier_ends(two: tuple[GatewayServer, GatewayServer], upstream: ScriptedUpstream) -> None:
    """SIGTERM ends a recorded stream as any other: all who read it are told why, and the row says so."""
    first, second = begin_on_both(two, Story(upstream))
    two[0].process.terminate()
    assert read_error(read_rest(first)) == "shutting_down"
    assert read_error(read_rest(second)) == "shutting_down"
    assert two[0].process.wait(WAIT_S) == 0
    two[0].wait_for_line("msg=exchange", "outcome=shutdown")


def test_who_reads_along_ends(two: tuple[GatewayServer, GatewayServer], upstream: ScriptedUpstream) -> None:
    """SIGTERM where a stream is only read along: that client is told, and the first goes on."""
    story = Story(upstream)
    first, second = begin_on_both(two, story)
    two[1].process.terminate()
    assert read_error(read_rest(second)) == "shutting_down"
    assert two[1].process.wait(WAIT_S) == 0
    for _ in range(9):
        story.go.release()
    assert read_rest(first).endswith(DONE)


def test_redis_dies(
    two: tuple[GatewayServer, GatewayServer], upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    """The stream goes on where it is carried; elsewhere it is told that it cannot, not left in silence."""
    story = Story(upstream)
    first, second = begin_on_both(two, story)
    redis_server.kill()
    assert read_error(read_rest(second)) == "recording_lost"
    along = ask(two[0], ALICE, "k1", body=STREAM)
    for _ in range(9):
        story.go.release()
    rest = read_rest(first)
    assert rest.endswith(DONE)
    assert read_rest(along).endswith(rest)
    assert ask(two[1], ALICE, "k2", body=STREAM).content.endswith(DONE)
    gone = ask(two[1], ALICE, "k1", body=STREAM, Last_Event_ID="a-1")
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "store_unavailable")


def test_a_dropped_stream_at_the_end(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """A stream that nobody reads holds no process up, and its row says why it ended."""
    server = make_gateway(GROKFLASK_RESUME_GRACE_S="600", GROKFLASK_GRACE_S="25", **BEAT)
    story = Story(upstream)
    first = ask(server, ALICE, "k1", body=STREAM, X_Stream_Resume="true")
    story.go.release()
    read_event(first)
    cut_off(first)
    started_at = time.monotonic()
    server.process.terminate()
    assert server.process.wait(WAIT_S) == 0
    print(f"gone after {time.monotonic() - started_at:.1f} s")
    assert server.find_lines("msg=exchange", "outcome=shutdown", "code=shutting_down")
    assert story.left.wait(WAIT_S)


def test_an_admin_stops_it(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """All who read it are told so, and its key is free."""
    server = make_gateway(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN, **BEAT)
    story = Story(upstream)
    first = ask(server, ALICE, "k1", body=STREAM, X_Request_ID="mine")
    story.go.release()
    read_event(first)
    second = ask(server, ALICE, "k1", body=STREAM)
    reply = requests.delete(f"{server.url}/admin/api/streams/mine", headers=ADMIN, timeout=WAIT_S)
    assert reply.json()["stopped"] == 1
    assert read_error(read_rest(first)) == "stream_stopped"
    assert read_error(read_rest(second)) == "stream_stopped"
    for _ in range(9):
        story.go.release()
    assert ask(server, ALICE, "k1", body=STREAM).content.endswith(DONE)


def send_much(exchange: Exchange) -> None:
    """A stream of 6 MB."""
    exchange.start()
    for _ in range(60):
        exchange.event(chat_chunk("x" * 100_000))
    exchange.event("[DONE]")
    exchange.end()


def read_nothing(server: GatewayServer, name: str) -> socket.socket:
    """A client that asks and takes next to nothing of the answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(WAIT_S)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(build_request(f"Idempotency-Key: {name}"))
    read_until(sock, b"data: ")
    return sock


def test_a_slow_first_reader(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """It is no brake for the second, nor for upstream; the exchange is settled while it still dawdles."""
    server = make_gateway(**BEAT)
    upstream.handler = send_much
    with read_nothing(server, "k1"):
        second = ask(server, {**ALICE, "Accept": ""}, "k1", body=STREAM).content
        assert second.count(b"data: ") == 61
        assert second.endswith(DONE)
        server.wait_for_line("msg=exchange", "outcome=complete")
    assert len(upstream.exchanges) == 1


def test_over_its_bound(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """It goes on as an ordinary stream: at its client's pace, nobody else gets it, nothing is kept."""
    server = make_gateway(GROKFLASK_REPLAY_BYTES="300000", **BEAT)
    upstream.handler = send_much
    with read_nothing(server, "k1") as slow:

        def turned_away() -> bool:
            reply = ask(server, ALICE, "k1", body=STREAM)
            reply.close()
            return reply.status_code == 409

        # The kernel's buffers take some; then the writer waits.
        wait_for(turned_away, "the bound")
        assert not server.find_lines("msg=exchange")
        slow.settimeout(60)
        got = b""
        while DONE not in got[-100:]:
            data = slow.recv(1 << 20)
            assert data
            got += data
        assert got.count(b'"delta"') + 1 >= 60
    server.wait_for_line("msg=exchange", "outcome=complete")
    assert len(upstream.exchanges) == 1


def test_over_its_bound_and_left(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """Nobody could come back for it, so it is ended with its client, grace or not."""
    server = make_gateway(GROKFLASK_REPLAY_BYTES="300000", GROKFLASK_RESUME_GRACE_S="600", **BEAT)
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for _ in range(5):
            exchange.event(chat_chunk("x" * 100_000))
        if exchange.wait_until_left():
            left.set()

    upstream.handler = answer
    first = ask(server, ALICE, "k1", body=STREAM, X_Stream_Resume="true")
    for _ in range(5):
        read_event(first)
    left_at = time.monotonic()
    cut_off(first)
    assert left.wait(WAIT_S)
    print(f"ended {time.monotonic() - left_at:.2f} s after its client")
    server.wait_for_line("msg=exchange", "outcome=client_abort")


def test_a_race(two: tuple[GatewayServer, GatewayServer], upstream: ScriptedUpstream) -> None:
    """40 of the same request at the same moment, on two workers: one is carried out, all get its answer."""
    upstream.handler = reply_story
    barrier = threading.Barrier(40)

    def post(number: int) -> requests.Response:
        barrier.wait()
        return ask(two[number % 2], ALICE, "k1")

    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(post, range(40)))
    codes = {reply.status_code for reply in replies}
    assert codes <= {200}
    assert len({reply.content for reply in replies}) == 1
    assert len(upstream.exchanges) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1
    lines = sum(len(server.find_lines("msg=exchange")) for server in two)
    assert lines == 1


def test_the_first_leaves_before_the_answer(make_gateway: Make, upstream: ScriptedUpstream) -> None:
    """Who reads along gets it nevertheless, whole or as a stream; alone, the exchange is ended."""
    server = make_gateway(**BEAT, GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    for stream in (False, True):
        go = threading.Event()
        asked = threading.Event()

        def answer(exchange: Exchange, go: threading.Event = go, asked: threading.Event = asked) -> None:
            asked.set()
            assert go.wait(WAIT_S)
            answer_chat(exchange)

        upstream.handler = answer
        name = f"k{stream}"
        with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as first:
            first.sendall(build_request(f"Idempotency-Key: {name}", stream=stream))
            assert asked.wait(WAIT_S)
            with ThreadPoolExecutor(1) as pool:
                body = {"stream": stream}
                second = pool.submit(ask, server, {**ALICE, "Accept": ""}, name, body=body)
                wait_for(
                    lambda: (
                        requests.get(f"{server.url}/ready", headers=ADMIN, timeout=WAIT_S).json()["open"] >= 3
                    ),
                    "a second",
                )
                first.close()
                go.set()
                reply = second.result()
                assert reply.status_code == 200
                assert reply.headers["Idempotent-Replayed"] == "true"
        assert reply.content
    assert len(upstream.exchanges) == 2
