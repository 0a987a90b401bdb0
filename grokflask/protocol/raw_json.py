"""JSON that is parsed at its top level only: everything below stays the bytes that came. No IO."""

from __future__ import annotations

import msgspec

from grokflask.errors import MALFORMED

RawFields = dict[str, msgspec.Raw]
"""The fields of an object, by name."""

NULL = msgspec.Raw(b"null")

# Decoders are made once: that takes longer than decoding. All of them raise MALFORMED.
decode_fields = msgspec.json.Decoder(RawFields).decode
decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


def read_text(raw: msgspec.Raw) -> str | None:
    """The string in `raw`; None when it is anything else."""
    try:
        return _TEXT.decode(raw)
    except MALFORMED:
        return None


def is_empty(raw: msgspec.Raw | None) -> bool:
    """Absent, null, or an empty list."""
    return raw is None or (
        memoryview(raw).nbytes < 4096 and bytes(raw).translate(None, b" \t\r\n") in (b"null", b"[]")
    )
