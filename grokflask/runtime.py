"""The running process: its id, grokflask's version, and its background services.

Services start once per process, in the server's hook or with the first request. They do not start with the
app, because a server may fork after making it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

VERSION = "0.1.0"

CLOSE_S = 3.0
"""Seconds that each service has to finish when the process ends."""

_pid = os.getpid()


def get_pid() -> int:
    """The process id, without a system call."""
    return _pid


def _update_pid() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_update_pid)


def step_aside() -> None:
    """Lets others go on, in the middle of much work. Cheap: about 7 µs.

    gevent's `sleep(0)` is not enough: the loop runs the caller again, many times, before it looks at sockets.
    """
    time.sleep(1e-9)


Offload = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""Runs a function with a tuple of arguments in a thread of the operating system, and returns its result."""


def run_here(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """An `Offload` that calls the function itself, where blocking does no harm."""
    return function(*arguments)


class Service(Protocol):
    """A background service, with its own thread."""

    def start(self) -> None:
        """Starts it. Idempotent."""

    def close(self, timeout_s: float) -> object:
        """Finishes pending work within `timeout_s`, then stops. Idempotent."""


class Background:
    """The services of the process, in the order in which they are closed."""

    def __init__(self, *services: Service) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._pid: int | None = None

    def start(self) -> None:
        """Starts the services, unless this process has done so."""
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
        """Closes the services, if this process has started them."""
        if self._pid != get_pid():
            return
        self._pid = None
        atexit.unregister(self.close)
        for service in self._services:
            service.close(CLOSE_S)
