"""`make bench` and its parts: measures the gateway beside its peers, and how its cost grows.

    bench.py all      everything, into .bench/results.json, and from that docs/performance.md
    bench.py quick    about a minute: the gateway, and nginx if it is there; writes nothing
    bench.py growth   how cost grows with streams, ledger, keys and workers
    bench.py hold     many open streams on one worker for minutes
    bench.py start    the cost of a cold start

Only ratios between gateways of one run are worth comparing, and only those of a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import figures
import gateways
import holding
import report
import rig
import scaling
import starting
from gateways import Gateway
from results import PATH, Results
from running import Hall, open_hall
from scenarios import SCENARIOS, Scenario, measure, warm_up

QUICK = ("grokflask", "nginx")


def main() -> int:
    """Runs the part that the command line names; 0 when no reply went wrong."""
    arguments = read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if arguments.part == "all":
        importlib.import_module("plots")  # what is missing for the page is told now, not after the measuring
    commit = gateways.find_grokflask_version()
    results = Results(None if arguments.part == "quick" else PATH, fresh=arguments.part == "all")
    try:
        with open_hall() as hall:
            measure_parts(hall, arguments, results, commit)
    except rig.RigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; everything is stopped and removed")
    if arguments.part == "all":
        report.write(results.sections)
    return 1 if figures.count_errors(results.sections) else 0


def read_arguments() -> argparse.Namespace:
    """The part and its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["all", "quick", "growth", "hold", "start"])
    parser.add_argument("--rounds", type=int, help="how often each gateway gets its turn (2)")
    parser.add_argument("--only", nargs="+", default=[], help="names of gateways")
    parser.add_argument("--scenarios", nargs="+", default=[], help="names of scenarios")
    parser.add_argument("--streams", type=int, default=5000, help="hold: open streams")
    parser.add_argument("--seconds", type=int, default=300, help="hold: for how long")
    parser.add_argument("--rows", type=int, default=1_000_000, help="growth: rows of the large ledger")
    parser.add_argument("--keys", type=int, default=10_000, help="growth: many keys")
    return parser.parse_args()


def measure_parts(hall: Hall, arguments: argparse.Namespace, results: Results, commit: str) -> None:
    """One section of the results after the other."""
    part, rounds = arguments.part, arguments.rounds
    if part in ("all", "quick"):
        chosen = choose(arguments)
        found = measure_gateways(hall, chosen, arguments, rounds or (1 if part == "quick" else 2))
        results.put("scenarios", commit, found)
        report.show_scenarios(results.sections)
    if part in ("all", "start"):
        results.put("start", commit, starting.measure(hall, 5))
        report.show("start", results.sections)
    if part in ("all", "growth"):
        results.put("growth", commit, scaling.measure(hall, rounds or 3, arguments.rows, arguments.keys))
        report.show("growth", results.sections)
    if part in ("all", "hold"):
        turns = [(arguments.streams, arguments.seconds)]
        turns += [holding.STRETCH] if part == "all" else []
        results.put("hold", commit, {"runs": [holding.measure(hall, *turn) for turn in turns]})
        report.show("hold", results.sections)


def choose(arguments: argparse.Namespace) -> Sequence[Gateway]:
    """The gateways to measure."""
    names = arguments.only or (QUICK if arguments.part == "quick" else gateways.BY_NAME)
    unknown = set(names) - set(gateways.BY_NAME)
    if unknown:
        sys.exit(f"no such gateway: {', '.join(sorted(unknown))}; there are: {', '.join(gateways.BY_NAME)}")
    return [gateways.BY_NAME[name] for name in names]


def measure_gateways(
    hall: Hall, chosen: Sequence[Gateway], arguments: argparse.Namespace, rounds: int
) -> dict[str, Any]:
    """All scenarios on all gateways, which take turns, so that what the machine does meanwhile meets all."""
    names = arguments.scenarios
    scenarios = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    table: dict[str, Any] = {}
    for gateway in chosen:
        fault = gateway.find_fault()
        table[gateway.name] = describe(gateway, fault)
        if fault:
            print(f"{gateway.title} is left out: {fault}", flush=True)
    for number in range(rounds):
        for gateway in chosen:
            row = table[gateway.name]
            if row["missing"] is None:
                print(f"\nround {number + 1} of {rounds}: {gateway.title}", flush=True)
                try:
                    row["rounds"].append(measure_gateway(hall, gateway, scenarios))
                except rig.RigError as error:
                    row["missing"] = f"it failed: {error}"
                    print(f"  {row['missing']}", flush=True)
    return {"gateways": table, "rounds": rounds, "scenarios": [scenario.name for scenario in scenarios]}


def describe(gateway: Gateway, fault: str | None) -> dict[str, Any]:
    """What the page says about a gateway."""
    return {
        "title": gateway.title,
        "setup": list(gateway.setup),
        "version": None if fault else gateway.find_version(),
        "missing": fault,
        "pace": gateway.pace,
        "rounds": [],
    }


def measure_gateway(hall: Hall, gateway: Gateway, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """One gateway's turn: started, measured, ended."""
    site = hall.make_site(gateway)
    launch = gateway.launch(site)
    with hall.run(launch, site) as started:
        time.sleep(1.0)  # what it still does after it has begun to answer
        bench = started.bench
        row: dict[str, Any] = {"start_cpu_s": started.start_cpu_s, "idle_kib": bench.tree.read_pss_kib()}
        warm_up(bench, gateway.pace)
        row["scenarios"] = {}
        for scenario in scenarios:
            found = measure(bench, scenario, gateway.pace)
            row["scenarios"][scenario.name] = found
            print("  " + report.describe_row(scenario, found), flush=True)
        row["after_kib"] = bench.tree.read_pss_kib()
        row["processes"] = bench.tree.count()
    return row


if __name__ == "__main__":
    sys.exit(main())
