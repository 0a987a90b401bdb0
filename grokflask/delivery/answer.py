"""What the gateway gives back: an answer, whole or as events. Values, without meaning or IO of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from grokflask.delivery.spool import Spool


class Reply(msgspec.Struct, frozen=True):
    """An answer given whole, byte for byte as upstream sent it unless its route says otherwise.

    Attributes:
        body: JSON, or a file's content. Whoever is given a Spool closes it.
        media_type: what it is, where that is not JSON.
    """

    status: int
    body: bytes | Spool
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    media_type: str = "application/json"


class Events(Protocol):
    """The bytes of a stream, on their way to one client."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Ends it wherever it is. Idempotent."""


class StreamReply(msgspec.Struct, frozen=True):
    """An answer given as events: iterate `relay` for its bytes, and close it whatever happens."""

    relay: Events
    headers: dict[str, str] = msgspec.field(default_factory=dict)
