"""Figures in files that all workers of one server have in common, so that each can answer for all.

The files are prometheus_client's: mapped into memory, written without a system call, read without a lock.
Each worker has a slot for as long as it lives, and its files are the slot's: the next worker there counts on
from what it finds. So there are as many files as workers at once, however many come and go, and no count is
lost with its worker. Gauges are of the living alone: whoever ends a worker removes their files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from grokflask.metrics.families import FAMILIES, Dated, Distribution, Family, Figures
from grokflask.metrics.samples import list_samples

COUNTER_BYTES = 512 * 1024
FILE_BYTES = 64 * 1024
"""Of each file: some 2,000 counters, and 300 of all else. They are got at the start: who writes later into a
mapped file that the disk has no room for is killed."""

_ORDER = {family.name: number for number, family in enumerate(FAMILIES)}


class MetricFiles:
    """One worker's files, and the sums of all workers'.

    Args:
        directory: the server's, for this alone.
        slot: no other living worker has it.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, directory: str, slot: int) -> None:
        self._directory = Path(directory)
        self._slot = slot
        self._files: dict[str, MmapedDict] = {}
        self._keys: dict[tuple[Family, tuple[str, ...]], list[_Place]] = {}
        for family in FAMILIES:
            self._open(_name_kind(family))

    def write(self, figures: Figures) -> None:
        """Has the files tell of `figures`, which are this process's since its start."""
        for family, values in figures.items():
            for labels, value in values.items():
                places = self._keys.get((family, labels))
                if places is None:
                    places = self._keys[family, labels] = self._place(family, labels, value)
                at = value.at if isinstance(value, Dated) else 0.0
                for place, (_, _, figure) in zip(places, list_samples(family, labels, value), strict=True):
                    place.write(figure, at)

    def collect(self) -> Iterable[Metric]:
        """The sums over all workers, as prometheus_client's functions want them."""
        metrics = MultiProcessCollector(None, str(self._directory)).collect()  # type: ignore[no-untyped-call]
        return sorted(metrics, key=lambda metric: _ORDER.get(metric.name, len(_ORDER)))

    def close(self) -> None:
        """Closes the files, which stay: the counts are those of the slot. Idempotent."""
        for file in self._files.values():
            file.close()  # type: ignore[no-untyped-call]
        self._files.clear()
        self._keys.clear()

    def _open(self, kind: str) -> None:
        if kind in self._files:
            return
        path = self._directory / f"{kind}_{self._slot}.db"
        if not path.exists():
            _make_file(path, COUNTER_BYTES if kind == "counter" else FILE_BYTES)
        self._files[kind] = MmapedDict(str(path))  # type: ignore[no-untyped-call]

    def _place(
        self, family: Family, labels: tuple[str, ...], value: float | Distribution | Dated
    ) -> list[_Place]:
        file = self._files[_name_kind(family)]
        places = []
        for name, labelled, _ in list_samples(family, labels, value):
            key = mmap_key(family.name, name, list(labelled), list(labelled.values()), family.help)
            places.append(_Place(file, key, counts=family.kind != "gauge"))
        return places


class _Place:
    """Where one figure stands."""

    __slots__ = ("_base", "_file", "_key", "_last")

    def __init__(self, file: MmapedDict, key: str, *, counts: bool) -> None:
        self._file, self._key = file, key
        found: float = file.read_value(key)[0]  # type: ignore[no-untyped-call]
        self._base = found if counts else 0.0  # what earlier workers of the slot have counted
        self._last: float | None = None

    def write(self, figure: float, at: float) -> None:
        if figure != self._last or at:
            self._last = figure
            self._file.write_value(self._key, self._base + figure, at)  # type: ignore[no-untyped-call]


def _name_kind(family: Family) -> str:
    """How prometheus_client begins a file's name, and knows by it what is in it."""
    return f"gauge_{family.mode}" if family.kind == "gauge" else family.kind


def _make_file(path: Path, size_bytes: int) -> None:
    """An empty file of figures, which is there whole or not at all: others read it at any moment."""
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.write(bytes(size_bytes))
    MmapedDict(str(draft)).close()  # type: ignore[no-untyped-call]
    draft.rename(path)
