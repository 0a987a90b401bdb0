"""The plots of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures
import matplotlib as mpl
import tables
from figures import Sections
from scenarios import SCENARIOS

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "grokflask", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot  # noqa: E402 - the backend comes first

COLOURS = {
    "grokflask": "#c0392b",
    "grokflask-stores": "#e67e22",
    "nginx": "#27ae60",
    "portkey": "#2980b9",
    "litellm": "#7f8c8d",
}


def draw(sections: Sections, folder: Path) -> list[str]:
    """Draws what was measured into `folder`; the names of the files."""
    names = []
    if "scenarios" in sections:
        names.append(_save(_draw_peers(sections), folder, "performance-peers.svg"))
    if "growth" in sections:
        names.append(_save(_draw_growth(sections), folder, "performance-growth.svg"))
    return names


def _save(figure: Any, folder: Path, name: str) -> str:
    # Without a date the same figures give the same file.
    figure.savefig(folder / name, metadata={"Date": None})
    pyplot.close(figure)
    return name


def _draw_peers(sections: Sections) -> Any:
    """Bars on a logarithmic scale: CPU time in each scenario, of those without TLS."""
    chosen = [item for item in SCENARIOS if item.name in sections["scenarios"]["scenarios"]]
    there = [(name, title) for name, title in tables.list_gateways(sections) if name in COLOURS]
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / max(1, len(there))
    for number, (name, title) in enumerate(there):
        found = [figures.read(sections, name, item.name, "cpu_us") for item in chosen]
        places = [place + (number - (len(there) - 1) / 2) * width for place in range(len(chosen))]
        heights = [figure_.median if figure_ else 0 for figure_ in found]
        below = [figure_.median - figure_.low if figure_ else 0 for figure_ in found]
        above = [figure_.high - figure_.median if figure_ else 0 for figure_ in found]
        axes.bar(places, heights, width, yerr=[below, above], color=COLOURS[name], label=title)
    axes.set_yscale("log")
    labels = [f"{item.title.replace(', ', chr(10))}\nper {item.unit}" for item in chosen]
    axes.set_xticks(range(len(chosen)), labels, fontsize=7)
    axes.set_ylabel("CPU time, µs")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _draw_growth(sections: Sections) -> Any:
    """An event's cost by open streams, and a whole reply's by rows, keys and workers."""
    growth = sections["growth"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    found = [figures.read_case(growth["streams"], number) for number in range(len(growth["streams"]))]
    opens = [row["open"] for row in growth["streams"]]
    _draw_points(left, opens, found, "o-")
    left.set_xscale("log")
    left.set_xticks(opens, [f"{count:,}" for count in opens])
    left.minorticks_off()
    left.set_xlabel("open streams")
    left.set_ylabel("CPU of an event, µs")
    cases = [(kind, number) for kind in tables.KINDS for number in range(len(growth.get(kind, [])))]
    _draw_points(
        right,
        list(range(len(cases))),
        [figures.read_case(growth[kind], number) for kind, number in cases],
        "o",
    )
    labels = [growth[kind][number]["case"].replace(", ", ",\n") for kind, number in cases]
    right.set_xticks(range(len(cases)), labels, rotation=40, ha="right", fontsize=7)
    right.set_ylabel("CPU of a whole reply, µs")
    return figure


def _draw_points(axes: Any, places: list[int], found: list[figures.Figure | None], style: str) -> None:
    """Medians with their spread, on a scale that begins at nothing."""
    known = [(place, figure) for place, figure in zip(places, found, strict=True) if figure]
    below = [figure.median - figure.low for _, figure in known]
    above = [figure.high - figure.median for _, figure in known]
    heights = [figure.median for _, figure in known]
    axes.errorbar([place for place, _ in known], heights, yerr=[below, above], fmt=style, color="#c0392b")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
