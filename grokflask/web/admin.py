"""The admin API, /admin/api: keys and the ledger for the holder of GROKFLASK_ADMIN_TOKEN.

The token guards every path below the prefix, whether there is something at it or not, and whichever
blueprint has put it there. Without a token set there is nothing at any of them. What is not known is
refused: a limit that a typing error kept from being stored would be one that does not hold.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request

from grokflask.db import Database
from grokflask.errors import (
    MALFORMED,
    AuthenticationError,
    BodyTooLargeError,
    InvalidRequestError,
    RouteNotFoundError,
)
from grokflask.key_limits import read_changes, read_duration, read_name
from grokflask.key_store import OVERLAP_S, KeyStore
from grokflask.keys import read_bearer
from grokflask.ledger_query import name_sums, read_days, read_filter, read_grouping
from grokflask.ledger_writer import LedgerWriter
from grokflask.reports import read_rows, summarize
from grokflask.stored_key import StoredKey
from grokflask.web.attempts import Attempts
from grokflask.web.body import read_body
from grokflask.web.replies import reply_json

PREFIX = "/admin/api"
MAX_BODY_BYTES = 64 * 1024
PAGE_ROWS = 100
MAX_PAGE_ROWS = 1000

FILTERS = ("since", "until", "key", "model", "outcome", "request_id")

blueprint = Blueprint("admin_api", __name__, url_prefix=PREFIX)

_log = logging.getLogger("grokflask.admin")


@blueprint.before_app_request
def check_token() -> None:
    """Lets nobody below the prefix without the token.

    Raises AuthenticationError, RateLimitError after too many wrong ones, and RouteNotFoundError.
    """
    if request.path != PREFIX and not request.path.startswith(PREFIX + "/"):
        return
    token = current_app.extensions["settings"].admin_token
    if token is None:
        raise RouteNotFoundError(f"There is nothing at {request.path}.")
    asked = read_bearer(request.headers.get("Authorization"))
    attempts: Attempts = current_app.extensions["attempts"]
    if asked is None or not attempts.check(asked, request.remote_addr or "unknown"):
        _log.warning(
            "refused", extra={"fields": {"request_id": g.get("request_id"), "who": request.remote_addr}}
        )
        raise AuthenticationError(
            "The admin API needs its own token: send it as 'Authorization: Bearer <GROKFLASK_ADMIN_TOKEN>'."
        )


@blueprint.after_request
def forbid_storing(response: Response) -> Response:
    """No cache keeps what the admin API says: secrets are among it."""
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/keys")
def list_keys() -> Response:
    """All keys, without their secrets."""
    read_query()
    now = time.time()
    return _reply({"keys": [key.to_fields(now) for key in _store().list()]})


@blueprint.post("/keys")
def create_key() -> Response:
    """A new key; the only answer with its secret."""
    read_query()
    fields = _read_fields()
    if "name" not in fields:
        raise InvalidRequestError("The field 'name' is missing.", param="name")
    name = read_name(fields.pop("name"))
    key, secret = _store().create(name, read_changes(fields, time.time()))
    note_change("create", name)
    return _reply_key(key, 201, secret=secret)


@blueprint.get("/keys/<name>")
def show_key(name: str) -> Response:
    """One key."""
    read_query()
    return _reply_key(_store().show(name))


@blueprint.patch("/keys/<name>")
def change_key(name: str) -> Response:
    """Changes what the body names; null takes a limit away."""
    read_query()
    fields = _read_fields()
    key = _store().set(name, read_changes(fields, time.time()))
    note_change("change", name, fields=",".join(fields))
    return _reply_key(key)


@blueprint.delete("/keys/<name>")
def revoke_key(name: str) -> Response:
    """Revokes it; the key stays to be seen."""
    read_query()
    key = _store().revoke(name)
    note_change("revoke", name)
    return _reply_key(key)


@blueprint.post("/keys/<name>/rotate")
def rotate_key(name: str) -> Response:
    """A new secret beside the old one, which ends after `overlap`."""
    read_query()
    has_body = bool(request.content_length) or "Transfer-Encoding" in request.headers
    fields = _read_fields() if has_body else {}
    overlap_s = OVERLAP_S
    if "overlap" in fields:
        overlap_s = _read("overlap", fields.pop("overlap"), read_duration)
    for unknown in fields:
        raise InvalidRequestError(f"{unknown[:64]!r} is no field here; there is: overlap.", param=unknown)
    key, secret = _store().rotate(name, overlap_s)
    note_change("rotate", name)
    return _reply_key(key, secret=secret)


@blueprint.get("/ledger")
def list_rows() -> Response:
    """The ledger's rows, newest first, a page at a time: the next begins before the id in `next`."""
    query = read_query(*FILTERS, "limit", "before")
    wanted = read_filter(query, time.time())
    limit = int(_read("limit", query.get("limit", str(PAGE_ROWS)), _read_limit))
    before = _read("before", query.get("before"), read_row_id)
    flush_ledger()
    rows = read_rows(_database(), wanted, limit + 1, before)
    more = len(rows) > limit
    return _reply(
        {"rows": [row.to_fields() for row in rows[:limit]], "next": rows[limit - 1].id if more else None}
    )


