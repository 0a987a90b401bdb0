"""Detects clients that leave or are too slow by looking at their sockets instead of writing to them.

A WSGI server does not report a client that has left, but gunicorn hands over the socket. One thread asks the
kernel four times a second which of the watched sockets were closed by their peer. This works in silence, it
sees a client that pipelined more data before it left, it costs nothing per event, and with epoll it costs the
same for one client and for thousands. Half-closing counts as leaving: to the kernel, a client that has shut
down its sending side looks like one that has left. nginx treats it the same way.

Without epoll (other systems) the sockets are checked one by one. Without a socket (other servers) or a TCP
state, the client's leaving is found when the next heartbeat is written.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from grokflask.errors import ClientGoneError, GrokflaskError, TotalTimeoutError
from grokflask.runtime import get_pid, note_failure, start_thread
from grokflask.sockets import is_gone, shut_down

INTERVAL_S = 0.25
ENDING_S = 2.0
"""How long the usage of an answer that is otherwise complete is waited for when its client has left."""
SPARE_S = 1.0
"""Extra time before the watcher ends an answer: its reader, which can inform the client, comes first."""

# linux/eventpoll.h. gevent's patch removes Python's names together with epoll.
_EPOLLRDHUP = 0x2000
_EPOLLONESHOT = 1 << 30


class Watch:
    """One socket being watched, until `stop`."""

    def __init__(self, watcher: ClientWatcher, sock: socket.socket | None, deadline: float | None) -> None:
        self._watcher = watcher
        self.sock = sock
        self.deadline = deadline
        self.descriptor = -1

    def stop(self) -> None:
        """Ends the watch. Idempotent; a callback that has begun is not stopped."""
        self._watcher.forget(self)


class ClientWatcher:
    """Watches the sockets of this process. Its thread starts with the first of them.

    Attributes:
        make_poll: makes an epoll object, or None to do without. gevent's patch removes epoll from `select`
            because it can block; here it never waits, so the server puts it back in.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.make_poll: Callable[[], Any] | None = getattr(select, "epoll", None)
        self._interval_s = interval_s
        self._watches: dict[Watch, Callable[[], None]] = {}
        self._timed: set[Watch] = set()
        self._unpolled: set[Watch] = set()
        self._polled: dict[int, Watch] = {}  # by descriptor
        self._poll: Any = None
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._pid: int | None = None

    def watch(self, sock: socket.socket | None, on_gone: Callable[[], None]) -> Watch:
        """Calls `on_gone` once, in the watcher's thread, when the client behind `sock` has left.

        Without a socket it never calls.
        """
        return self._add(Watch(self, sock, None), on_gone)

    def limit(self, sock: socket.socket | None, seconds: float, on_expiry: Callable[[], None]) -> Watch:
        """Calls `on_expiry` unless the watch is stopped within `seconds`. Without a socket it never calls."""
        return self._add(Watch(self, sock, time.monotonic() + seconds), on_expiry)

    def call_after(self, seconds: float, on_expiry: Callable[[], None]) -> Watch:
        """As `limit`, but needs no socket."""
        return self._keep(Watch(self, None, time.monotonic() + seconds), on_expiry)

    def forget(self, watch: Watch) -> None:
        """As `Watch.stop`."""
        if self._watches.pop(watch, None) is None:
            return
        self._timed.discard(watch)
        self._unpolled.discard(watch)
        if self._polled.get(watch.descriptor) is watch:
            del self._polled[watch.descriptor]
            with contextlib.suppress(OSError):  # it has been closed
                self._poll.unregister(watch.descriptor)

    def __len__(self) -> int:
        return len(self._watches)

    def _add(self, watch: Watch, callback: Callable[[], None]) -> Watch:
        return watch if watch.sock is None else self._keep(watch, callback)

    def _keep(self, watch: Watch, callback: Callable[[], None]) -> Watch:
        self._start_once()
        self._watches[watch] = callback
        if watch.deadline is not None:
            self._timed.add(watch)
        elif not self._register(watch):
            self._unpolled.add(watch)
        self._wake.set()
        return watch

    def _register(self, watch: Watch) -> bool:
        """Adds the socket to the epoll object. False without one."""
        if self._poll is None or watch.sock is None:
            return False
        try:
            watch.descriptor = watch.sock.fileno()
            # Only the end of the connection, not bytes that the client sends early.
            self._poll.register(watch.descriptor, _EPOLLRDHUP | _EPOLLONESHOT)
        except (OSError, ValueError):  # closed, or watched twice
            return False
        self._polled[watch.descriptor] = watch
        return True

    def _start_once(self) -> None:
        """Starts the thread at the first watch of each process: a server may fork after making the app."""
        if self._pid == get_pid():
            return
        with self._lock:
            if self._pid == get_pid():
                return
            self._poll = None
            with contextlib.suppress(OSError):  # no free descriptor: the sockets are checked one by one
                self._poll = self.make_poll() if self.make_poll else None
            start_thread("client-watcher", self._run)
            self._pid = get_pid()

    def _run(self) -> None:
        for watch in list(self._watches):  # after an error: epoll tells of each client once
            if watch.deadline is None:
                self._check(watch)
        while True:
            if not self._watches:
                self._wake.clear()
                if not self._watches:
                    self._wake.wait()
            time.sleep(self._interval_s)
            self._look()

    def _look(self) -> None:
        """Checks every watch once. A method of its own, so that its locals do not keep a watch alive."""
        if self._poll is not None:
            for descriptor, _ in self._poll.poll(0, max(1, len(self._polled))):
                self._call(self._polled.get(descriptor))
        now = time.monotonic()
        for watch in list(self._timed):
            if watch.deadline is not None and now >= watch.deadline:
                self._call(watch)
        for watch in list(self._unpolled):
            self._check(watch)

    def _check(self, watch: Watch) -> None:
        if watch.sock is not None and is_gone(watch.sock):
            self._call(watch)

    def _call(self, watch: Watch | None) -> None:
        callback = self._watches.get(watch) if watch is not None else None
        if watch is None or callback is None:
            return
        self.forget(watch)
        try:
            callback()
        except Exception:
            note_failure("client-watcher")


