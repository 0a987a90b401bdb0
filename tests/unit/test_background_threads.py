"""Every background thread outlives an error, whichever it is, and then does its work."""

from __future__ import annotations

import errno
import io
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.figures import parse_figures
from support.processes import ROOT, wait_for
from support.scripted import WAIT_S

from grokflask import runtime
from grokflask.delivery.clients import ClientWatcher
from grokflask.errors import GrokflaskError
from grokflask.ledger import statements
from grokflask.ledger.reports import RowFilter, iterate_rows
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits.admission import Limits
from grokflask.limits.counters import Ask
from grokflask.limits.memory import MemoryCounters
from grokflask.metrics import exposition, families
from grokflask.metrics.exposition import Metrics
from grokflask.metrics.families import States
from grokflask.metrics.tallies import Tallies
from grokflask.register import OpenExchanges
from grokflask.replay.loop import Loop
from grokflask.server.worker import Worker
from grokflask.storage.database import Database
from grokflask.upstream.client import UpstreamCall

ERRORS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("a bug"),
    MemoryError,
    lambda: OSError(errno.EMFILE, "Too many open files"),
]


class Failing:
    """Calls `function`, but its first `times` calls raise instead."""

    def __init__(self, error: BaseException, function: Callable[..., Any], times: int = 1) -> None:
        self._error, self._function, self.left = error, function, times

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise self._error
        return self._function(*args, **options)


@pytest.fixture(params=ERRORS, ids=["bug", "memory", "descriptors"])
def error(request: pytest.FixtureRequest) -> BaseException:
    found: BaseException = request.param()
    return found


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of this process has failed yet."""
    monkeypatch.setattr(runtime, "failures", {})
    monkeypatch.setattr(runtime, "_logged_at", {})


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_work_is_called_again(error: BaseException, logged: io.StringIO) -> None:
    """Until it returns. The log has one traceback, with the thread's name; each error is counted."""
    done = threading.Event()
    thread = runtime.start_thread("tester", Failing(error, done.set, 4))
    assert done.wait(WAIT_S)
    thread.join(WAIT_S)
    assert runtime.failures == {"tester": 4}
    (line,) = [line for line in logged.getvalue().splitlines() if "background thread failed" in line]
    for word in ("level=error", "thread=tester", "failures=1", "Traceback"):
        assert word in line


def test_errors_of_two_types_are_both_logged(logged: io.StringIO) -> None:
    for error in ERRORS:
        runtime.keep_working("tester", Failing(error(), lambda: None))
    assert logged.getvalue().count("Traceback") == len(ERRORS)


