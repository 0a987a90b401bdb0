"""The running process: its id, grokflask's version, and the services that run beside its requests.

Services start once in each process, and not when the app is made, because a server may fork after that: the
server's own hook starts them, or the first request.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Protocol

VERSION = "0.1.0"
"""grokflask's own."""

CLOSE_S = 3.0
"""Time that each service has to finish when the process ends."""

_pid = os.getpid()


def get_pid() -> int:
    """The process id, without a system call."""
    return _pid


def _update_pid() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_update_pid)


class Service(Protocol):
    """Something with a thread of its own."""

    def start(self) -> None:
        """Starts it; a second call changes nothing."""

    def close(self, timeout_s: float) -> object:
        """Brings what waits to its place, within `timeout_s`. Idempotent."""


class Background:
    """The services of this process, in the order in which they are closed."""

    def __init__(self, *services: Service) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._pid: int | None = None

    def start(self) -> None:
        """Starts all that has not been started in this process."""
        if self._pid == get_pid():
            return
        with self._lock:
            if self._pid == get_pid():
                return
            self._pid = get_pid()
            atexit.register(self.close)
        for service in self._services:
            service.start()

    def close(self) -> None:
        """Ends them, in a process that has started them."""
        if self._pid != get_pid():
            return
        self._pid = None
        atexit.unregister(self.close)
        for service in self._services:
            service.close(CLOSE_S)
