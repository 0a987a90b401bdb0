"""The errors in /openapi.json: one response per status, in each of the shapes that clients read. No IO.

They come from the classes in `grokflask.errors`, so that a new error is documented as soon as it exists.
"""

from __future__ import annotations

import json
from typing import Any

from grokflask.errors import ClientGoneError, ConfigError, GrokflaskError, UpstreamStatusError, render_json
from grokflask.web.reference.schemas import MAYBE_TEXT, OBJECT, TEXT, Schema, describe, make_answer, refer

_CODE = describe(MAYBE_TEXT, "One of the codes listed above, or xAI's own.")
_PARAM = describe(MAYBE_TEXT, "The request field that caused it.")
_TYPE = describe(TEXT, "OpenAI's type of the error.")

SCHEMAS: dict[str, Schema] = {
    "Error": make_answer(error=make_answer(message=TEXT, type=_TYPE, param=_PARAM, code=_CODE)),
    "ErrorEvent": describe(
        make_answer(error={"anyOf": [TEXT, OBJECT]}),
        "`error` is the object of `Error` if the request's Accept header names application/json, "
        "otherwise the text `API error: …`. On /responses the event also has a `type`.",
    ),
    "MessagesError": make_answer(type={"const": "error"}, error=make_answer(type=TEXT, message=TEXT)),
}

_NEVER_SENT = (ConfigError, ClientGoneError, UpstreamStatusError)
"""The gateway does not start, the client has left, or xAI's own status and code are passed on."""

_HEADERS = {
    401: ["WWW-Authenticate"],
    405: ["Allow"],
    409: ["Retry-After"],
    429: ["Retry-After", "x-should-retry"],
    503: ["Retry-After", "x-should-retry"],
    507: ["x-should-retry"],
    "default": ["X-Upstream-Request-ID", "Retry-After"],
}


def list_errors() -> dict[int, dict[str, type[GrokflaskError]]]:
    """The errors that clients may see, by status and code. Of classes with the same code, the base class."""
    errors: dict[int, dict[str, type[GrokflaskError]]] = {}
    kinds = [GrokflaskError]
    for kind in kinds:  # which grows by the subclasses of each
        kinds += kind.__subclasses__()
        if kind not in _NEVER_SENT:
            errors.setdefault(kind.status, {}).setdefault(kind.code, kind)
    return dict(sorted(errors.items()))


def build_responses(headers: list[str]) -> dict[str, dict[str, Any]]:
    """The responses `Error429`, `StreamError429`, `MessagesError429` and so on; all have `headers`."""
    responses: dict[str, dict[str, Any]] = {}
    passed_on = "xAI's own status and message, without details of the operator's account."
    for status, kinds in (*list_errors().items(), ("default", {})):
        text = "; ".join(f"`{code}`: {kind.default_message}" for code, kind in kinds.items()) or passed_on
        examples = {code: {"value": json.loads(render_json(kind()))} for code, kind in kinds.items()}
        content: dict[str, Any] = {"application/json": {"schema": refer("Error"), "examples": examples}}
        names = [*headers, *_HEADERS.get(status, [])]
        response = {"description": text, "headers": {name: refer(name, "headers") for name in names}}
        events = {"schema": TEXT, "x-event-schema": refer("ErrorEvent")}
        responses[f"Error{status}"] = response | {"content": content}
        responses[f"StreamError{status}"] = response | {"content": content | {"text/event-stream": events}}
        content = {"application/json": {"schema": refer("MessagesError")}}
        responses[f"MessagesError{status}"] = response | {"content": content}
    return responses


def list_codes() -> str:
    """All codes as a table in Markdown."""
    rows = [
        f"| {status} | `{code}` | {kind.default_message} |"
        for status, kinds in list_errors().items()
        for code, kind in kinds.items()
    ]
    return "\n".join(["| status | code | message |", "| --- | --- | --- |", *rows])
