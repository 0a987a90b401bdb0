"""What gateways are measured at, and how one of them is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rig

if TYPE_CHECKING:
    from process_tree import ProcessTree

SETTLE_S = 0.6
"""After the last reply, before the CPU time is read: what a gateway does afterwards, such as writing its
ledger, belongs to the replies."""

UNARY, SHORT, LONG = "bench-1-0-8", "bench-8-0-8", "bench-512-0-8"


@dataclass(frozen=True)
class Scenario:
    """A kind of load.

    Attributes:
        unit: what its CPU time is divided by: a "reply" or an "event".
        scales: a gateway's `pace` changes the number of replies; not that of paced streams, which take their
            time anyway.
        samples_memory: the memory of an open stream is measured here.
    """

    name: str
    title: str
    unit: str
    load: rig.Load
    scales: bool = True
    samples_memory: bool = False


SCENARIOS = (
    Scenario("unary-1", "whole replies, 1 connection", "reply", rig.Load(UNARY, 1, 1000, stream=False)),
    Scenario("unary-32", "whole replies, 32 connections", "reply", rig.Load(UNARY, 32, 4000, stream=False)),
    Scenario("short", "8 events at once, 32 connections", "event", rig.Load(SHORT, 32, 1600, stream=True)),
    Scenario("long", "512 events at once, 32 connections", "event", rig.Load(LONG, 32, 320, stream=True)),
    Scenario(
        "paced",
        "100 streams, 25 events/s each",
        "event",
        rig.Load("bench-200-40000-8", 100, 100, stream=True, ramp_us=4000, deadline_s=120),
        scales=False,
    ),
    Scenario(
        "slow",
        "1,000 streams, an event every 2 s",
        "event",
        rig.Load("bench-8-2000000-8", 1000, 1000, stream=True, ramp_us=2000, deadline_s=180),
        scales=False,
        samples_memory=True,
    ),
)

WARM_UP = (
    rig.Load(UNARY, 8, 400, stream=False),
    rig.Load(SHORT, 32, 200, stream=True),
    rig.Load(LONG, 8, 40, stream=True),
)
"""The same for each gateway, before anything is counted."""


def scale(load: rig.Load, pace: float) -> rig.Load:
    """`load` with fewer or more replies; never so few that a connection has none."""
    replies = max(load.connections, round(load.replies * pace))
    return rig.Load(load.model, load.connections, replies, load.stream, load.ramp_us, load.deadline_s)


@dataclass(frozen=True)
class Bench:
    """What a measurement needs: where the programs are, the upstream, and the gateway's processes."""

    programs: Path
    upstream: rig.Upstream
    tree: ProcessTree
    target: rig.Target


def warm_up(bench: Bench, pace: float) -> None:
    """Lets the gateway find its stride."""
    for load in WARM_UP:
        rig.Clients(bench.programs, bench.target, scale(load, min(pace, 1.0))).wait()
    time.sleep(SETTLE_S)


def measure(bench: Bench, scenario: Scenario, pace: float) -> dict[str, Any]:
    """One scenario on one gateway, as a row of the results."""
    load = scale(scenario.load, pace) if scenario.scales else scenario.load
    memory_kib, cpu_s = bench.tree.read_pss_kib(), bench.tree.read_cpu_s()
    before = bench.upstream.read_stats()
    with rig.Clients(bench.programs, bench.target, load) as clients:
        most_kib, most_open = watch_memory(bench, clients) if scenario.samples_memory else (memory_kib, 0)
        row = clients.wait()
    time.sleep(SETTLE_S)
    used_s = bench.tree.read_cpu_s() - cpu_s
    after = bench.upstream.read_stats()
    units = row["replies"] if scenario.unit == "reply" else row["events"]
    row |= {
        "cpu_s": used_s,
        "cpu_us": 1e6 * used_s / units if units else None,
        "upstream_events": after["events"] - before["events"],
        "early_closes": after["early_closes"] - before["early_closes"],
    }
    if most_open:
        row |= {"open": most_open, "kib_per_stream": (most_kib - memory_kib) / most_open}
    return row


def watch_memory(bench: Bench, clients: rig.Clients) -> tuple[float, int]:
    """The memory with the most streams open, and how many these were."""
    best = (0.0, 0)
    while clients.running:
        count = bench.upstream.read_stats()["open"]
        if count >= best[1] and count:
            best = (bench.tree.read_pss_kib(), count)
        time.sleep(1.0)
    return best
