"""A client's request, and the request that goes upstream for it. Values only, no IO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from socket import socket
from typing import Protocol

import msgspec

from grokflask.billing.bill import FREE, Estimate
from grokflask.protocol.routes import Kind, Route
from grokflask.shaping.affinity import CONVERSATION_HEADER
from grokflask.shaping.scan import NOTHING, Findings
from grokflask.shaping.tools import Use

FORWARDED_HEADERS = (CONVERSATION_HEADER,)
"""Request headers that go upstream. No others do."""


class Upload(Protocol):
    """A body that may be too large for memory. It can be read more than once."""

    def __len__(self) -> int:
        """Its size in bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Its bytes, in pieces."""


class ClientRequest(msgspec.Struct, frozen=True):
    """A client's request."""

    route: Route
    request_id: str
    body: bytes | Upload = b""
    """b"" for a GET; an Upload where the route takes a form."""
    headers: Mapping[str, str] | None = None
    """The client's FORWARDED_HEADERS, spelt as there."""
    media_type: str = ""
    """The Content-Type of an Upload."""
    model_id: str | None = None
    item_id: str | None = None
    """The variables of the route's path."""
    query: str = ""
    """The part of the query string that the route forwards."""
    wants_json: bool = False
    """Errors in a stream have OpenAI's shape, not the guide's."""
    once: bool = False
    """The client has sent an Idempotency-Key: upstream must never run the request twice."""
    client: socket | None = None
    """The client's socket, where the server has one."""
    bind_leave: Callable[[Callable[[], None]], None] | None = None
    """Without a socket: takes a callback for when the client has left."""


class UpstreamRequest(msgspec.Struct, frozen=True):
    """A request to upstream."""

    method: str
    path: str
    """Below upstream's base URL."""
    body: bytes | Upload | None
    """JSON, or a form with a file; None for a GET."""
    headers: Mapping[str, str]
    model: str = ""
    stream: bool = False
    """The answer is relayed as events."""
    wants_usage: bool = False
    """The client asked for the usage-only event, so it is passed on."""
    fallback: str | None = None
    """Why a request for a stream gets a whole answer."""
    dropped: tuple[str, ...] = ()
    """Names of parameters that were removed."""
    estimate: Estimate = FREE
    tools: Use = ""
    """The tools that it asks for, if its key has a limit on them."""
    makes: Kind | None = None
    """The kind of object that upstream will create, and whose id it returns."""
    uses: tuple[Kind, str] | None = None
    """An object that the body names. Only its owner may use it."""
    found: Findings = NOTHING
    """What else the body names."""
