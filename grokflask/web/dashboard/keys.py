"""The dashboard's keys: listed, made, changed, rotated and revoked. A secret is on one page, once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flask import Response, current_app, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from grokflask.billing.money import TICKS_PER_USD
from grokflask.config import Settings
from grokflask.errors import ClientError, InvalidRequestError
from grokflask.keys.limits import FIELDS, read_changes, read_name
from grokflask.keys.store import KeyStore
from grokflask.keys.stored import StoredKey
from grokflask.ledger.overview import KeyUse, read_uses
from grokflask.times import read_duration, to_day
from grokflask.web.admin.keys_and_ledger import note_change
from grokflask.web.dashboard.login import blueprint
from grokflask.web.pages import reply_page

PAGE_KEYS = 25
OVERLAPS = (("0s", "ends at once"), ("1h", "1 hour"), ("24h", "24 hours"), ("7d", "7 days"))
_ORDER = {"active": 0, "environment": 0, "expired": 1, "revoked": 2}


def list_keys() -> dict[str, Any]:
    """A page of the keys with what they may do and have used, those that work first.

    Raises StoreUnavailableError.
    """
    now, wanted = time.time(), request.args.get("find", "").strip()
    settings: Settings = current_app.extensions["settings"]
    fixed: list[tuple[str, StoredKey | None]] = [(name, None) for name, _ in settings.keys]
    stored: list[tuple[str, StoredKey | None]] = [(key.name, key) for key in _store().list()]
    found = [each for each in [*fixed, *stored] if wanted.lower() in each[0].lower()]
    found.sort(key=lambda each: (_ORDER[_find_status(each[1], now)], each[0]))
    pages = max(1, -(-len(found) // PAGE_KEYS))
    page = min(max(1, _read_page()), pages)
    shown = found[(page - 1) * PAGE_KEYS : page * PAGE_KEYS]
    uses = read_uses(current_app.extensions["database"], [name for name, _ in shown], to_day(now))
    rows = [_describe(name, key, uses[name], now) for name, key in shown]
    return {
        "rows": rows,
        "total": len(found),
        "all": len(fixed) + len(stored),
        "page": page,
        "pages": pages,
        "find": wanted,
        "mode": settings.auth_mode,
    }


@blueprint.get("/keys/new")
def show_form() -> Response:
    """The form for a new key."""
    return reply_page("dashboard/key_new.html", values={}, problem=None)


@blueprint.post("/keys")
def create_key() -> Response:
    """A new key, and the only page with its secret; or the form again, with what is wrong."""
    values = g.form
    try:
        name = read_name(values.get("name", "").strip())
        wanted = {field: text for field, text in _read_texts(values).items() if text is not None}
        key, secret = _store().create(name, read_changes(wanted, time.time()))
    except ClientError as error:
        return reply_page("dashboard/key_new.html", error.status, values=values, problem=error)
    note_change("create", name)
    return reply_page("dashboard/secret.html", key=key, secret=secret, done="made")


@blueprint.get("/keys/<name>")
def show_key(name: str) -> Response:
    """A key: its limits in a form, its secrets' hints, and what else can be done."""
    return _reply_key(_store().show(name))


@blueprint.post("/keys/<name>")
def change_key(name: str) -> Response | AnyResponse:
    """Changes what is not as it was; an empty field takes a limit away."""
    key = _store().show(name)
    old = _show_fields(key)
    changed = {field: text for field, text in _read_texts(g.form).items() if text != old[field]}
    try:
        if changed:
            _store().set(name, read_changes(changed, time.time()))
            note_change("change", name, fields=",".join(changed))
    except InvalidRequestError as error:
        return _reply_key(key, 400, g.form, error)
    return redirect(url_for("dashboard.show_key", name=name, saved=len(changed)), 303)


