"""Reading the fields of a JSON body, each with an error that names it. No IO."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from grokflask.errors import MALFORMED, InvalidRequestError
from grokflask.protocol.raw_json import NULL, RawFields, decode_fields
from grokflask.runtime import step_aside, take_turns
from grokflask.shaping.scan import check_names

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Expected(Generic[T]):
    """What a field must be: its decoder, and how an error describes it."""

    decoder: msgspec.json.Decoder[T]
    description: str


TEXT: Expected[str | None] = Expected(msgspec.json.Decoder(str | None), "a string")
FLAG: Expected[bool | None] = Expected(msgspec.json.Decoder(bool | None), "true or false")
OBJECT: Expected[RawFields | None] = Expected(msgspec.json.Decoder(RawFields | None), "an object")
LIST: Expected[list[msgspec.Raw] | None] = Expected(msgspec.json.Decoder(list[msgspec.Raw] | None), "a list")

_COUNT: msgspec.json.Decoder[int | None] = msgspec.json.Decoder(int | None)


def read_fields(body: bytes, *, check_duplicates: bool = False) -> RawFields:
    """The top level of a JSON object. Raises InvalidRequestError."""
    if not body or body.isspace():
        raise InvalidRequestError("The request has no body; it must be a JSON object.")
    try:
        if not body.isascii():
            check = getincrementaldecoder("utf-8")()
            for piece in take_turns(body):  # what lies below the top level is not decoded
                check.decode(piece)
            check.decode(b"", final=True)
        fields = decode_fields(body)
    except msgspec.ValidationError:
        raise InvalidRequestError("The body is JSON, but not an object.") from None
    except MALFORMED as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if check_duplicates:
        check_names(body, fields)
    step_aside(len(body))
    return fields


def read_field(fields: RawFields, name: str, expected: Expected[T]) -> T:
    """The field `name`; a missing one counts as null. Raises InvalidRequestError."""
    try:
        return expected.decoder.decode(fields.get(name, NULL))
    except MALFORMED:
        raise InvalidRequestError(f"{name!r} must be {expected.description}.", param=name) from None


def read_count(fields: RawFields, *names: str) -> int | None:
    """The first of these fields that is a number, 0 or more. Upstream reports what is wrong with others."""
    for name in names:
        try:
            count = _COUNT.decode(fields.get(name, NULL))
        except MALFORMED:
            continue
        if count is not None and count >= 0:
            return count
    return None


def drop(fields: RawFields, names: Iterable[str]) -> tuple[str, ...]:
    """Removes the fields with these names; returns the names of those that there were."""
    dropped = [name for name in names if name in fields]
    for name in dropped:
        del fields[name]
    return tuple(dropped)
