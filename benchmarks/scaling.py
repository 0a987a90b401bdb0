"""How cost grows: with open streams, with the ledger, with keys, with workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import client_keys
import gateways
import growth
import rig
from launches import Launch, Site, launch_grokflask
from running import Hall
from scenarios import SETTLE_S, UNARY, Bench, warm_up

from grokflask.storage.database import Database  # client_keys has made it importable

LEVELS = (10, 100, 1_000, 5_000)
RAMP_US = 2000
MANY_REPLIES = rig.Load(UNARY, 32, 4000, stream=False)


def measure(hall: Hall, rounds: int, many_rows: int, many_keys: int) -> dict[str, Any]:
    """All four. In each list but that of the streams the second row is to be compared with the first."""
    streams = measure_streams(hall, max(1, rounds - 1))
    rows = measure_rows(hall, rounds, (1_000, many_rows))
    keys = measure_keys(hall, rounds, (10, many_keys))
    return {
        "rounds": rounds,
        "streams": streams,
        "rows": rows,
        "keys": keys[::2],
        "remembered": keys[1::2],
        "workers": try_workers(hall, rounds),
    }


# --- Open streams -----------------------------------------------------------


def measure_streams(hall: Hall, rounds: int) -> list[dict[str, Any]]:
    """The cost of an event at each number of open streams, which have an event a second each."""
    gateway = gateways.BY_NAME["grokflask"]
    rows: list[dict[str, Any]] = [{"open": level, "rounds": []} for level in LEVELS]
    for _ in range(rounds):
        for row in rows:
            site = hall.make_site(gateway)
            with hall.run(gateway.launch(site), site) as started:
                warm_up(started.bench, 1.0)
                figures = measure_level(started.bench, row["open"])
            row["rounds"].append(figures)
            print(f"{row['open']:,} open streams: {figures['cpu_us']:.0f} µs an event", flush=True)
    return rows


def measure_level(bench: Bench, streams: int) -> dict[str, Any]:
    """CPU time of an event while `streams` are open: nothing opens or ends in the window that is measured.

    What the worker uses with no stream at all is measured before and taken off: at ten events a second it
    would be a good part of the figure.
    """
    window_s = 40 if streams < 100 else 20
    idle_s = measure_idle(bench)
    opening_s = streams * RAMP_US / 1e6
    events = round(opening_s + window_s + 6)
    load = rig.Load(f"bench-{events}-1000000-8", streams, streams, stream=True, ramp_us=RAMP_US)
    with rig.Clients(bench.programs, bench.target, load) as clients:
        time.sleep(opening_s + 3)
        began, cpu_s, before = time.monotonic(), bench.tree.read_cpu_s(), bench.upstream.read_stats()
        time.sleep(window_s)
        took_s = time.monotonic() - began
        used_s, after = bench.tree.read_cpu_s() - cpu_s, bench.upstream.read_stats()
        memory_kib = bench.tree.read_pss_kib()
        found = clients.wait()
    count = after["events"] - before["events"]
    return {
        "cpu_us": 1e6 * (used_s - idle_s * took_s) / max(1, count),
        "raw_cpu_us": 1e6 * used_s / max(1, count),
        "idle_cpu_ms_per_s": 1e3 * idle_s,
        "events": count,
        "open": min(before["open"], after["open"]),
        "pss_kib": memory_kib,
        "errors": found["errors"],
        "delay_us": found["delay_us"],
    }


def measure_idle(bench: Bench) -> float:
    """Seconds of CPU a second with nothing to do: the median of five looks, as there is work now and then."""
    time.sleep(1.0)
    shares = []
    for _ in range(5):
        began, cpu_s = time.monotonic(), bench.tree.read_cpu_s()
        time.sleep(2.0)
        shares.append((bench.tree.read_cpu_s() - cpu_s) / (time.monotonic() - began))
    return statistics.median(shares)


# --- The ledger and keys ----------------------------------------------------


def measure_rows(hall: Hall, rounds: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The cost of a whole reply with a small and with a large ledger behind it."""
    cases: list[tuple[str, Path, dict[str, str]]] = []
    for size in sizes:
        path = hall.folder / f"rows-{size}.db"
        print(f"a ledger of {size:,} rows is made ...", flush=True)
        database = Database(f"sqlite:///{path}")
        growth.fill(database, size)
        database.close()
        client_keys.make(f"sqlite:///{path}", 1, path.with_suffix(".keys"))
        cases.append((f"{size:,} rows", path, {}))
    return measure_cases(hall, rounds, cases, warm=400)


