"""A client's request, and the request that goes upstream for it. Values only, no IO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from socket import socket
from typing import Protocol

import msgspec

from grokflask.billing.bill import FREE, Estimate
from grokflask.protocol.routes import Kind, Route
from grokflask.shaping.affinity import HEADER
from grokflask.shaping.tools import Use

FORWARDED_HEADERS = (HEADER,)
"""Request headers that go upstream; all others stay here. This one pins a conversation to the server
that has its prompt cached."""


class Upload(Protocol):
    """A body that may be too large for memory: its size, and its pieces, as often as they are asked for."""

    def __len__(self) -> int:
        """Bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """All of them, in order."""


class ClientRequest(msgspec.Struct, frozen=True):
    """What the client asks.

    Attributes:
        body: the raw body, b"" for a GET; an Upload where the route takes forms.
        media_type: of such a body, as the client said.
        headers: the client's headers of FORWARDED_HEADERS, by those names.
        model_id: from the path of `/models/<model_id>`.
        item_id: from the path, what upstream keeps under it.
        query: the client's query string, those of its names that the route forwards.
        wants_json: errors in a stream take OpenAI's shape, not the guide's.
        client: the client's socket, where the server hands it over.
        bind_leave: is given what to call when the client has left, where that is not told by a socket.
    """

    route: Route
    request_id: str
    body: bytes | Upload = b""
    headers: Mapping[str, str] | None = None
    media_type: str = ""
    model_id: str | None = None
    item_id: str | None = None
    query: str = ""
    wants_json: bool = False
    client: socket | None = None
    bind_leave: Callable[[Callable[[], None]], None] | None = None


class UpstreamRequest(msgspec.Struct, frozen=True):
    """What is asked of upstream.

    Attributes:
        path: below upstream's base URL.
        body: JSON, or a form with a file; None for a GET.
        stream: the answer is relayed as events.
        wants_usage: the client asked for the usage-only event, so it is not withheld.
        fallback: why a request to stream is answered whole, or None.
        dropped: parameters that were left out.
        estimate: what it may cost.
        tools: the tools that it asks for.
        makes: upstream will keep something of this kind, and tell its id.
        uses: what upstream keeps and the body names: only its owner may.
    """

    method: str
    path: str
    body: bytes | Upload | None
    headers: Mapping[str, str]
    model: str = ""
    stream: bool = False
    wants_usage: bool = False
    fallback: str | None = None
    dropped: tuple[str, ...] = ()
    estimate: Estimate = FREE
    tools: Use = ""
    makes: Kind | None = None
    uses: tuple[Kind, str] | None = None
