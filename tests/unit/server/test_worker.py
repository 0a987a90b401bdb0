"""The worker: its connections, lost clients, its end. Over real sockets; this process is not patched."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest
from support.processes import ROOT
from support.wire import read_all, read_until

from grokflask.register import OpenExchanges
from grokflask.server import bodies
from grokflask.server.worker import Connections, Worker
from grokflask.sockets import keep_alive

WAIT_S = 20.0

Sockets = list[socket.socket]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Ends of connections, whose other ends stay open."""
    pairs = [socket.socketpair() for _ in range(20)]
    yield [ours for ours, _ in pairs]
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def find_ended(sockets: Sockets) -> Sockets:
    """Those that will bring no more."""
    ended = []
    for sock in sockets:
        try:
            if sock.recv(1, socket.MSG_DONTWAIT) == b"":
                ended.append(sock)
        except BlockingIOError:
            pass
    return ended


class Impatient(Connections):
    FRESH_S = -1.0


def add_each(connections: Connections, sockets: Sockets) -> None:
    """Adds them one by one. One that is hung up on ends then, as its greenlet would end it."""
    for sock in sockets:
        connections.add(sock)
        for ended in find_ended(sockets):
            connections.remove(ended)


def test_fresh_connections_are_spared(sockets: Sockets) -> None:
    """A connection that has had no request yet may bring one now, however full the worker is."""
    connections = Connections(20)
    for sock in sockets:
        connections.add(sock)
    connections.close_idle()
    assert find_ended(sockets) == []


def test_connections_that_never_ask(sockets: Sockets) -> None:
    """After FRESH_S they are idle like others."""
    connections = Impatient(20)
    add_each(connections, sockets)
    # 18 of 20 may stay: one in twenty is kept free, and room for the next is made before it comes.
    assert find_ended(sockets) == sockets[:2]


def test_the_longest_idle_make_room(sockets: Sockets) -> None:
    """In the order in which their last requests ended."""
    connections = Connections(20)
    for sock in sockets[:18]:
        connections.add(sock)
        connections.start_request(sock)
    for sock in (sockets[5], sockets[3], sockets[9]):
        connections.end_request(sock)
    connections.make_room()
    assert find_ended(sockets) == []
    connections.add(sockets[18])
    assert find_ended(sockets) == [sockets[5]]
    connections.remove(sockets[5])
    connections.add(sockets[19])
    assert find_ended(sockets) == [sockets[3], sockets[5]]


def test_requests_are_not_interrupted(sockets: Sockets) -> None:
    """A worker that is full of streams closes none of them; the first to end makes room."""
    connections = Connections(20)
    for sock in sockets:
        connections.add(sock)
        connections.start_request(sock)
    connections.close_idle()
    assert find_ended(sockets) == []
    connections.end_request(sockets[7])
    assert find_ended(sockets) == [sockets[7]]


def test_all_idle_ones(sockets: Sockets) -> None:
    connections = Connections(100)
    for sock in sockets:
        connections.add(sock)
        connections.start_request(sock)
    for sock in sockets[:5]:
        connections.end_request(sock)
    connections.remove(sockets[0])
    connections.close_idle()
    assert find_ended(sockets) == sockets[1:5]


def test_all_of_them(sockets: Sockets) -> None:
    """Both directions end, whatever they are doing; one that is closed already does no harm."""
    connections = Connections(100)
    for sock in sockets:
        connections.add(sock)
    connections.start_request(sockets[0])
    sockets[1].close()
    connections.close_all()
    assert find_ended(sockets[2:] + sockets[:1]) == sockets[2:] + sockets[:1]
    with pytest.raises(BrokenPipeError):
        sockets[0].send(b"x")


class Site:
    """A worker and its clients, each connection in a greenlet as in gunicorn."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._listener: Any = gevent.socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._clients: list[Any] = []
        self.served: list[Any] = []

    def connect(self) -> Any:
        """A client's socket, once the worker has the connection."""
        client = gevent.socket.create_connection(self._listener.getsockname(), WAIT_S)
        ours, address = self._listener.accept()
        self.served.append(gevent.spawn(self.worker.handle, self._listener, ours, address))
        self._clients.append(client)
        gevent.sleep(0)
        return client

    def close(self) -> None:
        for each in (*self._clients, self._listener):
            each.close()
        gevent.joinall(self.served, WAIT_S)


@pytest.fixture
def make_site(make_worker: Callable[..., Worker], installed: None) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(app: Any, **settings: Any) -> Site:
        sites.append(Site(make_worker(app, **settings)))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def ask(client: Any, until: bytes) -> None:
    """One request, and its answer up to the piece that brings `until`."""
    client.sendall(REQUEST)
    assert read_until(client, until).startswith(b"HTTP/1.1 200")


