"""Waits that suit gevent: for a socket's next bytes, and for functions that block in C."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from grokflask.runtime import Offload

_READ = 1  # libev's EV_READ


class ReadWait:
    """Waits until `sock` has something to read.

    gevent's own sockets try to read first, which nearly always fails, and make a timer for every wait. This
    class keeps one timer. If it fires before the deadline of the current wait, it is set
    again. A closed socket counts as readable: the read reports the error.

    One greenlet waits at a time. When it is killed, the next wait starts from a clean state.
    """

    LONGEST_S = 10.0  # a running timer keeps this object and its socket's watcher in memory

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(sock.fileno(), _READ)
        self._pending = getattr(sock, "pending", None)  # bytes that TLS has decrypted already
        self._timer: Any = None
        self._rings_at = 0.0  # monotonic
        self._deadline = 0.0  # monotonic
        self._waiting: Any = None

    def __call__(self, seconds: float) -> bool:
        """Returns whether there is something to read; False after `seconds` without."""
        if self._pending is not None and self._pending():
            return True
        if self._sock.fileno() < 0:  # libev aborts the process when it has to watch a closed descriptor
            return True
        self._deadline = time.monotonic() + seconds
        if self._timer is None or self._rings_at > self._deadline:
            self._set_timer(seconds)
        self._waiting = gevent.getcurrent()
        try:
            self._readable.start(self._waiting.switch, True)
            return bool(self._hub.switch())
        finally:
            self._waiting = None
            self._readable.stop()

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.stop()
        seconds = min(seconds, self.LONGEST_S)
        self._rings_at = time.monotonic() + seconds
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        left = self._deadline - time.monotonic()
        if left > 0.0:
            self._set_timer(left)
        else:
            self._waiting.switch(False)


def make_offload(threads: ThreadPool) -> Offload:
    """Runs functions in `threads`, which must be apart from gevent's own: those look up names."""

    def offload(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        def run() -> tuple[Any, BaseException | None]:
            try:
                return function(*arguments), None
            except BaseException as error:  # gevent would also print an error that is raised in the thread
                return None, error

        result, error = threads.apply(run)
        if error is not None:
            raise error
        return result

    return offload
