"""Clients that leave, or are too slow: noticed by looking at their sockets, not by writing to them.

A WSGI server tells the app nothing of a client that has gone; gunicorn hands over the socket, though. One
thread looks at all watched sockets four times a second by asking the kernel for their TCP state. That works
while nothing is being read or written, it sees a client that has pipelined more data and then gone, it
cannot spin, and it costs nothing per event. Half-closing counts as leaving: the kernel shows a client that
has shut down its sending side exactly like one that has gone (nginx reads it the same way).

Where there is no socket (other servers) or no TCP state (other systems), the heartbeat's write is what
notices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable

INTERVAL_S = 0.25

_log = logging.getLogger("grokflask.clients")

# linux/tcp_states.h: the peer has sent FIN or RST, or all is over.
_GONE_STATES = frozenset((7, 8, 9))  # CLOSE, CLOSE_WAIT, LAST_ACK


class Watch:
    """One socket under watch, until `stop`."""

    def __init__(self, watcher: ClientWatcher, sock: socket.socket | None, deadline: float | None) -> None:
        self._watcher = watcher
        self.sock = sock
        self.deadline = deadline

    def stop(self) -> None:
        """Ends the watch. Idempotent; a callback that has begun is not stopped."""
        self._watcher.forget(self)


class ClientWatcher:
    """Watches the sockets of this process. Its thread starts with the first of them."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._watches: dict[Watch, Callable[[], None]] = {}
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._pid: int | None = None

    def watch(self, sock: socket.socket | None, on_gone: Callable[[], None]) -> Watch:
        """Calls `on_gone`, once and in the watcher's thread, when the client behind `sock` has gone.

        Without a socket the watch is there and never calls.
        """
        return self._add(Watch(self, sock, None), on_gone)

    def limit(self, sock: socket.socket | None, seconds: float, on_expiry: Callable[[], None]) -> Watch:
        """Calls `on_expiry` when the watch has not been stopped within `seconds`."""
        return self._add(Watch(self, sock, time.monotonic() + seconds), on_expiry)

    def forget(self, watch: Watch) -> None:
        """As `Watch.stop`."""
        self._watches.pop(watch, None)

    def __len__(self) -> int:
        return len(self._watches)

    def _add(self, watch: Watch, callback: Callable[[], None]) -> Watch:
        if watch.sock is None:
            return watch
        self._watches[watch] = callback
        with self._lock:
            if self._pid != os.getpid():  # not before the first: a server may fork after it has made the app
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="client-watcher", daemon=True).start()
        self._wake.set()
        return watch

    def _run(self) -> None:
        while True:
            if not self._watches:
                self._wake.clear()
                if not self._watches:
                    self._wake.wait()
            time.sleep(self._interval_s)
            self._look()

    def _look(self) -> None:
        """One look at every watch. A method of its own, so that nothing of a watch outlives it here."""
        now = time.monotonic()
        for watch in list(self._watches):
            assert watch.sock is not None
            over = is_gone(watch.sock) if watch.deadline is None else now >= watch.deadline
            callback = self._watches.pop(watch, None) if over else None
            if callback is not None:
                try:
                    callback()
                except Exception:
                    _log.exception("a client's leaving could not be dealt with")


class Departure:
    """What becomes of a call when its client leaves: it is cancelled, or read to its end for the usage.

    The watch begins at once and lasts until `end`. `leave` may come from the watcher's thread, or from
    whoever has failed to write.

    Args:
        cancel: ends the call.
        drain_s: how long the call may go on after its client; 0 cancels it at once.
        drains: as many calls as it has tokens go on at once; the next is cancelled.

    Attributes:
        left_at: when the client was found gone, by the monotonic clock; None while it is there.
        drains_call: the call goes on, and what it used is still to be read.
    """

    def __init__(
        self,
        watcher: ClientWatcher,
        sock: socket.socket | None,
        cancel: Callable[[], None],
        *,
        drain_s: float = 0.0,
        drains: threading.Semaphore | None = None,
    ) -> None:
        self.left_at: float | None = None
        self.drains_call = False
        self._watcher = watcher
        self._sock = sock
        self._cancel = cancel
        self._drain_s = drain_s
        self._drains = drains
        self._lock = threading.Lock()
        self._ended = False
        self._watch = watcher.watch(sock, self.leave)

    def leave(self) -> None:
        """The client has gone. Idempotent."""
        with self._lock:
            if self.left_at is not None or self._ended:
                return
            self.left_at = time.monotonic()
            if self._drain_s and self._drains is not None:
                self.drains_call = self._drains.acquire(blocking=False)
        if self.drains_call:
            self._watch.stop()
            self._watch = self._watcher.limit(self._sock, self._drain_s, self._cancel)
        else:
            self._cancel()
        shut_down(self._sock, socket.SHUT_RDWR)  # whoever is still sending to it stops

    def check(self) -> None:
        """Looks at once, for an answer that is ready before the watcher has come round."""
        if self._sock is not None and is_gone(self._sock):
            self.leave()

    def end(self) -> None:
        """The exchange is over. Idempotent."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._watch.stop()
        if self.drains_call and self._drains is not None:
            self._drains.release()


def is_gone(sock: socket.socket) -> bool:
    """The peer of `sock` has closed, half-closed or reset its side."""
    try:
        if sock.family == socket.AF_UNIX:
            return _has_ended(sock)
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _GONE_STATES
    except AttributeError:
        return False  # this system has no TCP_INFO
    except OSError:
        return True  # closed on this side


def _has_ended(sock: socket.socket) -> bool:
    """A Unix socket's end, which data that wait unread would hide."""
    with socket.socket(fileno=os.dup(sock.fileno())) as twin:
        if not os.get_blocking(twin.fileno()):
            twin.setblocking(False)
        try:
            return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False


def limit_sending(sock: socket.socket | None, seconds: float) -> None:
    """Lets the kernel end the connection once the peer has taken nothing for `seconds`.

    TCP_USER_TIMEOUT covers a reader that stands still (its window is closed) as well as one whose machine
    has gone. A no-op without such a socket.
    """
    if sock is None or sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def shut_down(sock: socket.socket | None, how: int) -> None:
    """Shuts the connection down under whoever waits on it, who sees an end rather than an error.

    It goes through a duplicate: gevent's own socket would raise in the greenlet that waits on it, and an
    SSLSocket would drop its TLS state under the reader.
    """
    if sock is None:
        return
    with contextlib.suppress(OSError):
        twin = socket.socket(fileno=os.dup(sock.fileno()))
        with twin:
            twin.shutdown(how)