def greet(_: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


END = b"0\r\n\r\n"
"""The last chunk."""


class Stream:
    """An app whose answers last until `release`."""

    def __init__(self) -> None:
        self.release = gevent.event.Event()

    def __call__(self, _: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        self.release.wait(WAIT_S)
        yield b"last"


def test_a_connection_is_idle_between_requests(make_site: Callable[..., Site]) -> None:
    """Not before its first one, nor during one."""
    stream = Stream()
    site = make_site(stream)
    fresh, busy = site.connect(), site.connect()
    ask(busy, b"first")
    site.worker._connections.close_idle()
    stream.release.set()
    read_until(busy, END)
    site.worker._connections.close_idle()
    assert busy.recv(100) == b""
    ask(fresh, END)


def test_connections_are_forgotten(make_site: Callable[..., Site]) -> None:
    """After they have ended, whichever side closed."""
    site = make_site(greet)
    client = site.connect()
    ask(client, b"hello")
    client.close()
    closed = site.connect()
    closed.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    read_all(closed)
    gevent.joinall(site.served, WAIT_S, raise_error=True)
    connections = site.worker._connections
    assert (connections._open, connections._idle) == (set(), {})


def test_a_full_worker_takes_another(make_site: Callable[..., Site]) -> None:
    """The connection that has been idle longest is closed for it."""
    site = make_site(greet, worker_connections=3)  # so one may be open, and room is made for the next
    first = site.connect()
    ask(first, b"hello")
    second = site.connect()
    assert first.recv(100) == b""
    ask(second, b"hello")


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_lost_client_is_not_logged(make_site: Callable[..., Site], number: int) -> None:
    """gunicorn would log a traceback for it."""

    def lose(_: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise OSError(number, os.strerror(number))

    site = make_site(lose)
    client = site.connect()
    ask(client, b"first")
    read_all(client)
    gevent.joinall(site.served, WAIT_S, raise_error=True)
    assert site.worker.log.lines.getvalue() == ""


def test_other_errors_are_logged(make_site: Callable[..., Site]) -> None:
    """A fault of the machine is none of the client's."""

    def fail(_: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise OSError(errno.EIO, "a broken disk")

    site = make_site(fail)
    client = site.connect()
    ask(client, b"first")
    read_all(client)
    gevent.joinall(site.served, WAIT_S, raise_error=True)
    assert "a broken disk" in site.worker.log.lines.getvalue()


def refuse(_: Any, start_response: Any) -> list[bytes]:
    """An app that reads no body."""
    start_response("401 Unauthorized", [("Content-Length", "2")])
    return [b"no"]


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_a_small_unread_body_keeps_its_connection(make_site: Callable[..., Site], framing: bytes) -> None:
    """If it has arrived by the time of the answer."""
    site = make_site(refuse)
    client = site.connect()
    for _ in range(3):
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing)
        got = read_until(client, b"no")
        assert b"Connection: keep-alive" in got


UNREAD = {
    "missing": b"Content-Length: 5\r\n\r\nhell",
    "large": b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000,
    "chunks": b"Transfer-Encoding: chunked\r\n\r\nf4240\r\n" + b"x" * 10**6 + b"\r\n0\r\n\r\n",
    "broken": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n" + b"x" * 10**6,
    "expected": b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "pipelined": b"Content-Length: 500000\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("kind", UNREAD)
def test_an_unread_body_ends_its_connection(make_site: Callable[..., Site], kind: str) -> None:
    """The client, which sends all of it before it reads, gets its one answer, and then the end."""
    site = make_site(refuse)
    client = site.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + UNREAD[kind])
    got = read_all(client)
    assert got.startswith(b"HTTP/1.1 401 ")
    assert got.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in got
    assert got.endswith(b"\r\n\r\nno")
    client.close()
    gevent.joinall(site.served, WAIT_S, raise_error=True)
    assert site.worker.log.lines.getvalue() == ""


def test_a_body_that_is_still_sent_after_the_answer(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read for a while, so that nothing destroys the answer, and then no longer."""
    monkeypatch.setattr(bodies, "LINGER_BYTES", 2**20)
    site = make_site(refuse)
    client = site.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
    assert read_all(client).endswith(b"no")  # it has no more to say, but takes what comes
    for _ in range(3):
        client.sendall(b"x" * 2**18)
    with pytest.raises(ConnectionError):
        while True:
            client.sendall(b"x" * 2**18)
    gevent.joinall(site.served, WAIT_S, raise_error=True)


def test_a_client_that_sends_no_more(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it hold its place: the worker waits only so long, and not at all when it is full."""
    site = make_site(refuse, worker_connections=3)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    first = site.connect()
    first.sendall(head)
    read_all(first)
    assert not site.served[0].ready()
    second = site.connect()
    gevent.joinall(site.served[:1], WAIT_S)
    assert site.served[0].ready()
    monkeypatch.setattr(bodies, "LINGER_GAP_S", 0.01)
    second.sendall(head)
    read_all(second)
    gevent.joinall(site.served, WAIT_S)
    assert site.served[1].ready()


def test_a_refused_head_can_be_read_about(make_site: Callable[..., Site]) -> None:
    """By a client that is still sending what belongs to it."""
    site = make_site(greet)
    client = site.connect()
    client.sendall(b"POST / HTTP/9.1\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
    got = read_all(client)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"malformed_request" in got


def test_an_app_that_reads_no_further_than_it_must(make_site: Callable[..., Site]) -> None:
    """A chunked body whose last chunk nobody has asked for is complete once that has arrived."""

    def read(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [environ["wsgi.input"].read(5)]

    client = make_site(read).connect()
    for _ in range(2):
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
        read_until(client, b"hello")


def test_requests_without_a_pause_let_others_run(make_site: Callable[..., Site]) -> None:
    """A client that has sent thousands at once is one of many."""
    site = make_site(greet)
    client = site.connect()
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0)
            turns += 1

    client.sendall(REQUEST * 1000)
    counter = gevent.spawn(count)
    got = b""
    while got.count(b"hello") < 1000:
        got += client.recv(65536)
    counter.kill()
    assert turns >= 1000 // Worker.TURN_REQUESTS


def test_the_end(make_site: Callable[..., Site]) -> None:
    """Idle connections are closed at once, fresh ones when they stay silent, and all before the end."""
    stream = Stream()
    site = make_site(stream, graceful_timeout=1)
    worker = site.worker
    worker.LAST_S = 0.3
    worker._connections.FRESH_S = 0.2
    idle, fresh, busy = site.connect(), site.connect(), site.connect()
    stream.release.set()
    ask(idle, END)
    stream.release.clear()
    ask(busy, b"first")
    worker.alive = False
    started_at = time.monotonic()
    draining = gevent.spawn(worker._drain)
    assert idle.recv(100) == b""
    assert fresh.recv(100) == b""
    assert read_all(busy) == b""
    assert time.monotonic() - started_at >= 0.7  # LAST_S before the end, and not sooner
    draining.get(timeout=WAIT_S)
    stream.release.set()


def test_the_app_is_told_of_the_end(make_worker: Callable[..., Worker]) -> None:
    """Its exchanges drain. An app without services is left alone."""
    exchanges = OpenExchanges(10, 0)
    gateway = SimpleNamespace(exchanges=exchanges)
    for extensions in ({"background": None, "gateway": gateway}, {"gateway": gateway}):
        worker = make_worker(SimpleNamespace(extensions=extensions), graceful_timeout=0)
        worker.alive = False
        worker.LAST_S = 0.0
        exchanges.draining = False
        worker._drain()
        assert exchanges.draining is ("background" in extensions)


def test_the_kernel_looks_for_peers_that_vanished() -> None:
    """After 30 s of silence three probes in 30 s; a Unix socket needs none."""
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3]
    with socket.socket(socket.AF_UNIX) as sock:
        keep_alive(sock)


def run_patched(code: str) -> str:
    """What `code` prints in a process that begins as gunicorn's, with its configuration."""
    prelude = "import runpy, sys; config = runpy.run_path('gunicorn.conf.py'); "
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_services_are_attached(tmp_path: Any) -> None:
    """An app's own services get what gevent needs, and run."""
    code = f"""
import gevent, select, threading
from grokflask.config import load_settings
from grokflask.server.waits import ReadWait
from grokflask.server.worker import attach
from grokflask.services import build_services
from sqlalchemy import text

settings = load_settings({{"XAI_API_KEY": "xai-unused", "GROKFLASK_KEYS": "alice:secret-0123456789",
                           "DATABASE_URL": "sqlite:///{tmp_path}/ledger.db"}}, dotenv=None)
services = vars(build_services(settings, "http://127.0.0.1:9/v1"))
assert services["key_store"].list() == ()  # as the app does at its start, before the server has it
attach(services, config["Worker"].make_poll, ({str(tmp_path)!r}, 3))
assert services["upstream"].connector.make_wait is ReadWait
with services["clients"].make_poll() as poll:
    assert type(poll).__name__ == "epoll" and not hasattr(select, "epoll")
native = gevent.monkey.get_original("threading", "get_ident")
assert services["database"].read(lambda _: native()) != native()
assert services["database"].write(lambda _: native()) != native()
services["metrics"].share({str(tmp_path)!r}, 3)
services["database"].upgrade()
services["background"].close()
print("attached")
"""
    assert run_patched(f"exec({code!r})").split()[-1] == "attached"


def test_the_master_stays_small() -> None:
    """gunicorn.conf.py loads the server's modules and nothing of the app or its libraries."""
    out = run_patched(
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'grokflask')); "
        "print(*{'flask', 'sqlalchemy', 'requests', 'urllib3', 'redis', 'msgspec'} & set(sys.modules))"
    )
    ours, libraries = out.splitlines()
    server = ["bodies", "metric_slots", "private", "response", "waits", "watchdog", "worker"]
    expected = ["grokflask", "grokflask.server", *[f"grokflask.server.{name}" for name in server]]
    assert set(ours.split()) == {*expected, *[f"grokflask.{name}" for name in ("log", "runtime", "sockets")]}
    assert libraries == ""


def test_a_reload_reads_the_server_again() -> None:
    """The master runs its configuration anew, and takes new files of ours with it."""
    out = run_patched(
        "again = runpy.run_path('gunicorn.conf.py'); "
        "print(again['Worker'] is config['Worker'], again['pre_fork'] is config['pre_fork'], "
        "again['Worker'].make_poll is config['Worker'].make_poll is not None)"
    )
    assert out.split() == ["False", "False", "True"]