@blueprint.post("/keys/<name>/rotate")
def rotate_key(name: str) -> Response:
    """A new secret beside the old one, on a page of its own."""
    try:
        overlap_s = read_duration(g.form.get("overlap", ""))
    except ValueError as error:
        raise InvalidRequestError(f"'overlap' {error}.", param="overlap") from None
    key, secret = _store().rotate(name, overlap_s)
    note_change("rotate", name)
    words = dict(OVERLAPS).get(g.form["overlap"], g.form["overlap"])
    return reply_page("dashboard/secret.html", key=key, secret=secret, done="rotated", overlap=words)


@blueprint.get("/keys/<name>/revoke")
def ask_to_revoke(name: str) -> Response:
    """What revoking the key will do, and the button."""
    return reply_page("dashboard/revoke.html", key=_store().show(name))


@blueprint.post("/keys/<name>/revoke")
def revoke_key(name: str) -> AnyResponse:
    """Revokes it."""
    _store().revoke(name)
    note_change("revoke", name)
    return redirect(url_for("dashboard.show_overview", notice="revoked") + "#keys", 303)


def _reply_key(
    key: StoredKey,
    status: int = 200,
    values: Mapping[str, str] | None = None,
    problem: InvalidRequestError | None = None,
) -> Response:
    now = time.time()
    use = read_uses(current_app.extensions["database"], [key.name], to_day(now))[key.name]
    return reply_page(
        "dashboard/key.html",
        status,
        key=_describe(key.name, key, use, now),
        stored=key,
        values=_show_fields(key) if values is None else values,
        problem=problem,
        saved=request.args.get("saved") if status == 200 else None,
        overlaps=OVERLAPS,
    )


def _describe(name: str, key: StoredKey | None, use: KeyUse, now: float) -> dict[str, Any]:
    """A key as the list shows it; None is one of GROKFLASK_KEYS."""
    limits = key.limits if key else None
    return {
        "name": name,
        "status": _find_status(key, now),
        "hint": key.secrets[0].hint if key and key.secrets else None,
        "expires_at": key.expires_at if key else None,
        "use": use,
        "day_budget": limits.budget_day_ticks if limits else None,
        "month_budget": limits.budget_month_ticks if limits else None,
        "limits": [] if limits is None else _list_limits(key),
    }


def _list_limits(key: StoredKey | None) -> list[str]:
    """The limits in words, but for budgets, which have bars."""
    assert key is not None
    own, words = key.limits, []
    if own.requests is not None:
        words.append(own.requests)
    if own.tokens_per_minute is not None:
        words.append(f"{own.tokens_per_minute:,} tokens/min".replace(",", "\u2009"))
    if own.streams is not None:
        words.append(f"{own.streams} {'stream' if own.streams == 1 else 'streams'}")
    if own.models:
        words.append(" ".join(own.models))
    if own.tools != "all":
        words.append(f"tools: {own.tools}")
    return words


def _find_status(key: StoredKey | None, now: float) -> str:
    return "environment" if key is None else key.find_status(now)


def _show_fields(key: StoredKey) -> dict[str, Any]:
    """The limits as the form's texts; None is an empty field."""
    fields = {**key.limits.to_fields(), "expires_at": key.to_fields(0)["expires_at"]}
    for name, ticks in (
        ("budget_day", key.limits.budget_day_ticks),
        ("budget_month", key.limits.budget_month_ticks),
    ):
        fields[name] = None if ticks is None else f"{ticks / TICKS_PER_USD:.10f}".rstrip("0").rstrip(".")
    shown = {name: None if value in (None, []) else str(value) for name, value in fields.items()}
    return {**shown, "models": list(key.limits.models) or None}


def _read_texts(values: Mapping[str, str]) -> dict[str, Any]:
    """The form's fields as `read_changes` takes them; None is an empty one."""
    texts: dict[str, Any] = {name: values.get(name, "").strip() or None for name in FIELDS}
    if texts["models"] is not None:
        texts["models"] = texts["models"].replace(",", " ").split()
    if texts["tools"] is None:
        texts["tools"] = "all"
    return texts


def _read_page() -> int:
    text = request.args.get("page", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1


def _store() -> KeyStore:
    store: KeyStore = current_app.extensions["key_store"]
    return store
