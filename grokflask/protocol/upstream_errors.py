"""Upstream's error bodies: bytes in, `UpstreamStatusError` out. No IO.

xAI answers a flat `{"code": "...", "error": "..."}`; OpenAI's nested `{"error": {"message", ...}}` is
understood as well, and so is anything else. Messages quote the operator's team, key ids and at times the
key itself: `clean_message` cuts them out before a client sees them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec

from grokflask.errors import MALFORMED, UpstreamStatusError

MAX_MESSAGE_CHARS = 2000
MIN_SECRET_CHARS = 6

_SECRETS = re.compile(
    # A team or key id, wherever it stands.
    r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|\b[0-9a-fA-F]{32}\b"
    # A key, whole or masked as xAI quotes it back: two characters, stars, two characters.
    r"|(?<![A-Za-z])xai-[A-Za-z0-9_-]{4,}"
    r"|\bsk-[A-Za-z0-9_-]{8,}"
    r"|[A-Za-z0-9_-]{0,8}\*{3,}[A-Za-z0-9_-]{0,8}"
)
_BEARER = re.compile(r"(?i)(bearer\s+)[^\s\"']+")  # quoted back from a header


def clean_message(message: str, secrets: tuple[str, ...] = ()) -> str:
    """`message` without the operator's ids and without any key; control characters become spaces.

    `secrets` are cut out verbatim, whatever they look like.
    """
    message = message[: 8 * MAX_MESSAGE_CHARS]
    for secret in secrets:
        if len(secret) >= MIN_SECRET_CHARS:  # a shorter one is a word of everyday text
            message = message.replace(secret, "[redacted]")
    message = _SECRETS.sub("[redacted]", message)
    message = _BEARER.sub(r"\1[redacted]", message)
    message = "".join(" " if _is_control(char) else char for char in message)
    return message[:MAX_MESSAGE_CHARS]


def _is_control(char: str) -> bool:
    return char != "\n" and unicodedata.category(char) in ("Cc", "Zl", "Zp")


def parse_error(
    body: bytes,
    *,
    status: int = 502,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[str, ...] = (),
    in_stream: bool = False,
) -> UpstreamStatusError:
    """The error that `body` tells of; a body that is no error object gives one that names the status.

    With `in_stream`, `body` is an event's data, whose plain text is the message.
    """
    try:
        document = msgspec.json.decode(body)
    except MALFORMED:
        document = None
    message, code, kind, param = _read(document) if isinstance(document, dict) else (None, None, None, None)
    return UpstreamStatusError(
        clean_message(message or _describe(body, document, in_stream, status), secrets),
        has_message=message is not None,
        status=status,
        code=_clean(code, secrets),
        kind=_clean(kind, secrets),
        param=_clean(param, secrets),
        headers=headers,
    )


def clean_failure(document: bytes, secrets: tuple[str, ...]) -> bytes:
    """A response that failed, or an event with one, without what its error's texts must not say.

    Byte for byte as it came when they say nothing of the kind.
    """
    try:
        whole: Any = msgspec.json.decode(document)
    except MALFORMED:
        return document
    holder = whole.get("response", whole) if isinstance(whole, dict) else None
    error = holder.get("error") if isinstance(holder, dict) else None
    if isinstance(error, str):
        cleaned: Any = clean_message(error, secrets)
    elif isinstance(error, dict):
        cleaned = {
            name: clean_message(value, secrets) if isinstance(value, str) else value
            for name, value in error.items()
        }
    else:
        return document
    if holder is None or cleaned == error:
        return document
    holder["error"] = cleaned
    return msgspec.json.encode(whole)


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


def _describe(body: bytes, document: object, in_stream: bool, status: int) -> str:
    """What to say when there is no message."""
    if not in_stream:
        return f"The upstream API answered with status {status}."
    if document is None and body.strip():
        return body.decode(errors="replace")
    return "The upstream API reported an error."


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _clean(value: str | None, secrets: tuple[str, ...]) -> str | None:
    return None if value is None else clean_message(value, secrets)
