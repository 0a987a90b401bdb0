"""Upstream's error bodies: bytes in, `UpstreamStatusError` out. No IO.

xAI answers a flat `{"code": "...", "error": "..."}`; OpenAI's nested `{"error": {"message", ...}}` is
understood as well, and so is anything else. Messages quote the operator's team, key ids and at times the
key itself: `clean_message` cuts them out before a client sees them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from grokflask.errors import MALFORMED, UpstreamStatusError

MAX_MESSAGE_CHARS = 2000

_SECRETS = re.compile(
    # A team or key id, wherever it stands.
    r"\b[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\b"
    # A key, whole or masked as xAI quotes it back: two characters, stars, two characters.
    r"|\bxai-[A-Za-z0-9_-]{4,}"
    r"|\bsk-[A-Za-z0-9_-]{8,}"
    r"|[A-Za-z0-9_-]{0,8}\*{3,}[A-Za-z0-9_-]{0,8}"
    # What follows "Bearer", quoted back from a header.
    r"|(?<=[Bb]earer )[^\s\"']+"
)


def clean_message(message: str, secrets: tuple[str, ...] = ()) -> str:
    """`message` without the operator's ids and without any key; control characters become spaces.

    `secrets` are cut out verbatim, whatever they look like.
    """
    for secret in secrets:
        message = message.replace(secret, "[redacted]")
    message = _SECRETS.sub("[redacted]", message)
    message = "".join(char if char.isprintable() or char == "\n" else " " for char in message)
    return message[:MAX_MESSAGE_CHARS]


def parse_error(
    body: bytes,
    *,
    status: int = 502,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[str, ...] = (),
) -> UpstreamStatusError:
    """The error that `body` tells of; a body that is no error object gives one that names the status."""
    try:
        document = msgspec.json.decode(body)
    except MALFORMED:
        document = None
    message, code, kind, param = _read(document) if isinstance(document, dict) else (None, None, None, None)
    return UpstreamStatusError(
        clean_message(message or f"The upstream API answered with status {status}.", secrets),
        status=status,
        code=_clean(code, secrets),
        kind=_clean(kind, secrets),
        param=_clean(param, secrets),
        headers=headers,
    )


def _read(document: dict[str, Any]) -> tuple[str | None, str | None, str | None, str | None]:
    """Message, code, type and param of either shape, each None where it is not told."""
    inner = document.get("error")
    if isinstance(inner, dict):
        fields = inner
        message = inner.get("message")
    else:
        fields = document
        message = inner if inner is not None else document.get("message", document.get("detail"))
    if message is not None and not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    code = fields.get("code")
    return (
        message,
        None if code is None else str(code),
        _text(fields.get("type")) if fields is not document else None,
        _text(fields.get("param")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _clean(value: str | None, secrets: tuple[str, ...]) -> str | None:
    return None if value is None else clean_message(value, secrets)
