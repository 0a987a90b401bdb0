"""The numbers of the dashboard and of /admin/api/overview, computed from the ledger's sums. No IO."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from grokflask.errors import Outcome
from grokflask.ledger.overview import ModelAborts, Series, Spend, SpendBy, Timing

PERIODS = (7, 30, 90)
"""Periods of the charts, in days."""

SPARK_DAYS = 14
DAY_S = 86400.0
CLIENT_FAULTS = frozenset({400, 404, 405, 409, 413, 415, 422})
"""Upstream statuses that blame the request. 401, 403 and 429 are about the gateway's own key."""

PERCENTILES = (50, 95, 99)

WORDS = {
    Outcome.COMPLETE: ("complete", "good", "The whole answer was sent."),
    Outcome.CLIENT_ABORT: ("cancelled", "muted", "The client left, so the upstream call was cancelled."),
    Outcome.UPSTREAM_ERROR: ("upstream error", "bad", "xAI answered with an error, or the connection broke."),
    Outcome.TRUNCATED: ("truncated", "bad", "The upstream stream ended before it was complete."),
    Outcome.TIMEOUT: ("timeout", "bad", "Upstream was silent for too long."),
    Outcome.SHUTDOWN: ("ended here", "warn", "The gateway ended it: a restart, or an admin."),
    Outcome.LIMIT: ("budget used up", "warn", "The gateway ended it when the key's budget was used up."),
    Outcome.LOST: ("lost", "bad", "Its process was killed."),
    Outcome.REFUSED: ("refused", "warn", "The gateway refused it and sent nothing upstream."),
}
"""A word, a state (a colour and a sign) and an explanation for each outcome."""

_OPEN = ("open", "muted", "It is still running.")


class Overview(NamedTuple):
    """The figures of some days: `fields` as in the admin API, and the `trends` of three of them by day."""

    fields: dict[str, Any]
    trends: dict[str, list[int]]


def list_days(last: str, count: int) -> list[str]:
    """The `count` days up to `last`."""
    end = date.fromisoformat(last)
    return [(end - timedelta(before)).isoformat() for before in range(count - 1, -1, -1)]


def work_out(spend: Spend, days: list[str], by: SpendBy) -> Overview:
    """The overview of `days`, the last of which is today."""
    today, outcomes = days[-1], spend.outcomes
    ticks = defaultdict(int, {each.day: each.cost_ticks for each in spend.days})
    aborted = defaultdict(int, {each.day: each.aborted for each in spend.days})
    in_month = [each.cost_ticks for each in spend.days if each.day[:7] == today[:7]]
    count = sum(each.exchanges for each in outcomes)
    cancelled = sum(each.exchanges for each in outcomes if each.outcome == Outcome.CLIENT_ABORT)
    rows = _list_series(spend.series, days, [ticks[day] for day in days], by)
    fields = {
        "spend": {"day_ticks": ticks[today], "month_ticks": sum(in_month)},
        "period": {"since": days[0], "until": today, "days": len(days)},
        "exchanges": count,
        "cost_ticks": sum(each.cost_ticks for each in outcomes),
        "series": {"by": by, "days": days, "rows": rows},
        "outcomes": [
            {
                "outcome": each.outcome,
                "exchanges": each.exchanges,
                "share": round(each.exchanges / count, 4) if count else 0.0,
                "cost_ticks": each.cost_ticks,
            }
            for each in outcomes
        ],
        "cancelled": {
            "exchanges": cancelled,
            "saved_ticks": estimate_saved(spend.models),
            "estimated": True,
        },
    }
    trends = {
        "day": [ticks[day] for day in list_days(today, SPARK_DAYS)],
        "month": list(accumulate(in_month)),
        "aborted": [aborted[day] for day in days],
    }
    return Overview(fields, trends)


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
    complete = (each.duration_ms for each in timings if each.outcome == Outcome.COMPLETE)
    return {
        "rows": len(timings),
        "ttft_ms": _find_percentiles(each.ttft_ms for each in timings),
        "duration_ms": _find_percentiles(complete),
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


def _find_percentiles(times: Iterable[int | None]) -> dict[str, Any]:
    """By nearest rank; None if there are no times."""
    values = sorted(each for each in times if each is not None)
    count = len(values)
    return {
        "count": count,
        **{f"p{rank}": values[math.ceil(rank / 100 * count) - 1] if count else None for rank in PERCENTILES},
    }


def _list_series(
    series: Sequence[Series], days: Sequence[str], by_day: Sequence[int], by: SpendBy
) -> list[dict[str, Any]]:
    """The series that cost something, and one without a name for the rest if that cost something."""
    rows: list[dict[str, Any]] = [
        {
            by: each.name,
            "cost_ticks": each.cost_ticks,
            "ticks_by_day": [each.by_day.get(day, 0) for day in days],
        }
        for each in series
        if each.cost_ticks
    ]
    columns = zip(by_day, *(row["ticks_by_day"] for row in rows), strict=True)
    rest = [total - sum(column) for total, *column in columns]
    return [*rows, {by: None, "cost_ticks": sum(rest), "ticks_by_day": rest}] if any(rest) else rows
