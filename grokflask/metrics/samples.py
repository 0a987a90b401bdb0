"""From figures to samples, the lines of /metrics. No IO."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import Metric

from grokflask.metrics.families import FAMILIES, Dated, Distribution, Family, Figures

Sample = tuple[str, dict[str, str], float]
"""Name, labels and figure."""


def list_samples(
    family: Family, labels: tuple[str, ...], value: float | Distribution | Dated
) -> Iterator[Sample]:
    """The samples of one figure; a histogram's buckets each count for themselves, and it has no `_count`."""
    labelled = dict(zip(family.labels, labels, strict=True))
    if isinstance(value, Distribution):
        for bound, count in zip((*family.bounds, math.inf), value.counts, strict=True):
            yield f"{family.name}_bucket", {**labelled, "le": _name_bound(bound)}, count
        yield f"{family.name}_sum", labelled, value.sum
    elif isinstance(value, Dated):
        yield family.name, labelled, value.value
    else:
        yield f"{family.name}_total" if family.kind == "counter" else family.name, labelled, value


def _name_bound(bound: float) -> str:
    return "+Inf" if bound == math.inf else repr(bound)


def make_metrics(figures: Figures) -> Iterable[Metric]:
    """`figures` of one process as prometheus_client's functions want them; what has no figure is left out."""
    for family in FAMILIES:
        values = figures.get(family)
        if not values:
            continue
        metric = Metric(family.name, family.help, family.kind)
        for labels, value in values.items():
            samples = list(list_samples(family, labels, value))
            if isinstance(value, Distribution):
                counts = list(accumulate(value.counts))
                samples = [
                    *((name, each, count) for (name, each, _), count in zip(samples, counts, strict=False)),
                    samples[-1],
                    (f"{family.name}_count", samples[-1][1], counts[-1]),
                ]
            for name, labelled, figure in samples:
                metric.add_sample(name, labelled, figure)
        yield metric
