"""Medians, spreads and ratios, out of the sections of a results file. No IO."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Sections = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """What several rounds gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Figure | None:
        """None when there are no values."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None

    def scaled(self, factor: float) -> Figure:
        """In another unit."""
        return Figure(self.median * factor, self.low * factor, self.high * factor)


def read_rounds(sections: Sections, gateway: str, scenario: str | None, *path: str) -> list[float | None]:
    """One value for each round. Without a scenario it is a figure of the gateway itself."""
    entry = sections.get("scenarios", {}).get("gateways", {}).get(gateway, {})
    return [
        _walk(turn, ["scenarios", scenario, *path] if scenario else path) for turn in entry.get("rounds", [])
    ]


def read(sections: Sections, gateway: str, scenario: str | None, *path: str) -> Figure | None:
    """The figure of all rounds."""
    return Figure.of(read_rounds(sections, gateway, scenario, *path))


def divide(sections: Sections, ours: str, theirs: str, scenario: str | None, *path: str) -> Figure | None:
    """How many times theirs ours is: round by round, so that what slowed a round down cancels out."""
    pairs = zip(
        read_rounds(sections, ours, scenario, *path),
        read_rounds(sections, theirs, scenario, *path),
        strict=False,  # a round may have been interrupted between the two
    )
    return Figure.of(mine / other for mine, other in pairs if mine is not None and other)


def read_case(rows: Iterable[Mapping[str, Any]], number: int, field: str = "cpu_us") -> Figure | None:
    """A figure of the section "growth": that of the row of this number."""
    found = list(rows)
    return Figure.of(turn.get(field) for turn in found[number]["rounds"]) if number < len(found) else None


def divide_cases(rows: Iterable[Mapping[str, Any]], number: int, base: int) -> float | None:
    """One row's median over another's."""
    found = list(rows)
    mine, other = read_case(found, number), read_case(found, base)
    return mine.median / other.median if mine and other and other.median else None


def count_errors(value: object) -> int:
    """All replies that went wrong, wherever they are in `value`."""
    if isinstance(value, Mapping):
        own = value.get("errors")
        inner = sum(count_errors(item) for item in value.values())
        return inner + (own if isinstance(own, int) else 0)
    return sum(count_errors(item) for item in value) if isinstance(value, list) else 0


def render(figure: Figure | None) -> str:
    """The median, and the spread where there is one."""
    if figure is None:
        return "-"
    if render_number(figure.low) == render_number(figure.high):
        return render_number(figure.median)
    return f"{render_number(figure.median)} ({render_number(figure.low)} to {render_number(figure.high)})"


def render_number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def _walk(value: Any, path: Iterable[str | None]) -> float | None:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    found: float | None = value
    return found
