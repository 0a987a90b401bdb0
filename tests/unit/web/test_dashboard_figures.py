"""The dashboard's figures and the geometry of its charts, from sums that were read."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from support.seeding import KEYS, make_rows, seed_ledger

from grokflask.errors import Outcome
from grokflask.ledger.overview import (
    TOP,
    DayTotal,
    ModelAborts,
    OutcomeTotal,
    Series,
    Spend,
    Timing,
    find_row,
    read_spend,
    read_timings,
    read_uses,
)
from grokflask.ledger.reports import RowFilter, read_rows, summarize
from grokflask.ledger.row import make_id
from grokflask.storage.database import Database
from grokflask.times import to_day
from grokflask.web.dashboard.charts import HEIGHT, draw_spark, find_top, stack_bars
from grokflask.web.dashboard.figures import (
    describe_outcome,
    estimate_saved,
    judge_upstream,
    list_days,
    measure,
    work_out,
)

USD = 10**10


@pytest.mark.parametrize(
    ("models", "saved"),
    [
        ([], 0),
        ([ModelAborts("a", 10, 1000, 3, 60)], 240),
        ([ModelAborts("a", 10, 1000, 3, 900)], 0),
        ([ModelAborts("a", 0, 0, 3, 60)], 0),
        ([ModelAborts("a", 10, 1000, 3, 60), ModelAborts("b", 1, 1, 5, 10_000)], 240),
    ],
)
def test_what_cancelling_saved(models: list[ModelAborts], saved: int) -> None:
    """Each model's cancelled exchanges at its complete ones' mean, less their cost; none below zero."""
    assert estimate_saved(models) == saved


def time_rows(values: Sequence[int | None], outcome: str = "complete") -> list[Timing]:
    return [Timing(outcome, value, value) for value in values]


def test_percentiles() -> None:
    """Nearest rank; the whole time is that of complete exchanges; None where there are none."""
    found = measure([*time_rows(range(1, 101)), *time_rows([10_000, None], "client_abort")])
    assert found["rows"] == 102
    assert found["ttft_ms"] == {"count": 101, "p50": 51, "p95": 96, "p99": 100}
    assert found["duration_ms"] == {"count": 100, "p50": 50, "p95": 95, "p99": 99}
    assert measure([])["ttft_ms"] == {"count": 0, "p50": None, "p95": None, "p99": None}
    assert measure(time_rows([7]))["ttft_ms"] == {"count": 1, "p50": 7, "p95": 7, "p99": 7}


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([], "unused"),
        (["client_abort", "refused"], "unused"),
        (["complete"] * 10, "up"),
        (["timeout"] + ["complete"] * 9, "shaky"),
        (["upstream_error"] * 5 + ["complete"] * 5, "failing"),
        (["complete"] * 50 + ["upstream_error"] * 500, "up"),
    ],
)
def test_how_upstream_is(outcomes: list[str], state: str) -> None:
    """Told from the newest fifty exchanges that upstream had a say in."""
    assert judge_upstream([Timing(outcome, None, None) for outcome in outcomes]) == state


@pytest.mark.parametrize(("status", "state"), [(404, "up"), (400, "up"), (429, "failing"), (500, "failing")])
def test_a_wrong_request_is_no_fault_of_upstreams(status: int, state: str) -> None:
    """A model that it does not have is told by an upstream that is up; our key's own trouble is not."""
    assert judge_upstream([Timing("upstream_error", None, None, status)] * 3) == state


def test_series_and_others() -> None:
    """The dearest have a series each, what is left of each day is the others', and sums agree."""
    days = ["2026-01-30", "2026-01-31", "2026-02-01"]
    spend = Spend(
        days=[DayTotal("2026-01-29", 9, 50, 0), DayTotal(days[0], 2, 10, 1), DayTotal(days[2], 3, 30, 0)],
        series=[Series("a", 4, 25, {days[0]: 5, days[2]: 20}), Series("free", 9, 0, {})],
        outcomes=[OutcomeTotal("complete", 4, 39), OutcomeTotal("client_abort", 1, 1)],
        models=[],
    )
    figures = work_out(spend, days, "key")
    fields = figures.fields
    assert fields["series"]["rows"] == [
        {"key": "a", "cost_ticks": 25, "ticks_by_day": [5, 0, 20]},
        {"key": None, "cost_ticks": 15, "ticks_by_day": [5, 0, 10]},
    ]
    assert fields["spend"] == {"day_ticks": 30, "month_ticks": 30}
    assert (fields["exchanges"], fields["cancelled"]["exchanges"]) == (5, 1)
    assert figures.trends["day"][-4:] == [50, 10, 0, 30]
    assert (figures.trends["month"], figures.trends["aborted"]) == ([30], [1, 0, 0])
    assert fields["outcomes"][0] == {
        "outcome": "complete",
        "exchanges": 4,
        "share": 0.8,
        "cost_ticks": 39,
    }


