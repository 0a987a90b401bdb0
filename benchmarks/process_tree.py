"""What a process and its children have used: CPU time to the nanosecond, and memory."""

from __future__ import annotations

import contextlib
import time

import psutil


class ProcessTree:
    """A gateway's processes: the one that was started, and all that came of it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def read_cpu_s(self) -> float:
        """User and system time of all of them, ended threads included, ended children not."""
        return sum(_read_cpu_ns(process.pid) for process in self._list()) / 1e9

    def read_pss_kib(self) -> float:
        """Memory: pages that several processes share are divided among them, so nothing counts twice."""
        total = 0
        for process in self._list():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 1024

    def count(self) -> int:
        """How many processes there are."""
        return len(self._list())

    def kill(self) -> None:
        """Ends all of them at once."""
        for process in self._list():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _list(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _read_cpu_ns(pid: int) -> int:
    """The process's own CPU clock. What /proc shows is rounded to 10 ms, as much as 500 replies of nginx.

    Linux makes the clock's number from the process's: its complement, and 2 for "as the scheduler counts".
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:  # it has ended
        return 0
