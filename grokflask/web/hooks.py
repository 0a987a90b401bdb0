"""What happens around every request, in the order in which it is registered.

Before: an id, who calls, and (flask-limiter's own hook, registered between) how often. After: headers. A
hook after the request must never raise: Flask would drop the response without closing its stream.
"""

from __future__ import annotations

import logging
import random
import re

from flask import Flask, Response, current_app, g, request

from grokflask.background import Background
from grokflask.gateway import Gateway
from grokflask.keys import ApiKey, KeyRing
from grokflask.routes import Route
from grokflask.web.api import find_route
from grokflask.web.extensions import RequestLimiter

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
    background: Background = current_app.extensions["background"]
    background.start()
    g.request_id = _choose_id(request.headers.get("X-Request-ID", ""))
    g.route = route = None if request.method == "OPTIONS" else find_route()
    if route is not None:  # a browser that asks what it may send has no key
        _authenticate(route)
        _check_room()


def _choose_id(asked: str) -> str:
    """The client's own id, if it sent a sane one."""
    if is_sane_id(asked):
        return asked
    # Of chance, but no secret: the system's generator would be a system call for each request.
    return f"{random.getrandbits(128):032x}"


def is_sane_id(text: str) -> bool:
    """`text` may be a request's id."""
    return _SANE_ID.fullmatch(text) is not None


def _authenticate(route: Route) -> None:
    """Who calls an API route. Raises AuthenticationError and its kin."""
    g.route_streams = route.streams
    keys: KeyRing = current_app.extensions["keys"]
    g.api_key = keys.authenticate(request.headers.get("Authorization"), request.remote_addr or "unknown")


def _check_room() -> None:
    """Refuses before anything is counted or read.

    Raises GatewayFullError, ShuttingDownError, and StoreUnavailableError when the ledger takes no more rows.
    """
    gateway: Gateway = current_app.extensions["gateway"]
    gateway.check()


def _check_outage() -> None:
    """Refuses while Redis is away, where the settings want that. Raises StoreUnavailableError."""
    if g.route is not None:
        limits: RequestLimiter = current_app.extensions["request_limits"]
        limits.check_outage()


def _finish_response(response: Response) -> Response:
    try:
        response.headers["X-Request-ID"] = g.request_id
        route: Route | None = g.route
        if route is not None:
            limits: RequestLimiter = current_app.extensions["request_limits"]
            limits.watch()
            limits.add_headers(response)
            if current_app.extensions["upstream_name"] == "sandbox":
                response.headers["X-Grokflask-Upstream"] = "sandbox"
            if "opened" not in g:
                _log_refusal(route.name, response.status_code)
    except Exception:
        _log.exception("a header could not be set")
    return response


def _log_refusal(route: str, status: int) -> None:
    """The line of a request that was turned away before it became an exchange."""
    key: ApiKey | None = g.get("api_key")
    fields = {
        "request_id": g.request_id,
        "key": key.name if key else None,
        "route": route,
        "status": status,
        "outcome": "refused",
        "code": g.get("error_code"),
    }
    _log.info("refused", extra={"fields": fields})
