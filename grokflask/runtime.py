"""The running process: its id, grokflask's version, its threads and its background services.

Services start once per process, in the server's hook or with the first request. They do not start with the
app, because a server may fork after making it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

VERSION = "0.1.0"

CLOSE_S = 3.0
"""Seconds that each service has to finish when the process ends."""

REQUEST_ID = "grokflask.request_id"
"""The name of a request's id in its WSGI environment."""

STALL_S = 0.25
"""A turn of the event loop that takes longer is a stall."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""How long a thread rests after an error; the pause doubles with each further one."""

LOG_EVERY_S = 60.0
"""How often a thread's errors of one type are logged. All of them are counted."""

failures: dict[str, int] = {}
"""How many errors the background threads of this process have outlived, by the name of the thread."""

_log = logging.getLogger("grokflask.runtime")
_logged_at: dict[tuple[str, str], float] = {}  # monotonic

_pid = os.getpid()


def get_pid() -> int:
    """The process id, without a system call."""
    return _pid


def _update_pid() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_update_pid)


def step_aside(size: int | None = None) -> None:
    """Lets others go on, in the middle of much work; cheap, about 7 µs. With a `size` only after TURN_BYTES.

    gevent's `sleep(0)` is not enough: the loop runs the caller again, many times, before it looks at sockets.
    """
    if size is None or size > TURN_BYTES:
        time.sleep(1e-9)


def start_thread(name: str, work: Callable[[], None]) -> threading.Thread:
    """Starts a daemon thread for `work`, as `keep_working`. Raises RuntimeError if there can be no more."""
    thread = threading.Thread(target=keep_working, args=(name, work), name=name, daemon=True)
    thread.start()
    return thread


def keep_working(name: str, work: Callable[[], None]) -> None:
    """Calls `work` until it returns. After an error it is called again, when a growing pause is over."""
    failures.setdefault(name, 0)
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return work()
        except Exception:
            note_failure(name)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def note_failure(name: str) -> None:
    """Counts the error that is being handled, which the thread `name` outlives, and logs it. Never raises."""
    with suppress(Exception):  # memory or descriptors may have run out
        failures[name] = failures.get(name, 0) + 1
        kind, now = (name, type(sys.exception()).__name__), time.monotonic()
        if now - _logged_at.get(kind, -LOG_EVERY_S) >= LOG_EVERY_S:
            _logged_at[kind] = now
            fields = {"thread": name, "failures": failures[name]}
            _log.exception("a background thread failed, and continues", extra={"fields": fields})


Offload = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""Runs a function with a tuple of arguments in a thread of the operating system, and returns its result."""


def run_here(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """An `Offload` that calls the function itself, where blocking does no harm."""
    return function(*arguments)


TURN_BYTES = 256 * 1024
"""Bytes that are worked on without letting other requests run. It takes about a millisecond."""


def take_turns(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of TURN_BYTES. Other requests run between them."""
    for at in range(0, len(data), TURN_BYTES):
        if at:
            step_aside()
        yield data[at : at + TURN_BYTES]


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
            for service in self._services:
                service.start()  # if one cannot, the next request tries again
            self._pid = get_pid()
            atexit.register(self.close)

    def close(self) -> None:
        """Closes the services, if this process has started them."""
        if self._pid != get_pid():
            return
        self._pid = None
        atexit.unregister(self.close)
        for service in self._services:
            try:
                service.close(CLOSE_S)
            except Exception:
                note_failure("close")  # the others have work to finish too
