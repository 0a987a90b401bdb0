"""GET /usage: the key's limits, what is left of them, what it has spent, and its last exchanges."""

from __future__ import annotations

import time

from flask import Response, jsonify

from grokflask.config import Settings
from grokflask.keys.ring import ApiKey
from grokflask.ledger.reports import RowFilter, read_rows
from grokflask.limits.admission import Limits
from grokflask.times import to_day
from grokflask.web.current import flush_ledger, get_current
from grokflask.web.request_limits import RequestLimiter

RECENT_ROWS = 20


def show_usage() -> Response:
    """The usage of the calling key. Raises StoreUnavailableError."""
    app, _, notes = get_current()
    key: ApiKey = notes.api_key
    limits: Limits = app.extensions["limits"]
    settings: Settings = app.extensions["settings"]
    requests: RequestLimiter = app.extensions["request_limits"]
    notes.opened = True  # so that this is not logged as a refused exchange
    standing = limits.find_standing(key.limit_id, to_day(time.time()))
    flush_ledger()  # so that it includes an exchange that has just ended
    rows = []
    if settings.auth_mode != "open":  # without keys it is unknown whose rows they are
        rows = read_rows(app.extensions["database"], RowFilter(key=key.name), RECENT_ROWS)
    own = key.limits
    streams = settings.max_streams if own.streams is None else own.streams
    day_ticks, month_ticks = standing.day_ticks or 0, standing.month_ticks or 0
    held = standing.held_ticks  # the estimates of open exchanges
    uses = {
        "tokens_per_minute": (own.tokens_per_minute, standing.tokens),
        "streams": (streams, standing.streams),
        "budget_day_ticks": (own.budget_day_ticks, day_ticks + held),
        "budget_month_ticks": (own.budget_month_ticks, month_ticks + held),
    }
    left = {name: None if limit is None else max(0, limit - used) for name, (limit, used) in uses.items()}
    response = jsonify(
        key=key.name,
        limits={**own.to_fields(), "requests": requests.find_limit(own), "streams": streams},
        remaining={"requests": requests.count_left(key), **left},
        spent={"day_ticks": day_ticks, "month_ticks": month_ticks},
        recent=[row.to_fields() for row in rows],
    )
    response.headers["Cache-Control"] = "no-store"
    return response
