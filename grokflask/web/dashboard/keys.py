"""The dashboard's pages for keys. A secret is shown on one page, once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flask import Response, current_app, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from grokflask.config import Settings
from grokflask.errors import ClientError, InvalidRequestError
from grokflask.keys.limits import FIELDS
from grokflask.keys.stored import StoredKey
from grokflask.ledger.overview import read_uses
from grokflask.times import to_day
from grokflask.web.admin import keys as admin_keys
from grokflask.web.current import get_database, get_key_store
from grokflask.web.dashboard.login import blueprint
from grokflask.web.pages import reply_page

PAGE_KEYS = 25
OVERLAPS = (("0s", "ends at once"), ("1h", "1 hour"), ("24h", "24 hours"), ("7d", "7 days"))
_ORDER = {"active": 0, "environment": 0, "expired": 1, "revoked": 2}


def list_keys() -> dict[str, Any]:
    """A page of keys with their limits and use, active ones first. Raises StoreUnavailableError."""
    now, search = time.time(), request.args.get("find", "").strip()
    settings: Settings = current_app.extensions["settings"]
    keys: dict[str, StoredKey | None] = {
        **{name: None for name, _ in settings.keys},
        **{key.name: key for key in get_key_store().list()},
    }
    found: list[dict[str, Any]] = [
        {"name": name, "key": key, "status": key.find_status(now) if key else "environment"}
        for name, key in keys.items()
        if search.lower() in name.lower()
    ]
    found.sort(key=lambda row: (_ORDER[row["status"]], row["name"]))
    pages = max(1, -(-len(found) // PAGE_KEYS))
    page = min(max(1, request.args.get("page", 1, type=int)), pages)
    shown = found[(page - 1) * PAGE_KEYS : page * PAGE_KEYS]
    uses = read_uses(get_database(), [row["name"] for row in shown], to_day(now))
    return {
        "rows": [row | {"use": uses[row["name"]]} for row in shown],
        "total": len(found),
        "all": len(keys),
        "page": page,
        "pages": pages,
        "find": search,
        "mode": settings.auth_mode,
    }


@blueprint.get("/keys/new")
def show_form() -> Response:
    """The form for a new key."""
    return reply_page("dashboard/key_new.html", values={}, problem=None)


@blueprint.post("/keys")
def create_key() -> Response:
    """A new key, on the only page that shows its secret; or the form again, with the error."""
    try:
        key, secret = admin_keys.create_key(g.form.get("name", "").strip(), _read_texts(g.form))
    except ClientError as error:
        return reply_page("dashboard/key_new.html", error.status, values=g.form, problem=error)
    return reply_page("dashboard/secret.html", key=key, secret=secret, done="made")


@blueprint.get("/keys/<name>")
def show_key(name: str) -> Response:
    """A key: its limits in a form, its secrets' hints, and what can be done with it."""
    return _reply_key(get_key_store().show(name))


@blueprint.post("/keys/<name>")
def change_key(name: str) -> Response | AnyResponse:
    """Stores the fields that differ; an empty field removes a limit."""
    key = get_key_store().show(name)
    old = _show_fields(key)
    changes = {field: text for field, text in _read_texts(g.form).items() if text != old[field]}
    try:
        if changes:
            admin_keys.change_key(name, changes)
    except InvalidRequestError as error:
        return _reply_key(key, 400, g.form, error)
    return redirect(url_for("dashboard.show_key", name=name, saved=len(changes)), 303)


@blueprint.post("/keys/<name>/rotate")
def rotate_key(name: str) -> Response:
    """A new secret, on a page of its own."""
    overlap = g.form.get("overlap", "")
    key, secret = admin_keys.rotate_key(name, overlap)
    overlap = dict(OVERLAPS).get(overlap, overlap)
    return reply_page("dashboard/secret.html", key=key, secret=secret, done="rotated", overlap=overlap)


@blueprint.get("/keys/<name>/revoke")
def ask_to_revoke(name: str) -> Response:
    """Explains what revoking the key does, and has the button."""
    return reply_page("dashboard/revoke.html", key=get_key_store().show(name))


@blueprint.post("/keys/<name>/revoke")
def revoke_key(name: str) -> AnyResponse:
    """Revokes the key."""
    admin_keys.revoke_key(name)
    return redirect(url_for("dashboard.show_overview", notice="revoked") + "#keys", 303)


def _reply_key(
    key: StoredKey,
    status: int = 200,
    values: Mapping[str, str] | None = None,
    problem: InvalidRequestError | None = None,
) -> Response:
    now = time.time()
    return reply_page(
        "dashboard/key.html",
        status,
        key=key,
        state=key.find_status(now),
        use=read_uses(get_database(), [key.name], to_day(now))[key.name],
        values=_show_fields(key) if values is None else values,
        problem=problem,
        saved=request.args.get("saved") if status == 200 else None,
        overlaps=OVERLAPS,
    )


def _show_fields(key: StoredKey) -> dict[str, Any]:
    """The limits as texts for the form; None is an empty field."""
    fields = key.to_fields(0)
    texts = {name: None if fields[name] in (None, []) else str(fields[name]) for name in FIELDS}
    for name in ("budget_day", "budget_month"):
        if fields[name] is not None:
            texts[name] = f"{fields[name]:.10f}".rstrip("0").rstrip(".")
    return {**texts, "models": fields["models"] or None}


def _read_texts(form: Mapping[str, str]) -> dict[str, Any]:
    """The form's fields as the admin API takes them; None is an empty field."""
    texts: dict[str, Any] = {name: form.get(name, "").strip() or None for name in FIELDS}
    if texts["models"] is not None:
        texts["models"] = texts["models"].replace(",", " ").split()
    texts["tools"] = texts["tools"] or "all"
    return texts
