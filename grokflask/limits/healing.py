"""Raises what keys have spent by the counters to what the ledger has, in a thread of its own.

Counters in memory do not know what a process that drained beside this one after a reload has booked, and a
Redis that was restored may be older than it was. Both would open spent budgets again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from grokflask.errors import StoreUnavailableError
from grokflask.runtime import get_pid, start_thread

HEAL_S = 120.0
"""Interval at which the keys in use are compared."""

RETURN_S = 10.0
"""Time after an outage within which all workers have delivered what waited."""

RETRY_S = 10.0


class Healer:
    """Compares the keys with budgets that this process has admitted. Thread-safe.

    Args:
        heal: compares these keys and corrects them. Raises StoreUnavailableError.
        first_s: when the first comparison is due after `start`.
    """

    def __init__(self, heal: Callable[[Collection[str]], object], first_s: float) -> None:
        self._heal = heal
        self._first_s = first_s
        self._known: set[str] = set()  # since the process began; a restored store may be wrong about all
        self._used: set[str] = set()  # since the last comparison
        self._due_at = 0.0  # monotonic
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = 0

    def note(self, key: str) -> None:
        """A request of this key, which has a budget, is about to be admitted."""
        self._used.add(key)

    def expect_older(self) -> None:
        """The store is back after an outage: soon all keys are compared."""
        self._used |= self._known
        self._due_at = time.monotonic() + RETURN_S
        self._wake.set()

    def start(self) -> None:
        """Starts the thread, once in each process."""
        if self._thread is None or self._pid != get_pid():
            self._closed = False
            self._due_at = time.monotonic() + self._first_s
            self._thread = start_thread("budgets", self._run)
            self._pid = get_pid()

    def close(self, timeout_s: float) -> None:
        """Ends the thread. Idempotent."""
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def compare(self) -> None:
        """Compares the keys that were used since the last time."""
        keys, self._used = self._used, set()
        self._known |= keys
        self._due_at = time.monotonic() + HEAL_S
        try:
            self._heal(keys)
        except BaseException as error:
            self._used |= keys
            self._due_at = time.monotonic() + RETRY_S
            if not isinstance(error, StoreUnavailableError):  # which whoever uses the store reports
                raise

    def _run(self) -> None:
        while not self._closed:
            if time.monotonic() >= self._due_at:
                self.compare()
            self._wake.wait(max(0.0, self._due_at - time.monotonic()))
            self._wake.clear()
