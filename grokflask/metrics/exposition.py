"""The metrics of a server: what all its workers have counted, in Prometheus' text format.

Where workers share a directory (see `metrics_files`) each brings its figures there once a second, and any of
them tells the sums; else a process tells of itself alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, generate_latest

from grokflask.metrics.families import Figures
from grokflask.metrics.files import MetricFiles
from grokflask.metrics.samples import make_metrics
from grokflask.metrics.tallies import Tallies
from grokflask.runtime import get_pid

POUR_S = 1.0
MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_log = logging.getLogger("grokflask.metrics")


class Metrics:
    """The metrics of one process, or with `share` of one server. Its methods may be called in any thread.

    Args:
        tallies: what is counted.
        read_states: gauges as they are now, and counts that others keep.

    Attributes:
        offload: called with a function and a tuple of its arguments, gives its result, from a thread of the
            operating system: the text of many workers takes a while, in which no stream may stand still.
    """

    def __init__(self, tallies: Tallies, read_states: Callable[[], Figures]) -> None:
        self.offload: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = _call
        self._tallies = tallies
        self._read_states = read_states
        self._files: MetricFiles | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._pid = 0

    def share(self, directory: str, slot: int) -> None:
        """From now on the figures of all workers count that share `directory`, each in a slot of its own."""
        try:
            with self._lock:
                self._files = MetricFiles(directory, slot)
        except OSError as error:
            fields = {"directory": directory, "detail": str(error)}
            _log.error("metrics cannot be shared: each worker tells of itself", extra={"fields": fields})

    def start(self) -> None:
        """Begins to bring figures to their place once a second; a second call changes nothing."""
        with self._lock:
            if self._pid == get_pid():
                return
            self._pid = get_pid()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Ends that, with the last figures in their place. Idempotent."""
        self._stop.set()
        if self._thread is not None and self._pid == get_pid():
            self._thread.join(timeout_s)
        self._pour()
        with self._lock:
            self._thread, self._pid = None, 0
            if self._files is not None:
                self._files.close()
                self._files = None

    def render(self) -> bytes:
        """The text of all metrics, in MEDIA_TYPE."""
        figures, files = self._pour(), self._files
        if files is None:
            return _render(make_metrics(figures))
        text: bytes = self.offload(lambda: _render(files.collect()), ())
        return text

    def _run(self) -> None:
        while not self._stop.wait(POUR_S):
            try:
                self._pour()
            except Exception:
                _log.exception("metrics could not be brought to their place")

    def _pour(self) -> Figures:
        with self._lock:
            figures = {**self._tallies.read(), **self._read_states()}
            if self._files is not None:
                self._files.write(figures)
            return figures


class _Collected:
    """What prometheus_client's functions take in a registry's place."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _render(metrics: Iterable[Metric]) -> bytes:
    return generate_latest(_Collected(metrics))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)
