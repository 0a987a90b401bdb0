"""What happens around every request, in the order in which it is registered.

Before: an id, who calls, and (flask-limiter's own hook, registered between) how often. After: headers. A
hook after the request must never raise: Flask would drop the response without closing its stream.
"""

from __future__ import annotations

import logging
import re
import uuid

from flask import Flask, Response, current_app, g, request

from grokflask.gateway import Gateway
from grokflask.keys import ApiKey, KeyRing
from grokflask.web.api import find_route
from grokflask.web.extensions import RequestLimiter

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger("grokflask.web")


def register_before(app: Flask) -> None:
    """The hooks that come before flask-limiter's, which needs to know who calls."""
    app.before_request(_name_request)
    app.before_request(_authenticate)
    app.before_request(_check_room)


def register_after(app: Flask) -> None:
    """The hook on every response."""
    app.after_request(_finish_response)


def _name_request() -> None:
    asked = request.headers.get("X-Request-ID", "")
    g.request_id = asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex


def _authenticate() -> None:
    """Who calls an API route. Raises AuthenticationError."""
    route = find_route()
    if route is None or request.method == "OPTIONS":  # a browser asks what it may send, without a key
        return
    g.route_streams = route.streams
    keys: KeyRing = current_app.extensions["keys"]
    key: ApiKey = keys.authenticate(request.headers.get("Authorization"))
    g.api_key = key
    # Never empty: flask-limiter skips a limit without a key.
    g.limit_id = key.limit_id or f"address:{request.remote_addr}"


def _check_room() -> None:
    """Refuses before anything is counted or read. Raises GatewayFullError and ShuttingDownError."""
    if find_route() is not None and request.method != "OPTIONS":
        gateway: Gateway = current_app.extensions["gateway"]
        gateway.exchanges.check()


def _finish_response(response: Response) -> Response:
    try:
        response.headers["X-Request-ID"] = g.request_id
        route = find_route()
        if route is not None and request.method != "OPTIONS":
            limits: RequestLimiter = current_app.extensions["limits"]
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
