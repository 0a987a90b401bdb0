"""Conversation ids, by which xAI finds the server that has a conversation's prompt cached. No IO.

xAI caches prompts per server, charges less for cached tokens, and sends requests with the same conversation
id to the same server. A request without an id gets one, derived from the caller and from the conversation's
head: its system prompts and the user's first message, which are the same in every turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import msgspec

from grokflask.config import Settings
from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import RawFields, is_empty
from grokflask.runtime import step_aside

CONVERSATION_HEADER = "x-grok-conv-id"
CONVERSATION_FIELD = "prompt_cache_key"
"""The id's place in chat and Messages, and in Responses."""

MAX_TURNS = 8
"""The user's first message is looked for in this many."""

MAX_PIECE_BYTES = 64 * 1024
"""Bytes of each text or picture that are hashed. Conversations that differ only later share a server, which
does no harm."""

_ABSENT = msgspec.Raw(b"")


class _Turn(msgspec.Struct):
    """A message, or an item of a Responses input."""

    role: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT


# An array with MAX_TURNS fields: later messages are skipped without being decoded.
_FIRST = msgspec.json.Decoder(
    msgspec.defstruct(
        "_First", [(f"turn_{number}", _Turn | None, None) for number in range(MAX_TURNS)], array_like=True
    )
)
_PARTS: msgspec.json.Decoder[list[RawFields]] = msgspec.json.Decoder(list[RawFields])


def make_salt(settings: Settings) -> bytes:
    """A secret for deriving ids, without which they could be used to guess prompts.

    It is the same in all processes with these settings; b"" when they turn ids off.
    """
    if not settings.cache_affinity:
        return b""
    return hashlib.blake2b("\n".join((settings.database_url, *settings.secrets)).encode()).digest()


def pin(headers: MutableMapping[str, str], fields: RawFields, caller: bytes, *, by_field: bool) -> None:
    """Adds the id of the conversation in `fields`, unless the client sent one.

    It goes into the headers or, with `by_field`, into the body. `caller` is unique to the key.
    """
    if headers.get(CONVERSATION_HEADER) or (by_field and not is_empty(fields.get(CONVERSATION_FIELD))):
        return
    if not is_empty(fields.get("previous_response_id")):
        return  # upstream has the head, and knows its server
    id = derive_id(fields, caller)
    if id is None:
        return
    if by_field:
        fields[CONVERSATION_FIELD] = msgspec.Raw(b'"%s"' % id.encode())
    else:
        headers[CONVERSATION_HEADER] = id


def derive_id(fields: RawFields, caller: bytes) -> str | None:
    """An id of 32 hex digits; None when no conversation can be read, which upstream then refuses."""
    pieces = [caller]
    try:
        for name in ("system", "instructions"):
            if name in fields:
                pieces += _read_content(fields[name])
        pieces += _read_head(fields.get("messages") or fields.get("input") or _ABSENT)
    except MALFORMED:
        return None
    return hashlib.blake2b(b"\0".join(pieces), digest_size=16).hexdigest()


def _read_head(turns: msgspec.Raw) -> Iterator[bytes]:
    """Roles and contents, up to and with the user's first message. Raises MALFORMED."""
    if bytes(memoryview(turns)[:1]) == b'"':
        yield from (b'"user"', *_read_content(turns))
        return
    first: Any = _FIRST.decode(turns)
    step_aside(memoryview(turns).nbytes)
    for turn in msgspec.structs.astuple(first):
        if turn is None:
            return
        role = bytes(turn.role)
        yield role
        yield from _read_content(turn.content)
        if role == b'"user"':
            return


def _read_content(content: msgspec.Raw) -> list[bytes]:
    """The text or parts of a message, without `cache_control`, which changes from turn to turn."""
    view = memoryview(content)
    if bytes(view[:1]) != b"[" or len(view) > MAX_PIECE_BYTES:
        return [bytes(view[:MAX_PIECE_BYTES])]
    pieces = []
    for part in _PARTS.decode(content):
        text = part.get("text")
        part.pop("cache_control", None)
        pieces += [bytes(text)] if text is not None else [bytes(part[name]) for name in sorted(part)]
    return pieces
