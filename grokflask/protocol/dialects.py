"""The APIs that xAI's routes speak: how to read an answer, and how to render an error. No IO.

A route's row names its dialect; relay, limits and ledger are the same for all. A dialect finds the end of a
stream and the usage, model and errors in it, reads the same in whole replies, and renders errors for clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

import msgspec

from grokflask.errors import GrokflaskError, render_event, render_json
from grokflask.protocol.chat_events import EventFilter
from grokflask.protocol.typed_events import MessagesFilter, ResponsesFilter
from grokflask.protocol.usage import Chunk, TypedReply, read_chunk, read_reply


class _RenderEvent(Protocol):
    def __call__(self, error: GrokflaskError, *, as_json: bool, number: int) -> bytes:
        """An error as one event; `number` is its place in the stream."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API."""

    make_filter: type[EventFilter]
    """The filter for the events of one stream."""
    read_reply: Callable[[bytes | mmap], Chunk | TypedReply | None]
    """Reads a whole reply; None when it is not a JSON object."""
    render_json: Callable[[GrokflaskError], bytes]
    """An error as the body of a response."""
    render_event: _RenderEvent
    """An error inside a stream."""
    errors_as_events: bool = True
    """Clients whose Accept does not name JSON get an event even for an error before the stream."""


def _render_chat_event(error: GrokflaskError, *, as_json: bool, number: int) -> bytes:
    return render_event(error, as_json=as_json)


def _render_response_event(error: GrokflaskError, *, as_json: bool, number: int) -> bytes:
    """Either of the two shapes, inside this API's event of type `error`.

    OpenAI's SDK raises the value of `error`; Vercel's, and clients that go by types, read the rest.
    """
    shape = error.to_fields() if as_json else f"API error: {error.message}"
    event = {"type": "error", "sequence_number": number, "error": shape}
    event |= {"code": error.code, "message": error.message, "param": error.param}
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


_MESSAGES_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Anthropic's error types, by status (platform.claude.com, API errors)."""


def _render_messages_json(error: GrokflaskError) -> bytes:
    """Anthropic's object: `{"type": "error", "error": {"type", "message"}}`."""
    kind = _MESSAGES_TYPES.get(error.status)
    if kind is None and error.type in _MESSAGES_TYPES.values():  # upstream's own type
        kind = error.type
    kind = kind or ("api_error" if error.status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


def _render_messages_event(error: GrokflaskError, *, as_json: bool, number: int) -> bytes:
    return b"event: error\ndata: " + _render_messages_json(error) + b"\n\n"


CHAT = Dialect(EventFilter, read_chunk, render_json, _render_chat_event)
RESPONSES = Dialect(ResponsesFilter, read_reply, render_json, _render_response_event)
MESSAGES = Dialect(
    MessagesFilter, read_reply, _render_messages_json, _render_messages_event, errors_as_events=False
)
