"""SIGTERM, reload and max_requests: open streams end in time, and the process goes by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from support.processes import CLIENT_KEY, ROOT, GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.wire import CHAT, build_request, connect, read_all, read_until

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}", "Accept": "application/json"}
BODY = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
STREAMS = 50


class Streams:
    """Many streams held open at once: each has its first event, and waits."""

    def __init__(self, server: GatewayServer, upstream: ScriptedUpstream, count: int) -> None:
        self.release = threading.Event()
        self.first = threading.Semaphore(0)
        upstream.handler = self.answer
        self.pool = ThreadPoolExecutor(count)
        self.results = [self.pool.submit(self.take, server) for _ in range(count)]
        for _ in range(count):
            assert self.first.acquire(timeout=WAIT_S)

    def answer(self, exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.sock.settimeout(0.1)
        while not self.release.is_set():
            try:
                if exchange.sock.recv(1) == b"":
                    exchange.close()
                    return
            except TimeoutError:
                continue
            except OSError:
                exchange.close()
                return
        exchange.sock.settimeout(WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    def take(self, server: GatewayServer) -> bytes:
        with requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, stream=True, timeout=60) as reply:
            got = b""
            for data in reply.iter_content(None):
                if not got:
                    self.first.release()
                got += data
            return got

    def collect(self) -> list[bytes]:
        with self.pool:
            return [each.result() for each in self.results]


def test_streams_may_finish(make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream) -> None:
    """50 open streams at SIGTERM: all end with [DONE], then the process ends with 0."""
    server = make_gateway(GROKFLASK_GRACE_S="30")
    streams = Streams(server, upstream, STREAMS)
    server.process.terminate()
    streams.release.set()
    assert all(got.endswith(b"data: [DONE]\n\n") for got in streams.collect())
    assert server.process.wait(WAIT_S) == 0
    assert len(server.find_lines("msg=exchange", "outcome=complete")) == STREAMS


def test_streams_that_stay_are_told(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """50 streams that do not end: each gets an error event and no [DONE]; all are settled before the kill."""
    server = make_gateway(GROKFLASK_GRACE_S="8")
    streams = Streams(server, upstream, STREAMS)
    started_at = time.monotonic()
    server.process.terminate()
    for got in streams.collect():
        assert b"[DONE]" not in got
        error = json.loads(got.rstrip(b"\n").rpartition(b"data: ")[2])["error"]
        assert error["code"] == "shutting_down"
    assert server.process.wait(WAIT_S) == 0
    took_s = time.monotonic() - started_at
    print(f"ended {took_s:.1f} s after SIGTERM, grace 8 s")
    assert server.find_lines("Worker exiting")  # by itself, not killed when the grace was over
    assert len(server.find_lines("msg=exchange", "outcome=shutdown", "code=shutting_down")) == STREAMS
    assert "Traceback" not in server.log


def test_idle_connections_do_not_hold_it_up(make_gateway: Callable[..., GatewayServer]) -> None:
    """20 idle connections at SIGTERM: the process is gone in a few seconds, not after the grace."""
    server = make_gateway(GROKFLASK_GRACE_S="25")
    socks = []
    for _ in range(20):
        sock = connect(server)
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        socks.append(sock)
    started_at = time.monotonic()
    server.process.terminate()
    assert server.process.wait(WAIT_S) == 0
    assert time.monotonic() - started_at < 20
    assert "Traceback" not in server.log
    for sock in socks:
        sock.close()


def test_a_new_connection_may_still_ask(make_gateway: Callable[..., GatewayServer]) -> None:
    """One that was opened just before SIGTERM is not hung up on before its first request has come."""
    server = make_gateway(GROKFLASK_GRACE_S="25")
    with connect(server) as kept:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(kept, b"}")
        with connect(server) as fresh:
            server.process.terminate()
            assert read_all(kept) == b""  # idle connections are being closed
            fresh.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
            got = read_all(fresh)
    assert got.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in got.lower()
    assert server.process.wait(WAIT_S) == 0


def test_reload_keeps_open_streams(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """SIGHUP brings a new worker; streams of the old one end as they would have."""
    server = make_gateway(GROKFLASK_GRACE_S="30")
    streams = Streams(server, upstream, 5)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(server.find_lines("msg=ready")) == 2, "the new worker")
    upstream.handler = answer_chat
    assert requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S).status_code == 200
    streams.release.set()
    assert all(got.endswith(b"data: [DONE]\n\n") for got in streams.collect())
    assert server.stop() == 0


def test_reload_reads_the_settings_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A changed `.env` counts from the reload on; the environment still goes before it."""
    (tmp_path / ".env").write_text("GROKFLASK_KEYS=alice:first-secret\nGROKFLASK_RATE_LIMIT=1/hour\n")
    env = {"XAI_API_KEY": "xai-upstream-secret", "XAI_API_BASE": upstream.base_url}
    server = GatewayServer(tmp_path, env)

    def ask(secret: str) -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        return requests.post(f"{server.url}{CHAT}", json=BODY, headers=headers, timeout=WAIT_S).status_code

    try:
        upstream.handler = answer_chat
        assert [ask("first-secret"), ask("second-secret")] == [200, 401]
        (tmp_path / ".env").write_text("GROKFLASK_KEYS=alice:second-secret\n")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ask("second-secret") == 200, "the new settings")
        wait_for(lambda: ask("first-secret") == 401, "the old ones to be gone")
    finally:
        assert server.stop() == 0


