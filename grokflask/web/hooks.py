"""What happens around every request, in the order in which it is registered.

Before: an id, who calls, and (flask-limiter's own hook, registered between) how often. After: headers. A
hook after the request must never raise: Flask would drop the response without closing its stream.
"""

from __future__ import annotations

import logging
import re
import uuid

from flask import Flask, Response, current_app, g, request

from grokflask.background import Background
from grokflask.gateway import Gateway
from grokflask.keys import ApiKey, KeyRing
from grokflask.web.api import find_route
from grokflask.web.extensions import RequestLimiter

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger("grokflask.web")


def register_before(app: Flask) -> None:
    """The hooks that come before flask-limiter's, which needs to know who calls."""
    app.before_request(_start_background)
    app.before_request(_name_request)
    app.before_request(_authenticate)
    app.before_request(_check_room)


def register_after(app: Flask) -> None:
    """The hook behind flask-limiter's, and the one on every response."""
    app.before_request(_check_outage)
    app.after_request(_finish_response)


def _start_background() -> None:
    background: Background = current_app.extensions["background"]
    background.start()


def _name_request() -> None:
    asked = request.headers.get("X-Request-ID", "")
    g.request_id = asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex


def _authenticate() -> None:
    """Who calls an API route. Raises AuthenticationError and its kin."""
    route = find_route()
    if route is None or request.method == "OPTIONS":  # a browser asks what it may send, without a key
        return
    g.route_streams = route.streams
    keys: KeyRing = current_app.extensions["keys"]
    g.api_key = keys.authenticate(request.headers.get("Authorization"), request.remote_addr or "unknown")


def _check_room() -> None:
    """Refuses before anything is counted or read.

    Raises GatewayFullError, ShuttingDownError, and StoreUnavailableError when the ledger takes no more rows.
    """
    if find_route() is not None and request.method != "OPTIONS":
        gateway: Gateway = current_app.extensions["gateway"]
        gateway.check()


def _check_outage() -> None:
    """Refuses while Redis is away, where the settings want that. Raises StoreUnavailableError."""
    if find_route() is not None and request.method != "OPTIONS":
        limits: RequestLimiter = current_app.extensions["request_limits"]
        limits.check_outage()


def _finish_response(response: Response) -> Response:
    try:
        response.headers["X-Request-ID"] = g.request_id
        route = find_route()
        if route is not None and request.method != "OPTIONS":
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
