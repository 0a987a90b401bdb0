"""The dashboard at /admin: its overview, whose sections are also served one by one, and single exchanges."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from flask import Response, abort, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from grokflask.errors import InvalidRequestError, StoreUnavailableError
from grokflask.ledger.overview import SpendBy, find_row, read_timings
from grokflask.ledger.query import read_filter
from grokflask.web.admin import ledger
from grokflask.web.admin.streams import end_streams, find_streams
from grokflask.web.current import flush_ledger, get_database
from grokflask.web.dashboard.charts import draw_spark, stack_bars
from grokflask.web.dashboard.figures import (
    DAY_S,
    PERIODS,
    WORDS,
    Overview,
    describe_outcome,
    judge_upstream,
    measure,
)
from grokflask.web.dashboard.keys import list_keys
from grokflask.web.dashboard.login import blueprint
from grokflask.web.health import describe_state
from grokflask.web.pages import reply_page

__all__ = ["blueprint"]

PAGE_ROWS = 25
ROWS_TIMEOUT_S = 5.0
KEPT = ("days", "by", *ledger.FILTERS, "before", "find", "page")
"""Parameters that links to the overview keep."""

TOO_SLOW = "The database is unavailable or too slow. The missing sections return when it is available."


@blueprint.get("")
def show_overview() -> Response:
    """All sections on one page. A section whose data cannot be read says so."""
    flush_ledger()
    values: dict[str, Any] = {name: build() for name, build in SECTIONS.items()}
    return reply_page("dashboard/overview.html", sections=list(SECTIONS), **values)


@blueprint.get("/parts/<name>")
def show_part(name: str) -> Response:
    """One section, for the page that refreshes it."""
    if name not in SECTIONS:
        abort(404)
    flush_ledger()
    values: dict[str, Any] = {name: SECTIONS[name]()}
    return reply_page(f"dashboard/{name}.html", **values)


@blueprint.get("/exchanges/<row_id>")
def show_exchange(row_id: str) -> Response:
    """All fields of one exchange."""
    flush_ledger()
    row = find_row(get_database(), row_id) if ledger.is_row_id(row_id) else None
    if row is None:
        abort(404)
    return reply_page("dashboard/exchange.html", row=row, fields=row.to_fields())


@blueprint.get("/exchanges.csv")
def export_exchanges() -> Response:
    """All rows that match the filters, as a file."""
    return ledger.reply_csv(read_filter(_read_filters(), time.time()))


@blueprint.get("/streams/<request_id>/end")
def ask_to_end(request_id: str) -> Response:
    """Explains what ending the stream does, and has the button."""
    streams = [each for each in find_streams()["streams"] if each["request_id"] == request_id]
    if not streams:
        abort(404)
    return reply_page("dashboard/end_stream.html", request_id=request_id, streams=streams)


@blueprint.post("/streams/<request_id>/end")
def end_stream(request_id: str) -> AnyResponse:
    """Ends the stream."""
    end_streams(request_id)
    return redirect(url_for("dashboard.show_overview", notice="ended") + "#streams", 303)


@blueprint.context_processor
def describe_links() -> dict[str, Any]:
    """Functions that templates use for links and outcomes."""
    return {
        "link": make_link,
        "describe_outcome": describe_outcome,
        "draw_spark": draw_spark,
        "now": time.time(),
    }


def make_link(anchor: str = "", path: str = "/admin", **changes: object) -> str:
    """A link to the overview with its current parameters and `changes`; None removes a parameter."""
    current: dict[str, object] = {name: request.args[name] for name in KEPT if request.args.get(name)}
    query = urlencode({name: value for name, value in {**current, **changes}.items() if value is not None})
    return f"{path}{'?' if query else ''}{query}{'#' if anchor else ''}{anchor}"


def _build_numbers() -> dict[str, Any]:
    return {**find_streams(), **_attempt(lambda: {"overview": _read_overview()})}


def _build_spend() -> dict[str, Any]:
    days, by = _read_view()

    def read() -> dict[str, Any]:
        timings = measure(ledger.read_period_timings(time.time(), days))
        figures = _read_overview().fields
        top, columns = stack_bars([row["ticks_by_day"] for row in figures["series"]["rows"]])
        return {"figures": figures, "timings": timings, "top": top, "columns": columns}

    return {"periods": PERIODS, "days": days, "by": by, **_attempt(read)}


def _build_exchanges() -> dict[str, Any]:
    filters = _read_filters()

    def read() -> dict[str, Any]:
        row_filter = read_filter(filters, time.time())
        before = ledger.read_before(request.args.get("before") or None)
        rows, next_id = ledger.read_page(row_filter, PAGE_ROWS, before, ROWS_TIMEOUT_S)
        return {"rows": rows, "next": next_id, "before": before}

    outcomes = [(str(outcome), words[0]) for outcome, words in WORDS.items()]
    return {"filter": filters, "outcomes": outcomes, **_attempt(read)}


def _build_stores() -> dict[str, Any]:
    def read() -> dict[str, Any]:
        return {"upstream": judge_upstream(read_timings(get_database(), time.time() - DAY_S, 50))}

    return {**_attempt(read), "state": describe_state()}  # in this order: the query may change the state


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "numbers": _build_numbers,
    "spend": _build_spend,
    "streams": find_streams,
    "keys": lambda: _attempt(list_keys),
    "exchanges": _build_exchanges,
    "stores": _build_stores,
}
"""By their names in templates and in /admin/parts."""


def _attempt(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `read`, or its error as `problem`."""
    try:
        return read()
    except StoreUnavailableError:
        return {"problem": TOO_SLOW}
    except InvalidRequestError as error:
        return {"problem": error.message}


def _read_overview() -> Overview:
    """The numbers, which are read once per request."""
    if "overview" not in g:
        g.overview = ledger.read_overview(time.time(), *_read_view())
    overview: Overview = g.overview
    return overview


def _read_view() -> tuple[int, SpendBy]:
    """The period in days and the breakdown of spend; defaults for invalid ones."""
    try:
        return ledger.read_period(request.args.get("days")), ledger.read_by(request.args.get("by"))
    except InvalidRequestError:
        return ledger.read_period(None), ledger.read_by(None)


def _read_filters() -> dict[str, str | None]:
    return {name: (request.args.get(name) or "").strip() or None for name in ledger.FILTERS}
