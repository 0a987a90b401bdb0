"""The geometry of charts, which templates draw as SVG.

A chart has units of its own and is stretched to its place, so its labels are in HTML beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

HEIGHT = 200.0
ROUND = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""Where an axis may end, times a power of ten."""


class Bar(NamedTuple):
    """A rectangle of the series number `series`, below the upper edge by `y`."""

    series: int
    value: int
    y: float
    height: float


def stack_bars(series: Sequence[Sequence[int]]) -> tuple[int, list[list[Bar]]]:
    """The value at the upper edge, and the bars of each place from bottom to top, without those of zero."""
    columns = [[max(0, value) for value in values] for values in zip(*series, strict=True)]
    top = find_top(max(map(sum, columns), default=0))
    bars = [
        [
            Bar(number, value, round(HEIGHT * (1 - base / top), 2), round(HEIGHT * value / top, 2))
            for number, (value, base) in enumerate(zip(values, accumulate(values), strict=True))
            if value
        ]
        for values in columns
    ]
    return top, bars


def find_top(highest: int) -> int:
    """The next round number from `highest` on, at least 1. Its half is round, too."""
    power: int = 10 ** (len(str(highest)) - 1)
    return next(top for factor in ROUND if (top := math.ceil(factor * power)) >= highest)


def draw_spark(values: Sequence[int]) -> str:
    """The points of a polyline through `values`, in a box of 100 by 24 units."""
    shown = values if len(values) > 1 else [*values, *values] or [0, 0]
    step, highest = 100 / (len(shown) - 1), max(*shown, 1)
    return " ".join(
        f"{place * step:.1f},{23 - 22 * max(0, value) / highest:.1f}" for place, value in enumerate(shown)
    )
