"""/metrics, for Prometheus.

It shows what has been spent, so it needs GROKFLASK_METRICS_TOKEN or the admin token. If neither is set it
does not exist, except on the sandbox, whose numbers are made up.
"""

from __future__ import annotations

import logging

from flask import Blueprint, Response, current_app, request

from grokflask.config import Settings
from grokflask.errors import AuthenticationError, RouteNotFoundError
from grokflask.keys.ring import read_bearer
from grokflask.metrics.exposition import MEDIA_TYPE, Metrics
from grokflask.web.attempts import compare_tokens, is_admin_token, refuse_token

blueprint = Blueprint("metrics", __name__)

_log = logging.getLogger("grokflask.metrics")


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """The metrics of all workers. Raises AuthenticationError, RateLimitError and RouteNotFoundError."""
    _check_token(current_app.extensions["settings"])
    metrics: Metrics = current_app.extensions["metrics"]
    return Response(metrics.render(), headers={"Cache-Control": "no-store"}, content_type=MEDIA_TYPE)


def _check_token(settings: Settings) -> None:
    if not settings.metrics_token and not settings.admin_token:
        if settings.uses_sandbox:
            return
        raise RouteNotFoundError("Set GROKFLASK_METRICS_TOKEN to see the metrics.")
    token = read_bearer(request.headers.get("Authorization"))
    if token and settings.metrics_token and compare_tokens(token, settings.metrics_token):
        return
    if not is_admin_token(token):
        refuse_token("metrics token", token, _log)
        raise AuthenticationError(
            "The metrics need a token: send GROKFLASK_METRICS_TOKEN as 'Authorization: Bearer <token>'."
        )