def measure_keys(hall: Hall, rounds: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The cost of a whole reply with few and with many keys that take turns.

    A key is asked for again when it was looked up more than `GROKFLASK_KEY_CACHE_S` ago. With so many keys
    that each comes less often than that, every request asks the database; so it is measured with a cache
    that lasts as well; the two kinds take turns in the result. Each key is used once before anything counts.
    """
    cases: list[tuple[str, Path, dict[str, str]]] = []
    for count in counts:
        path = hall.folder / f"keys-{count}.db"
        print(f"{count:,} keys are made ...", flush=True)
        client_keys.make(f"sqlite:///{path}", count, path.with_suffix(".keys"))
        cases.append((f"{count:,} keys", path, {}))
        lasting = {"GROKFLASK_KEY_CACHE_S": "300"}
        cases.append((f"{count:,} keys, remembered for 300 s", path, lasting))
    return measure_cases(hall, rounds, cases, warm=max(counts))


def measure_cases(
    hall: Hall, rounds: int, cases: Sequence[tuple[str, Path, dict[str, str]]], warm: int
) -> list[dict[str, Any]]:
    """Whole replies over each of some databases, in turn."""
    rows: list[dict[str, Any]] = [{"case": name, "rounds": []} for name, _, _ in cases]
    for _ in range(rounds):
        for row, (name, path, settings) in zip(rows, cases, strict=True):

            def launch(site: Site, path: Path = path, settings: dict[str, str] = settings) -> Launch:
                (site.folder / "keys").write_text(path.with_suffix(".keys").read_text())
                return launch_grokflask(site, {"DATABASE_URL": f"sqlite:///{path}", **settings})

            figures = measure_replies(hall, "grokflask", launch, warm)
            row["rounds"].append(figures)
            print(f"{name}: {figures['cpu_us']:.0f} µs a reply", flush=True)
    return rows


# --- Workers ----------------------------------------------------------------


def try_workers(hall: Hall, rounds: int) -> list[dict[str, Any]]:
    """As `measure_workers`; nothing where there is no PostgreSQL or no Redis."""
    try:
        return measure_workers(hall, rounds)
    except rig.RigError as error:
        print(f"workers are left out: {error}", flush=True)
        return []


def measure_workers(hall: Hall, rounds: int) -> list[dict[str, Any]]:
    """The cost of a whole reply with one worker, and with two on two cores, over PostgreSQL and Redis."""
    both = hall.cores.gateway | hall.cores.rest
    rows: list[dict[str, Any]] = [{"case": case, "rounds": []} for case in ("1 worker", "2 workers")]
    for _ in range(rounds):
        for count, row in enumerate(rows, 1):

            def launch(site: Site, count: int = count) -> Launch:
                return launch_grokflask(site, {"WEB_CONCURRENCY": str(count)})

            cores = both if count > 1 else None
            figures = measure_replies(hall, "grokflask-stores", launch, 400, cores)
            row["rounds"].append(figures)
            print(
                f"{row['case']}: {figures['cpu_us']:.0f} µs a reply, {figures['per_s']:.0f} replies/s",
                flush=True,
            )
    return rows


def measure_replies(
    hall: Hall, name: str, make: Callable[[Site], Launch], warm: int, cores: frozenset[int] | None = None
) -> dict[str, Any]:
    """One gateway's turn: a warm-up, then whole replies."""
    site = hall.make_site(gateways.BY_NAME[name])
    with hall.run(make(site), site, cores) as started:
        bench = started.bench
        rig.Clients(bench.programs, bench.target, rig.Load(UNARY, 32, warm, stream=False)).wait()
        time.sleep(SETTLE_S)
        cpu_s = bench.tree.read_cpu_s()
        found = rig.Clients(bench.programs, bench.target, MANY_REPLIES).wait()
        time.sleep(SETTLE_S)
        used_s = bench.tree.read_cpu_s() - cpu_s
    return {
        "cpu_us": 1e6 * used_s / found["replies"],
        "per_s": found["replies"] / found["seconds"],
        "errors": found["errors"],
        "first_event_us": found["first_event_us"],
    }
