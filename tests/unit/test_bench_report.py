"""The benchmarks' figures: medians, ratios, verdicts, and the page made of them. Nothing is measured."""

# ruff: noqa: RUF001

from __future__ import annotations

from typing import Any

import figures
import pytest
import report
import tables
from figures import Figure
from targets import find_held, list_targets

SCENARIOS = ("unary-1", "unary-32", "short", "long", "paced", "slow")
STAMP = {
    "date": "2026-01-02 03:04 UTC",
    "commit": "commit abc",
    "command": "bench.py all",
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 8,
    "kernel": "Linux 6",
    "python": "3.11",
    "packages": {"gevent": "1.2"},
}


def make_turn(cpu_us: float) -> dict[str, Any]:
    row = {
        "cpu_us": cpu_us,
        "errors": 0,
        "delay_us": {"p50": cpu_us / 2, "p99": cpu_us},
        "first_event_us": {"p50": cpu_us, "p99": 2 * cpu_us},
        "kib_per_stream": 16.0,
    }
    return {"idle_kib": 61440.0, "after_kib": 71680.0, "scenarios": {name: dict(row) for name in SCENARIOS}}


def make_entry(title: str, *cpu_us: float, missing: str | None = None) -> dict[str, Any]:
    turns = [make_turn(value) for value in cpu_us]
    return {"title": title, "version": "1", "setup": ["one worker"], "missing": missing, "rounds": turns}


@pytest.fixture
def sections() -> dict[str, Any]:
    """Two rounds, the second one twice as slow for everybody; LiteLLM is not there."""
    table = {
        "grokflask": make_entry("grokflask", 100, 200),
        "nginx": make_entry("nginx", 40, 80),
        "portkey": make_entry("Portkey", 200, 400),
        "litellm": make_entry("LiteLLM", missing="LiteLLM is not installed: make bench-peers"),
    }
    scenarios = {"stamp": STAMP, "rounds": 2, "gateways": table, "scenarios": list(SCENARIOS)}
    return {"scenarios": scenarios}


def make_growth(*costs: float) -> list[dict[str, Any]]:
    return [
        {
            "case": f"case {number}",
            "open": 10**number,
            "rounds": [{"cpu_us": cost, "raw_cpu_us": cost, "per_s": 10, "events": 5, "errors": 0}],
        }
        for number, cost in enumerate(costs, 1)
    ]


def test_ratios_are_of_one_round(sections: dict[str, Any]) -> None:
    """A round in which the machine was slow has the same ratio, so it adds no spread."""
    assert figures.read(sections, "grokflask", "short", "cpu_us") == Figure(150, 100, 200)
    assert figures.divide(sections, "grokflask", "portkey", "short", "cpu_us") == Figure(0.5, 0.5, 0.5)
    assert figures.divide(sections, "grokflask", "litellm", "short", "cpu_us") is None


def test_verdicts(sections: dict[str, Any]) -> None:
    """Each target is met, not met, or was not measured; a bound itself is met."""
    verdicts = {(target.what, target.goal): target.judge(sections) for target in list_targets()}
    assert verdicts["CPU of a whole reply", "≤ 0.5 × Portkey"] == (0.5, "met")
    assert verdicts["CPU of a whole reply", "≤ 0.05 × LiteLLM"] == (None, "not measured")
    assert verdicts["CPU of an event, 512 at once", "≤ 0.35 × Portkey"] == (0.5, "not met")
    assert verdicts["memory of an open stream", "≤ 20 KiB"] == (16.0, "met")
    assert verdicts["memory of an idle gateway, one worker and its master", "≤ 70 MiB"] == (60.0, "met")
    assert verdicts["CPU of a cold start", "≤ 1.5 s"] == (None, "not measured")


@pytest.mark.parametrize(("fault", "held"), [({}, 5000.0), ({"lost": 1}, 0.0), ({"errors": 1}, 0.0)])
def test_one_lost_event_is_a_hold_that_failed(fault: dict[str, int], held: float) -> None:
    run = {"streams": 5000, "lost": 0, "errors": 0, "early_closes": 0, "most_open": 5000, **fault}
    assert find_held({"hold": {"runs": [run]}}, 5000) == held
    assert find_held({"hold": {"runs": [run]}}, 9000) is None


def test_growth_is_the_worst_step(sections: dict[str, Any]) -> None:
    """Cheaper with ten times the streams is no excuse for the step after it."""
    sections["growth"] = {"streams": make_growth(100, 50, 60), "rows": make_growth(10, 11)}
    verdicts = {target.what: target.judge(sections) for target in list_targets()}
    assert verdicts["an event's CPU with ten times the open streams"] == (1.2, "met")
    assert verdicts["a whole reply's CPU, the large ledger over the small one"] == (1.1, "met")


def test_the_page(sections: dict[str, Any]) -> None:
    """It has what was measured, says what was left out, and has no table of what was not measured."""
    text = report.render(sections, [])
    assert "| grokflask ÷ Portkey | 0.50 |" in text
    assert "| grokflask | 150 (100 to 200) |" in text
    assert "LiteLLM is not installed" in text
    assert "A CPU, 2 cores" in text
    assert "## How it grows" not in text
    assert ".svg" not in text


def test_every_section_has_its_place(sections: dict[str, Any]) -> None:
    """A page of all measurements, those without a plot included."""
    cases = {"rows": make_growth(10, 11), "keys": make_growth(10), "workers": make_growth(20, 21)}
    hold = {
        **dict.fromkeys(("streams", "seconds", "most_open", "sent", "received"), 5),
        **dict.fromkeys(("lost", "errors", "early_closes"), 0),
        "cpu_us": 99.0,
        "idle_kib": 1024.0,
        "most_kib": 2048.0,
        "kib_per_stream": 1.0,
        "delay_us": {"p50": 100, "p99": 200},
    }
    sections["growth"] = {"stamp": STAMP, "streams": make_growth(100, 50), **cases}
    sections["hold"] = {"stamp": dict(STAMP), "runs": [hold]}
    starts = {"grokflask": {"title": "grokflask", "cpu_s": [0.5, 0.7, 0.6], "seconds": [1, 1, 1]}}
    sections["start"] = {"stamp": STAMP, "gateways": starts}
    text = report.render(sections, ["performance-growth.svg"])
    assert "| 100 | 50.0 | 50.0 | 5.00 | 0.50 |" in text
    assert "| case 2 | 21.0 | 10.0 | 1.05 |" in text
    assert "| lost | **0** |" in text
    assert "on the same machine" in text
    assert "| grokflask | 0.60 (0.50 to 0.70) | 1.00 | 3 |" in text
    assert "(performance-growth.svg)" in text


def test_errors_are_counted_wherever_they_are(sections: dict[str, Any]) -> None:
    sections["scenarios"]["gateways"]["nginx"]["rounds"][1]["scenarios"]["slow"]["errors"] = 3
    sections["growth"] = {"rows": [{"rounds": [{"errors": 2}]}]}
    assert figures.count_errors(sections) == 5


def test_numbers_have_three_digits() -> None:
    texts = [figures.render_number(value) for value in (0.1234, 1.239, 12.34, 99.96, 1234.5)]
    assert texts == ["0.12", "1.24", "12.3", "100", "1,234"]
    assert figures.render(None) == "-"
    assert tables.make_table(["a"], [["b"]]) == "| a |\n| --- |\n| b |"
