"""GET /usage: the key's limits, what is left of them, what it has spent, and its last exchanges."""

from __future__ import annotations

import time

from flask import Response, jsonify

from grokflask.config import Settings
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey
from grokflask.ledger.reports import RowFilter, read_rows
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits.admission import Limits
from grokflask.limits.counters import Standing
from grokflask.times import to_day
from grokflask.web.current import get_current
from grokflask.web.request_limits import RequestLimiter

RECENT_ROWS = 20


def show_usage() -> Response:
    """The usage of the calling key. Raises StoreUnavailableError."""
    app, _, notes = get_current()
    key: ApiKey = notes.api_key
    limits: Limits = app.extensions["limits"]
    settings: Settings = app.extensions["settings"]
    requests: RequestLimiter = app.extensions["request_limits"]
    writer: LedgerWriter = app.extensions["ledger_writer"]
    notes.opened = True  # so that this is not logged as a refused exchange
    standing = limits.find_standing(key.limit_id, to_day(time.time()))
    writer.flush()  # so that it includes an exchange that has just ended
    rows = []
    if settings.auth_mode != "open":  # without keys it is unknown whose rows they are
        rows = read_rows(app.extensions["database"], RowFilter(key=key.name), RECENT_ROWS)
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
    """What is left of each limit, without the estimates of open exchanges; None if there is no limit."""

    def left(limit: int | None, used: int) -> int | None:
        return None if limit is None else max(0, limit - used)

    held = standing.held_ticks
    return {
        "tokens_per_minute": left(limits.tokens_per_minute, standing.tokens),
        "streams": left(streams, standing.streams),
        "budget_day_ticks": left(limits.budget_day_ticks, (standing.day_ticks or 0) + held),
        "budget_month_ticks": left(limits.budget_month_ticks, (standing.month_ticks or 0) + held),
    }
