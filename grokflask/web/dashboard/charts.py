"""The geometry of charts, which a template draws as SVG.

A chart has units of its own and is stretched to its place, so its labels are in HTML beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 1000.0
HEIGHT = 200.0
SPARK_WIDTH = 100.0
SPARK_HEIGHT = 24.0
ROUND = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""Where an axis may end, times a power of ten."""
GAP = 0.25
"""The part of a day's width that stays empty."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of the series number `series`."""

    x: float
    y: float
    width: float
    height: float
    series: int
    value: int


@dataclass(frozen=True, slots=True)
class Column:
    """One place on the axis: its bars from bottom to top, and the strip behind them."""

    label: str
    x: float
    width: float
    total: int
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacked bars; `top` is the value at the upper edge."""

    columns: list[Column]
    top: int


def stack_bars(labels: Sequence[str], series: Sequence[Sequence[int]]) -> Stack:
    """A column for each label, with a bar for each of `series` that is not zero there."""
    top = find_top(max((sum(values) for values in zip(*series, strict=True)), default=0))
    step = WIDTH / max(1, len(labels))
    columns = []
    for place, label in enumerate(labels):
        bars: list[Bar] = []
        base = 0
        for number, values in enumerate(series):
            value = max(0, values[place])
            if not value:
                continue
            base += value
            x, height = (place + GAP / 2) * step, value / top * HEIGHT
            y = HEIGHT - base / top * HEIGHT
            bars.append(
                Bar(round(x, 2), round(y, 2), round(step * (1 - GAP), 2), round(height, 2), number, value)
            )
        columns.append(Column(label, round(place * step, 2), round(step, 2), base, bars))
    return Stack(columns, top)


def find_top(highest: int) -> int:
    """The next round number from `highest` on, at least 1. Its half is round, too."""
    power = 1
    while power * 10 < highest:
        power *= 10
    return next(top for factor in ROUND if (top := math.ceil(factor * power)) >= highest)


def draw_spark(values: Sequence[int]) -> tuple[str, str]:
    """The points of a polyline through `values`, and of a polygon for the area below it."""
    highest = max([*values, 1])
    step = SPARK_WIDTH / max(1, len(values) - 1)
    points = [
        f"{place * step:.1f},{1 + (SPARK_HEIGHT - 2) * (1 - max(0, value) / highest):.1f}"
        for place, value in enumerate(values)
    ]
    if len(points) == 1:
        points.append(f"{SPARK_WIDTH:.1f},{points[0].partition(',')[2]}")
    line = " ".join(points)
    return line, f"0,{SPARK_HEIGHT:.0f} {line} {SPARK_WIDTH:.0f},{SPARK_HEIGHT:.0f}"
