"""What the gateway has set itself to cost, and whether the figures of a run say that it does. No IO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import figures
from figures import Sections


@dataclass(frozen=True)
class Target:
    """A bound on a figure.

    Attributes:
        stretch: one that is hoped for rather than promised.
        at_least: the figure must reach the bound instead of staying below it.
        find: the figure; None when it was not measured.
    """

    what: str
    goal: str
    bound: float
    find: Callable[[Sections], float | None]
    stretch: bool = False
    at_least: bool = False

    def judge(self, sections: Sections) -> tuple[float | None, str]:
        """The figure and the verdict."""
        value = self.find(sections)
        if value is None:
            return None, "not measured"
        met = value >= self.bound if self.at_least else value <= self.bound
        return value, "met" if met else "not met"


def list_targets() -> Iterator[Target]:
    """All, in the order of the page."""
    yield from _list_costs()
    yield from _list_memory()
    yield from _list_growth()


def _list_costs() -> Iterator[Target]:
    unary, short, long = "CPU of a whole reply", "CPU of an event, 8 at once", "CPU of an event, 512 at once"
    paced, slow = "CPU of an event, 100 paced streams", "CPU of an event, 1,000 slow streams"
    yield Target(unary, "≤ 0.7 × Portkey", 0.7, _over("portkey", "unary-32"))
    yield Target(unary, "≤ 0.5 × Portkey", 0.5, _over("portkey", "unary-32"), stretch=True)
    yield Target(unary, "≤ 0.05 × LiteLLM", 0.05, _over("litellm", "unary-32"))
    yield Target(short, "≤ 0.7 × Portkey", 0.7, _over("portkey", "short"))
    yield Target(short, "≤ 0.5 × Portkey", 0.5, _over("portkey", "short"), stretch=True)
    yield Target(long, "≤ 0.35 × Portkey", 0.35, _over("portkey", "long"))
    yield Target(long, "≤ 5 × nginx", 5, _over("nginx", "long"), stretch=True)
    yield Target(paced, "≤ 0.75 × Portkey", 0.75, _over("portkey", "paced"))
    yield Target(paced, "≤ 4 × nginx", 4, _over("nginx", "paced"))
    yield Target(paced, "≤ 2.5 × nginx", 2.5, _over("nginx", "paced"), stretch=True)
    yield Target(slow, "≤ 0.8 × Portkey", 0.8, _over("portkey", "slow"))
    yield Target(slow, "≤ 0.6 × Portkey", 0.6, _over("portkey", "slow"), stretch=True)
    delay = "added delay of an event, 100 paced streams, p50"
    yield Target(delay, "≤ 1.5 × nginx", 1.5, _over("nginx", "paced", "delay_us", "p50"))
    yield Target(delay, "≤ 1 × nginx", 1.0, _over("nginx", "paced", "delay_us", "p50"), stretch=True)


def _list_memory() -> Iterator[Target]:
    stream, idle = "memory of an open stream", "memory of an idle gateway, one worker and its master"
    yield Target(stream, "≤ 32 KiB", 32, _of("slow", "kib_per_stream"))
    yield Target(stream, "≤ 20 KiB", 20, _of("slow", "kib_per_stream"), stretch=True)
    yield Target(idle, "≤ 90 MiB", 90, _of(None, "idle_kib", factor=1 / 1024))
    yield Target(idle, "≤ 70 MiB", 70, _of(None, "idle_kib", factor=1 / 1024), stretch=True)
    held = "open streams on one worker, no event lost"
    for bound, stretch in ((5_000, False), (9_000, True)):
        find = functools.partial(find_held, bound=bound)
        yield Target(held, f"{bound:,}", bound, find, stretch, at_least=True)


def _list_growth() -> Iterator[Target]:
    yield Target("an event's CPU with ten times the open streams", "≤ 1.2 ×", 1.2, find_stream_growth)
    yield Target(
        "a whole reply's CPU, the large ledger over the small one", "≤ 1.2 ×", 1.2, _grown("rows", 1)
    )
    yield Target("a whole reply's CPU, two workers over one", "≤ 1.1 ×", 1.1, _grown("workers", 1))
    yield Target("CPU of a cold start", "≤ 1.5 s", 1.5, find_start)


def find_held(sections: Sections, bound: int) -> float | None:
    """The most streams that were open at once without a lost event or an error, among the runs that tried.

    None when no run had as many as `bound`.
    """
    runs = [run for run in sections.get("hold", {}).get("runs", []) if run["streams"] >= bound]
    clean = [run for run in runs if not run["lost"] and not run["errors"] and not run["early_closes"]]
    return float(max((run["most_open"] for run in clean), default=0)) if runs else None


def find_stream_growth(sections: Sections) -> float | None:
    """The worst step from one number of open streams to the next, each about ten times as many."""
    rows = sections.get("growth", {}).get("streams", [])
    steps = [figures.divide_cases(rows, number, number - 1) for number in range(1, len(rows))]
    return max((step for step in steps if step is not None), default=None)


def find_start(sections: Sections) -> float | None:
    """Seconds."""
    starts = sections.get("start", {}).get("gateways", {}).get("grokflask", {})
    figure = figures.Figure.of(starts.get("cpu_s", []))
    return figure.median if figure else None


def _over(peer: str, scenario: str, *path: str) -> Callable[[Sections], float | None]:
    def find(sections: Sections) -> float | None:
        figure = figures.divide(sections, "grokflask", peer, scenario, *(path or ("cpu_us",)))
        return figure.median if figure else None

    return find


def _of(scenario: str | None, *path: str, factor: float = 1.0) -> Callable[[Sections], float | None]:
    def find(sections: Sections) -> float | None:
        figure = figures.read(sections, "grokflask", scenario, *path)
        return figure.median * factor if figure else None

    return find


def _grown(kind: str, number: int) -> Callable[[Sections], float | None]:
    return lambda sections: figures.divide_cases(sections.get("growth", {}).get(kind, []), number, 0)
