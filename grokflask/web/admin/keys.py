"""/admin/api/keys, and the changes to keys that the dashboard makes as well."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flask import Response, request

from grokflask.errors import InvalidRequestError
from grokflask.keys.limits import read_changes, read_name
from grokflask.keys.store import OVERLAP_S
from grokflask.keys.stored import StoredKey
from grokflask.times import read_duration
from grokflask.web.admin.api import blueprint, log_change, read_fields, read_query, read_value, reply
from grokflask.web.current import get_key_store


@blueprint.get("/keys")
def list_keys() -> Response:
    """All keys, without their secrets."""
    read_query()
    now = time.time()
    return reply({"keys": [key.to_fields(now) for key in get_key_store().list()]})


@blueprint.post("/keys")
def post_key() -> Response:
    """A new key. Only this answer contains its secret."""
    read_query()
    fields = read_fields()
    if "name" not in fields:
        raise InvalidRequestError("The field 'name' is missing.", param="name")
    key, secret = create_key(fields.pop("name"), fields)
    return _reply_key(key, 201, secret=secret)


@blueprint.get("/keys/<name>")
def show_key(name: str) -> Response:
    """One key."""
    read_query()
    return _reply_key(get_key_store().show(name))


@blueprint.patch("/keys/<name>")
def patch_key(name: str) -> Response:
    """Changes the fields in the body; null removes a limit."""
    read_query()
    return _reply_key(change_key(name, read_fields()))


@blueprint.delete("/keys/<name>")
def delete_key(name: str) -> Response:
    """Revokes the key, which stays in the list."""
    read_query()
    return _reply_key(revoke_key(name))


@blueprint.post("/keys/<name>/rotate")
def post_rotation(name: str) -> Response:
    """A new secret; the old one stays valid for `overlap`."""
    read_query()
    has_body = bool(request.content_length) or "Transfer-Encoding" in request.headers
    fields = read_fields() if has_body else {}
    overlap = fields.pop("overlap", f"{OVERLAP_S:.0f}s")
    for unknown in fields:
        raise InvalidRequestError(f"{unknown[:64]!r} is not a field; there is: overlap.", param=unknown[:64])
    key, secret = rotate_key(name, overlap)
    return _reply_key(key, secret=secret)


def create_key(name: object, fields: Mapping[str, object]) -> tuple[StoredKey, str]:
    """A new key and its secret. Raises ClientError."""
    checked = read_name(name)
    key, secret = get_key_store().create(checked, read_changes(fields, time.time()))
    log_change("key", "create", key=checked)
    return key, secret


def change_key(name: str, fields: Mapping[str, object]) -> StoredKey:
    """The key with other limits. Raises ClientError."""
    key = get_key_store().set(name, read_changes(fields, time.time()))
    log_change("key", "change", key=name, fields=",".join(fields))
    return key


def rotate_key(name: str, overlap: object) -> tuple[StoredKey, str]:
    """The key and its new secret; the old one stays valid for `overlap`. Raises ClientError."""
    overlap_s = read_value("overlap", overlap, read_duration)
    key, secret = get_key_store().rotate(name, overlap_s)
    log_change("key", "rotate", key=name)
    return key, secret


def revoke_key(name: str) -> StoredKey:
    """The key, which is revoked. Raises KeyNotFoundError."""
    key = get_key_store().revoke(name)
    log_change("key", "revoke", key=name)
    return key


def _reply_key(key: StoredKey, status: int = 200, **more: str) -> Response:
    return reply({**key.to_fields(time.time()), **more}, status)
