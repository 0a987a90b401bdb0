"""Reads the ledger for the dashboard: spend by day, outcomes, the newest timings, the use of keys.

Sums come from `daily`, and single figures from a bounded number of indexed rows, so the cost does not grow
with the ledger. Every reader raises StoreUnavailableError after its timeout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, case, cast, func, select

from grokflask.errors import Outcome
from grokflask.ledger.reports import find_first_id
from grokflask.ledger.row import LedgerRow
from grokflask.storage.database import Database
from grokflask.storage.tables import daily, exchanges

TIMEOUT_S = 5.0
TOP = 7
"""Keys or models that get a series of their own."""
MAX_MODELS = 500
TIMED_ROWS = 1_000

SpendBy = Literal["key", "model"]


class DayTotal(NamedTuple):
    """The settled exchanges that began on a UTC day."""

    day: str
    exchanges: int
    cost_ticks: int
    aborted: int


class Series(NamedTuple):
    """The cost of one key or model by day; days without exchanges are left out."""

    name: str
    exchanges: int
    cost_ticks: int
    by_day: dict[str, int]


class OutcomeTotal(NamedTuple):
    """The number and cost of exchanges with one outcome."""

    outcome: str
    exchanges: int
    cost_ticks: int


class ModelAborts(NamedTuple):
    """A model's cancelled exchanges beside its complete ones."""

    model: str
    complete: int
    complete_ticks: int
    aborted: int
    aborted_ticks: int


class Spend(NamedTuple):
    """Sums from a day on."""

    days: list[DayTotal]
    """With exchanges, from the first day or the first of the month, whichever is earlier."""
    series: list[Series]
    """The keys or models that cost most, in descending order."""
    outcomes: list[OutcomeTotal]
    models: list[ModelAborts]


class Timing(NamedTuple):
    """The outcome and timing of a settled exchange."""

    outcome: str
    ttft_ms: int | None
    duration_ms: int | None
    status: int | None = None


class KeyUse(NamedTuple):
    """When a key was last used (epoch seconds, None if never), and its spend today and this month."""

    last_at: float | None
    day_ticks: int
    month_ticks: int


def _sum(column: ColumnElement[Any], outcome: Outcome | None = None) -> ColumnElement[int]:
    """The sum of a column of `daily`, over all rows or those with this outcome."""
    counted = column if outcome is None else case((daily.c.outcome == outcome, column), else_=0)
    return cast(func.sum(counted), BigInteger)  # PostgreSQL's sum is a decimal


_EXCHANGES, _COST = _sum(daily.c.exchanges), _sum(daily.c.cost_ticks)
_ABORTED = _sum(daily.c.exchanges, Outcome.CLIENT_ABORT)
_BY_DAY = select(daily.c.day, _EXCHANGES, _COST, _ABORTED).group_by(daily.c.day).order_by(daily.c.day)
_BY_OUTCOME = (
    select(daily.c.outcome, _EXCHANGES, _COST)
    .group_by(daily.c.outcome)
    .order_by(_EXCHANGES.desc(), daily.c.outcome)
)
_BY_MODEL = (
    select(
        daily.c.model,
        _sum(daily.c.exchanges, Outcome.COMPLETE),
        _sum(daily.c.cost_ticks, Outcome.COMPLETE),
        _ABORTED,
        _sum(daily.c.cost_ticks, Outcome.CLIENT_ABORT),
    )
    .group_by(daily.c.model)
    .having(_ABORTED > 0)
    .order_by(_ABORTED.desc())
    .limit(MAX_MODELS)
)


def read_spend(database: Database, first_day: str, month_day: str, by: SpendBy) -> Spend:
    """Sums from `first_day` on; by day also those from the month's first day on."""
    shown = daily.c.day >= first_day

    def query(connection: Connection) -> Spend:
        by_day = connection.execute(_BY_DAY.where(daily.c.day >= min(first_day, month_day)))
        return Spend(
            days=[DayTotal(*row) for row in by_day],
            series=_read_series(connection, shown, daily.c[by]),
            outcomes=[OutcomeTotal(*row) for row in connection.execute(_BY_OUTCOME.where(shown))],
            models=[ModelAborts(*row) for row in connection.execute(_BY_MODEL.where(shown))],
        )

    return database.read(query, timeout_s=TIMEOUT_S)


def _read_series(
    connection: Connection, shown: ColumnElement[bool], name: ColumnElement[str]
) -> list[Series]:
    dearest = select(name, _EXCHANGES, _COST).where(shown).group_by(name).order_by(_COST.desc(), name)
    tops = connection.execute(dearest.limit(TOP)).all()
    days = select(name, daily.c.day, _COST).where(shown, name.in_([row[0] for row in tops]))
    by_day: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for of, day, ticks in connection.execute(days.group_by(name, daily.c.day)):
        by_day[of][day] = ticks
    return [Series(*row, by_day[row[0]]) for row in tops]


def read_timings(database: Database, since: float, limit: int = TIMED_ROWS) -> list[Timing]:
    """The newest settled exchanges that began at or after `since` (epoch seconds)."""
    columns = exchanges.c
    query = select(columns.outcome, columns.ttft_ms, columns.duration_ms, columns.status)
    query = query.where(columns.id >= find_first_id(since), columns.outcome.is_not(None))
    query = query.order_by(columns.id.desc()).limit(limit)
    found = database.read(lambda connection: connection.execute(query).all(), timeout_s=TIMEOUT_S)
    return [Timing(*row) for row in found]


def read_uses(database: Database, names: Sequence[str], day: str) -> dict[str, KeyUse]:
    """The use of these keys; `day` is today (UTC, `YYYY-MM-DD`)."""
    today = _sum(case((daily.c.day == day, daily.c.cost_ticks), else_=0))
    in_month = daily.c.day.between(f"{day[:7]}-01", f"{day[:7]}-31")
    sums = select(daily.c.key, today, _COST)
    sums = sums.where(daily.c.key.in_(names), in_month).group_by(daily.c.key)

    def query(connection: Connection) -> dict[str, KeyUse]:
        spent = {row[0]: row[1:] for row in connection.execute(sums)}
        # One index lookup for each; a GROUP BY would scan all their rows.
        newest = select(func.max(exchanges.c.id))
        ids = {name: connection.scalar(newest.where(exchanges.c.key == name)) for name in names}
        return {name: KeyUse(_read_time(ids[name]), *spent.get(name, (0, 0))) for name in names}

    return database.read(query, timeout_s=TIMEOUT_S)


def find_row(database: Database, row_id: str) -> LedgerRow | None:
    """The row of this id."""
    query = select(*(exchanges.c[name] for name in LedgerRow.__dataclass_fields__))
    query = query.where(exchanges.c.id == row_id)
    found = database.read(lambda connection: connection.execute(query).first())
    return None if found is None else LedgerRow(*found)


def _read_time(row_id: str | None) -> float | None:
    """Epoch seconds of a row's id, which begins with its milliseconds."""
    return None if row_id is None else int(row_id[:12], 16) / 1000
