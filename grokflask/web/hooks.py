"""The hooks around every request, in the order in which they are registered.

Before the view: a request id, authentication, room for one more, and (in Flask-Limiter's own hook, registered
in between) the key's rate limit. After it: headers. A hook after the request must not raise: Flask would drop
the response without closing its stream.
"""

from __future__ import annotations

import logging
import random
import re
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Request, Response
from werkzeug.http import parse_date

from grokflask.keys.ring import ApiKey
from grokflask.metrics.tallies import Tallies
from grokflask.protocol.dialects import MESSAGES
from grokflask.protocol.routes import Route
from grokflask.runtime import REQUEST_ID
from grokflask.web.api import find_route
from grokflask.web.callers import authenticate
from grokflask.web.current import Notes, get_current
from grokflask.web.request_limits import RequestLimiter

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DATES = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE")

_log = logging.getLogger("grokflask.web")


def register(app: Flask) -> None:
    """Registers both hooks. This must be done before Flask-Limiter registers its own, which needs the key."""
    app.before_request(_begin)
    app.after_request(_finish_response)


def _begin() -> None:
    """One hook for all steps, because Flask's own work around a hook costs more than most steps."""
    app, flask_request, notes = get_current()
    app.extensions["background"].start()
    client_id = flask_request.headers.get("X-Request-ID", "")
    # A new id need not be secret, and the system's generator would cost a system call.
    notes.request_id = client_id if is_sane_id(client_id) else f"{random.getrandbits(128):032x}"
    flask_request.environ[REQUEST_ID] = notes.request_id  # for the watchdog
    notes.route = route = None if flask_request.method == "OPTIONS" else find_route(app, flask_request)
    if route is None:
        _drop_bad_dates(flask_request.environ)  # no answer of the API depends on a date
    else:  # a browser's preflight has no key
        _authenticate(route, app, flask_request, notes)
        app.extensions["gateway"].check()


def _drop_bad_dates(environ: dict[str, Any]) -> None:
    """Drops the conditions whose date cannot be read, as RFC 9110, section 13.1.3, asks for.

    Werkzeug would raise OverflowError for a year or a zone with too many digits.
    """
    for name in _DATES:
        if name in environ:
            try:
                parse_date(environ[name])
            except Exception:  # whatever Python's parser of mail raises
                del environ[name]


def is_sane_id(text: str) -> bool:
    """Whether `text` may be a request's id."""
    return _SANE_ID.fullmatch(text) is not None


def _authenticate(route: Route, app: Flask, flask_request: Request, notes: Notes) -> None:
    """Notes the key. Raises the errors of `callers.authenticate`."""
    notes.route_streams = route.streams
    authorization = flask_request.headers.get("Authorization")
    if route.dialect is MESSAGES and "x-api-key" in flask_request.headers:
        authorization = f"Bearer {flask_request.headers['x-api-key']}"  # how Anthropic's SDKs send a key
    notes.api_key = authenticate(app, flask_request, authorization)


def _finish_response(response: Response) -> Response:
    try:
        app, flask_request, notes = get_current()
        response.headers["X-Request-ID"] = notes.request_id
        route: Route | None = notes.route
        _count_response(app.extensions["tallies"], flask_request, response.status_code, notes)
        if route is not None:
            limits: RequestLimiter = app.extensions["request_limits"]
            limits.watch()
            limits.add_headers(response, notes)
            if app.extensions["upstream_name"] == "sandbox":
                response.headers["X-Grokflask-Upstream"] = "sandbox"
            if "opened" not in notes:
                _log_refusal(route.name, response.status_code, flask_request.remote_addr, notes)
        elif response.status_code == 308:  # Werkzeug adds a missing slash, and names the host that was sent
            response.location = urlsplit(response.location or "")._replace(scheme="", netloc="").geturl()
            response.set_data(b"")
    except Exception:
        _log.exception("a header could not be set")
    return response


def _count_response(tallies: Tallies, flask_request: Request, status: int, notes: Notes) -> None:
    """Counts the response. Outside the API there are only a few names, whatever paths clients request."""
    if notes.route is not None:
        name = notes.route.name
    else:
        name = "preflight" if flask_request.method == "OPTIONS" else flask_request.blueprint or "none"
    tallies.answered.append((name, status, notes.error_code if notes.get("refused") else None))


def _log_refusal(route: str, status: int, address: str | None, notes: Notes) -> None:
    """The log line of a request that was refused before it became an exchange."""
    key: ApiKey | None = notes.get("api_key")
    fields = {
        "request_id": notes.request_id,
        "key": key.name if key else None,
        "who": None if key else address,
        "route": route,
        "status": status,
        "outcome": "refused",
        "code": notes.get("error_code"),
    }
    _log.info("refused", extra={"fields": fields})
