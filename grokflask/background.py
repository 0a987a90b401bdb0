"""What runs beside the requests: the ledger's writer, the renewal of leases. Started once in each process.

Not when the app is made, for a server may fork after that: by the server's own hook, or by the first request.
"""

from __future__ import annotations

import atexit
import threading
from typing import Protocol

from grokflask.runtime import get_pid

CLOSE_S = 3.0


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
