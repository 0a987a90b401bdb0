"""Reads the ledger: rows, sums, and whether the two agree.

Rows are found by their ids, which sort by time, and sums come from `daily`. So the cost does not grow with
the ledger, except for `iterate_rows` and the check, which read every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal, or_, select, text, union_all

from grokflask.billing.prices import price_saved
from grokflask.ledger.row import COLUMNS, LedgerRow
from grokflask.ledger.statements import SUMS
from grokflask.storage.database import Database
from grokflask.storage.tables import daily, exchanges

PAGE_ROWS = 1_000
REPORT_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 600.0

By = Literal["key", "model", "day", "outcome"]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Selects rows. Times are epoch seconds, `until` excluded; None and "" select everything."""

    since: float | None = None
    until: float | None = None
    key: str | None = None
    model: str | None = None
    outcome: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums of the settled rows of one key, model, day or outcome, which is its `name`.

    `estimated_ticks` is the estimated part of `cost_ticks`; 1 USD = 10^10 ticks. `saved_ticks` is how much
    more the cached tokens would have cost uncached, by the price table. It is a lower bound, because the
    long-context rate is not considered.
    """

    name: str
    exchanges: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_ticks: int
    estimated_ticks: int
    bytes_out: int
    saved_ticks: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """A sum that differs from its rows."""

    key: str
    day: str
    model: str
    outcome: str
    field: str
    stored: int
    actual: int


def read_rows(
    database: Database,
    row_filter: RowFilter,
    limit: int,
    before_id: str | None = None,
    timeout_s: float | None = None,
) -> list[LedgerRow]:
    """The newest rows that match, at most `limit`; the next page begins before the id of the last one.

    There is no index for models and outcomes, so such a search reads other rows too and may take long.
    Raises StoreUnavailableError after `timeout_s`; its default depends on the query.
    """
    is_quick = limit <= PAGE_ROWS and not row_filter.model and not row_filter.outcome
    timeout_s = timeout_s or (None if is_quick else REPORT_TIMEOUT_S)
    query = _select_rows(row_filter).order_by(exchanges.c.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(exchanges.c.id < before_id)
    found = database.read(lambda connection: connection.execute(query).all(), timeout_s=timeout_s)
    return [LedgerRow(*row) for row in found]


def read_open(database: Database, request_id: str | None = None) -> list[LedgerRow]:
    """The rows of all workers' open streams (with this `request_id`), oldest first.

    Includes those of a killed worker until they are settled as lost. Raises StoreUnavailableError.
    """
    # Sorted here: ORDER BY could make the database scan all rows by id.
    query = _select_rows(RowFilter(request_id=request_id)).where(exchanges.c.outcome.is_(None))
    found = database.read(lambda connection: connection.execute(query).all())
    return sorted((LedgerRow(*row) for row in found if row.stream), key=lambda row: row.id)


def iterate_rows(
    database: Database, row_filter: RowFilter, page_rows: int = PAGE_ROWS
) -> Iterator[LedgerRow]:
    """All rows that match, newest first, with one page in memory. Raises StoreUnavailableError."""
    before_id = None
    while True:
        rows = read_rows(database, row_filter, page_rows, before_id)
        yield from rows
        if len(rows) < page_rows:
            return
        before_id = rows[-1].id


def summarize(
    database: Database, since_day: str | None, until_day: str | None, by: By = "key", key: str | None = None
) -> list[Summary]:
    """Sums of the days from `since_day` to `until_day` inclusive (UTC, `YYYY-MM-DD`), sorted by name.

    Raises StoreUnavailableError.
    """
    name, model = daily.c[by].label("name"), daily.c.model.label("priced_as")
    sums = (func.sum(daily.c[figure]) for figure in SUMS)
    query = select(name, model, *sums).group_by(daily.c[by], daily.c.model).order_by(daily.c[by])
    if since_day is not None:
        query = query.where(daily.c.day >= since_day)
    if until_day is not None:
        query = query.where(daily.c.day <= until_day)
    if key is not None:
        query = query.where(daily.c.key == key)
    found = database.read(lambda connection: connection.execute(query).all(), timeout_s=REPORT_TIMEOUT_S)
    return [_add_models(of, list(rows)) for of, rows in groupby(found, key=lambda row: row.name)]


def _add_models(name: str, rows: list[Any]) -> Summary:
    """One sum of those by model, because each model has its own prices."""
    cached = 2 + SUMS.index("cached_tokens")
    figures = [sum(map(int, column)) for column in list(zip(*rows, strict=True))[2:]]
    saved_ticks = sum(price_saved(row.priced_as, int(row[cached])) for row in rows)
    return Summary(name, **dict(zip(SUMS, figures, strict=True)), saved_ticks=saved_ticks)


_SPENT = text(
    "SELECT coalesce(sum(CASE WHEN day = :day THEN cost_ticks ELSE 0 END), 0), coalesce(sum(cost_ticks), 0) "
    "FROM daily WHERE key = :key AND day >= :first AND day <= :last"
)


def read_spent(database: Database, key: str, day: str) -> tuple[int, int]:
    """Ticks that `key` has spent on `day` (UTC, `YYYY-MM-DD`) and in its month, by settled rows.

    Raises StoreUnavailableError.
    """
    values = {"key": key, "day": day, "first": f"{day[:7]}-01", "last": f"{day[:7]}-31"}
    row = database.read(lambda connection: connection.execute(_SPENT, values).one())
    return int(row[0]), int(row[1])


def check_daily(database: Database) -> list[Drift]:
    """The sums that differ from their rows, for the days whose rows are complete.

    Retention records the first such day. Raises StoreUnavailableError.
    """
    return database.read(_find_drift, timeout_s=CHECK_TIMEOUT_S)


def repair_daily(database: Database) -> list[Drift]:
    """Recomputes the sums of those days in one transaction, and returns what was wrong.

    Writers wait meanwhile. Raises StoreUnavailableError.
    """
    return database.write(_repair, timeout_s=CHECK_TIMEOUT_S)


def _repair(connection: Connection) -> list[Drift]:
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE exchanges, daily IN SHARE ROW EXCLUSIVE MODE"))
    drift = _find_drift(connection)
    if drift:
        since = _read_complete_since(connection)
        connection.execute(daily.delete().where(daily.c.day >= since))
        columns = ["key", "day", "model", "outcome", *SUMS]
        connection.execute(daily.insert().from_select(columns, _sum_rows(since)))
    return drift


def _find_drift(connection: Connection) -> list[Drift]:
    since = _read_complete_since(connection)
    # One statement sees one state of the database, whatever is written meanwhile.
    stored = select(
        *(daily.c[name] for name in ("key", "day", "model", "outcome", *SUMS)),
        *(literal(0).label(f"actual_{name}") for name in SUMS),
    ).where(daily.c.day >= since)
    rows = _sum_rows(since).subquery()
    actual = select(*list(rows.c)[:4], *(literal(0) for _ in SUMS), *list(rows.c)[4:])
    both = union_all(stored, actual).subquery()
    names = list(both.c)[:4]
    pairs = [(func.sum(both.c[name]), func.sum(both.c[f"actual_{name}"])) for name in SUMS]
    differs = or_(*(stored_sum != actual_sum for stored_sum, actual_sum in pairs))
    query = select(*names, *(each for pair in pairs for each in pair)).group_by(*names).having(differs)
    drift = []
    for key, day, model, outcome, *sums in connection.execute(query.order_by(*names)):
        figures = [int(figure) for figure in sums]
        for name, stored_sum, actual_sum in zip(SUMS, figures[::2], figures[1::2], strict=True):
            if stored_sum != actual_sum:
                drift.append(Drift(key, day, model, outcome, name, stored_sum, actual_sum))
    return drift


def _sum_rows(since_day: str) -> Select[Any]:
    """What `daily` should contain, from `since_day` on."""
    columns = exchanges.c
    model = func.coalesce(columns.model_served, columns.model)
    figures: dict[str, ColumnElement[Any]] = {name: columns[name] for name in SUMS if name in columns}
    figures["estimated_ticks"] = case((columns.estimated, columns.cost_ticks), else_=0)
    sums = [func.count().label("exchanges")]
    sums += [func.coalesce(func.sum(figures[name]), 0).label(name) for name in SUMS[1:]]
    groups = (columns.key, columns.day, model, columns.outcome)
    query = select(columns.key, columns.day, model.label("model"), columns.outcome, *sums)
    return query.where(columns.outcome.is_not(None), columns.day >= since_day).group_by(*groups)


def _read_complete_since(connection: Connection) -> str:
    found: str | None = connection.execute(text("SELECT complete_since FROM retention")).scalar()
    return found or ""


def _select_rows(row_filter: RowFilter) -> Select[Any]:
    query = select(*(exchanges.c[name] for name in COLUMNS))
    # An id begins with its time, so a range needs only the primary key.
    if row_filter.since is not None:
        query = query.where(exchanges.c.id >= find_first_id(row_filter.since))
    if row_filter.until is not None:
        query = query.where(exchanges.c.id < find_first_id(row_filter.until))
    for name in ("key", "model", "outcome", "request_id"):
        value = getattr(row_filter, name)
        if value:
            query = query.where(exchanges.c[name] == value)
    return query


def find_first_id(seconds: float) -> str:
    """The prefix of the first id at this time, clamped to the range of ids."""
    milliseconds = min(max(round(seconds * 1000), 0), 16**12 - 1)
    return f"{milliseconds:012x}"