def test_a_log_that_fails_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be short there too."""
    monkeypatch.setattr(runtime, "_log", SimpleNamespace(exception=Failing(MemoryError(), print, 9)))
    runtime.keep_working("tester", Failing(RuntimeError(), lambda: None))
    assert runtime.failures == {"tester": 1}


def test_a_service_that_cannot_start_is_started_later() -> None:
    """And no service stays out for that."""
    notes: list[str] = []

    def make(name: str, start: Callable[[str], object]) -> Any:
        return SimpleNamespace(start=lambda: start(name), close=lambda _: notes.append(f"close {name}"))

    no_thread = Failing(RuntimeError("can't start new thread"), notes.append)
    background = runtime.Background(make("one", no_thread), make("two", notes.append))
    with pytest.raises(RuntimeError):
        background.start()
    background.start()
    assert notes == ["one", "two"]
    background.close()


def test_a_service_that_cannot_close_holds_up_no_other() -> None:
    notes: list[float] = []
    services = [
        SimpleNamespace(start=lambda: None, close=Failing(RuntimeError(), notes.append)) for _ in range(2)
    ]
    services[1].close.left = 0
    background = runtime.Background(*services)  # type: ignore[arg-type]
    background.start()
    background.close()
    assert notes == [runtime.CLOSE_S]


@pytest.mark.parametrize("place", ["look", "callback", "poll", "lost"])
def test_the_watcher_of_clients(
    error: BaseException, place: str, pair: tuple[socket.socket, socket.socket], monkeypatch: Any
) -> None:
    """Also when the error comes after epoll has told of a client, which it does once."""
    watcher = ClientWatcher(0.01)
    left = threading.Event()

    class Poll:
        """epoll, whose first answer gets lost."""

        def __init__(self) -> None:
            self._poll = select.epoll()
            self.register, self.unregister = self._poll.register, self._poll.unregister

        def poll(self, *args: Any) -> Any:
            found = self._poll.poll(*args)
            return fail(found) if found else found

    fail = Failing(error, lambda found: found, times=place == "lost")
    if place == "lost":
        watcher.make_poll = Poll
    elif place == "look":
        monkeypatch.setattr(watcher, "_look", Failing(error, watcher._look))
    elif place == "poll":
        watcher.make_poll = lambda: SimpleNamespace(  # type: ignore[misc]
            poll=Failing(error, lambda *_: []), register=Failing(OSError(), print, 99)
        )
    on_gone = Failing(error, left.set, times=place == "callback")
    watcher.watch(pair[0], on_gone)
    if place == "callback":  # this one is lost, the next client's is not
        watcher.watch(pair[0], left.set)
    pair[1].close()
    assert left.wait(WAIT_S)
    assert runtime.failures == {"client-watcher": 1}


def test_the_watcher_of_clients_without_epoll(pair: tuple[socket.socket, socket.socket]) -> None:
    """There may be no descriptor for it."""
    watcher = ClientWatcher(0.01)
    watcher.make_poll = Failing(OSError(errno.EMFILE, "Too many open files"), select.epoll)
    left = threading.Event()
    watcher.watch(pair[0], left.set)
    pair[1].close()
    assert left.wait(WAIT_S)


@pytest.mark.parametrize("place", ["_turn", "_beat", "_deliver", "_store", "_prune", "write", "store"])
def test_the_ledgers_writer(error: BaseException, place: str, tmp_path: Path, monkeypatch: Any) -> None:
    """No row is lost, wherever it fails, and none is taken for one that the database rejects."""
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    writer = LedgerWriter(database, worker="me", retention_days=1, flush_s=0.01)
    owner: Any = {"write": database, "store": statements}.get(place, writer)
    monkeypatch.setattr(owner, place, Failing(error, getattr(owner, place)))
    try:
        row = LedgerRow(make_id(), "r1", "alice", "chat", "grok-4.3", time.time(), outcome="complete")
        writer.settle(row)
        wait_for(lambda: len(list(iterate_rows(database, RowFilter()))) == 1, "the row in the database")
        assert (writer.refused, writer.dropped) == (0, 0)
        wait_for(lambda: writer.state == "up", "a writer that knows it")
        assert writer.close(WAIT_S)
    finally:
        writer.close(WAIT_S)
        database.close()
    is_outage = place == "store" and isinstance(error, OSError)  # which is no failure of the thread
    assert runtime.failures == {"ledger-writer": 0 if is_outage else 1}


def make_limits(counters: MemoryCounters) -> Limits:
    from grokflask.config import Settings

    return Limits(
        Settings(),
        counters,
        shared=False,
        worker=lambda: "me",
        find_spent=lambda *_: (0, 0),
        clock=lambda: 1e9,
    )


@pytest.mark.parametrize("place", ["keep_up", "_renew", "deliver"])
def test_the_limiters_keeper(error: BaseException, place: str, monkeypatch: Any) -> None:
    counters = MemoryCounters(10)
    limits = make_limits(counters)
    owner: Any = limits._settlements if place == "deliver" else limits
    monkeypatch.setattr(owner, place, Failing(error, getattr(owner, place)))
    ask = Ask("1", "key:alice", "r1", True, 5, 5, "2026-11-24", None, None, None, None)
    limits._settlements.add(ask, 7, 7)
    limits.start()
    try:
        wait_for(lambda: not limits.state.waiting, "the settlement's delivery")
    finally:
        limits.close(WAIT_S)
    assert runtime.failures == {"limits": 1}


def test_the_update_of_the_metrics(error: BaseException, monkeypatch: Any) -> None:
    monkeypatch.setattr(exposition, "UPDATE_S", 0.01)
    updates: list[int] = []

    def read_states() -> States:
        updates.append(1)
        return {families.THREAD_FAILURES: {(name,): number for name, number in runtime.failures.items()}}

    metrics = Metrics(Tallies(), Failing(error, read_states))
    metrics.start()
    try:
        wait_for(lambda: len(updates) > 2, "updates after the error")
    finally:
        metrics.close(WAIT_S)
    assert parse_figures(metrics.render().decode())["grokflask_thread_failures_total{thread=metrics}"] == 1


@pytest.mark.parametrize("closing", [False, True])
def test_the_loop_of_recordings(error: BaseException, closing: bool) -> None:
    """It also ends, if its last round fails."""
    done = threading.Event()
    loop = Loop(Failing(error, done.set, times=9 if closing else 1))
    loop.start()
    if not closing:
        loop.wake()
        assert done.wait(WAIT_S)
    thread = loop._thread
    loop.close(WAIT_S)
    assert thread is not None
    assert not thread.is_alive()
    assert runtime.failures["recordings"] >= 1


class Call:
    def __init__(self, cancel: Callable[..., Any]) -> None:
        self.cancel = cancel


def test_the_end_of_open_exchanges(error: BaseException) -> None:
    """One that cannot be cancelled holds up no other."""
    exchanges = OpenExchanges(10, 2**30)
    cancelled = threading.Event()
    for cancel in (Failing(error, print, 10**9), lambda _: cancelled.set()):
        exchanges.start(partial(Call, cancel))
    exchanges.drain(0.0, 0.0)
    assert cancelled.wait(WAIT_S)
    assert runtime.failures["drain"] >= 1
    for call in list(exchanges._calls):
        exchanges.end(call)


@pytest.mark.parametrize("kind", [MemoryError, SystemExit])
def test_a_call_that_is_ended_from_outside(kind: type[BaseException]) -> None:
    """Its caller learns of it, and does not wait in vain."""

    def send(_: object) -> Any:
        raise kind

    call = UpstreamCall(send)
    with pytest.raises((MemoryError, GrokflaskError)):
        call.wait(WAIT_S)


def test_a_cancel_that_fails_ends_the_wait(error: BaseException, monkeypatch: Any) -> None:
    go_on = threading.Event()

    def send(_: object) -> Any:
        assert go_on.wait(WAIT_S)

    call = UpstreamCall(send)
    monkeypatch.setattr(call._attempt, "cancel", Failing(error, print))
    with pytest.raises(type(error)):
        call.cancel(GrokflaskError())
    with pytest.raises(GrokflaskError):
        call.wait(WAIT_S)
    go_on.set()


def test_the_end_of_a_worker(error: BaseException) -> None:
    """It is announced, and all connections are closed at its end."""
    notes: list[str] = []
    connections = SimpleNamespace(
        make_room=Failing(error, lambda: None),
        close_idle=Failing(error, lambda: None, 2),
        close_all=lambda: notes.append("closed"),
    )
    alive = iter([True, True])
    worker: Any = SimpleNamespace(
        LAST_S=0.3,
        _last_at=0.0,
        _connections=connections,
        cfg=SimpleNamespace(graceful_timeout=0.0),
        _find_services=lambda: {"gateway": SimpleNamespace(exchanges=exchanges)},
    )
    exchanges = SimpleNamespace(drain=lambda _: notes.append("announced"))

    class Dying:
        @property
        def alive(self) -> bool:
            return next(alive, False)

        def __getattr__(self, name: str) -> Any:
            return getattr(worker, name)

    dying = Dying()
    runtime.keep_working("end-of-worker", lambda: Worker._drain(dying))  # type: ignore[arg-type]
    assert notes[0] == "announced"
    assert notes[-1] == "closed"
    assert connections.close_idle.left == 0


NO_DESCRIPTORS = """
import resource, socket, threading
from grokflask.sockets import is_gone, shut_down

ours, theirs = socket.socketpair()
with socket.create_server(("127.0.0.1", 0)) as listener:
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
got = []
readers = [threading.Thread(target=lambda sock=sock: got.append(sock.recv(9))) for sock in (ours, server)]
for reader in readers:
    reader.start()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    socket.socket()
except OSError as error:
    print(error.strerror)
print(is_gone(ours), is_gone(server))
theirs.send(b"x")  # its reader ends here
for sock in (ours, server):
    shut_down(sock, socket.SHUT_RDWR)
for reader in readers:
    reader.join(60)
print(sorted(got), is_gone(ours))
closed = socket.socket(fileno=server.detach())
closed.close()
shut_down(closed, socket.SHUT_RDWR)
"""


def test_a_cancel_needs_no_descriptor() -> None:
    """Readers wake up, and nobody is taken for gone, when the process may open no file."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stdout == "Too many open files\nFalse False\n[b'', b'x'] True\n", done.stderr
