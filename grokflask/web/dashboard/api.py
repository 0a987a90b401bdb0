"""GET `/admin/api/overview` and `/admin/api/ledger.csv`: the dashboard's figures for programs."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app

from grokflask.errors import InvalidRequestError
from grokflask.ledger.overview import SpendBy, Timing, read_spend, read_timings
from grokflask.ledger.query import read_filter
from grokflask.storage.database import Database
from grokflask.web.admin.keys_and_ledger import FILTERS, PREFIX, flush_ledger, forbid_storing, read_query
from grokflask.web.admin.ledger_csv import reply_csv
from grokflask.web.dashboard.figures import (
    DAY_S,
    PERIODS,
    SPARK_DAYS,
    Figures,
    judge_upstream,
    list_days,
    measure,
    work_out,
)
from grokflask.web.health import describe_state
from grokflask.web.responses import reply_json

DEFAULT_DAYS = 30

blueprint = Blueprint("admin_figures", __name__, url_prefix=PREFIX)
blueprint.after_request(forbid_storing)


@blueprint.get("/overview")
def show_overview() -> Response:
    """Spend, its series by key or by model, outcomes, percentiles, and the state of the stores."""
    query = read_query("days", "by")
    days, by = read_period(query.get("days")), read_by(query.get("by"))
    flush_ledger()
    now = time.time()
    timings = read_period_timings(now, days)
    document: dict[str, Any] = {
        **read_figures(now, days, by).to_fields(),
        "timings": measure(timings),
        "stores": {**describe_state(), "upstream_state": judge_upstream(timings)},
    }
    return reply_json(msgspec.json.encode(document))


@blueprint.get("/ledger.csv")
def export_rows() -> Response:
    """All rows that the filters ask for; they are the ledger's."""
    query = read_query(*FILTERS)
    flush_ledger()
    return reply_csv(_database(), read_filter(query, time.time()))


def read_figures(now: float, days: int, by: SpendBy) -> Figures:
    """The figures of the last `days` UTC days. Raises StoreUnavailableError."""
    shown = list_days(now, days)
    earliest = min(shown[0], list_days(now, SPARK_DAYS)[0], f"{shown[-1][:7]}-01")
    return work_out(read_spend(_database(), shown[0], earliest, by), shown, by)


def read_period_timings(now: float, days: int) -> list[Timing]:
    """The newest timings of the last `days` UTC days. Raises StoreUnavailableError."""
    return read_timings(_database(), (now // DAY_S - days + 1) * DAY_S)


def read_period(text: str | None) -> int:
    """How many days. Raises InvalidRequestError."""
    if text is None:
        return DEFAULT_DAYS
    for days in PERIODS:
        if text == str(days):
            return days
    raise InvalidRequestError(f"'days' expects one of: {', '.join(map(str, PERIODS))}.", param="days")


def read_by(text: str | None) -> SpendBy:
    """What spend is broken down by. Raises InvalidRequestError."""
    if text in (None, "key"):
        return "key"
    if text == "model":
        return "model"
    raise InvalidRequestError("'by' expects one of: key, model.", param="by")


def _database() -> Database:
    database: Database = current_app.extensions["database"]
    return database
