"""Which conversation a request belongs to, for xAI to send its turns to the server that has its beginning.

xAI keeps what it has read of a prompt on the server that read it, and charges less for what it finds there;
requests of one conversation id go to one server. A client that sends none gets one that is derived from
the caller and from the conversation's head: its system prompts and the first message of the user's, which
are the same in every turn. No IO.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import msgspec

from grokflask.config import Settings
from grokflask.errors import MALFORMED
from grokflask.shaping.dropped_params import Fields, is_empty

HEADER = "x-grok-conv-id"
FIELD = "prompt_cache_key"
"""How chat and Messages say it, and how Responses do."""

MAX_TURNS = 8
"""So many messages at the beginning are looked at for the first of the user's."""

MAX_PIECE_BYTES = 64 * 1024
"""So much of each text or picture is hashed: what differs only later is sent to one server, without harm."""

_NONE = msgspec.Raw(b"")


class _Turn(msgspec.Struct):
    """A message, or an item of a Responses input."""

    role: msgspec.Raw = _NONE
    content: msgspec.Raw = _NONE


# As an array of so many, what comes after them is skipped and nothing of it is made.
_FIRST = msgspec.json.Decoder(
    msgspec.defstruct(
        "_First", [(f"turn_{number}", _Turn | None, None) for number in range(MAX_TURNS)], array_like=True
    )
)
_PARTS: msgspec.json.Decoder[list[dict[str, msgspec.Raw]]] = msgspec.json.Decoder(
    list[dict[str, msgspec.Raw]]
)


def make_salt(settings: Settings) -> bytes:
    """What makes ids of this gateway's own, so that nobody finds out by trying what they were made of.

    The same in all processes with these settings. b"" when ids are not to be derived.
    """
    if not settings.cache_affinity:
        return b""
    return hashlib.blake2b("\n".join((settings.database_url, *settings.secrets)).encode()).digest()


def pin(headers: MutableMapping[str, str], fields: Fields, caller: bytes, *, by_field: bool) -> None:
    """Adds the id of the conversation in `fields`, unless the client has named it: its own one is left alone.

    The id goes into the headers, or `by_field` into the body; `caller` is what no other key has.
    """
    if headers.get(HEADER) or (by_field and not is_empty(fields.get(FIELD))):
        return
    if not is_empty(fields.get("previous_response_id")):
        return  # its head is upstream's, which knows where it has put it
    id = derive_id(fields, caller)
    if id is None:
        return
    if by_field:
        fields[FIELD] = msgspec.Raw(b'"%s"' % id.encode())
    else:
        headers[HEADER] = id


def derive_id(fields: Fields, caller: bytes) -> str | None:
    """32 hex digits; None where there is no conversation to be seen, which is for upstream to refuse."""
    pieces = [caller]
    try:
        for name in ("system", "instructions"):
            if name in fields:
                pieces += _read_content(fields[name])
        pieces += _read_head(fields.get("messages") or fields.get("input") or _NONE)
    except MALFORMED:
        return None
    return hashlib.blake2b(b"\0".join(pieces), digest_size=16).hexdigest()


def _read_head(turns: msgspec.Raw) -> Iterator[bytes]:
    """Roles and contents up to the user's first message. Raises MALFORMED."""
    if bytes(memoryview(turns)[:1]) == b'"':
        yield from (b'"user"', *_read_content(turns))
        return
    first: Any = _FIRST.decode(turns)
    for turn in msgspec.structs.astuple(first):
        if turn is None:
            return
        role = bytes(turn.role)
        yield role
        yield from _read_content(turn.content)
        if role == b'"user"':
            return


def _read_content(content: msgspec.Raw) -> list[bytes]:
    """A text, or what its parts say, but for the mark of where to cache, which moves from turn to turn."""
    view = memoryview(content)
    if bytes(view[:1]) != b"[" or len(view) > MAX_PIECE_BYTES:
        return [bytes(view[:MAX_PIECE_BYTES])]
    pieces = []
    for part in _PARTS.decode(content):
        text = part.get("text")
        part.pop("cache_control", None)
        pieces += [bytes(text)] if text is not None else [bytes(part[name]) for name in sorted(part)]
    return pieces
