"""Clients that leave, as their sockets show it; and what becomes of their calls."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.sockets import is_gone, shut_down

PAIRS = ["tcp", "unix"]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our side and the client's side of a connection."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=["epoll", "one by one"])
def watcher(request: pytest.FixtureRequest) -> ClientWatcher:
    """A watcher with the kernel's list of sockets, and one that has to look at each."""
    watcher = ClientWatcher(0.01)
    assert watcher.make_poll is not None
    if request.param != "epoll":
        watcher.make_poll = None
    return watcher


def test_a_client_that_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nobody is taken for gone, with and without unread bytes, on blocking and non-blocking sockets."""
    ours, theirs = pair
    assert not is_gone(ours)
    theirs.sendall(b"early data")
    assert not is_gone(ours)
    ours.setblocking(False)
    assert not is_gone(ours)
    assert ours.recv(100) == b"early data"  # looking has taken nothing
    assert not is_gone(ours)


def test_looking_leaves_a_socket_as_it_was(pair: tuple[socket.socket, socket.socket]) -> None:
    """A blocking socket still blocks after it was looked at."""
    ours, _ = pair
    ours.settimeout(0.05)
    is_gone(ours)
    with pytest.raises(TimeoutError):
        ours.recv(1)


def test_a_client_that_has_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """Closing shows, and so does our own side's closing."""
    ours, theirs = pair
    theirs.close()
    wait_for(lambda: is_gone(ours), "the FIN")
    ours.close()
    assert is_gone(ours)


def test_half_closing_counts_as_leaving(pair: tuple[socket.socket, socket.socket]) -> None:
    """A client that has shut down its sending side looks like one that has gone."""
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    wait_for(lambda: is_gone(ours), "the FIN")


def test_unread_bytes_do_not_hide_a_tcp_client_that_left() -> None:
    """Early data that nobody reads stand before the FIN; the kernel's state shows it all the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        with ours:
            theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
            theirs.close()
            wait_for(lambda: is_gone(ours), "the FIN")


def test_a_reset_shows() -> None:
    """A client that resets has gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        with ours:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            wait_for(lambda: is_gone(ours), "the RST")


def test_the_watcher_calls_once(watcher: ClientWatcher, pair: tuple[socket.socket, socket.socket]) -> None:
    """Once, and only for the client that has gone."""
    ours, theirs = pair
    calls: list[str] = []
    gone = threading.Event()

    def note() -> None:
        calls.append("gone")
        gone.set()

    watcher.watch(ours, note)
    assert not gone.wait(0.1)
    theirs.close()
    assert gone.wait(WAIT_S)
    assert len(watcher) == 0
    assert not watcher._wake.is_set() or calls == ["gone"]
    assert calls == ["gone"]


