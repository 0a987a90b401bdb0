"""Is it alive, and can it take traffic? For load balancers and for whoever is on call."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@blueprint.get("/ready")
def ready() -> dict[str, Any]:
    """The process can relay; the states of what it leans on are told, but do not make it unready."""
    limits = current_app.extensions["limits"]
    return {
        "status": "ready",
        "upstream": current_app.extensions["upstream_name"],
        "rate_limits": {"store": limits.store, "outages": limits.outages},
    }
