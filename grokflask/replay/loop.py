"""A background thread that repeats one piece of work."""

from __future__ import annotations

import threading
from collections.abc import Callable

from grokflask.runtime import note_failure, start_thread

RETRY_S = 0.5  #: how long to wait after work that failed


class Loop:
    """Repeats `work`, which returns in how many seconds it is due again; None if only after `wake`."""

    def __init__(self, work: Callable[[], float | None]) -> None:
        self._work = work
        self._woken = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, once in each process."""
        if self._thread is None or not self._thread.is_alive():
            self._closing = False
            self._thread = start_thread("recordings", self._run)

    def wake(self) -> None:
        """Makes the work due now."""
        self._woken.set()

    def close(self, timeout_s: float) -> None:
        """Has the work done once more and ends the thread. Idempotent."""
        self._closing = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            closing = self._closing
            self._woken.clear()
            try:
                wait_s = self._work()
            except Exception:
                note_failure("recordings")
                wait_s = RETRY_S
            if closing:
                return
            self._woken.wait(wait_s)