@blueprint.get("/summary")
def sum_up() -> Response:
    """Sums of whole UTC days."""
    query = read_query("since", "until", "by")
    grouping = read_grouping(query.get("by"))
    first, last = read_days(query, time.time())
    flush_ledger()
    rows = [name_sums(grouping, each) for each in summarize(_database(), first, last, grouping)]
    return _reply({"by": grouping, "since": first, "until": last, "rows": rows})


def read_query(*known: str) -> dict[str, str]:
    """The query's parameters. Raises InvalidRequestError for one that is not in `known`, or comes twice."""
    values = {}
    for name, texts in request.args.lists():
        if name not in known:
            there_are = f"there are: {', '.join(known)}" if known else "there are none"
            raise InvalidRequestError(f"{name[:64]!r} is no parameter here; {there_are}.", param=name)
        if len(texts) > 1:
            raise InvalidRequestError(f"{name!r} is given more than once.", param=name)
        values[name] = texts[0]
    return values


def _read_fields() -> dict[str, Any]:
    """The body, a JSON object. Raises ClientError."""
    too_large = BodyTooLargeError(f"The request's body is larger than {MAX_BODY_BYTES} bytes.")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large
    body = read_body()
    if len(body) > MAX_BODY_BYTES:  # its length was not announced
        raise too_large
    try:
        document = msgspec.json.decode(body)
    except MALFORMED as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return document


def _read(name: str, value: object, read: Callable[[object], Any]) -> Any:
    """What `read` makes of a field. Raises InvalidRequestError that names it."""
    try:
        return read(value)
    except ValueError as error:
        raise InvalidRequestError(f"{name!r} {error}.", param=name) from None


def _read_limit(text: object) -> int:
    if not re.fullmatch(r"\d{1,4}", str(text), re.ASCII) or not 1 <= int(str(text)) <= MAX_PAGE_ROWS:
        raise ValueError(f"expects a whole number from 1 to {MAX_PAGE_ROWS}")
    return int(str(text))


def read_row_id(text: object) -> str | None:
    """A row's id, if there is one. Raises ValueError."""
    if text is not None and not re.fullmatch(r"[0-9a-f]{28}", str(text)):
        raise ValueError("expects the id that an earlier page gave as 'next'")
    return None if text is None else str(text)


def flush_ledger() -> None:
    """An exchange that this worker has just ended is to be seen."""
    writer: LedgerWriter = current_app.extensions["ledger_writer"]
    writer.flush()


def _database() -> Database:
    database: Database = current_app.extensions["database"]
    return database


def _store() -> KeyStore:
    store: KeyStore = current_app.extensions["key_store"]
    return store


def note_change(action: str, name: str, **more: object) -> None:
    """The log's line of a change. No secret is among its fields."""
    fields = {"request_id": g.get("request_id"), "who": "admin", "action": action, "key": name, **more}
    _log.info("key", extra={"fields": fields})


def _reply(document: dict[str, Any], status: int = 200) -> Response:
    return reply_json(msgspec.json.encode(document), status)


def _reply_key(key: StoredKey, status: int = 200, **more: str) -> Response:
    return _reply({**key.to_fields(time.time()), **more}, status)
