"""The values behind /metrics: in the memory of one process, or in files that all workers of a server share.

Shared values are prometheus_client's multi-process values: memory-mapped files, written without a system call
and read without a lock. They are identified by the worker's slot, not by its process id: the next worker in
a slot continues the counts of the last one. The number of files stays bounded, and no count dies with its
worker. Gauges describe live workers only, so the server removes a dead worker's gauge files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MultiProcessValue, MutexValue

from grokflask.metrics.families import FAMILIES, SEEDS, Family, Labels

COUNTER_BYTES = 512 * 1024
FILE_BYTES = 64 * 1024
"""Size of each file: about 2,000 counters, or 300 other samples. The files are allocated at the start: a
process that writes to a mapped file is killed if the disk then has no room for it."""


class Series:
    """All values of one process. One thread at a time changes them."""

    def __init__(self, make_value: Callable[..., Any] = MutexValue) -> None:
        self._make_value = make_value  # one of prometheus_client's value classes
        self._values: dict[tuple[Family, Labels], list[Any]] = {}
        self._bases: dict[tuple[Family, Labels], float] = {}
        for family, labels in SEEDS:
            self.find(family, labels)

    def find(self, family: Family, labels: Labels) -> list[Any]:
        """The values of one series, created on first use: a histogram's sum and buckets, else one."""
        values = self._values.get((family, labels))
        if values is None:
            values = self._values[family, labels] = [
                self._make_value(
                    family.kind, family.name, *sample, family.help, multiprocess_mode=family.mode
                )
                for sample in _list_samples(family, labels)
            ]
        return values

    def add(self, family: Family, labels: Labels, index: int, amount: float) -> None:
        """Adds to the value `index` of a counter or histogram, in the order of `find`."""
        self.find(family, labels)[index].inc(amount)

    def set(self, family: Family, labels: Labels, value: float, timestamp: float | None = None) -> None:
        """Sets a gauge, or a counter to its total since the start of the process.

        Of a `livemostrecent` gauge, the worker with the latest `timestamp` (epoch seconds) counts.
        """
        (sample,) = self.find(family, labels)
        if family.kind == "counter":
            # Earlier workers of the slot have counted the rest.
            value += self._bases.setdefault((family, labels), sample.get())
        sample.set(value, timestamp)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """The metrics of this process alone. Families without a value are left out."""
        present = list(self._values.items())
        for family in FAMILIES:
            found = [(labels, values) for (each, labels), values in present if each is family]
            if not found:
                continue
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for labels, (total, *buckets) in found:
                    counts = accumulate(bucket.get() for bucket in buckets)
                    histogram.add_metric(
                        labels, list(zip(_name_bounds(family), counts, strict=True)), total.get()
                    )
                yield histogram
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, (value,) in found:
                metric.add_metric(labels, value.get())
            yield metric


def open_files(directory: str, slot: int) -> Callable[..., Any]:
    """A value class whose values are in files of `directory`; no other live worker has this `slot`.

    Raises:
        OSError: the files cannot be created.
    """
    for family in FAMILIES:
        kind = f"gauge_{family.mode}" if family.kind == "gauge" else family.kind
        _allocate(Path(directory, f"{kind}_{slot}.db"), COUNTER_BYTES if kind == "counter" else FILE_BYTES)
    value_class = MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]

    def make_value(*args: Any, **options: Any) -> Any:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read when a file is opened
        return value_class(*args, **options)

    return make_value


def _allocate(path: Path, size_bytes: int) -> None:
    """Creates a file of zeros, which prometheus_client reads as an empty one.

    It is renamed when it is complete, because other workers may read it at any moment.
    """
    if path.exists():
        return
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.write(bytes(size_bytes))
    draft.rename(path)


def _list_samples(family: Family, labels: Labels) -> Iterator[tuple[str, tuple[str, ...], Labels]]:
    """Name, label names and label values of each value of a series."""
    if family.kind == "histogram":
        yield f"{family.name}_sum", family.labels, labels
        for bound in _name_bounds(family):
            yield f"{family.name}_bucket", (*family.labels, "le"), (*labels, bound)
    else:
        yield family.name + ("_total" if family.kind == "counter" else ""), family.labels, labels


def _name_bounds(family: Family) -> list[str]:
    return [*map(floatToGoString, family.bounds), "+Inf"]
