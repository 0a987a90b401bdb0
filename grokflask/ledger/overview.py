"""Reads the ledger for the dashboard: spend by day, outcomes, the newest timings, the use of keys.

Sums come from `daily`, and single figures from a bounded number of indexed rows, so the cost does not grow
with the ledger. Every reader raises StoreUnavailableError after its timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, case, func, select

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


@dataclass(frozen=True, slots=True)
class DayTotal:
    """The settled exchanges that began on a UTC day."""

    day: str
    exchanges: int
    cost_ticks: int
    aborted: int


@dataclass(frozen=True, slots=True)
class Series:
    """The cost of one key or model by day; days without exchanges are left out."""

    name: str
    exchanges: int
    cost_ticks: int
    by_day: dict[str, int]


@dataclass(frozen=True, slots=True)
class OutcomeTotal:
    """The number and cost of exchanges with one outcome."""

    outcome: str
    exchanges: int
    cost_ticks: int


@dataclass(frozen=True, slots=True)
class ModelAborts:
    """A model's cancelled exchanges beside its complete ones."""

    model: str
    complete: int
    complete_ticks: int
    aborted: int
    aborted_ticks: int


@dataclass(frozen=True, slots=True)
class Spend:
    """Sums from a day on.

    Attributes:
        days: days with exchanges, from the first day or the first of the month, whichever is earlier.
        series: the keys or models that cost most, in descending order.
    """

    days: list[DayTotal]
    series: list[Series]
    outcomes: list[OutcomeTotal]
    models: list[ModelAborts]


@dataclass(frozen=True, slots=True)
class Timing:
    """The outcome and timing of a settled exchange."""

    outcome: str
    ttft_ms: int | None
    duration_ms: int | None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class KeyUse:
    """When a key was last used (epoch seconds, None if never), and its spend today and this month."""

    last_at: float | None
    day_ticks: int
    month_ticks: int


def read_spend(database: Database, first_day: str, month_day: str, by: SpendBy) -> Spend:
    """Sums from `first_day` on; by day also those from the month's first day on."""

    def query(connection: Connection) -> Spend:
        return Spend(
            days=_read_days(connection, min(first_day, month_day)),
            series=_read_series(connection, first_day, by),
            outcomes=_read_outcomes(connection, first_day),
            models=_read_models(connection, first_day),
        )

    return database.read(query, timeout_s=TIMEOUT_S)


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
    today = func.sum(case((daily.c.day == day, daily.c.cost_ticks), else_=0))
    in_month = daily.c.day.between(f"{day[:7]}-01", f"{day[:7]}-31")
    sums = select(daily.c.key, today, func.sum(daily.c.cost_ticks))
    sums = sums.where(daily.c.key.in_(names), in_month).group_by(daily.c.key)

    def query(connection: Connection) -> dict[str, KeyUse]:
        spent = {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(sums)}
        # One index lookup for each; a GROUP BY would scan all their rows.
        newest = {
            name: connection.execute(select(func.max(exchanges.c.id)).where(exchanges.c.key == name)).scalar()
            for name in names
        }
        return {name: KeyUse(_read_time(newest[name]), *spent.get(name, (0, 0))) for name in names}

    return database.read(query, timeout_s=TIMEOUT_S)


def find_row(database: Database, row_id: str) -> LedgerRow | None:
    """The row of this id."""
    query = select(*(exchanges.c[name] for name in LedgerRow.__dataclass_fields__))
    query = query.where(exchanges.c.id == row_id)
    found = database.read(lambda connection: connection.execute(query).first())
    return None if found is None else LedgerRow(*found)


def _read_days(connection: Connection, first_day: str) -> list[DayTotal]:
    aborted = case((daily.c.outcome == Outcome.CLIENT_ABORT, daily.c.exchanges), else_=0)
    query = select(daily.c.day, func.sum(daily.c.exchanges), func.sum(daily.c.cost_ticks), func.sum(aborted))
    query = query.where(daily.c.day >= first_day).group_by(daily.c.day).order_by(daily.c.day)
    return [DayTotal(row[0], *map(int, row[1:])) for row in connection.execute(query)]


def _read_series(connection: Connection, first_day: str, by: SpendBy) -> list[Series]:
    name, cost = daily.c[by], func.sum(daily.c.cost_ticks)
    dearest = select(name, func.sum(daily.c.exchanges), cost).where(daily.c.day >= first_day)
    dearest = dearest.group_by(name).order_by(cost.desc(), name).limit(TOP)
    tops = connection.execute(dearest).all()
    days = select(name, daily.c.day, cost).where(daily.c.day >= first_day, name.in_([row[0] for row in tops]))
    by_name: dict[str, dict[str, int]] = {}
    for row in connection.execute(days.group_by(name, daily.c.day)):
        by_name.setdefault(row[0], {})[row[1]] = int(row[2])
    return [Series(row[0], int(row[1]), int(row[2]), by_name.get(row[0], {})) for row in tops]


def _read_outcomes(connection: Connection, first_day: str) -> list[OutcomeTotal]:
    count = func.sum(daily.c.exchanges)
    query = select(daily.c.outcome, count, func.sum(daily.c.cost_ticks)).where(daily.c.day >= first_day)
    query = query.group_by(daily.c.outcome).order_by(count.desc(), daily.c.outcome)
    return [OutcomeTotal(row[0], int(row[1]), int(row[2])) for row in connection.execute(query)]


def _read_models(connection: Connection, first_day: str) -> list[ModelAborts]:
    def add(outcome: Outcome, figure: str) -> Any:
        return func.sum(case((daily.c.outcome == outcome, daily.c[figure]), else_=0))

    sums = [
        add(outcome, figure)
        for outcome in (Outcome.COMPLETE, Outcome.CLIENT_ABORT)
        for figure in ("exchanges", "cost_ticks")
    ]
    query = select(daily.c.model, *sums).where(daily.c.day >= first_day).group_by(daily.c.model)
    query = query.having(sums[2] > 0).order_by(sums[2].desc()).limit(MAX_MODELS)
    return [ModelAborts(row[0], *map(int, row[1:])) for row in connection.execute(query)]


def _read_time(row_id: str | None) -> float | None:
    """Epoch seconds of a row's id, which begins with its milliseconds."""
    return None if row_id is None else int(row_id[:12], 16) / 1000
