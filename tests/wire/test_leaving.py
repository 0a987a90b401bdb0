"""Clients that leave, in every phase: upstream's connection is closed soon, and the log knows.

Upstream notes when its peer has closed; the time from the client's leaving is measured and printed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from support.processes import GatewayServer, start_gateway
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.wire import build_request, connect, read_until

LIMIT_S = 15.0
"""The contract has a second, and measured is about a quarter, the watcher's interval. The rest is for a busy
machine: a client that is not noticed costs minutes, the idle timeout."""


@dataclass
class Journal:
    """What upstream saw: that the phase was reached, and when its peer had gone."""

    reached: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    left_at: float = 0.0

    def wait_until_left(self, exchange: Exchange) -> None:
        self.reached.set()
        if exchange.wait_until_left():
            self.left_at = time.monotonic()
            self.left.set()


def silent_before_headers(exchange: Exchange, journal: Journal) -> None:
    journal.wait_until_left(exchange)


def silent_before_the_first_event(exchange: Exchange, journal: Journal) -> None:
    exchange.start()
    journal.wait_until_left(exchange)


def silent_between_events(exchange: Exchange, journal: Journal) -> None:
    exchange.start()
    exchange.event(chat_chunk("Once"))
    journal.wait_until_left(exchange)


def send_burst(exchange: Exchange, journal: Journal) -> None:
    exchange.start()
    exchange.sock.settimeout(WAIT_S)
    journal.reached.set()
    try:
        while True:
            exchange.event(chat_chunk("more and more"))
    except OSError:
        journal.left_at = time.monotonic()
        journal.left.set()
    exchange.close()


def flood_until_stuck(exchange: Exchange, journal: Journal) -> None:
    """Sends until nobody takes anything any more: then the gateway's own send is blocked as well."""
    exchange.start()
    exchange.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            exchange.event(chat_chunk("x" * 100_000))
    journal.wait_until_left(exchange)


