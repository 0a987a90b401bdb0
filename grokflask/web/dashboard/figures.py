"""The numbers of the dashboard and of /admin/api/overview, computed from the ledger's sums. No IO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from typing import Any

from grokflask.errors import Outcome
from grokflask.ledger.overview import TOP, ModelAborts, Series, Spend, SpendBy, Timing
from grokflask.times import to_day
from grokflask.web.dashboard.charts import Stack, draw_spark, stack_bars

PERIODS = (7, 30, 90)
"""Periods of the charts, in days."""

SPARK_DAYS = 14
DAY_S = 86400.0
CLIENT_FAULTS = frozenset({400, 404, 405, 409, 413, 415, 422})
"""Upstream statuses that blame the request. 401, 403 and 429 are about the gateway's own key."""

OTHERS = "others"
PERCENTILES = (50, 95, 99)

WORDS = {
    Outcome.COMPLETE: ("complete", "good", "The whole answer was sent."),
    Outcome.CLIENT_ABORT: ("cancelled", "muted", "The client left, so the upstream request was stopped."),
    Outcome.UPSTREAM_ERROR: ("upstream error", "bad", "xAI answered with an error, or the connection broke."),
    Outcome.TRUNCATED: ("truncated", "bad", "The upstream stream ended before it was complete."),
    Outcome.TIMEOUT: ("timeout", "bad", "Upstream was silent for too long."),
    Outcome.SHUTDOWN: ("ended here", "warn", "The gateway ended it: a restart, or an admin."),
    Outcome.LOST: ("lost", "bad", "Its process was killed."),
    Outcome.REFUSED: ("refused", "warn", "The gateway refused it and sent nothing upstream."),
}
"""A word, a state (a colour and a sign) and an explanation for each outcome."""

_OPEN = ("open", "muted", "It is still running.")


@dataclass(frozen=True, slots=True)
class Legend:
    """One series of the chart; `number` is its colour. The series of all others has no count of exchanges."""

    number: int
    name: str
    cost_ticks: int
    exchanges: int | None
    share: float


@dataclass(frozen=True, slots=True)
class Overview:
    """Spend and outcomes of the days from `days[0]` to `days[-1]`."""

    by: SpendBy
    days: list[str]
    totals: list[int]
    day_ticks: int
    month_ticks: int
    legends: list[Legend]
    #: Ticks of each legend, by day.
    values: list[list[int]]
    outcomes: list[dict[str, Any]]
    exchanges: int
    cost_ticks: int
    aborted: int
    #: An estimate of what cancelling has saved.
    saved_ticks: int
    sparks: dict[str, tuple[str, str]]

    @property
    def chart(self) -> Stack:
        """Spend by day, as stacked bars."""
        return stack_bars(self.days, self.values)

    @property
    def is_empty(self) -> bool:
        """Whether these days have no exchanges."""
        return not self.exchanges

    def to_fields(self) -> dict[str, Any]:
        """The JSON of the admin API."""
        return {
            "spend": {"day_ticks": self.day_ticks, "month_ticks": self.month_ticks},
            "period": {"since": self.days[0], "until": self.days[-1], "days": len(self.days)},
            "exchanges": self.exchanges,
            "cost_ticks": self.cost_ticks,
            "series": {
                "by": self.by,
                "days": self.days,
                "rows": [
                    {
                        self.by: None if each.exchanges is None else each.name,  # None is all others
                        "cost_ticks": each.cost_ticks,
                        "ticks_by_day": values,
                    }
                    for each, values in zip(self.legends, self.values, strict=True)
                ],
            },
            "outcomes": [
                {name: each[name] for name in ("outcome", "exchanges", "share", "cost_ticks")}
                for each in self.outcomes
            ],
            "cancelled": {"exchanges": self.aborted, "saved_ticks": self.saved_ticks, "estimated": True},
        }


def list_days(now: float, count: int) -> list[str]:
    """The last `count` UTC days up to today."""
    return _list_days_to(to_day(now), count)


def _list_days_to(last: str, count: int) -> list[str]:
    end = date.fromisoformat(last)
    return [(end - timedelta(before)).isoformat() for before in range(count - 1, -1, -1)]


