"""What happens around every request, in the order in which it is registered.

Before: an id, who calls, and (flask-limiter's own hook, registered between) how often. After: headers. A
hook after the request must never raise: Flask would drop the response without closing its stream.
"""

from __future__ import annotations

import logging
import random
import re

from flask import Flask, Request, Response

from grokflask.gateway import Gateway
from grokflask.keys.ring import ApiKey, KeyRing
from grokflask.metrics.tallies import Tallies
from grokflask.protocol.dialects import MESSAGES
from grokflask.protocol.routes import Route
from grokflask.runtime import Background
from grokflask.web.api import find_route
from grokflask.web.current import Notes, get_app, get_notes, get_request
from grokflask.web.request_limits import RequestLimiter

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger("grokflask.web")


def register_before(app: Flask) -> None:
    """What comes before flask-limiter's hook, which needs to know who calls."""
    app.before_request(_begin)


def register_after(app: Flask) -> None:
    """The hook behind flask-limiter's, and the one on every response."""
    app.before_request(_check_outage)
    app.after_request(_finish_response)


def _begin() -> None:
    """One hook for all steps, for Flask's own work around each costs more than most of them."""
    app, asked, notes = get_app(), get_request(), get_notes()
    background: Background = app.extensions["background"]
    background.start()
    notes.request_id = _choose_id(asked.headers.get("X-Request-ID", ""))
    notes.route = route = None if asked.method == "OPTIONS" else find_route(app, asked)
    if route is not None:  # a browser that asks what it may send has no key
        _authenticate(route, app, asked, notes)
        _check_room(app)


def _choose_id(asked: str) -> str:
    """The client's own id, if it sent a sane one."""
    if is_sane_id(asked):
        return asked
    # Of chance, but no secret: the system's generator would be a system call for each request.
    return f"{random.getrandbits(128):032x}"


def is_sane_id(text: str) -> bool:
    """`text` may be a request's id."""
    return _SANE_ID.fullmatch(text) is not None


def _authenticate(route: Route, app: Flask, asked: Request, notes: Notes) -> None:
    """Who calls an API route. Raises AuthenticationError and its kin."""
    notes.route_streams = route.streams
    keys: KeyRing = app.extensions["keys"]
    authorization = asked.headers.get("Authorization")
    if route.dialect is MESSAGES and "x-api-key" in asked.headers:
        authorization = f"Bearer {asked.headers['x-api-key']}"  # how Anthropic's SDKs send a key
    notes.api_key = keys.authenticate(authorization, asked.remote_addr or "unknown")


def _check_room(app: Flask) -> None:
    """Refuses before anything is counted or read.

    Raises GatewayFullError, ShuttingDownError, and StoreUnavailableError when the ledger takes no more rows.
    """
    gateway: Gateway = app.extensions["gateway"]
    gateway.check()


def _check_outage() -> None:
    """Refuses while Redis is away, where the settings want that. Raises StoreUnavailableError."""
    if get_notes().route is not None:
        limits: RequestLimiter = get_app().extensions["request_limits"]
        limits.check_outage()


def _finish_response(response: Response) -> Response:
    try:
        notes = get_notes()
        response.headers["X-Request-ID"] = notes.request_id
        route: Route | None = notes.route
        services = get_app().extensions
        _count_answer(services["tallies"], route, response.status_code, notes)
        if route is not None:
            limits: RequestLimiter = services["request_limits"]
            limits.watch()
            limits.add_headers(response)
            if services["upstream_name"] == "sandbox":
                response.headers["X-Grokflask-Upstream"] = "sandbox"
            if "opened" not in notes:
                _log_refusal(route.name, response.status_code, notes)
    except Exception:
        _log.exception("a header could not be set")
    return response


def _count_answer(tallies: Tallies, route: Route | None, status: int, notes: Notes) -> None:
    name = route.name if route is not None else _name_other(get_request())
    tallies.answered.append(
        (name, status, notes.error_code if "refused" in notes and notes.refused else None)
    )


def _name_other(asked: Request) -> str:
    """What a request counts as that is none of the API's routes: the names are few, whatever is asked for."""
    return "preflight" if asked.method == "OPTIONS" else asked.blueprint or "none"


def _log_refusal(route: str, status: int, notes: Notes) -> None:
    """The line of a request that was turned away before it became an exchange."""
    key: ApiKey | None = notes.get("api_key")
    fields = {
        "request_id": notes.request_id,
        "key": key.name if key else None,
        "route": route,
        "status": status,
        "outcome": "refused",
        "code": notes.get("error_code"),
    }
    _log.info("refused", extra={"fields": fields})
