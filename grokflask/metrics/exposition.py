"""/metrics: what all workers of a server have counted, in Prometheus' text format.

Each worker updates its values once a second. Workers that share a directory answer for all of them; a process
without one answers for itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from grokflask.metrics.families import FAMILIES, States
from grokflask.metrics.series import Series, open_files
from grokflask.metrics.tallies import Tallies
from grokflask.runtime import Offload, get_pid, run_here, start_thread

UPDATE_S = 1.0
MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_ORDER = {family.name: number for number, family in enumerate(FAMILIES)}

_log = logging.getLogger("grokflask.metrics")


class Metrics:
    """The metrics of one process, or after `share` of one server. Its methods may be called in any thread.

    `read_states` returns gauges and counters that are not in `tallies`, but kept elsewhere.
    """

    def __init__(self, tallies: Tallies, read_states: Callable[[], States]) -> None:
        #: Adding up many workers takes a while, and must not stall the streams of this one.
        self.offload: Offload = run_here
        self._tallies = tallies
        self._read_states = read_states
        self._lock = threading.Lock()
        self._series = Series()
        self._shared: Collector | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._pid = 0

    def share(self, directory: str, slot: int) -> None:
        """Shares the metrics of all workers that use `directory`, each in a slot of its own.

        Called before anything is counted. If the directory cannot be used, this worker answers for itself.
        """
        try:
            series = Series(open_files(directory, slot))
        except OSError as error:
            fields = {"directory": directory, "detail": str(error)}
            _log.error("metrics cannot be shared: each worker reports its own", extra={"fields": fields})
            return
        with self._lock:
            self._series = series
            self._shared = _SharedCollector(None, directory)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Starts to update the values once a second; a second call changes nothing."""
        with self._lock:
            if self._pid == get_pid():
                return
            self._stop = threading.Event()
            self._thread = start_thread("metrics", self._run)
            self._pid = get_pid()

    def close(self, timeout_s: float) -> None:
        """Stops that after a last update. Idempotent."""
        self._stop.set()
        if self._thread is not None and self._pid == get_pid():
            self._thread.join(timeout_s)
        self._update()
        with self._lock:
            self._thread, self._pid = None, 0

    def render(self) -> bytes:
        """The text of all metrics, in MEDIA_TYPE."""
        self._update()
        if self._shared is None:
            return generate_latest(self._series)
        text: bytes = self.offload(generate_latest, (self._shared,))
        return text

    def _run(self) -> None:
        while not self._stop.wait(UPDATE_S):
            self._update()

    def _update(self) -> None:
        with self._lock:
            self._tallies.drain(self._series)
            for family, values in self._read_states().items():
                for labels, value in values.items():
                    self._series.set(family, labels, value)


class _SharedCollector(MultiProcessCollector):
    """All workers' metrics, in the order of the table."""

    def collect(self) -> Iterable[Metric]:
        metrics: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return sorted(metrics, key=lambda metric: _ORDER[metric.name])