def _is_not_ending() -> bool:
    return False


class Departure:
    """What happens to a call when its client leaves: it is cancelled, or read to its end for the usage.

    The watch begins at once and lasts until `end`. `leave` may come from the watcher's thread, or from a
    failed write.

    Args:
        cancel: ends the call for the given reason.
        total_s: total time limit of the call, slow reading by the client included.
        drain_s: how long the call may continue after its client left; 0 cancels it at once.
        drains: limits the calls that continue at the same time; further ones are cancelled.

    Attributes:
        left_at: monotonic time at which the client was found to have left, or None.
        drains_call: the call continues, and its usage is still to be read.
        drain_s: how long it may.
        is_ending: returns whether only the usage is still to come. Then the call continues for ENDING_S.
    """

    def __init__(
        self,
        watcher: ClientWatcher,
        sock: socket.socket | None,
        cancel: Callable[[GrokflaskError], None],
        *,
        total_s: float,
        drain_s: float = 0.0,
        drains: threading.Semaphore | None = None,
    ) -> None:
        self.left_at: float | None = None
        self.drains_call = False
        self._watcher = watcher
        self._sock = sock
        self._cancel = cancel
        self.drain_s = drain_s
        self.is_ending: Callable[[], bool] = _is_not_ending
        self._drains = drains
        self._lock = threading.Lock()
        self._ended = False
        self._watch = watcher.watch(sock, self.leave)
        self._total = watcher.limit(sock, total_s + SPARE_S, self._expire)

    def leave(self) -> None:
        """The client has left. Idempotent."""
        with self._lock:
            if self.left_at is not None or self._ended:
                return
            self.left_at = time.monotonic()
            if not self.drain_s and self.is_ending():
                self.drain_s = ENDING_S  # nothing more is generated, so it costs nothing to know the cost
            if self.drain_s and self._drains is not None:
                self.drains_call = self._drains.acquire(blocking=False)
            if self.drains_call:
                self._watch.stop()
                self._watch = self._watcher.call_after(self.drain_s, self._give_up)
        if not self.drains_call:
            self._give_up()
        shut_down(self._sock, socket.SHUT_RDWR)  # ends a send that still waits

    def _give_up(self) -> None:
        self._cancel(ClientGoneError())

    def _expire(self) -> None:
        self._cancel(TotalTimeoutError())
        shut_down(self._sock, socket.SHUT_RDWR)

    def check(self) -> None:
        """Checks the socket now: an answer may be ready before the watcher's next check."""
        if self._sock is not None and is_gone(self._sock):
            self.leave()

    def end(self) -> None:
        """The exchange is over. Idempotent."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self.is_ending = _is_not_ending  # it may refer to what refers to this: a cycle
        self._watch.stop()
        self._total.stop()
        if self.drains_call and self._drains is not None:
            self._drains.release()
