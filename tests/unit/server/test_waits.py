"""Waits over real sockets and gevent's real hub. This process is not patched."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import trustme
from gevent.threadpool import ThreadPool

from grokflask import runtime
from grokflask.runtime import Offload
from grokflask.server.waits import ReadWait, make_offload

LONG_S = 20.0
"""A deadline that no wait of these tests reaches."""

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets; the first one is waited for."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def is_clean(wait: ReadWait) -> bool:
    """Nothing waits, and gevent's loop does not watch the socket."""
    return wait._waiting is None and not wait._readable.active


def test_data_that_have_come(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    wait = ReadWait(ours)
    assert wait(LONG_S) is True
    assert ours.recv(10) == b"x"
    assert is_clean(wait)


def test_data_that_come_late(pair: Pair) -> None:
    """The wait ends with the data, in the greenlet that waits; others run meanwhile."""
    ours, theirs = pair
    wait = ReadWait(ours)
    order: list[str] = []

    def send() -> None:
        order.append("sent")
        theirs.send(b"x")

    gevent.spawn_later(0.02, send)
    assert wait(LONG_S) is True
    order.append("returned")
    assert order == ["sent", "returned"]
    assert is_clean(wait)


def test_no_data(pair: Pair) -> None:
    """It returns False when the time is over, not before, and can be called again."""
    wait = ReadWait(pair[0])
    for _ in range(2):
        started_at = time.monotonic()
        assert wait(0.05) is False
        assert time.monotonic() - started_at >= 0.05
        assert is_clean(wait)
        assert wait._timer is None


def test_the_end_of_the_connection(pair: Pair) -> None:
    """A peer that closes makes the socket readable."""
    ours, theirs = pair
    wait = ReadWait(ours)
    gevent.spawn_later(0.01, theirs.close)
    assert wait(LONG_S) is True
    assert ours.recv(10) == b""


def test_a_shutdown_ends_the_wait(pair: Pair) -> None:
    """An attempt is cancelled so, through a duplicate of the descriptor."""
    ours, _ = pair
    wait = ReadWait(ours)

    def shut() -> None:
        with socket.socket(fileno=os.dup(ours.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    gevent.spawn_later(0.01, shut)
    assert wait(LONG_S) is True
    assert ours.recv(10) == b""


def test_one_timer_serves_many_waits(pair: Pair) -> None:
    """A wait that ends with data leaves its timer running, and later deadlines use it."""
    ours, theirs = pair
    wait = ReadWait(ours)
    timers = set()
    for more_s in range(3):
        theirs.send(b"x")
        assert wait(LONG_S + more_s)
        ours.recv(1)
        timers.add(wait._timer)
    assert len(timers) == 1


def test_a_timer_that_rings_too_early_is_set_again(pair: Pair) -> None:
    """The first wait's timer rings during the second wait, which still gets all of its time."""
    ours, theirs = pair
    wait = ReadWait(ours)
    theirs.send(b"x")
    assert wait(0.05)
    ours.recv(1)
    first = wait._timer
    started_at = time.monotonic()
    later: list[Any] = []
    gevent.spawn_later(0.1, lambda: later.append(wait._timer))
    assert wait(0.2) is False
    assert time.monotonic() - started_at >= 0.2
    assert later != [first]


def test_a_timer_that_rings_while_nothing_waits(pair: Pair) -> None:
    """It is forgotten, and the next wait sets its own."""
    ours, theirs = pair
    wait = ReadWait(ours)
    theirs.send(b"x")
    assert wait(0.02)
    ours.recv(1)
    gevent.sleep(0.05)
    assert wait._timer is None
    assert wait(0.02) is False


def test_a_shorter_deadline_comes_first(pair: Pair) -> None:
    """The second of two waits may end long before the first one's timer would ring."""
    ours, theirs = pair
    wait = ReadWait(ours)
    theirs.send(b"x")
    assert wait(9.0)
    ours.recv(1)
    first = wait._timer
    started_at = time.monotonic()
    assert wait(0.05) is False
    assert time.monotonic() - started_at < 9.0
    assert not first.active


def test_a_long_wait_takes_several_timers(pair: Pair) -> None:
    """A timer runs for LONGEST_S at the most; the wait lasts as long as it was asked to."""
    wait = ReadWait(pair[0])
    wait.LONGEST_S = 0.02
    started_at = time.monotonic()
    assert wait(0.1) is False
    assert time.monotonic() - started_at >= 0.1


def test_it_is_freed_with_its_last_timer(pair: Pair) -> None:
    """A running timer holds it; after that nothing does."""
    ours, theirs = pair
    wait = ReadWait(ours)
    theirs.send(b"x")
    assert wait(0.02)
    gone = weakref.ref(wait)
    del wait
    gevent.sleep(0.05)
    gc.collect()
    assert gone() is None


def test_a_kill_while_waiting(pair: Pair) -> None:
    """The greenlet ends, the loop no longer watches the socket, and another greenlet can wait."""
    ours, theirs = pair
    wait = ReadWait(ours)
    killed = gevent.spawn(wait, LONG_S)
    gevent.sleep(0)
    assert wait._readable.active
    killed.kill()
    assert killed.dead
    assert isinstance(killed.value, gevent.GreenletExit)
    assert is_clean(wait)
    assert wait(0.02) is False
    theirs.send(b"x")
    assert gevent.spawn(wait, LONG_S).get(timeout=LONG_S) is True


def test_a_kill_that_meets_data(pair: Pair) -> None:
    """Data and a kill in the same turn of the loop: the greenlet ends once, and nothing stays behind."""
    ours, theirs = pair
    wait = ReadWait(ours)
    results: list[bool] = []
    waiting = gevent.spawn(lambda: results.append(wait(LONG_S)))
    gevent.sleep(0)
    theirs.send(b"x")
    waiting.kill(block=False)
    waiting.join(LONG_S)
    assert waiting.dead
    assert is_clean(wait)
    assert wait(LONG_S) is True


def test_a_timeout_from_outside(pair: Pair) -> None:
    """gevent's own Timeout ends the wait by an error, as it does elsewhere, and leaves it clean."""
    wait = ReadWait(pair[0])
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        wait(LONG_S)
    assert is_clean(wait)
    assert wait(0.02) is False


def test_a_socket_that_is_closed_before_the_wait(pair: Pair) -> None:
    """It does not wait at all: the read has the error. libev would abort the whole process."""
    ours, _ = pair
    wait = ReadWait(ours)
    ours.close()
    assert wait(LONG_S) is True
    with pytest.raises(OSError, match="Bad file descriptor"):
        ours.recv(1)
    assert is_clean(wait)


def test_a_socket_that_is_closed_during_the_wait(pair: Pair) -> None:
    """The kernel does not report it, so the deadline ends that wait; the loop survives it."""
    ours, _ = pair
    wait = ReadWait(ours)
    gevent.spawn_later(0.01, ours.close)
    assert wait(0.1) is False
    assert is_clean(wait)
    assert wait(LONG_S) is True
    near, far = socket.socketpair()
    with near, far:  # most likely with the same descriptor
        assert ReadWait(near)(0.02) is False
        far.send(b"x")
        assert ReadWait(near)(LONG_S) is True


def test_bytes_that_tls_has_decrypted() -> None:
    """They count at once, though the descriptor has nothing to read."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    near, far = socket.socketpair()
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: accepted.append(server_context.wrap_socket(far, server_side=True))
    )
    thread.start()
    with client_context.wrap_socket(near, server_hostname="localhost") as ours:
        thread.join()
        with accepted[0] as theirs:
            theirs.send(b"two")
            assert ours.recv(1) == b"t"
            wait = ReadWait(ours)
            assert wait(LONG_S) is True
            assert wait._timer is None  # it did not even begin to wait
            assert ours.recv(10) == b"wo"
            assert wait(0.02) is False
            theirs.send(b"more")
            assert wait(LONG_S) is True


@pytest.fixture
def offload() -> Iterator[Offload]:
    """With threads of its own, which end with the test."""
    threads = ThreadPool(2)
    yield make_offload(threads)
    threads.kill()


def test_a_function_runs_in_another_thread(offload: Offload) -> None:
    """Other greenlets run meanwhile."""
    released = threading.Event()
    gevent.spawn_later(0.01, released.set)

    def block(seconds: float) -> tuple[bool, int]:
        return released.wait(seconds), threading.get_ident()

    came, thread = offload(block, (LONG_S,))
    assert came
    assert thread != threading.get_ident()


def test_its_error_is_raised_here(offload: Offload, capsys: pytest.CaptureFixture[str]) -> None:
    """Once: gevent prints nothing."""
    with pytest.raises(ZeroDivisionError):
        offload(lambda number: 1 // number, (0,))
    with pytest.raises(SystemExit):
        offload(exit, (3,))
    assert capsys.readouterr().err == ""


def test_stepping_aside_lets_others_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few steps. With gevent's `sleep(0)` it would take fifty, or for ever."""
    monkeypatch.setattr(runtime, "time", SimpleNamespace(sleep=gevent.sleep))
    ours, theirs = pair
    wait, steps = ReadWait(ours), 0
    late: list[int] = []

    def read() -> None:
        while wait(LONG_S) and (sent_at := ours.recv(1)):
            late.append(steps - sent_at[0])

    reader = gevent.spawn(read)
    gevent.sleep(0.01)
    for _ in range(200):
        if steps % 20 == 0:
            theirs.send(bytes((steps,)))
        steps += 1
        runtime.step_aside()
    theirs.close()
    reader.join(LONG_S)
    assert len(late) == 10
    assert max(late) <= 3