def test_nothing_yet() -> None:
    """An empty ledger is zeros, not an error."""
    fields = work_out(Spend([], [], [], []), list_days("2027-01-15", 7), "model").fields
    assert fields["exchanges"] == 0
    assert (fields["spend"]["day_ticks"], fields["cancelled"]["saved_ticks"]) == (0, 0)
    assert fields["series"]["rows"] == []


def test_stacked_bars() -> None:
    """Bars stand on one another in their column, in proportion, none outside the chart."""
    top, (first, second) = stack_bars([[10, 0], [30, 100], [0, -5]])
    assert top == 100
    assert [(bar.series, bar.height, bar.y) for bar in first] == [(0, 20, 180), (1, 60, 120)]
    assert [(bar.series, bar.height, bar.y) for bar in second] == [(1, HEIGHT, 0)]
    assert stack_bars([[0, 0]]) == (1, [[], []])
    assert stack_bars([]) == (1, [])


@pytest.mark.parametrize(
    ("highest", "top"), [(0, 1), (1, 1), (2, 2), (10, 10), (11, 12), (101, 120), (9 * USD, 10 * USD)]
)
def test_the_axis_ends_at_a_round_number(highest: int, top: int) -> None:
    """Not below the highest value, and not much above it."""
    assert find_top(highest) == top


def test_sparklines() -> None:
    """One value and no value make a line too."""
    assert draw_spark([0, 5, 10]) == "0.0,23.0 50.0,12.0 100.0,1.0"
    assert draw_spark([3]).count(",") == 2
    assert draw_spark([]).count(",") == 2


def test_every_outcome_has_a_word() -> None:
    """Also the one of a row that is open."""
    for outcome in [*Outcome, None]:
        assert describe_outcome(outcome)["word"]


def test_what_is_read_is_what_the_ledger_says(database: Database) -> None:
    """Sums, timings, uses and single rows of a varied ledger agree with its rows."""
    now = time.time()
    seed_ledger(database, 600)
    days = list_days(to_day(now), 30)
    rows = [row for row in read_rows(database, RowFilter(), 1000) if row.day >= days[0]]
    figures = work_out(read_spend(database, days[0], f"{days[-1][:7]}-01", "key"), days, "key").fields
    series = figures["series"]["rows"]
    assert figures["exchanges"] == len(rows)
    assert figures["cost_ticks"] == sum(row.cost_ticks or 0 for row in rows)
    assert sum(sum(each["ticks_by_day"]) for each in series) == figures["cost_ticks"]
    assert len(series) == TOP + 1 < len(KEYS) + 1
    by_key = {each.name: each.cost_ticks for each in summarize(database, days[0], None, "key")}
    assert {each["key"]: each["cost_ticks"] for each in series[:TOP]}.items() <= by_key.items()
    assert figures["cancelled"]["saved_ticks"] > 0

    timings = read_timings(database, 0.0, 100)
    assert [each.ttft_ms for each in timings] == [row.ttft_ms for row in rows[:100]]
    uses = read_uses(database, [rows[0].key, "nobody", "x' OR 1=1 --"], to_day(now))
    assert abs((uses[rows[0].key].last_at or 0) - rows[0].started_at) < 0.01
    assert (uses["nobody"].last_at, uses["nobody"].month_ticks) == (None, 0)
    assert find_row(database, rows[3].id) == rows[3]
    assert find_row(database, make_id()) is None


def test_seeds_are_alike() -> None:
    """The same seed makes the same figures."""
    one, two = ([row.cost_ticks for row in make_rows(5, 9, 1)] for _ in range(2))
    assert one == two
