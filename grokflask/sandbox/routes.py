"""The table of routes, and those that show models, pictures and the journal."""

import re
from collections.abc import Mapping
from typing import Any

from grokflask.sandbox.faults import find_fault
from grokflask.sandbox.kept_routes import KEPT_ROUTES
from grokflask.sandbox.models import (
    IMAGE_TICKS,
    PRICES,
    RETIRED_IMAGES,
    VIDEO_TICKS,
    detailed_item,
    find_served,
    list_item,
    list_models,
    short_item,
)
from grokflask.sandbox.pictures import draw_named
from grokflask.sandbox.plans import PLANNERS
from grokflask.sandbox.refusals import API_KEY_ID, TEAM_ID, mask_key, refuse, refuse_model
from grokflask.sandbox.request import Action, Reply, Request


def _list_models(request: Request) -> dict[str, Any]:
    items = list_models()
    if request.state.short_models:
        items = [short_item(item["id"]) for item in items]
    return {"object": "list", "data": items}


def _get_model(request: Request, asked: str) -> dict[str, Any]:
    """Show a model; for a retired id the one that serves it, for a fault model grok-4.3."""
    served = "grok-4.3" if find_fault(asked) else find_served(asked)
    if served not in PRICES and served not in IMAGE_TICKS:
        raise refuse_model(asked)
    return short_item(served) if request.state.short_models else list_item(served)


def _get_models_of_kind(_: Request, kind: str, asked: str | None) -> dict[str, Any]:
    """List the models of one kind in detail, or show one of them."""
    kinds: Any = {"language": PRICES, "image-generation": IMAGE_TICKS, "video-generation": VIDEO_TICKS}
    if not asked:
        return {"models": [detailed_item(model) for model in kinds[kind] if model not in RETIRED_IMAGES]}
    if find_served(asked) not in kinds[kind]:
        raise refuse_model(asked)
    return detailed_item(find_served(asked))


def _get_api_key(request: Request) -> dict[str, Any]:
    return {
        "redacted_api_key": mask_key(request.bearer or "sandbox"),
        "name": "sandbox",
        "api_key_id": API_KEY_ID,
        "team_id": TEAM_ID,
        "acls": ["api-key:endpoint:*", "api-key:model:*"],
        "user_id": "3b8f7c52-6d1e-4f0a-8c29-5a7e1d94b6f3",
        "create_time": "2026-01-05T08:00:00Z",
        **dict.fromkeys(("team_blocked", "api_key_blocked", "api_key_disabled"), False),
    }


def _get_picture(_: Request, name: str) -> Reply:
    picture = draw_named(name)
    if picture is None:
        raise refuse(404, "There is no such picture.")
    return Reply(picture, headers={"Content-Type": "image/png"})


def _get_journal(request: Request) -> dict[str, Any]:
    return {"exchanges": list(request.state.journal)}


def _delete_journal(request: Request) -> dict[str, Any]:
    request.state.journal.clear()
    return _get_journal(request)


_ROUTES: list[tuple[str, Mapping[str, Action]]] = [
    *((path, {"POST": planner}) for path, planner in PLANNERS.items()),
    *KEPT_ROUTES,
    ("/v1/models", {"GET": _list_models}),
    ("/v1/models/([^/]+)", {"GET": _get_model}),
    ("/v1/(language|image-generation|video-generation)-models(?:/([^/]+))?", {"GET": _get_models_of_kind}),
    ("/v1/api-key", {"GET": _get_api_key}),
    (r"/sandbox/images/([^/]+)\.png", {"GET": _get_picture}),
    ("/sandbox/journal", {"GET": _get_journal, "DELETE": _delete_journal}),
]
_PATTERNS = [(re.compile(path), methods) for path, methods in _ROUTES]


def find_route(path: str) -> tuple[Mapping[str, Action], tuple[str, ...]] | None:
    """Return a path's actions by method, and the ids in the path; None for an unknown path."""
    for pattern, methods in _PATTERNS:
        if match := pattern.fullmatch(path):
            return methods, match.groups()
    return None
