"""Many open streams on one worker for minutes, and every event counted at both ends."""

from __future__ import annotations

import resource
import time
from typing import Any

import gateways
import rig
from launches import launch_grokflask
from running import Hall
from scenarios import Bench

RAMP_US = 2000
STRETCH = (9_000, 60)
"""Streams and seconds: what is hoped for rather than promised, and tried for a minute."""


def measure(hall: Hall, streams: int, seconds: int) -> dict[str, Any]:
    """`streams` streams with an event each second, all of them open for `seconds`."""
    print(f"\n{streams:,} open streams for {seconds} s", flush=True)
    gateway = gateways.BY_NAME["grokflask"]
    site = hall.make_site(gateway)
    # The first is open until the last has been open for all this time.
    events = seconds + round(streams * RAMP_US / 1e6) + 1
    load = rig.Load(
        f"bench-{events}-1000000-8", streams, streams, stream=True, ramp_us=RAMP_US, deadline_s=events + 120
    )
    with hall.run(launch_grokflask(site, make_room(streams)), site) as started:
        time.sleep(1.0)
        bench = started.bench
        before, cpu_s, idle_kib = (
            bench.upstream.read_stats(),
            bench.tree.read_cpu_s(),
            bench.tree.read_pss_kib(),
        )
        with rig.Clients(bench.programs, bench.target, load) as clients:
            samples = follow(bench, clients, before["events"])
            found = clients.wait()
        time.sleep(1.0)
        after = bench.upstream.read_stats()
        used_s = bench.tree.read_cpu_s() - cpu_s
    sent = after["events"] - before["events"]
    most = max((sample["kib"] for sample in samples), default=idle_kib)
    return {
        "streams": streams,
        "seconds": seconds,
        "sent": sent,
        "received": found["events"],
        "lost": sent - found["events"],
        "errors": found["errors"],
        "early_closes": after["early_closes"] - before["early_closes"],
        "most_open": max((sample["open"] for sample in samples), default=0),
        "cpu_us": 1e6 * used_s / sent if sent else None,
        "idle_kib": idle_kib,
        "most_kib": most,
        "kib_per_stream": (most - idle_kib) / streams,
        "delay_us": found["delay_us"],
        "faults": found.get("faults"),
        "samples": samples,
    }


def make_room(streams: int) -> dict[str, str]:
    """Settings for so many streams where the limit of open files has hardly room for them.

    The gateway keeps a tenth of its connections free unless it is told; each stream takes two descriptors.
    """
    connections = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100) // 2
    tight = streams < connections - 200 and streams > connections * 0.9 * 0.95
    return {"GROKFLASK_CAPACITY": str(connections - 200)} if tight else {}


def follow(bench: Bench, clients: rig.Clients, events_before: int) -> list[dict[str, float]]:
    """Looks every ten seconds at what is open and what it takes, while the clients are at work."""
    samples: list[dict[str, float]] = []
    cpu_s = bench.tree.read_cpu_s()
    began, due = time.monotonic(), time.monotonic() + 10
    while clients.running:
        time.sleep(0.2)
        if time.monotonic() < due:
            continue
        due += 10
        stats = bench.upstream.read_stats()
        samples.append(
            {
                "at_s": time.monotonic() - began,
                "open": stats["open"],
                "events": stats["events"] - events_before,
                "cpu_s": bench.tree.read_cpu_s() - cpu_s,
                "kib": bench.tree.read_pss_kib(),
            }
        )
        print(
            f"  {samples[-1]['at_s']:4.0f} s: {stats['open']:,} open, {samples[-1]['events']:,} events",
            flush=True,
        )
    return samples
