"""What upstream keeps for this gateway's clients, each of whom gets at their own alone.

`enter` is before a request goes up: what it names must be its key's. `leave` is after the answer has come:
what it gives out becomes its key's, and of a list only the key's own is shown.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec

from grokflask.errors import (
    MALFORMED,
    InvalidRequestError,
    RouteNotFoundError,
    StoreUnavailableError,
    UnmeteredError,
    UpstreamProtocolError,
)
from grokflask.kept.ownership import Ownership
from grokflask.keys.ring import ApiKey
from grokflask.protocol.raw_json import decode_fields, decode_list
from grokflask.protocol.routes import Kind, Route
from grokflask.shaping.request import ClientRequest, UpstreamRequest

MAX_FILES = 200
"""Files that one request may name."""

_log = logging.getLogger("grokflask.custody")


# Letters of which a field's name may be put together so that it cannot be seen. No honest client does that.
_HIDDEN = re.compile(rb"\\u00(?:5f|6[4569c])", re.IGNORECASE)
_FILE_FIELD = re.compile(r"(?:.*_)?file_ids?")


class _Item(msgspec.Struct):
    """Something that upstream keeps, by the name that its id has there."""

    id: str | None = None
    batch_id: str | None = None
    request_id: str | None = None


_ITEM = msgspec.json.Decoder(_Item)


class Custody:
    """The rules of ownership, applied to requests and their answers."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def enter(self, key: ApiKey, request: ClientRequest, asked: UpstreamRequest) -> None:
        """The key may ask for all that the request names.

        Raises RouteNotFoundError for what is not its own, UnmeteredError for what its limits could not hold,
        and StoreUnavailableError where that, or whose the answer is, could not be noted.
        """
        route = request.route
        if route.unmetered and key.limits.are_metered:
            raise UnmeteredError
        if route.kind and request.item_id is not None:
            self._ownership.check(route.kind, request.item_id, key)
        elif asked.makes not in (None, "response") or route.act == "list":
            self._ownership.select(asked.makes or "file", (), key)  # is the table there?
        if asked.uses:
            self._ownership.check(*asked.uses, key)
        if isinstance(asked.body, bytes) and _may_name_files(asked.body):
            for id in list_files(asked.body):
                self._check_file(id, key)

    def leave(self, key: ApiKey, route: Route, makes: Kind | None, item_id: str | None, body: bytes) -> bytes:
        """The answer as the key may see it. Raises StoreUnavailableError."""
        if makes:
            id = read_id(body)
            if id is not None:
                self.keep(makes, id, key)
        elif route.kind and route.act == "list":
            return self._filter(route.kind, body, key)
        elif route.kind and route.act == "delete" and item_id is not None:
            self._ownership.forget(route.kind, item_id)
        return body

    def keep(self, kind: Kind | None, id: str, key: ApiKey) -> None:
        """What upstream has just given out is its key's, if it is kept there as something.

        Raises StoreUnavailableError where an id is all there is; an answer that was made is worth giving out
        though it cannot be fetched again.
        """
        if kind is None:
            return
        try:
            self._ownership.claim(kind, id, key)
        except StoreUnavailableError:
            if kind != "response":
                raise
            _log.warning("an id is nobody's", extra={"fields": {"key": key.name}})

    def is_first(self, kind: Kind, id: str) -> bool:
        """Its cost has not been booked yet; from now on it has."""
        return self._ownership.note_billed(kind, id)

    def _check_file(self, id: str, key: ApiKey) -> None:
        try:
            self._ownership.check("file", id, key)
        except RouteNotFoundError:
            raise RouteNotFoundError(f"There is no file {id[:64]!r}.", param="file_id") from None

    def _filter(self, kind: Kind, body: bytes, key: ApiKey) -> bytes:
        """A page without what is others'. Where it goes on is upstream's to say: a page may come empty."""
        try:
            fields = decode_fields(body)
            name = next(name for name in ("data", "batches") if name in fields)
            items = [(read_id(item), item) for item in decode_list(fields[name])]
        except (*MALFORMED, StopIteration):
            raise UpstreamProtocolError from None  # what cannot be looked through is not shown
        mine = self._ownership.select(kind, {id for id, _ in items if id is not None}, key)
        left = [(id, item) for id, item in items if id in mine]
        fields[name] = msgspec.Raw(msgspec.json.encode([item for _, item in left]))
        # OpenAI's SDK takes a list without it for endless, and would ask for the same page again and again.
        fields.setdefault("has_more", msgspec.Raw(b"false"))
        for edge, place in (("first_id", 0), ("last_id", -1)):
            if edge in fields:
                fields[edge] = msgspec.Raw(msgspec.json.encode(left[place][0] if left else None))
        return msgspec.json.encode(fields)


def read_id(body: bytes | msgspec.Raw) -> str | None:
    """The id that an object of upstream's has, under any of its names."""
    try:
        item = _ITEM.decode(body)
    except MALFORMED:
        return None
    return item.batch_id or item.request_id or item.id


def _may_name_files(body: bytes) -> bool:
    """Found out by looks that cost nothing, for a body may have megabytes."""
    return b"file_id" in body or (b"\\u00" in body and _HIDDEN.search(body) is not None)


def list_files(body: bytes) -> list[str]:
    """The files that a JSON body names anywhere in it.

    Raises InvalidRequestError where that cannot be told (half a surrogate pair, say), for upstream might read
    it otherwise, and RouteNotFoundError where these are too many.
    """
    try:
        waiting: list[Any] = [msgspec.json.decode(body)]
    except MALFORMED as error:
        raise InvalidRequestError(f"The body cannot be read: {error}.") from None
    found: list[str] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if _FILE_FIELD.fullmatch(name):
                    found += [
                        id for id in (inner if isinstance(inner, list) else [inner]) if isinstance(id, str)
                    ]
                waiting.append(inner)  # a function may have a parameter of this name, which is an object
    if len(found) > MAX_FILES:
        raise RouteNotFoundError(f"A request may name {MAX_FILES} files.", param="file_id")
    return found
