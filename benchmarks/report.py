"""`python benchmarks/report.py`: docs/performance.md and its plots, out of `.bench/results.json`.

Nothing is measured here, so a page can be rendered again at any time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import figures
import results
import tables
from figures import Sections
from peers import ROOT
from scenarios import Scenario

PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """\
# Performance

`make bench` writes this page from its measurements; `python benchmarks/report.py` renders it again.

The benchmark compares the CPU time and the memory of the gateway's own processes with those of its peers,
in the same run, with the same upstream and load. It does not compare requests a second, which say little
on a shared machine. The gateway has a core of its own; the upstream, the clients and the databases run on
the others. The upstream stamps each event with the monotonic clock, and the clients check that every
event arrives, in order, followed by `[DONE]`. CPU time is read 0.6 s after the last reply, so that it
includes later work such as the ledger. Each cell is the median of the rounds, with the lowest and the
highest value in brackets. Within a round the gateways take turns, and ratios are computed within a round.
"""


def main() -> int:
    """Renders the page from the file."""
    if not results.PATH.exists():
        sys.exit("there are no figures yet: make bench")
    write(json.loads(results.PATH.read_text()))
    return 0


def write(sections: Sections) -> None:
    """The page and its plots."""
    import plots

    names = plots.draw(sections, PAGE.parent)
    PAGE.write_text(render(sections, names))
    print(f"\nwrote {PAGE.relative_to(ROOT)} and {', '.join(names) or 'no plot'}")


def render(sections: Sections, plot_names: list[str]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    if "scenarios" in sections:
        parts += ["## Targets\n", tables.make_target_table(sections), ""]
        parts += list_scenario_parts(sections, plot_names)
    parts += list_other_parts(sections, plot_names)
    return "\n".join(parts).rstrip() + "\n"


def list_scenario_parts(sections: Sections, plot_names: list[str]) -> Iterator[str]:
    """The gateway beside its peers."""
    section = sections["scenarios"]
    yield "## Beside its peers\n"
    yield render_stamp(sections, "scenarios") + f" Rounds: {section['rounds']}.\n"
    yield f"Wrong replies in all scenarios: {figures.count_errors(section)}.\n"
    yield "CPU time, µs:\n\n" + tables.make_scenario_table(sections, ["cpu_us"]) + "\n"
    yield "CPU time of grokflask as a multiple of each peer's:\n\n" + tables.make_ratio_table(sections) + "\n"
    if "performance-peers.svg" in plot_names:
        yield "![CPU time beside the peers](performance-peers.svg)\n"
    for title, path in LATENCIES:
        yield f"{title}:\n\n" + tables.make_scenario_table(sections, path, CALM) + "\n"
    yield "(The other scenarios send requests without pause, so their delay is the length of the queue.)\n"
    yield "Memory of all processes of a gateway (PSS):\n\n" + tables.make_memory_table(sections) + "\n"
    yield "Configuration of each gateway:\n"
    for entry in section["gateways"].values():
        yield describe_gateway(entry)
    yield ""


LATENCIES = (
    ("Added delay of an event, p50, µs", ["delay_us", "p50"]),
    ("Added delay of an event, p99, µs", ["delay_us", "p99"]),
    ("Time to the first event, p50, µs", ["first_event_us", "p50"]),
    ("Time to the first event, p99, µs", ["first_event_us", "p99"]),
)
CALM = ("unary-1", "paced", "slow")
"""Scenarios in which a gateway is not driven to its limit."""


def list_other_parts(sections: Sections, plot_names: list[str]) -> Iterator[str]:
    """Growth, the long hold, the start."""
    if "growth" in sections:
        streams, rest = tables.make_growth_tables(sections)
        yield "## How it grows\n"
        yield render_stamp(sections, "growth") + "\n"
        yield "Open streams on one worker, each with an event a second, less the CPU of the idle worker:\n"
        yield streams + "\n"
        yield (
            "Whole replies on 32 connections (SQLite; one and two workers with PostgreSQL and Redis):\n\n"
            + rest
            + "\n"
        )
        yield WORKERS + "\n"
        if "performance-growth.svg" in plot_names:
            yield "![How cost grows](performance-growth.svg)\n"
    if "hold" in sections:
        yield "## Held for minutes\n"
        yield render_stamp(sections, "hold") + "\n"
        yield tables.make_hold_table(sections) + "\n"
    if "start" in sections:
        yield "## Cold start\n"
        yield render_stamp(sections, "start") + " From the start of the process until its first response.\n"
        yield tables.make_start_table(sections) + "\n"


WORKERS = """\
Both workers run on two cores, which the clients, the upstream and the stores also use, so replies a
second cannot double on such a machine. The table shows whether a reply costs more CPU when two workers
share the stores. If it does not, two workers on two free cores carry twice the load of one."""


def describe_gateway(entry: Mapping[str, Any]) -> str:
    """One line of the page."""
    title = f"- **{entry['title']}** {entry['version'] or ''}".rstrip()
    if entry["missing"]:
        return f"{title}: left out. {entry['missing'].splitlines()[0]}"
    return f"{title}: {'; '.join(entry['setup'])}."


def render_stamp(sections: Sections, name: str) -> str:
    """When, which commit, which command; and the machine, unless it is that of the first section."""
    stamps = [section["stamp"] for section in sections.values()]
    stamp = sections[name]["stamp"]
    text = f"{stamp['date']}, {stamp['commit']}, `{stamp['command']}`"
    if stamp is not stamps[0] and render_machine(stamp) == render_machine(stamps[0]):
        return f"{text}, on the same machine."
    return f"{text}: {render_machine(stamp)}."


def render_machine(stamp: Mapping[str, Any]) -> str:
    """What was measured on, and the versions of what the gateway runs on."""
    packages = "".join(f", {name} {version}" for name, version in stamp["packages"].items())
    return (
        f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['memory_gib']} GiB, {stamp['kernel']}, "
        f"Python {stamp['python']}{packages}"
    )


def show(name: str, sections: Sections) -> None:
    """One section's tables, in the terminal."""
    makers = {
        "start": lambda: [tables.make_start_table(sections)],
        "growth": lambda: list(tables.make_growth_tables(sections)),
        "hold": lambda: [tables.make_hold_table(sections)],
    }
    for table in makers[name]():
        print(f"\n{table}", flush=True)