def half_a_reply(exchange: Exchange, journal: Journal) -> None:
    exchange.send(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    journal.wait_until_left(exchange)


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


PHASES = {
    "before upstream's headers, streaming": (True, silent_before_headers),
    "before the first event": (True, silent_before_the_first_event),
    "in silence between events": (True, silent_between_events),
    "in a burst": (True, send_burst),
    "while our send is blocked": (True, flood_until_stuck),
    "before upstream's headers, whole": (False, silent_before_headers),
    "inside a whole reply": (False, half_a_reply),
}
WAYS = {"close": close, "reset": reset, "half-close": half_close}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
def test_client_gone(gateway: GatewayServer, shared_upstream: ScriptedUpstream, phase: str, way: str) -> None:
    """Upstream's connection ends with the client's leaving, and the outcome is client_abort."""
    stream, script = PHASES[phase]
    journal = Journal()
    shared_upstream.handler = lambda exchange: script(exchange, journal)
    request_id = f"leave.{phase}.{way}".replace(" ", "-").replace(",", "").replace("'", "")
    sock = socket.socket()
    if script is flood_until_stuck:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(WAIT_S)
    try:
        sock.connect(("127.0.0.1", gateway.port))
        sock.sendall(build_request(f"X-Request-ID: {request_id}", stream=stream))
        assert journal.reached.wait(WAIT_S)
        if script in (silent_between_events, send_burst):
            read_until(sock, b"data: ")
        left_at = time.monotonic()
        WAYS[way](sock)
        assert journal.left.wait(WAIT_S), "upstream's connection stayed open"
    finally:
        sock.close()
    gateway.wait_for_line(f"request_id={request_id}", "outcome=client_abort")
    print(f"{phase:40} {way:12} {(journal.left_at - left_at) * 1000:6.0f} ms")
    assert journal.left_at - left_at < LIMIT_S


def test_client_gone_while_connecting(tmp_path: Path) -> None:
    """While upstream's TLS handshake hangs: settled at once, and the connection is closed, nothing sent."""
    left = threading.Event()
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            sock, _ = listener.accept()
            with sock:
                reached.set()
                sock.settimeout(WAIT_S)
                with contextlib.suppress(ConnectionError):
                    while data := sock.recv(65536):
                        got.append(data)
                left.set()

        reached = threading.Event()
        threading.Thread(target=accept, daemon=True).start()
        upstream = ScriptedUpstream()
        base = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = start_gateway(tmp_path, upstream, XAI_API_BASE=base, GROKFLASK_CONNECT_TIMEOUT_S="30")
        try:
            with connect(server) as sock:
                sock.sendall(build_request("X-Request-ID: leave.connecting", stream=True))
                assert reached.wait(WAIT_S)
            left_at = time.monotonic()
            assert left.wait(WAIT_S)
            print(f"{'while connecting':40} {'close':12} {(time.monotonic() - left_at) * 1000:6.0f} ms")
            assert time.monotonic() - left_at < LIMIT_S
            assert b"POST" not in b"".join(got)
            server.wait_for_line("request_id=leave.connecting", "outcome=client_abort")
        finally:
            server.leave()
            upstream.close()


@pytest.mark.parametrize("phase", ["before upstream's headers, streaming", "in silence between events"])
def test_client_gone_over_tls(tmp_path: Path, phase: str) -> None:
    """The same where upstream speaks TLS, as xAI does: nothing but the connection's end wakes the reader."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    _, script = PHASES[phase]
    journal = Journal()
    upstream = ScriptedUpstream(lambda exchange: script(exchange, journal), tls=context)
    server = start_gateway(tmp_path, upstream, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    try:
        with connect(server) as sock:
            sock.sendall(build_request("X-Request-ID: leave.tls"))
            assert journal.reached.wait(WAIT_S)
            if script is silent_between_events:
                read_until(sock, b"Once")
        left_at = time.monotonic()
        assert journal.left.wait(WAIT_S)
        print(f"{phase + ', TLS':40} {'close':12} {(journal.left_at - left_at) * 1000:6.0f} ms")
        server.wait_for_line("request_id=leave.tls", "outcome=client_abort")
    finally:
        server.leave()
        upstream.close()


def test_early_data_neither_spins_nor_hides_the_leaving(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """A client that sends its next request early goes on; when it leaves, the unread bytes hide nothing."""
    journal = Journal()
    shared_upstream.handler = lambda exchange: silent_between_events(exchange, journal)
    with connect(gateway) as sock:
        early = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(build_request("X-Request-ID: leave.pipelined", stream=True, extra=early))
        read_until(sock, b"Once")
        used_s = cpu_seconds(gateway)
        assert not journal.left.wait(1.0), "a client that is still there was cut off"
        assert cpu_seconds(gateway) - used_s < 0.5
    left_at = time.monotonic()
    assert journal.left.wait(WAIT_S)
    assert journal.left_at - left_at < LIMIT_S


def cpu_seconds(server: GatewayServer) -> float:
    """CPU time of the server's processes so far."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == server.process.pid:  # the process group
                ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


@pytest.fixture
def impatient(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[GatewayServer]:
    server = start_gateway(tmp_path, upstream, GROKFLASK_SEND_TIMEOUT_S="1")
    yield server
    server.leave()


def test_reader_that_takes_nothing_is_gone(impatient: GatewayServer, upstream: ScriptedUpstream) -> None:
    """A client that stops reading while its connection stays open counts as gone after the send timeout."""
    journal = Journal()
    sent = [0]

    def answer(exchange: Exchange) -> None:
        exchange.start()
        journal.reached.set()
        exchange.sock.settimeout(WAIT_S)
        try:
            while True:
                exchange.event(chat_chunk("x" * 10_000))
                sent[0] += 10_000
        except OSError:
            journal.left.set()
        exchange.close()

    upstream.handler = answer
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", impatient.port))
        sock.sendall(build_request("X-Request-ID: leave.stuck", stream=True))
        assert journal.reached.wait(WAIT_S)
        assert journal.left.wait(WAIT_S)
        impatient.wait_for_line("request_id=leave.stuck", "outcome=client_abort")
    # What was taken in for it is bounded by the socket buffers on the way, not by what upstream had.
    assert sent[0] < 30_000_000


def test_a_client_that_has_vanished_is_probed_for(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """While a whole answer is waited for nothing is sent, so the kernel asks whether the client is there."""
    asked, seen = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        asked.set()
        assert seen.wait(WAIT_S)
        answer_chat(exchange)

    shared_upstream.handler = answer
    with connect(gateway) as sock:
        sock.sendall(build_request("X-Request-ID: probed", stream=False))
        assert asked.wait(WAIT_S)
        assert read_timer(gateway.port, sock.getsockname()[1]) == "02"
        seen.set()
        read_until(sock, b"Once upon")


def read_timer(port: int, peer_port: int) -> str:
    """The timer that runs for a connection: 02 is keep-alive (the kernel's proc_net_tcp.txt)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, ours, theirs, _, _, timer, *_ = line.split()
        if (ours[-5:], theirs[-5:]) == (f":{port:04X}", f":{peer_port:04X}"):
            return timer[:2]
    raise AssertionError("no such connection")


def test_slow_reader_slows_its_upstream(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """A slow client gets everything, and upstream is held back meanwhile."""
    total = 40_000_000
    sent = [0]
    event = chat_chunk("y" * 100_000)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.sock.settimeout(WAIT_S)
        while sent[0] < total:
            exchange.event(event)
            sent[0] += 100_000
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = answer
    with connect(gateway) as sock:
        sock.sendall(build_request("X-Request-ID: slow.reader", stream=True))
        got = len(read_until(sock, b"data: "))
        held = -1
        while held != sent[0]:  # until upstream has come to a halt
            held = sent[0]
            threading.Event().wait(0.5)
        assert held < total
        tail = b""
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            data = sock.recv(1_000_000)
            assert data
            got += len(data)
            tail = (tail + data)[-100:]
    assert got > total


class Draining:
    """A gateway that reads on for the usage when a client leaves."""

    @pytest.fixture
    def make(self, tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Callable[..., GatewayServer]]:
        servers = []

        def start(**env: str) -> GatewayServer:
            servers.append(start_gateway(tmp_path, upstream, GROKFLASK_ON_ABORT="drain", **env))
            return servers[0]

        yield start
        servers[0].leave()


class TestDrain(Draining):
    @pytest.mark.parametrize("stream", [True, False])
    def test_usage_is_still_learned(
        self, make: Callable[..., GatewayServer], upstream: ScriptedUpstream, stream: bool
    ) -> None:
        """With GROKFLASK_ON_ABORT=drain an abandoned call is read to its end, and its usage is in the log."""
        server = make()
        gone = threading.Event()
        reached = threading.Event()

        def answer(exchange: Exchange) -> None:
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            if stream:
                exchange.start()
                exchange.event(chat_chunk("Once"))
            reached.set()
            assert gone.wait(WAIT_S)
            if not stream:
                exchange.reply({"model": "grok-4.3", "choices": [{}], "usage": usage})
                return
            for _ in range(5):
                exchange.event(chat_chunk(" more"))
            exchange.event(chat_chunk("", choices=[], usage=usage))
            exchange.event("[DONE]")
            exchange.end()

        upstream.handler = answer
        with connect(server) as sock:
            sock.sendall(build_request("X-Request-ID: drain.1", stream=stream))
            assert reached.wait(WAIT_S)
        gone.set()
        server.wait_for_line("request_id=drain.1", "outcome=client_abort", "total_tokens=5")

    def test_a_drain_has_an_end(self, make: Callable[..., GatewayServer], upstream: ScriptedUpstream) -> None:
        """A call is read on for GROKFLASK_DRAIN_S at the most."""
        server = make(GROKFLASK_DRAIN_S="0.5")
        journal = Journal()
        upstream.handler = lambda exchange: silent_between_events(exchange, journal)
        with connect(server) as sock:
            sock.sendall(build_request("X-Request-ID: drain.2", stream=True))
            read_until(sock, b"Once")
        assert journal.left.wait(WAIT_S)
        server.wait_for_line("request_id=drain.2", "outcome=client_abort")

    def test_over_the_cap_calls_are_cancelled(
        self, make: Callable[..., GatewayServer], upstream: ScriptedUpstream
    ) -> None:
        """With as many drains going on as GROKFLASK_DRAINS allows, the next one is cancelled at once."""
        server = make(GROKFLASK_DRAINS="0")
        journal = Journal()
        upstream.handler = lambda exchange: silent_between_events(exchange, journal)
        with connect(server) as sock:
            sock.sendall(build_request("X-Request-ID: drain.3", stream=True))
            read_until(sock, b"Once")
        left_at = time.monotonic()
        assert journal.left.wait(WAIT_S)
        assert journal.left_at - left_at < LIMIT_S
