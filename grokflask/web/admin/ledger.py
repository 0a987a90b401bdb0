"""/admin/api/ledger, ledger.csv, summary and overview: the ledger's rows and sums."""

from __future__ import annotations

import re
import time
from itertools import chain, islice

from flask import Response, stream_with_context

from grokflask.errors import InvalidRequestError
from grokflask.ledger.overview import SpendBy, Timing, read_spend, read_timings
from grokflask.ledger.query import name_sums, read_days, read_filter, read_grouping
from grokflask.ledger.reports import RowFilter, iterate_rows, read_rows, summarize
from grokflask.ledger.row import FIELDS, MORE_FIELDS, LedgerRow
from grokflask.ledger.spreadsheet import write_csv
from grokflask.times import to_day
from grokflask.web.admin.api import blueprint, read_query, read_value, reply
from grokflask.web.current import flush_ledger, get_database
from grokflask.web.dashboard.figures import (
    DAY_S,
    PERIODS,
    SPARK_DAYS,
    Overview,
    judge_upstream,
    list_days,
    measure,
    work_out,
)
from grokflask.web.health import describe_state

FILTERS = ("since", "until", "key", "model", "outcome", "request_id")
PAGE_ROWS = 100
MAX_PAGE_ROWS = 1000
DEFAULT_DAYS = 30
PIECE_LINES = 200


@blueprint.get("/ledger")
def list_rows() -> Response:
    """A page of rows, newest first. `next` is the id before which the next page begins."""
    query = read_query(*FILTERS, "limit", "before")
    row_filter = read_filter(query, time.time())
    limit = read_value("limit", query.get("limit", str(PAGE_ROWS)), _read_limit)
    before = read_before(query.get("before"))
    flush_ledger()
    rows, next_id = read_page(row_filter, limit, before)
    return reply({"rows": [row.to_fields() for row in rows], "next": next_id})


@blueprint.get("/ledger.csv")
def export_rows() -> Response:
    """All rows that match the filters, as a file."""
    query = read_query(*FILTERS)
    return reply_csv(read_filter(query, time.time()))


@blueprint.get("/summary")
def sum_up() -> Response:
    """Sums of whole UTC days."""
    query = read_query("since", "until", "by")
    grouping = read_grouping(query.get("by"))
    first, last = read_days(query, time.time())
    flush_ledger()
    rows = [name_sums(grouping, each) for each in summarize(get_database(), first, last, grouping)]
    return reply({"by": grouping, "since": first, "until": last, "rows": rows})


@blueprint.get("/overview")
def show_overview() -> Response:
    """The dashboard's numbers: spend, outcomes, percentiles, and the state of the stores."""
    query = read_query("days", "by")
    days, by = read_period(query.get("days")), read_by(query.get("by"))
    flush_ledger()
    now = time.time()
    timings = read_period_timings(now, days)
    return reply(
        {
            **read_overview(now, days, by).fields,
            "timings": measure(timings),
            "stores": {**describe_state(), "upstream_state": judge_upstream(timings)},
        }
    )


def read_page(
    row_filter: RowFilter, limit: int, before: str | None, timeout_s: float | None = None
) -> tuple[list[LedgerRow], str | None]:
    """A page of rows, and the id before which the next one begins. Raises StoreUnavailableError."""
    rows = read_rows(get_database(), row_filter, limit + 1, before, timeout_s)
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def reply_csv(row_filter: RowFilter) -> Response:
    """All rows that match, newest first, as `usage rows --csv` writes them.

    A page of rows is in memory at a time. Raises StoreUnavailableError. If the database fails later, the
    response breaks off, so it cannot be taken for complete.
    """
    flush_ledger()
    rows = iterate_rows(get_database(), row_filter)
    first = [row for row in [next(rows, None)] if row]  # an error here is still an error response
    lines = write_csv((*FIELDS, *MORE_FIELDS), (row.to_fields() for row in chain(first, rows)))
    pieces = iter(lambda: "".join(islice(lines, PIECE_LINES)), "")
    headers = {
        "Content-Disposition": "attachment; filename=exchanges.csv",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return Response(stream_with_context(pieces), headers=headers, content_type="text/csv; charset=utf-8")


def read_overview(now: float, days: int, by: SpendBy) -> Overview:
    """The numbers of the last `days` UTC days. Raises StoreUnavailableError."""
    shown, recent = (list_days(to_day(now), count) for count in (days, SPARK_DAYS))
    earliest = min(shown[0], recent[0], f"{shown[-1][:7]}-01")
    return work_out(read_spend(get_database(), shown[0], earliest, by), shown, by)


def read_period_timings(now: float, days: int) -> list[Timing]:
    """The newest timings of the last `days` UTC days. Raises StoreUnavailableError."""
    return read_timings(get_database(), (now // DAY_S - days + 1) * DAY_S)


def read_period(text: str | None) -> int:
    """Days. Raises InvalidRequestError."""
    if text is None:
        return DEFAULT_DAYS
    if text not in map(str, PERIODS):
        raise InvalidRequestError(f"'days' expects one of: {', '.join(map(str, PERIODS))}.", param="days")
    return int(text)


def read_by(text: str | None) -> SpendBy:
    """The grouping of spend: by key or by model. Raises InvalidRequestError."""
    if text in (None, "key"):
        return "key"
    if text == "model":
        return "model"
    raise InvalidRequestError("'by' expects one of: key, model.", param="by")


def read_before(text: str | None) -> str | None:
    """The id of a row, if there is one. Raises InvalidRequestError."""
    if text is not None and not is_row_id(text):
        raise InvalidRequestError("'before' expects the id in 'next' of an earlier page.", param="before")
    return text


def is_row_id(text: str) -> bool:
    """Whether `text` may be the id of a row."""
    return re.fullmatch(r"[0-9a-f]{28}", text) is not None


def _read_limit(text: object) -> int:
    if not re.fullmatch(r"\d{1,4}", str(text), re.ASCII) or not 1 <= int(str(text)) <= MAX_PAGE_ROWS:
        raise ValueError(f"expects a whole number from 1 to {MAX_PAGE_ROWS}")
    return int(str(text))
