"""/admin/api/streams: lists the open streams and ends them.

A worker knows what its own streams have sent. It finds the streams of other workers in the ledger, and ends
them through Redis.
"""

from __future__ import annotations

import time
from operator import itemgetter
from typing import Any

from flask import Response, current_app

from grokflask.errors import RouteNotFoundError, StoreUnavailableError, StreamElsewhereError
from grokflask.ledger.reports import read_open
from grokflask.ledger.row import LedgerRow
from grokflask.limits.admission import Limits
from grokflask.register import OpenExchanges
from grokflask.times import to_iso
from grokflask.web.admin.api import blueprint, log_change, read_query, reply
from grokflask.web.current import get_database
from grokflask.web.hooks import is_sane_id


@blueprint.get("/streams")
def list_streams() -> Response:
    """Open streams, oldest first; without those of other workers during an outage of the database."""
    read_query()
    return reply(find_streams())


@blueprint.delete("/streams/<request_id>")
def stop_streams(request_id: str) -> Response:
    """Ends the streams with this request id: at once in this worker, within a second in others."""
    read_query()
    stopped, asked = end_streams(request_id)
    document = {"request_id": request_id, "stopped": stopped, "asked": asked}
    return reply(document, 200 if stopped else 202)


def find_streams() -> dict[str, Any]:
    """Open `streams`, oldest first, and whether they are `complete`: with those of other workers."""
    streams = [_show(each.row, *each.count_sent()) for each in _get_exchanges().streams]
    complete = True
    try:
        streams += [_show(row) for row in _find_elsewhere()]
    except StoreUnavailableError:
        complete = False
    return {"streams": sorted(streams, key=itemgetter("id")), "complete": complete}


def end_streams(request_id: str) -> tuple[int, int]:
    """Ends the streams with this request id; how many were ended here, and how many others were asked to end.

    Raises RouteNotFoundError if there are none, and StreamElsewhereError if their worker cannot be reached.
    """
    exchanges = _get_exchanges()
    stopped = exchanges.stop([each.row.id for each in exchanges.streams if each.row.request_id == request_id])
    elsewhere = [] if stopped else [row.id for row in _find_elsewhere(request_id)]
    limits: Limits = current_app.extensions["limits"]
    if elsewhere and not limits.stop_elsewhere(elsewhere):
        raise StreamElsewhereError
    if not stopped and not elsewhere:
        raise RouteNotFoundError(f"There is no open stream with the request id {request_id[:128]!r}.")
    log_change("stream", "stop", stopped=request_id)
    return stopped, len(elsewhere)


def _find_elsewhere(request_id: str | None = None) -> list[LedgerRow]:
    """Open streams of other workers. Raises StoreUnavailableError."""
    if request_id is not None and not is_sane_id(request_id):
        return []
    worker = current_app.extensions["ledger_writer"].worker
    return [row for row in read_open(get_database(), request_id) if row.worker != worker]


def _show(row: LedgerRow, events: int | None = None, bytes_out: int | None = None) -> dict[str, Any]:
    return {
        "request_id": row.request_id,
        "id": row.id,
        "key": row.key,
        "model": row.model,
        "started_at": to_iso(row.started_at),
        "age_s": round(max(0.0, time.time() - row.started_at), 1),
        "events": events,
        "bytes_out": bytes_out,
    }


def _get_exchanges() -> OpenExchanges:
    exchanges: OpenExchanges = current_app.extensions["gateway"].exchanges
    return exchanges