def show_scenarios(sections: Sections) -> None:
    """The peers' tables, in the terminal."""
    print("\nCPU time, µs\n\n" + tables.make_scenario_table(sections, ["cpu_us"]))
    print("\nCPU time as a multiple of a peer's\n\n" + tables.make_ratio_table(sections))
    for title, path in LATENCIES:
        print(f"\n{title}\n\n" + tables.make_scenario_table(sections, path, CALM))
    print("\nMemory\n\n" + tables.make_memory_table(sections))
    print(f"\nreplies that went wrong: {figures.count_errors(sections['scenarios'])}", flush=True)


def describe_row(scenario: Scenario, row: Mapping[str, Any]) -> str:
    """One measurement, for the progress on the terminal."""
    cpu = f"{row['cpu_us']:9.2f}" if row["cpu_us"] is not None else "        -"
    delay, first = row["delay_us"], row["first_event_us"]
    text = (
        f"{scenario.name:9}{cpu} µs CPU per {scenario.unit}, delay {delay['p50']} (p99 {delay['p99']}) µs, "
        f"first event {first['p50']} µs, {row['seconds']:.1f} s"
    )
    if "kib_per_stream" in row:
        text += f", {row['kib_per_stream']:.1f} KiB a stream"
    if row["errors"]:
        text += f", {row['errors']} WRONG: {row.get('faults', '')[:200]}"
    return text


if __name__ == "__main__":
    sys.exit(main())
