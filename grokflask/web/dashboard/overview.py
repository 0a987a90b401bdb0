"""The dashboard, /admin: its overview, whose sections are also served by themselves, and single exchanges."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from flask import Response, current_app, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from grokflask.errors import InvalidRequestError, Outcome, StoreUnavailableError
from grokflask.ledger.overview import find_row, read_timings
from grokflask.ledger.query import read_filter
from grokflask.ledger.reports import read_rows
from grokflask.ledger.row import FIELDS, MORE_FIELDS
from grokflask.storage.database import Database
from grokflask.web.admin.keys_and_ledger import FILTERS, flush_ledger, read_row_id
from grokflask.web.admin.ledger_csv import reply_csv
from grokflask.web.admin.streams import end_streams, find_streams
from grokflask.web.dashboard import keys as dashboard_keys
from grokflask.web.dashboard.api import read_by, read_figures, read_period, read_period_timings
from grokflask.web.dashboard.figures import (
    DAY_S,
    PERIODS,
    WORDS,
    Figures,
    describe_outcome,
    judge_upstream,
    measure,
)
from grokflask.web.dashboard.login import blueprint, find_nothing
from grokflask.web.health import describe_state
from grokflask.web.pages import guard, reply_page

__all__ = ["blueprint"]

PAGE_ROWS = 25
ROWS_TIMEOUT_S = 5.0
MAX_STREAMS = 100
"""Streams that are listed; of the others there is a number."""

KEPT = ("days", "by", *FILTERS, "before", "find", "page")
"""Parameters that the overview knows; links keep them."""

NOTICES = {
    "ended": "The stream has been ended, or its worker asked to do so.",
    "revoked": "The key has been revoked.",
}

TOO_SLOW = "The database is away, or was too slow. What is missing comes back with it."


@blueprint.get("")
def show_overview() -> Response:
    """Everything on one page; a section whose figures cannot be had says so."""
    flush_ledger()
    values: dict[str, Any] = {name: build() for name, build in SECTIONS.items()}
    return reply_page(
        "dashboard/overview.html",
        sections=list(SECTIONS),
        notice=NOTICES.get(request.args.get("notice", "")),
        **values,
    )


@blueprint.get("/parts/<name>")
def show_part(name: str) -> Response:
    """A section by itself, for the page that refreshes it."""
    if name not in SECTIONS:
        raise find_nothing()
    flush_ledger()
    text = render_template(f"dashboard/{name}.html", **{name: SECTIONS[name]()})
    return guard(Response(text, content_type="text/html; charset=utf-8"))


@blueprint.get("/exchanges/<row_id>")
def show_exchange(row_id: str) -> Response:
    """All that is kept of one exchange."""
    try:
        read_row_id(row_id)
    except ValueError:
        raise find_nothing() from None
    flush_ledger()
    row = find_row(_database(), row_id)
    if row is None:
        raise find_nothing()
    fields = {name: value for name, value in row.to_fields().items() if name in (*FIELDS, *MORE_FIELDS)}
    return reply_page("dashboard/exchange.html", row=row, fields=fields)


@blueprint.get("/exchanges.csv")
def export_exchanges() -> Response:
    """All rows that the filters ask for, as a file."""
    flush_ledger()
    return reply_csv(_database(), read_filter(_read_texts(), time.time()))


@blueprint.get("/streams/<request_id>/end")
def ask_to_end(request_id: str) -> Response:
    """What ending the stream will do, and the button."""
    streams, _ = find_streams()
    found = [each for each in streams if each["request_id"] == request_id]
    if not found:
        raise find_nothing()
    return reply_page("dashboard/end_stream.html", request_id=request_id, streams=found)


@blueprint.post("/streams/<request_id>/end")
def end_stream(request_id: str) -> AnyResponse:
    """Ends it."""
    end_streams(request_id)
    return redirect(url_for("dashboard.show_overview", notice="ended") + "#streams", 303)


@blueprint.context_processor
def describe_links() -> dict[str, Any]:
    """How templates make links, and what outcomes are called."""
    return {"link": make_link, "describe_outcome": describe_outcome, "now": time.time()}


def make_link(anchor: str = "", path: str = "/admin", **changes: object) -> str:
    """The overview as it is shown, but for `changes`; None takes a parameter away."""
    asked: dict[str, object] = {name: request.args[name] for name in KEPT if request.args.get(name)}
    wanted = {name: value for name, value in {**asked, **changes}.items() if value is not None}
    query = f"?{urlencode(wanted)}" if wanted else ""
    return f"{path}{query}{f'#{anchor}' if anchor else ''}"


def _build_numbers() -> dict[str, Any]:
    streams, complete = find_streams()
    values: dict[str, Any] = {"open": len(streams), "complete": complete}
    values["open_keys"] = len({each["key"] for each in streams})
    return {**values, **_attempt(lambda: {"figures": _read_figures()})}


def _build_spend() -> dict[str, Any]:
    def read() -> dict[str, Any]:
        figures = _read_figures()
        timings = measure(read_period_timings(time.time(), len(figures.days)))
        return {"figures": figures, "timings": timings}

    return {"periods": PERIODS, "days": _read_view()[0], "by": _read_view()[1], **_attempt(read)}


def _build_streams() -> dict[str, Any]:
    streams, complete = find_streams()
    return {"rows": streams[:MAX_STREAMS], "more": max(0, len(streams) - MAX_STREAMS), "complete": complete}


def _build_exchanges() -> dict[str, Any]:
    texts = _read_texts()
    values: dict[str, Any] = {
        "filter": texts,
        "outcomes": [(str(name), word[0]) for name, word in WORDS.items()],
    }

    def read() -> dict[str, Any]:
        wanted = read_filter(texts, time.time())
        before = request.args.get("before") or None
        try:
            read_row_id(before)
        except ValueError:
            raise InvalidRequestError("'before' expects the id of an exchange.", param="before") from None
        rows = read_rows(_database(), wanted, PAGE_ROWS + 1, before, ROWS_TIMEOUT_S)
        next_id = rows[PAGE_ROWS - 1].id if len(rows) > PAGE_ROWS else None
        return {"rows": rows[:PAGE_ROWS], "next": next_id, "before": before}

    return {**values, **_attempt(read)}


def _build_stores() -> dict[str, Any]:
    def read() -> dict[str, Any]:
        return {"upstream": judge_upstream(read_timings(_database(), time.time() - DAY_S, 50))}

    values = {"upstream": None, **_attempt(read)}  # the state is told after the database was asked
    return {**values, "state": describe_state()}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "numbers": _build_numbers,
    "spend": _build_spend,
    "streams": _build_streams,
    "keys": lambda: _attempt(dashboard_keys.list_keys),
    "exchanges": _build_exchanges,
    "stores": _build_stores,
}
"""By their names in templates and in /admin/parts."""


def _attempt(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` gives, or the problem that there was."""
    try:
        return read()
    except StoreUnavailableError:
        return {"problem": TOO_SLOW}
    except InvalidRequestError as error:
        return {"problem": error.message}


def _read_figures() -> Figures:
    """Read once a request."""
    if "figures" not in g:
        days, by = _read_view()
        g.figures = read_figures(time.time(), days, by)
    figures: Figures = g.figures
    return figures


def _read_view() -> tuple[int, Any]:
    """The period and the breakdown of spend; a wrong one is as none."""
    try:
        return read_period(request.args.get("days")), read_by(request.args.get("by"))
    except InvalidRequestError:
        return read_period(None), read_by(None)


def _read_texts() -> dict[str, str | None]:
    return {name: (request.args.get(name) or "").strip() or None for name in FILTERS}


def _database() -> Database:
    database: Database = current_app.extensions["database"]
    return database


assert set(WORDS) == set(Outcome)
