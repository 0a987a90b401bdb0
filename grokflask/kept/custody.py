"""Enforces ownership of what upstream keeps: each key reaches only its own objects.

`check_request` runs before a request is sent: everything that it names must belong to its key.
`filter_reply` runs on the answer: a new object becomes the key's, and lists show only the key's own objects.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from grokflask.errors import (
    MALFORMED,
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

MAX_NAMED = 200
"""Files, and responses, that the body of one request may name: each is a look-up."""

_log = logging.getLogger("grokflask.custody")


class _Item(msgspec.Struct):
    """An object that upstream keeps; its id has one of these names."""

    id: str | None = None
    batch_id: str | None = None
    request_id: str | None = None


_ITEM = msgspec.json.Decoder(_Item)


class Custody:
    """The rules of ownership, applied to requests and their answers."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def check_request(self, key: ApiKey, request: ClientRequest, upstream_request: UpstreamRequest) -> None:
        """Checks that the key owns everything that the request names.

        Raises RouteNotFoundError for other objects, UnmeteredError for routes that its limits cannot meter,
        and StoreUnavailableError if ownership cannot be looked up, or could not be recorded for the answer.
        """
        route = request.route
        if route.unmetered and key.limits.are_metered:
            raise UnmeteredError
        if route.kind and request.item_id is not None:
            self._ownership.check(route.kind, request.item_id, key)
        elif upstream_request.makes not in (None, "response") or route.act == "list":
            # The owner must be stored afterwards, so fail now if the table is unreachable.
            self._ownership.select(upstream_request.makes or "file", (), key)
        if upstream_request.uses:
            self._ownership.check(*upstream_request.uses, key)
        found = upstream_request.found
        self._check_named("file", "file_id", found.files, key)
        if route.kind == "batch":  # elsewhere only the one in `uses` counts
            self._check_named("response", "previous_response_id", found.responses, key)

    def filter_reply(
        self, key: ApiKey, route: Route, makes: Kind | None, item_id: str | None, body: bytes
    ) -> bytes:
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
        """Records the owner of an object that upstream has just made.

        Raises StoreUnavailableError, except for a response: that answer is still useful if it cannot be
        fetched again.
        """
        if kind is None:
            return
        try:
            self._ownership.claim(kind, id, key)
        except StoreUnavailableError:
            if kind != "response":
                raise
            _log.warning("the owner of a response could not be stored", extra={"fields": {"key": key.name}})

    def keep_beside(self, kind: Kind | None, id: str, key: ApiKey) -> None:
        """As `keep`, without waiting for it: a database that is slow or locked must not hold up a stream."""
        threading.Thread(target=self.keep, args=(kind, id, key), name="custody", daemon=True).start()

    def is_first(self, kind: Kind, id: str) -> bool:
        """True if its cost was not booked before. From now on it counts as booked."""
        return self._ownership.note_billed(kind, id)

    def _check_named(self, kind: Kind, param: str, ids: list[str], key: ApiKey) -> None:
        """Raises RouteNotFoundError, which names the first object that is not the key's."""
        if len(ids) > MAX_NAMED:
            raise RouteNotFoundError(f"A request may name {MAX_NAMED} {kind}s.", param=param)
        for id in ids:
            try:
                self._ownership.check(kind, id, key)
            except RouteNotFoundError:
                raise RouteNotFoundError(f"There is no {kind} {id[:64]!r}.", param=param) from None

    def _filter(self, kind: Kind, body: bytes, key: ApiKey) -> bytes:
        """A page with the key's own objects only. Upstream pages, so a page may be empty."""
        try:
            fields = decode_fields(body)
            name = next(name for name in ("data", "batches") if name in fields)
            items = [(read_id(item), item) for item in decode_list(fields[name])]
        except (*MALFORMED, StopIteration):
            raise UpstreamProtocolError from None  # a list that cannot be filtered is not shown
        mine = self._ownership.select(kind, {id for id, _ in items if id is not None}, key)
        left = [(id, item) for id, item in items if id in mine]
        fields[name] = msgspec.Raw(msgspec.json.encode([item for _, item in left]))
        # Without it, OpenAI's SDK would request the same page forever.
        fields.setdefault("has_more", msgspec.Raw(b"false"))
        for edge, place in (("first_id", 0), ("last_id", -1)):
            if edge in fields:
                fields[edge] = msgspec.Raw(msgspec.json.encode(left[place][0] if left else None))
        return msgspec.json.encode(fields)


def read_id(body: bytes | msgspec.Raw) -> str | None:
    """The id of an object of upstream's, under any of its names."""
    try:
        item = _ITEM.decode(body)
    except MALFORMED:
        return None
    return item.batch_id or item.request_id or item.id