def test_max_requests_cuts_no_stream(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A worker that has served its number drains like one that was told to: its stream ends with [DONE]."""
    env = {
        "XAI_API_KEY": "xai-upstream-secret",
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
        "GROKFLASK_GRACE_S": "30",
    }
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    server = GatewayServer(tmp_path, env, [*command, "--max-requests", "20", "wsgi:app"])
    try:
        streams = Streams(server, upstream, 3)
        while not server.find_lines("Autorestarting worker"):  # a request after that would wait for the next
            assert requests.get(f"{server.url}/health", timeout=WAIT_S).status_code == 200
        streams.release.set()
        assert all(got.endswith(b"data: [DONE]\n\n") for got in streams.collect())
        wait_for(lambda: len(server.find_lines("msg=ready")) >= 2, "the next worker")
    finally:
        server.leave()


def test_a_killed_worker_is_replaced(make_gateway: Callable[..., GatewayServer]) -> None:
    """SIGKILL on the worker: the master starts another, and requests are served again."""
    server = make_gateway()
    (line,) = server.find_lines("Booting worker with pid")
    os.kill(int(line.rpartition(" ")[2]), signal.SIGKILL)
    wait_for(lambda: len(server.find_lines("msg=ready")) == 2, "the new worker")
    assert requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S).status_code == 200
    assert server.stop() == 0


def test_clients_that_stand_still_do_not_hold_it_up(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """A reader that takes nothing, an upload that stops, at SIGTERM: settled, and gone within the grace."""
    server = make_gateway(GROKFLASK_GRACE_S="10")
    stuck = threading.Event()

    def flood(exchange: Exchange) -> None:
        exchange.start()
        exchange.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                exchange.event(chat_chunk("x" * 100_000))
        stuck.set()
        assert exchange.wait_until_left()

    upstream.handler = flood
    with socket.socket() as reader, connect(server) as writer:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(build_request("X-Request-ID: stands.still"))
        writer.sendall(build_request("X-Request-ID: stops")[:-1])
        assert stuck.wait(WAIT_S)
        server.process.terminate()
        assert server.process.wait(WAIT_S) == 0
    assert server.find_lines("request_id=stands.still", "outcome=shutdown", "code=shutting_down")
    assert server.find_lines("request_id=stops", "msg=refused")