def work_out(spend: Spend, days: list[str], by: SpendBy) -> Overview:
    """The overview of `days`, the last of which is today."""
    today, totals = days[-1], {each.day: each for each in spend.days}
    by_day = [totals[day].cost_ticks if day in totals else 0 for day in days]
    in_month = [each for each in spend.days if each.day[:7] == today[:7]]
    legends, values = _name_series(spend.series, days, by_day)
    count = sum(each.exchanges for each in spend.outcomes)
    recent = [totals[day].cost_ticks if day in totals else 0 for day in _list_days_to(today, SPARK_DAYS)]
    return Overview(
        by=by,
        days=days,
        totals=by_day,
        day_ticks=totals[today].cost_ticks if today in totals else 0,
        month_ticks=sum(each.cost_ticks for each in in_month),
        legends=legends,
        values=values,
        outcomes=[
            {
                **describe_outcome(each.outcome),
                "exchanges": each.exchanges,
                "cost_ticks": each.cost_ticks,
                "share": round(each.exchanges / count, 4) if count else 0.0,
            }
            for each in spend.outcomes
        ],
        exchanges=count,
        cost_ticks=sum(each.cost_ticks for each in spend.outcomes),
        aborted=sum(each.exchanges for each in spend.outcomes if each.outcome == Outcome.CLIENT_ABORT),
        saved_ticks=estimate_saved(spend.models),
        sparks={
            "day": draw_spark(recent),
            "month": draw_spark(list(accumulate(each.cost_ticks for each in in_month)) or [0]),
            "aborted": draw_spark([totals[day].aborted if day in totals else 0 for day in days]),
        },
    )


def estimate_saved(models: Sequence[ModelAborts]) -> int:
    """Ticks that cancelling has saved: the mean cost of a model's complete exchanges less the actual cost.

    A model without complete exchanges adds nothing, and no model adds less than zero.
    """
    return sum(
        max(0, round(each.aborted * each.complete_ticks / each.complete) - each.aborted_ticks)
        for each in models
        if each.complete
    )


def describe_outcome(outcome: str | None) -> dict[str, Any]:
    """An outcome with its word, state and meaning; None is an open exchange."""
    word, state, meaning = _OPEN if outcome is None else WORDS[Outcome(outcome)]
    return {"outcome": outcome, "word": word, "state": state, "meaning": meaning}


def measure(timings: Sequence[Timing]) -> dict[str, Any]:
    """Percentiles in milliseconds: the time to the first token, and the duration of complete exchanges."""
    first = sorted(each.ttft_ms for each in timings if each.ttft_ms is not None)
    whole = sorted(
        each.duration_ms
        for each in timings
        if each.duration_ms is not None and each.outcome == Outcome.COMPLETE
    )
    return {
        "rows": len(timings),
        "ttft_ms": _find_percentiles(first),
        "duration_ms": _find_percentiles(whole),
    }


def judge_upstream(timings: Sequence[Timing]) -> str:
    """The state of upstream, judged by the newest exchanges: `unused`, `up`, `shaky` or `failing`.

    If upstream refuses a request because of its content (such as an unknown model), it is up.
    """
    bad = {Outcome.UPSTREAM_ERROR, Outcome.TRUNCATED, Outcome.TIMEOUT}
    failures = [
        each.outcome in bad and each.status not in CLIENT_FAULTS
        for each in timings
        if each.outcome in {*bad, Outcome.COMPLETE}
    ][:50]
    if not failures:
        return "unused"
    share = sum(failures) / len(failures)
    return "failing" if share >= 0.5 else "shaky" if share >= 0.1 else "up"


def _find_percentiles(values: Sequence[int]) -> dict[str, Any]:
    """By nearest rank from sorted `values`; None if there are none."""
    count = len(values)
    return {
        "count": count,
        **{f"p{rank}": values[math.ceil(rank / 100 * count) - 1] if count else None for rank in PERCENTILES},
    }


def _name_series(
    series: Sequence[Series], days: Sequence[str], by_day: Sequence[int]
) -> tuple[list[Legend], list[list[int]]]:
    """The series that cost something, and one for the rest if that cost something."""
    shown = [each for each in series if each.cost_ticks]
    values = [[each.by_day.get(day, 0) for day in days] for each in shown]
    rest = [total - sum(column) for total, *column in zip(by_day, *values, strict=True)]
    whole = sum(by_day) or 1
    legends = [
        Legend(number, each.name, each.cost_ticks, each.exchanges, each.cost_ticks / whole)
        for number, each in enumerate(shown)
    ]
    if any(rest):
        legends.append(Legend(TOP, OTHERS, sum(rest), None, sum(rest) / whole))
        values.append(rest)
    return legends, values