@pytest.mark.parametrize("end", ["close", "half-close", "reset"])
def test_early_bytes_neither_call_nor_hide_a_leaving(watcher: ClientWatcher, end: str) -> None:
    """What a client sends before it is asked to is no leaving; what comes behind it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, theirs:
        gone = threading.Event()
        watcher.watch(ours, gone.set)
        theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
        assert not gone.wait(0.1)
        if end == "half-close":
            theirs.shutdown(socket.SHUT_WR)
        else:
            if end == "reset":
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
        assert gone.wait(WAIT_S)


def test_a_descriptor_that_is_used_again(watcher: ClientWatcher) -> None:
    """A socket that was closed under its watch leaves the next one with its number alone."""
    first, first_peer = socket.socketpair()
    stale = watcher.watch(first, lambda: None)
    number = first.fileno()
    first.close()
    second, second_peer = socket.socketpair()
    with first_peer, second, second_peer:
        assert second.fileno() == number
        gone = threading.Event()
        watch = watcher.watch(second, gone.set)
        stale.stop()
        second_peer.close()
        assert gone.wait(WAIT_S)
        watch.stop()
    assert len(watcher) == 0


def test_many_clients_that_leave_at_once(watcher: ClientWatcher) -> None:
    """Each of them is called, and nobody else."""
    pairs = [socket.socketpair() for _ in range(200)]
    called: list[int] = []
    for number, (ours, _) in enumerate(pairs):
        watcher.watch(ours, lambda number=number: called.append(number))
    for _, theirs in pairs[::2]:
        theirs.close()
    wait_for(lambda: len(called) == 100, "100 calls")
    assert sorted(called) == list(range(0, 200, 2))
    assert len(watcher) == 100
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_a_stopped_watch_never_calls(
    watcher: ClientWatcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    """After `stop` nothing is called; stopping twice is fine; another watch goes on."""
    ours, theirs = pair
    calls: list[str] = []
    other = threading.Event()
    watch = watcher.watch(ours, lambda: calls.append("gone"))
    watch.stop()
    watch.stop()
    watcher.watch(ours, other.set)
    theirs.close()
    assert other.wait(WAIT_S)
    assert calls == []


def test_a_callback_that_fails_does_not_end_the_watcher(
    watcher: ClientWatcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    """One exchange's trouble is not the others'."""
    ours, theirs = pair
    other = threading.Event()

    def fail() -> None:
        raise RuntimeError("trouble")

    watcher.watch(ours, fail)
    watcher.watch(ours, other.set)
    theirs.close()
    assert other.wait(WAIT_S)


def test_a_limit_expires_unless_it_is_stopped(
    watcher: ClientWatcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A limit calls when its time is over, and not once it has been stopped."""
    ours, _ = pair
    expired, stopped = threading.Event(), threading.Event()
    watcher.limit(ours, 0.05, stopped.set).stop()
    watcher.limit(ours, 0.05, expired.set)
    assert expired.wait(WAIT_S)
    assert not stopped.is_set()


def test_without_a_socket_nothing_is_watched(watcher: ClientWatcher) -> None:
    """Servers that hand no socket over are no reason to fail."""
    watcher.watch(None, lambda: None).stop()
    watcher.limit(None, 0.0, lambda: None).stop()
    shut_down(None, socket.SHUT_RDWR)
    assert len(watcher) == 0


def test_shut_down_ends_a_read_as_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whoever reads sees the end of the data, and the socket stays whole for its owner."""
    ours, _ = pair
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(ours.recv(10)))
    reader.start()
    shut_down(ours, socket.SHUT_RD)
    reader.join(WAIT_S)
    assert got == [b""]
    assert ours.fileno() > 0


class TestDeparture:
    def make(self, drain_s: float = 0.0, drains: int = 1) -> tuple[Departure, list[str], threading.Semaphore]:
        cancelled: list[str] = []
        tokens = threading.Semaphore(drains)
        departure = Departure(
            ClientWatcher(0.01),
            None,
            lambda reason: cancelled.append(reason.code),
            total_s=60,
            drain_s=drain_s,
            drains=tokens,
        )
        return departure, cancelled, tokens

    def test_cancels(self) -> None:
        """By default the call of a client that leaves is cancelled, once."""
        departure, cancelled, _ = self.make()
        assert departure.left_at is None
        departure.leave()
        departure.leave()
        assert departure.left_at is not None
        assert (cancelled, departure.drains_call) == (["client_gone"], False)

    def test_drains_within_the_cap(self) -> None:
        """With a token the call goes on, and the token comes back at the end, once."""
        departure, cancelled, tokens = self.make(drain_s=5, drains=1)
        departure.leave()
        assert (cancelled, departure.drains_call) == ([], True)
        assert not tokens.acquire(blocking=False)
        departure.end()
        departure.end()
        assert tokens.acquire(blocking=False)
        assert not tokens.acquire(blocking=False)

    def test_cancels_above_the_cap(self) -> None:
        """Without a token it is cancelled, and no token is given back."""
        departure, cancelled, tokens = self.make(drain_s=5, drains=0)
        departure.leave()
        departure.end()
        assert (cancelled, departure.drains_call) == (["client_gone"], False)
        assert not tokens.acquire(blocking=False)

    def test_after_the_end_nobody_leaves(self) -> None:
        """Once the exchange is over its client's going is nobody's business."""
        departure, cancelled, _ = self.make()
        departure.end()
        departure.leave()
        assert (cancelled, departure.left_at) == ([], None)
