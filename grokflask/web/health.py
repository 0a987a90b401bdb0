"""/health and /ready, for load balancers and operators."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from flask import Blueprint, current_app, request

from grokflask.errors import RateLimitError
from grokflask.keys.ring import read_bearer
from grokflask.ledger.writer import LedgerWriter
from grokflask.web.attempts import is_admin_token, refuse_token
from grokflask.web.current import get_database

PUBLIC = {"rate_limits": "store", "limits": "store", "database": "state"}
"""What /ready shows of each part to callers without the admin token."""

blueprint = Blueprint("health", __name__)

_log = logging.getLogger("grokflask.admin")


@blueprint.get("/health")
def health() -> dict[str, str]:
    """The process is running."""
    return {"status": "ok"}


@blueprint.get("/ready")
def ready() -> tuple[dict[str, Any], int]:
    """200 if the process accepts requests; 503 while it shuts down, or cannot use tables of a later version.

    An outage of the database or Redis is shown, but does not make the process unready. Only callers with the
    admin token see numbers and upstream's address.
    """
    state = describe_state()
    token = read_bearer(request.headers.get("Authorization"))
    if not is_admin_token(token):
        if token is not None:
            with suppress(RateLimitError):  # a health check with an old token must not take a worker out
                refuse_token("admin token", token, _log)
        shown = {part: {name: state[part][name]} for part, name in PUBLIC.items()}
        state = {"status": state["status"], **shown}
    return state, 200 if state["status"] == "ready" else 503


def describe_state() -> dict[str, Any]:
    """The state of this process, its database and Redis."""
    requests = current_app.extensions["request_limits"]
    limits = current_app.extensions["limits"].state
    database = get_database()
    ledger: LedgerWriter = current_app.extensions["ledger_writer"]
    exchanges = current_app.extensions["gateway"].exchanges
    status = "draining" if exchanges.draining else "outdated" if database.unusable else "ready"
    return {
        "status": status,
        "open": len(exchanges),
        "upstream": current_app.extensions["upstream_name"],
        "rate_limits": {"store": requests.store, "outages": requests.outages},
        "limits": {"store": limits.store, "outages": limits.outages, "waiting": limits.waiting},
        "database": {"state": database.state, "outages": database.outages},
        "loop": current_app.extensions["tallies"].sum_up_stalls(),
        "ledger": {"waiting": ledger.queued, "dropped": ledger.dropped, "lost": ledger.lost},
    }
