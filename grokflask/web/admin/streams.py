"""GET and DELETE `/admin/api/streams`: which streams are open, and ending one of them.

What a stream has sent is known to the worker that carries it; that other workers' streams are open is known
from the ledger. Ending one of theirs goes through Redis.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g

from grokflask.errors import RouteNotFoundError, StoreUnavailableError, StreamElsewhereError
from grokflask.gateway import Gateway
from grokflask.ledger.reports import read_open
from grokflask.ledger.row import LedgerRow
from grokflask.limits.admission import Limits
from grokflask.times import to_iso
from grokflask.web.admin.keys_and_ledger import PREFIX, forbid_storing, read_query
from grokflask.web.hooks import is_sane_id
from grokflask.web.responses import reply_json

Sent = tuple[LedgerRow, int | None, int | None]
"""A stream with its events and bytes so far, as far as they are known here."""

blueprint = Blueprint("admin_streams", __name__, url_prefix=PREFIX)
blueprint.after_request(forbid_storing)

_log = logging.getLogger("grokflask.admin")


@blueprint.get("/streams")
def list_streams() -> Response:
    """Open streams, the oldest first; without those of other workers while the database is away."""
    read_query()
    streams, complete = find_streams()
    return reply_json(msgspec.json.encode({"streams": streams, "complete": complete}))


@blueprint.delete("/streams/<request_id>")
def stop_streams(request_id: str) -> Response:
    """Ends the streams with this request id: at once in this worker, within a second in others."""
    read_query()
    stopped, asked = end_streams(request_id)
    document = {"request_id": request_id, "stopped": stopped, "asked": asked}
    return reply_json(msgspec.json.encode(document), 200 if stopped else 202)


def find_streams() -> tuple[list[dict[str, Any]], bool]:
    """Open streams, the oldest first, and whether those of other workers are among them."""
    here: list[Sent] = [(each.row, *each.count_sent()) for each in _gateway().exchanges.streams]
    elsewhere: list[Sent] = []
    complete = True
    try:
        elsewhere = [(row, None, None) for row in _find_elsewhere()]
    except StoreUnavailableError:
        complete = False
    found = sorted([*here, *elsewhere], key=lambda each: each[0].id)
    now = time.time()
    return [_show(row, now, events, bytes_out) for row, events, bytes_out in found], complete


def end_streams(request_id: str) -> tuple[int, int]:
    """Ends the streams with this request id; how many were ended here, and how many others were asked to.

    Raises RouteNotFoundError when there are none, and StreamElsewhereError when they cannot be reached.
    """
    exchanges = _gateway().exchanges
    here = [each.row.id for each in exchanges.streams if each.row.request_id == request_id]
    stopped = exchanges.stop(here)
    elsewhere = [] if stopped else [row.id for row in _find_elsewhere(request_id)]
    limits: Limits = current_app.extensions["limits"]
    if elsewhere and not limits.stop_elsewhere(elsewhere):
        raise StreamElsewhereError
    if not stopped and not elsewhere:
        raise RouteNotFoundError(f"There is no open stream with the request id {request_id[:128]!r}.")
    fields = {"request_id": g.request_id, "who": "admin", "action": "stop", "stopped": request_id}
    _log.info("stream", extra={"fields": fields})
    return stopped, len(elsewhere)


def _find_elsewhere(request_id: str | None = None) -> list[LedgerRow]:
    """Open streams of other workers. Raises StoreUnavailableError."""
    if request_id is not None and not is_sane_id(request_id):
        return []
    own = current_app.extensions["ledger_writer"].worker
    rows = read_open(current_app.extensions["database"], request_id)
    return [row for row in rows if row.worker != own]


def _show(row: LedgerRow, now: float, events: int | None, bytes_out: int | None) -> dict[str, Any]:
    return {
        "request_id": row.request_id,
        "id": row.id,
        "key": row.key,
        "model": row.model,
        "started_at": to_iso(row.started_at),
        "age_s": round(max(0.0, now - row.started_at), 1),
        "events": events,
        "bytes_out": bytes_out,
    }


def _gateway() -> Gateway:
    gateway: Gateway = current_app.extensions["gateway"]
    return gateway
