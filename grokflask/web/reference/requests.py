"""The schemas of /openapi.json: of what they are made, and those of requests. Data, no IO.

Of requests these are the fields that the gateway itself looks at; all others pass through to xAI, which says
what they are.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
BOOL: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
FLAG: Schema = {"type": ["boolean", "null"]}
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
ITEMS: Schema = {"type": "array", "items": OBJECT}
WHEN: Schema = {"type": "string", "format": "date-time"}
MAYBE_WHEN: Schema = {"type": ["string", "null"], "format": "date-time"}
SECRET_HINT = MAYBE_TEXT | {"description": "The end of the secret, to tell secrets apart."}


def refer(name: str, kind: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def make_object(*required: str, **properties: Any) -> Schema:
    """An object with these properties; `_text` describes it, and with `_closed` it has no others."""
    text, closed = properties.pop("_text", ""), properties.pop("_closed", False)
    schema: Schema = {"type": "object"}
    if text:
        schema["description"] = text
    if required:
        schema["required"] = list(required)
    schema["properties"] = properties
    return schema | ({"additionalProperties": False} if closed else {})


def show_events(name: str) -> Schema:
    """The content of a stream: a text, of whose events the JSON is a component.

    OpenAPI 3.1 has no words for events; those of 3.2 (`itemSchema`) would not be valid here.
    """
    return {"schema": TEXT, "x-event-schema": refer(name)}


def list_of(name: str) -> Schema:
    """An array of a component."""
    return {"type": "array", "items": refer(name)}


_MODEL = MAYBE_TEXT | {"description": "Whatever xAI knows; one of the settings' defaults when it is missing."}
_STREAM = FLAG | {"description": "Answer with events as they come."}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": OBJECT,
    "description": "The turns so far. Parts of type `image_url` make it a request for vision.",
}
_OPTIONS = {
    "type": ["object", "null"],
    "properties": {"include_usage": FLAG | {"description": "Send the chunk that has only `usage`."}},
}
_PREVIOUS = MAYBE_TEXT | {"description": "A stored response of the same key to go on from."}
_PICTURE = make_object(_text="An object with `url`, or as upstream takes it.", url=TEXT)

LIMITS: dict[str, Schema] = {
    "requests": MAYBE_TEXT | {"description": "Per window, such as `100/hour`.", "maxLength": 200},
    "tokens_per_minute": MAYBE_COUNT | {"maximum": 10**12},
    "streams": MAYBE_COUNT | {"description": "Open at once.", "maximum": 10**6},
    "budget_day": {"type": ["number", "null"], "minimum": 0, "description": "USD per UTC day."},
    "budget_month": {"type": ["number", "null"], "minimum": 0, "description": "USD per UTC month."},
    "models": {
        "type": ["array", "null"],
        "maxItems": 100,
        "items": TEXT | {"pattern": r"^[A-Za-z0-9._:/@*?\[\]-]{1,200}$"},
        "description": "Patterns such as `grok-4*`; none allows all.",
    },
    "tools": {
        "enum": ["all", "client", "none", None],
        "description": "`client`: functions of its own, but none that run at xAI.",
    },
}
_EXPIRES = MAYBE_TEXT | {"description": "A time to come in ISO 8601, or a duration such as `30d`."}
_NAME = TEXT | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}

REQUESTS: dict[str, Schema] = {
    "ChatRequest": make_object(
        "messages",
        messages=_MESSAGES,
        model=_MODEL,
        stream=_STREAM,
        stream_options=_OPTIONS,
        deferred=FLAG | {"description": "Answer with a `request_id` by which the answer is fetched later."},
    ),
    "ResponsesRequest": make_object(
        "input",
        input={
            "anyOf": [TEXT, {"type": "array", "minItems": 1, "items": OBJECT}],
            "description": "A text, or items.",
        },
        model=_MODEL,
        stream=_STREAM,
        previous_response_id=_PREVIOUS,
        store=FLAG | {"description": "Keep it, so that it can be fetched and gone on from (the default)."},
    ),
    "CompactRequest": make_object(input=ANY, model=_MODEL, previous_response_id=_PREVIOUS),
    "MessagesRequest": make_object("messages", messages=_MESSAGES, model=_MODEL, stream=_STREAM),
    "ImageRequest": make_object(
        "prompt",
        prompt=TEXT | {"minLength": 1},
        model=_MODEL,
        stream=FLAG | {"description": "Pictures come whole all the same, and X-Stream-Fallback says so."},
    ),
    "ImageEditRequest": make_object(
        "prompt",
        _text="With `image` or `images`: what is to be edited.",
        prompt=TEXT | {"minLength": 1},
        image=_PICTURE,
        images={"type": "array", "items": _PICTURE},
        model=_MODEL,
    ),
    "VisionRequest": make_object(
        "image",
        image=make_object(
            _text="Exactly one of `url` and `b64_json`.",
            url=MAYBE_TEXT | {"description": "An http(s) URL, or a data URI of an image."},
            b64_json=MAYBE_TEXT | {"description": "A PNG or JPEG."},
            detail=MAYBE_TEXT,
        ),
        prompt=MAYBE_TEXT | {"description": "What to ask of the picture."},
        detail=MAYBE_TEXT,
        messages={"type": ["array", "null"], "description": "Turns that come before."},
        model=_MODEL,
        stream=_STREAM | {"description": "Answered whole all the same, and X-Stream-Fallback says so."},
    ),
    "VideoRequest": make_object(
        model=_MODEL, prompt=ANY, duration=ANY | {"description": "Seconds; what is paid for."}
    ),
    "TokenizeRequest": make_object(model=ANY, text=ANY),
    "FileUpload": make_object(
        "file", file={"type": "string", "contentMediaType": "application/octet-stream"}, purpose=TEXT
    ),
    "BatchRequest": make_object(
        name=MAYBE_TEXT, input_file_id=ANY | {"description": "A file of the same key: JSON Lines."}
    ),
    "BatchItemsRequest": make_object(batch_requests=ANY | {"description": "What xAI's API has there."}),
    "KeyChanges": make_object(_closed=True, **LIMITS, expires_at=_EXPIRES),
    "NewKey": make_object("name", _closed=True, name=_NAME, **LIMITS, expires_at=_EXPIRES),
    "Rotation": make_object(
        _closed=True,
        overlap=TEXT
        | {"description": "How long the old secret still works.", "pattern": r"^\s*\d{1,6}\s*[smhdw]\s*$"},
    ),
}
