"""The errors of /openapi.json: a response for each status, in the shapes that clients read. No IO.

The codes are those of the tree in `errors`: a new error is in the document as soon as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from grokflask.errors import (
    ClientGoneError,
    ConfigError,
    GrokflaskError,
    KeyExistsError,
    KeyNotFoundError,
    StreamElsewhereError,
    UpstreamStatusError,
)
from grokflask.protocol.dialects import CHAT, MESSAGES
from grokflask.web.reference.requests import MAYBE_TEXT, OBJECT, TEXT, Schema, make_object, refer, show_events

Shape = Literal["", "Stream", "Messages"]
"""Which errors: OpenAI's object, this or the guide's event (where a request may stream), or Anthropic's."""

SCHEMAS: dict[str, Schema] = {
    "Error": make_object(
        "error",
        error=make_object(
            *("message", "type", "param", "code"),
            message=TEXT,
            type=TEXT | {"description": "OpenAI's family of errors."},
            param=MAYBE_TEXT | {"description": "The field that is at fault."},
            code=MAYBE_TEXT | {"description": "One of the codes in the table above, or xAI's own."},
        ),
    ),
    "ErrorEvent": make_object(
        "error",
        _text="The JSON of an event: `API error: …` to a request that asks for a stream and whose `Accept` "
        "does not name `application/json`, else as in `Error`. On /responses it has a `type` besides.",
        error={"anyOf": [TEXT, OBJECT]},
    ),
    "MessagesError": make_object(
        *("type", "error"),
        type={"const": "error"},
        error=make_object("type", "message", type=TEXT, message=TEXT),
    ),
}

_UNSEEN = (ConfigError, ClientGoneError, UpstreamStatusError)
"""Who starts it reads the first, nobody the second; the third has upstream's own status and code."""

_ADMINS = (KeyExistsError, KeyNotFoundError, StreamElsewhereError)
"""Not told on routes that stream, which all are clients'."""

_ON_ALL = (
    *("X-Request-ID", "X-Stream-Fallback", "X-Params-Dropped", "X-RateLimit-Limit", "X-RateLimit-Remaining"),
    *("X-RateLimit-Reset", "X-RateLimit-Limit-Tokens", "X-RateLimit-Remaining-Tokens"),
)
_HEADERS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    409: ("Retry-After",),
    429: ("Retry-After", "x-should-retry"),
    503: ("Retry-After", "x-should-retry"),
}


def list_errors() -> dict[int, list[type[GrokflaskError]]]:
    """The errors that a client may see, by status; of several with one code the general one."""
    found: dict[int, dict[str, type[GrokflaskError]]] = {}
    for kind in _walk(GrokflaskError):
        found.setdefault(kind.status, {}).setdefault(kind.code, kind)
    return {status: list(kinds.values()) for status, kinds in sorted(found.items())}


def _walk(kind: type[GrokflaskError]) -> Iterator[type[GrokflaskError]]:
    if kind not in _UNSEEN:
        yield kind
    for each in kind.__subclasses__():
        yield from _walk(each)


def name_response(status: int | str, shape: Shape) -> str:
    """What the response of a status is called."""
    return f"{shape}Error{status}"


def build_responses() -> dict[str, dict[str, Any]]:
    """A response for each status in each shape, and one of upstream's own in each."""
    shapes: tuple[Shape, ...] = ("", "Stream", "Messages")
    responses = {
        name_response(status, shape): _build(status, kinds, shape)
        for status, kinds in list_errors().items()
        for shape in shapes
    }
    text = "xAI's own status and message, without what is said there of the operator's account."
    upstream = {
        "description": text,
        "headers": _refer_headers(*_ON_ALL, "X-Upstream-Request-ID", "Retry-After"),
    }
    for shape in shapes:
        responses[name_response("Upstream", shape)] = {**upstream, "content": _show([], shape)}
    return responses


def _build(status: int, kinds: list[type[GrokflaskError]], shape: Shape) -> dict[str, Any]:
    if shape:
        kinds = [kind for kind in kinds if kind not in _ADMINS]
    text = "; ".join(f"`{kind.code}`: {kind.default_message}" for kind in kinds)
    names = (*_ON_ALL, *_HEADERS.get(status, ()))
    return {"description": text, "headers": _refer_headers(*names), "content": _show(kinds, shape)}


def _show(kinds: list[type[GrokflaskError]], shape: Shape) -> dict[str, Any]:
    """The content types of an error, with an example of each code."""
    dialect = MESSAGES if shape == "Messages" else CHAT
    examples = {kind.code: {"value": json.loads(dialect.render_json(kind()))} for kind in kinds}
    schema = refer("MessagesError" if shape == "Messages" else "Error")
    content: dict[str, Any] = {"application/json": {"schema": schema, "examples": examples}}
    if shape == "Stream":
        content["text/event-stream"] = show_events("ErrorEvent")
    return content


def _refer_headers(*names: str) -> dict[str, Schema]:
    return {name: refer(name, "headers") for name in names}


def describe_codes() -> str:
    """The table of all codes, in Markdown."""
    rows = [
        f"| {status} | `{kind.code}` | {kind.default_message} |"
        for status, kinds in list_errors().items()
        for kind in kinds
    ]
    return "\n".join(["| status | code | what it says |", "| --- | --- | --- |", *rows])
