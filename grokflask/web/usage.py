"""GET `/usage`: what the calling key may do, what is left of it, what it has spent, its last exchanges."""

from __future__ import annotations

import time

from flask import Response, current_app, g, jsonify

from grokflask.config import Settings
from grokflask.counters import Standing
from grokflask.db import Database
from grokflask.key_limits import KeyLimits
from grokflask.keys import ApiKey
from grokflask.ledger_row import to_day
from grokflask.ledger_writer import LedgerWriter
from grokflask.limits import Limits
from grokflask.reports import RowFilter, read_rows
from grokflask.web.extensions import RequestLimiter

RECENT_ROWS = 20


def show_usage() -> Response:
    """The caller's own figures. Raises StoreUnavailableError when they cannot be looked up."""
    key: ApiKey = g.api_key
    limits: Limits = current_app.extensions["limits"]
    settings: Settings = current_app.extensions["settings"]
    requests: RequestLimiter = current_app.extensions["request_limits"]
    database: Database = current_app.extensions["database"]
    writer: LedgerWriter = current_app.extensions["ledger_writer"]
    g.opened = True  # looking at one's figures is no refused exchange
    standing = limits.find_standing(key.limit_id, to_day(time.time()))
    writer.flush()  # so that an exchange that has just ended is in it
    # Where anybody may call there is no telling whose rows they are.
    rows = [] if settings.auth_mode == "open" else read_rows(database, RowFilter(key=key.name), RECENT_ROWS)
    own = key.limits
    streams = settings.max_streams if own.streams is None else own.streams
    shown = {**own.to_fields(), "requests": requests.find_limit(own), "streams": streams}
    remaining = {"requests": requests.count_left(key), **_subtract(own, streams, standing)}
    response = jsonify(
        key=key.name,
        limits=shown,
        remaining=remaining,
        spent={"day_ticks": standing.day_ticks or 0, "month_ticks": standing.month_ticks or 0},
        recent=[row.to_fields() for row in rows],
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _subtract(limits: KeyLimits, streams: int | None, standing: Standing) -> dict[str, int | None]:
    """What is left of each limit, estimates of running exchanges taken off; None where there is none."""

    def left(limit: int | None, used: int) -> int | None:
        return None if limit is None else max(0, limit - used)

    held = standing.held_ticks
    return {
        "tokens_per_minute": left(limits.tokens_per_minute, standing.tokens),
        "streams": left(streams, standing.streams),
        "budget_day_ticks": left(limits.budget_day_ticks, (standing.day_ticks or 0) + held),
        "budget_month_ticks": left(limits.budget_month_ticks, (standing.month_ticks or 0) + held),
    }
