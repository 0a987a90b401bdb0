"""/metrics, for Prometheus. It tells what has been spent, so it is not for everybody.

Who asks sends GROKFLASK_METRICS_TOKEN, or the admin's token, as bearer. Where neither is set there is nothing
to be seen, but on the sandbox, whose figures are made up.
"""

from __future__ import annotations

import hashlib
import hmac
import logging

from flask import Blueprint, Response, current_app, g, request

from grokflask.config import Settings
from grokflask.errors import AuthenticationError, RouteNotFoundError
from grokflask.keys.ring import read_bearer
from grokflask.metrics.exposition import MEDIA_TYPE, Metrics
from grokflask.web.attempts import Attempts

blueprint = Blueprint("metrics", __name__)

_log = logging.getLogger("grokflask.metrics")


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """The figures of all workers. Raises AuthenticationError and RouteNotFoundError."""
    _check_token(current_app.extensions["settings"])
    metrics: Metrics = current_app.extensions["metrics"]
    return Response(metrics.render(), headers={"Cache-Control": "no-store"}, content_type=MEDIA_TYPE)


def _check_token(settings: Settings) -> None:
    if not settings.metrics_token and not settings.admin_token:
        if settings.uses_sandbox:
            return
        raise RouteNotFoundError("There are no metrics to be seen until GROKFLASK_METRICS_TOKEN is set.")
    asked = read_bearer(request.headers.get("Authorization"))
    if asked is None or not (_is_metrics_token(asked, settings) or _is_admin_token(asked)):
        fields = {"request_id": g.get("request_id"), "who": request.remote_addr}
        _log.warning("refused", extra={"fields": fields})
        raise AuthenticationError(
            "The metrics need a token: send GROKFLASK_METRICS_TOKEN as 'Authorization: Bearer <token>'."
        )


def _is_metrics_token(asked: str, settings: Settings) -> bool:
    token = settings.metrics_token
    return bool(token) and hmac.compare_digest(_digest(asked), _digest(token or ""))


def _is_admin_token(asked: str) -> bool:
    """A wrong one counts as everywhere: this is no place to guess it either. Raises RateLimitError."""
    attempts: Attempts | None = current_app.extensions.get("attempts")
    return attempts is not None and attempts.check(asked, request.remote_addr or "unknown")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
