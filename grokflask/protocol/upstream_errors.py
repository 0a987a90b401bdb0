"""Upstream's error bodies: bytes in, `UpstreamStatusError` out. No IO.

xAI sends a flat `{"code": "...", "error": "..."}`. OpenAI's nested `{"error": {"message", ...}}` and any
other shape are read as well. Messages quote the operator's team, key ids and sometimes the key itself:
`clean_message` removes them before a client sees them. Wherever else an answer quotes the key, its bytes are
replaced by REDACTED.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from mmap import mmap
from typing import Any

import msgspec

from grokflask.errors import MALFORMED, UpstreamStatusError
from grokflask.protocol.raw_json import NULL

MAX_MESSAGE_CHARS = 2000
MAX_PARSED_BYTES = 256 * 1024
"""In a larger document only its `error` is read, and a larger error is not read and not passed on."""
MIN_SECRET_CHARS = 6
REDACTED = b"[redacted]"

_SECRETS = re.compile(
    # The id of a team or key.
    r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|\b[0-9a-fA-F]{32}\b"
    # A key, whole or masked as xAI quotes it back: two characters, stars, two characters.
    r"|(?<![A-Za-z])xai-[A-Za-z0-9_-]{4,}"
    r"|\bsk-[A-Za-z0-9_-]{8,}"
    r"|[A-Za-z0-9_-]{0,8}\*{3,}[A-Za-z0-9_-]{0,8}"
)
_CONTROLS = ("Cc", "Zl", "Zp")
_BEARER = re.compile(r"(?i)(bearer\s+)[^\s\"']+")  # quoted back from a header


class _Failure(msgspec.Struct):
    error: msgspec.Raw = NULL
    response: msgspec.Raw = NULL


_FAILURE = msgspec.json.Decoder(_Failure)


def clean_message(message: str, secrets: tuple[str, ...] = ()) -> str:
    """`message` without the operator's ids, keys and `secrets`; control characters become spaces."""
    message = message[: 8 * MAX_MESSAGE_CHARS]
    for secret in secrets:
        if len(secret) >= MIN_SECRET_CHARS:  # a shorter one may be a common word
            message = message.replace(secret, "[redacted]")
    message = _SECRETS.sub("[redacted]", message)
    message = _BEARER.sub(r"\1[redacted]", message)
    cleaned = (" " if unicodedata.category(char) in _CONTROLS and char != "\n" else char for char in message)
    return "".join(cleaned)[:MAX_MESSAGE_CHARS]


def encode_secrets(secrets: tuple[str, ...]) -> tuple[bytes, ...]:
    """The secrets to look for in an answer's bytes."""
    return tuple(text.encode(errors="replace") for text in secrets if len(text) >= MIN_SECRET_CHARS)


def parse_error(
    body: bytes | mmap,
    *,
    status: int = 502,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[str, ...] = (),
    in_stream: bool = False,
) -> UpstreamStatusError:
    """The error in `body`. If it is not an error object, the message names the status.

    With `in_stream`, `body` is an event's data; if it is plain text, that is the message.
    """
    if len(body) > MAX_PARSED_BYTES:
        error = _find_error(body)
        body = b'{"error":%b}' % error if memoryview(error).nbytes <= MAX_PARSED_BYTES else b"{}"
    try:
        document = msgspec.json.decode(body)
    except MALFORMED:
        document = None
    message, code, kind, param = _read(document) if isinstance(document, dict) else (None, None, None, None)
    return UpstreamStatusError(
        clean_message(message or _describe(body, document, in_stream, status), secrets),
        has_message=message is not None,
        status=status,
        code=code and clean_message(code, secrets),
        kind=kind and clean_message(kind, secrets),
        param=param and clean_message(param, secrets),
        headers=headers,
    )


def clean_failure(document: bytes, secrets: tuple[str, ...]) -> bytes:
    """A failed response, or an event with one, with its error's texts cleaned as by `clean_message`.

    Returned byte for byte when there is nothing to clean.
    """
    found = bytes(_find_error(document))
    try:
        error: Any = msgspec.json.decode(found) if len(found) <= MAX_PARSED_BYTES else {}
    except MALFORMED:
        return document
    if isinstance(error, str):
        cleaned: Any = clean_message(error, secrets)
    elif isinstance(error, dict):
        cleaned = {
            name: clean_message(value, secrets) if isinstance(value, str) else value
            for name, value in error.items()
        }
    else:
        return document
    if cleaned == error and error:
        return document
    return document.replace(found, msgspec.json.encode(cleaned))


def _find_error(document: bytes | mmap) -> msgspec.Raw:
    """The `error` of a document, or of the response in it, as it came; null when there is none.

    Nothing else of it becomes an object: a large answer would be millions.
    """
    try:
        failure = _FAILURE.decode(document)
        if memoryview(failure.response).nbytes != 4:  # null
            failure = _FAILURE.decode(failure.response)
    except MALFORMED:
        return NULL
    return failure.error


def _read(document: dict[str, Any]) -> tuple[str | None, str | None, str | None, str | None]:
    """Message, code, type and param of either shape; None for those that are missing."""
    inner = document.get("error")
    if isinstance(inner, dict):
        fields = inner
        message = inner.get("message")
    else:
        fields = document
        message = inner if inner is not None else document.get("message", document.get("detail"))
    if message is not None and not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    code, kind, param = (fields.get(name) for name in ("code", "type", "param"))
    return (
        message,
        None if code is None else str(code),
        kind if isinstance(kind, str) and fields is not document else None,
        param if isinstance(param, str) else None,
    )


def _describe(body: bytes | mmap, document: object, in_stream: bool, status: int) -> str:
    """The message of an error that has none."""
    if not in_stream:
        return f"The upstream API answered with status {status}."
    if document is None and bytes(body).strip():
        return bytes(body).decode(errors="replace")
    return "The upstream API reported an error."
