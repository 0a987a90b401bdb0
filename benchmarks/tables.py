"""The tables of docs/performance.md and of the terminal, in Markdown. No IO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import figures
from figures import Figure, Sections, render, render_number
from scenarios import SCENARIOS
from targets import list_targets

KINDS = ("rows", "keys", "remembered", "workers")
"""Of the section "growth": whole replies in two cases each."""

PEERS = (("nginx", "nginx"), ("portkey", "Portkey"), ("litellm", "LiteLLM"))


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def list_gateways(sections: Sections) -> list[tuple[str, str]]:
    """Name and title of those that were measured."""
    table = sections.get("scenarios", {}).get("gateways", {})
    return [(name, entry["title"]) for name, entry in table.items() if entry["rounds"]]


def make_scenario_table(sections: Sections, path: Sequence[str], names: Sequence[str] = ()) -> str:
    """One figure of each gateway in each scenario."""
    measured = sections["scenarios"]["scenarios"]
    chosen = [item for item in SCENARIOS if item.name in measured and (not names or item.name in names)]
    rows = []
    for name, title in list_gateways(sections):
        cells = [render(figures.read(sections, name, item.name, *path)) for item in chosen]
        rows.append([title, *cells])
    return make_table(["", *(f"{item.title}, per {item.unit}" for item in chosen)], rows)


def make_ratio_table(sections: Sections) -> str:
    """CPU time of ours as a multiple of each peer's, with TLS upstream against TLS upstream."""
    measured = [item for item in SCENARIOS if item.name in sections["scenarios"]["scenarios"]]
    rows = []
    there = dict(list_gateways(sections))
    for ours, title in there.items():
        if not ours.startswith("grokflask"):
            continue
        ending = "-tls" if ours.endswith("-tls") else ""
        for peer, peer_title in PEERS:
            if peer + ending not in there:
                continue
            cells = [
                render(figures.divide(sections, ours, peer + ending, item.name, "cpu_us"))
                for item in measured
            ]
            rows.append([f"{title} ÷ {peer_title}", *cells])
    return make_table(["", *(item.title for item in measured)], rows)


def make_memory_table(sections: Sections) -> str:
    """Of the whole process tree."""
    mib = 1 / 1024
    columns: Sequence[Callable[[str], Figure | None]] = (
        lambda name: _scale(figures.read(sections, name, None, "idle_kib"), mib),
        lambda name: _scale(figures.read(sections, name, None, "after_kib"), mib),
        lambda name: figures.read(sections, name, "slow", "kib_per_stream"),
    )
    rows = [[title, *(render(find(name)) for find in columns)] for name, title in list_gateways(sections)]
    return make_table(["", "idle, MiB", "after the load, MiB", "an open stream, KiB"], rows)


def make_start_table(sections: Sections) -> str:
    """CPU seconds and seconds until the gateway answers."""
    starts = sections["start"]["gateways"]
    rows = [
        [
            entry["title"],
            render(Figure.of(entry["cpu_s"])),
            render(Figure.of(entry["seconds"])),
            str(len(entry["cpu_s"])),
        ]
        for entry in starts.values()
    ]
    return make_table(["", "CPU, s", "clock, s", "starts"], rows)


def make_growth_tables(sections: Sections) -> Iterator[str]:
    """Streams; then ledger, keys and workers."""
    growth = sections["growth"]
    streams = growth["streams"]
    rows = []
    for number, row in enumerate(streams):
        step = figures.divide_cases(streams, number, number - 1) if number else None
        cells = [render(figures.read_case(streams, number, field)) for field in _STREAM_FIELDS]
        rows.append([f"{row['open']:,}", *cells, render_number(step) if step else ""])
    head = ["open streams", "CPU of an event, µs", "idle included, µs", "events measured", "÷ row above"]
    yield make_table(head, rows)
    rows = []
    for kind in KINDS:
        for number, row in enumerate(growth.get(kind, [])):
            ratio = figures.divide_cases(growth[kind], number, 0)
            cells = [render(figures.read_case(growth[kind], number, field)) for field in ("cpu_us", "per_s")]
            rows.append([row["case"], *cells, render_number(ratio) if ratio and number else ""])
    yield make_table(["", "CPU of a whole reply, µs", "replies/s", "÷ row above"], rows)


_STREAM_FIELDS = ("cpu_us", "raw_cpu_us", "events")


def make_hold_table(sections: Sections) -> str:
    """A column for each run, a line for each fact."""
    runs = sections["hold"]["runs"]
    rows = [[what, *(find(run) for run in runs)] for what, find in _HOLD_FACTS]
    return make_table(["", *(f"{run['streams']:,} streams, {run['seconds']} s" for run in runs)], rows)


_HOLD_FACTS: Sequence[tuple[str, Callable[[Any], str]]] = (
    ("most open at once", lambda run: f"{run['most_open']:,}"),
    ("events sent by upstream", lambda run: f"{run['sent']:,}"),
    ("received by the clients, in order", lambda run: f"{run['received']:,}"),
    ("lost", lambda run: f"**{run['lost']:,}**"),
    ("wrong replies", lambda run: f"{run['errors']:,}"),
    ("CPU of an event, µs", lambda run: render_number(run["cpu_us"]) if run["cpu_us"] else "-"),
    ("idle memory, MiB", lambda run: render_number(run["idle_kib"] / 1024)),
    ("peak memory, MiB", lambda run: render_number(run["most_kib"] / 1024)),
    ("memory of an open stream, KiB", lambda run: render_number(run["kib_per_stream"])),
    ("added delay p50, ms", lambda run: render_number(run["delay_us"]["p50"] / 1000)),
    ("added delay p99, ms", lambda run: render_number(run["delay_us"]["p99"] / 1000)),
)


def make_target_table(sections: Sections) -> str:
    """Each target, what was measured, and the verdict."""
    rows = []
    for target in list_targets():
        value, verdict = target.judge(sections)
        goal = target.goal + (" (stretch)" if target.stretch else "")
        rows.append([target.what, goal, "-" if value is None else render_number(value), verdict])
    return make_table(["what", "target", "measured", ""], rows)


def _scale(figure: Figure | None, factor: float) -> Figure | None:
    return figure.scaled(factor) if figure else None
