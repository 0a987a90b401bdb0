"""The gateway's answers, whole or as events. Values only, no IO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from grokflask.delivery.spool import Spool


class Reply(msgspec.Struct, frozen=True):
    """A whole answer, byte for byte as upstream sent it unless the route rewrites it.

    Attributes:
        body: JSON, or a file's content. The receiver of a Spool closes it.
    """

    status: int
    body: bytes | Spool
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    media_type: str = "application/json"


class Events(Protocol):
    """The bytes of a stream for one client."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Ends the stream at any point. Idempotent."""


class StreamReply(msgspec.Struct, frozen=True):
    """An answer as events: iterate `relay` for its bytes, and always close it."""

    relay: Events
    headers: dict[str, str] = msgspec.field(default_factory=dict)
