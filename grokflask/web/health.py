"""Is it alive, and can it take traffic? For load balancers and for whoever is on call."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from grokflask.ledger.writer import LedgerWriter
from grokflask.storage.database import Database

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@blueprint.get("/ready")
def ready() -> tuple[dict[str, Any], int]:
    """The process takes new work: 200, or 503 while it drains before its end.

    The states of what it leans on are told, but do not make it unready.
    """
    state = describe_state()
    return state, 503 if state["status"] == "draining" else 200


def describe_state() -> dict[str, Any]:
    """How this process is, and what it leans on."""
    requests = current_app.extensions["request_limits"]
    limits = current_app.extensions["limits"].state
    database: Database = current_app.extensions["database"]
    ledger: LedgerWriter = current_app.extensions["ledger_writer"]
    exchanges = current_app.extensions["gateway"].exchanges
    return {
        "status": "draining" if exchanges.draining else "ready",
        "open": len(exchanges),
        "upstream": current_app.extensions["upstream_name"],
        "rate_limits": {"store": requests.store, "outages": requests.outages},
        "limits": {"store": limits.store, "outages": limits.outages, "waiting": limits.waiting},
        "database": {"state": database.state, "outages": database.outages},
        "ledger": {"waiting": ledger.queued, "dropped": ledger.dropped, "lost": ledger.lost},
    }
