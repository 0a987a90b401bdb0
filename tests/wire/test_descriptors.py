"""A worker whose descriptors are all in use: it loses no client's leaving, does not spin, and recovers."""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.processes import CLIENT_KEY, GUNICORN, ROOT, UPSTREAM_KEY, GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.wire import build_request, connect, read_all, read_until

TRIES = 10
PAUSE_S = 0.01
"""gevent pauses after each failed accept: at first so long, then twice as long each time, up to a second."""


@pytest.fixture
def server(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[GatewayServer]:
    """A gateway that may have 200 descriptors. Only a client that leaves ends its silent streams."""
    env = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
        "GROKFLASK_HEARTBEAT_S": "300",
        "DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
    }
    gunicorn = [*GUNICORN, "-b", "127.0.0.1:{port}", "support.troubled_wsgi:app"]
    command = ["sh", "-c", f"ulimit -n 200; exec {shlex.join(gunicorn)}"]
    server = GatewayServer(tmp_path, env, command)
    try:
        yield server
        server.stop()
    finally:
        server.kill()


@contextmanager
def starve(server: GatewayServer) -> Iterator[None]:
    """Inside, the worker has no free descriptor."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)) as control:

        def ask(path: str) -> dict[str, int]:
            control.request("GET", f"/trouble/{path}")
            answer: dict[str, int] = json.loads(control.getresponse().read())
            return answer

        assert ask("hunger")["taken"] > 50
        try:
            yield
        finally:
            ask("end-of-hunger")


def read_outcomes(path: Path) -> list[str]:
    """How the exchanges in the ledger ended."""
    with closing(sqlite3.connect(path)) as connection:
        return [
            outcome for (outcome,) in connection.execute("SELECT coalesce(outcome, 'open') FROM exchanges")
        ]


def test_no_free_descriptor(server: GatewayServer, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A leaving client ends its call, another stream goes on, new clients wait, and then all is as before."""
    events = threading.Event()
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        if exchange.document["model"] == "late":
            answer_chat(exchange)
            return
        exchange.start()
        exchange.event(chat_chunk("Once"))
        if exchange.document["model"] == "left":
            assert exchange.wait_until_left()
            left.set()
            return
        assert events.wait(WAIT_S)
        exchange.event(chat_chunk("upon a time"))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    leaving, staying = connect(server), connect(server)
    late: list[socket.socket] = []
    try:
        for client, model in ((leaving, "left"), (staying, "stayed")):
            client.sendall(build_request("Connection: close", model=model))
            read_until(client, b"Once")
        with starve(server):
            leaving.close()
            assert left.wait(WAIT_S), "the client has left, and its call goes on"
            started_at = time.monotonic()
            for _ in range(6):
                late.append(connect(server))
                late[-1].sendall(build_request("Connection: close", model="late"))
            wait_for(lambda: len(server.find_lines("in do_read")) >= TRIES, "tries to accept")
            assert time.monotonic() - started_at >= (TRIES - 1) * PAUSE_S, "the worker tries without a pause"
            events.set()
            assert b"upon a time" in read_all(staying)
        late.append(connect(server))
        late[-1].sendall(build_request("Connection: close", model="late"))
        statuses = [read_all(client)[9:12] for client in late]
    finally:
        for client in (leaving, staying, *late):
            client.close()
    ledger = tmp_path / "ledger.db"
    assert statuses[-1] == b"200"
    # One that got a descriptor that the leaving client had freed may have found none to call upstream.
    failed = statuses.count(b"502")
    assert statuses.count(b"200") == len(late) - failed
    expected = ["client_abort", *["complete"] * (1 + len(late) - failed), *["upstream_error"] * failed]
    wait_for(lambda: sorted(read_outcomes(ledger)) == expected, "all rows in the ledger")
