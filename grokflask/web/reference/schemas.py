"""The schemas in /openapi.json: request fields that the gateway reads, and its own answers. No IO.

All other request fields pass through to xAI. Answers that come from xAI are documented there, so here they
are only objects with a link.
"""

from __future__ import annotations

from typing import Any

from grokflask.errors import Outcome
from grokflask.ledger.row import FIELDS, MORE_FIELDS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
BOOL: Schema = {"type": "boolean"}
FLAG: Schema = {"type": ["boolean", "null"]}
OBJECT: Schema = {"type": "object"}
_MAYBE_OBJECT: Schema = {"type": ["object", "null"]}
ITEMS: Schema = {"type": "array", "items": OBJECT}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
_TIME: Schema = {"type": "string", "format": "date-time"}
_MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
_HINT = MAYBE_TEXT | {"description": "The last characters of the secret."}


def refer(name: str, kind: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def describe(schema: Schema, text: str) -> Schema:
    """`schema` with a description."""
    return schema | {"description": text}


def make_object(*required: str, **properties: Schema) -> Schema:
    """An object with these properties."""
    schema: Schema = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def make_answer(**properties: Schema) -> Schema:
    """An object that always has all these properties."""
    return make_object(*properties, **properties)


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": refer(name)}


_MODEL = describe(MAYBE_TEXT, "Any model that xAI has. Default: a setting of the gateway.")
_STREAM = describe(FLAG, "Send the answer as events.")
_NEVER_STREAMS = describe(FLAG, "The answer is sent whole, with the header X-Stream-Fallback.")
_TURNS = describe(ITEMS | {"minItems": 1}, "The conversation so far.")
_PREVIOUS = describe(MAYBE_TEXT, "A stored response of the same key, which this one continues.")
_PROMPT: Schema = {"type": "string", "minLength": 1}

CHAT = make_object(
    "messages",
    messages=_TURNS,
    model=_MODEL,
    stream=_STREAM,
    stream_options=_MAYBE_OBJECT | {"properties": {"include_usage": FLAG}},
    deferred=describe(FLAG, "Answer with a `request_id`, by which the answer can be fetched later."),
)
RESPONSE = make_object(
    "input",
    input={"anyOf": [TEXT, ITEMS | {"minItems": 1}]},
    model=_MODEL,
    stream=_STREAM,
    previous_response_id=_PREVIOUS,
    store=describe(FLAG, "Keep the response so that it can be fetched and continued. Default: true."),
)
COMPACTION = make_object(input={}, model=_MODEL, previous_response_id=_PREVIOUS)
MESSAGES = make_object("messages", messages=_TURNS, model=_MODEL, stream=_STREAM)
VISION = make_object(
    "image",
    image=describe(
        make_object(url=MAYBE_TEXT, b64_json=MAYBE_TEXT, detail=MAYBE_TEXT),
        "Either `url` (http, https or a data URI of an image) or `b64_json` (a PNG or JPEG).",
    ),
    prompt=describe(MAYBE_TEXT, "The question about the picture."),
    detail=MAYBE_TEXT,
    messages={"type": ["array", "null"], "description": "Earlier turns of the conversation."},
    model=_MODEL,
    stream=_NEVER_STREAMS,
)
IMAGE = make_object("prompt", prompt=_PROMPT, model=_MODEL, stream=_NEVER_STREAMS)
IMAGE_EDIT = make_object("prompt", prompt=_PROMPT, image=OBJECT, images=ITEMS, model=_MODEL)
VIDEO = make_object(model=_MODEL, duration=describe({}, "Seconds. The price depends on it."))
UPLOAD = make_object("file", file={"type": "string", "contentMediaType": "application/octet-stream"})
BATCH = make_object(name=MAYBE_TEXT, input_file_id=describe({}, "A JSON Lines file of the same key."))

_LIMITS: dict[str, Schema] = {
    "requests": describe(MAYBE_TEXT | {"maxLength": 200}, "Requests per window, such as `100/hour`."),
    "tokens_per_minute": MAYBE_COUNT | {"maximum": 10**12},
    "streams": describe(MAYBE_COUNT | {"maximum": 10**6}, "Streams that may be open at the same time."),
    "budget_day": {"type": ["number", "null"], "minimum": 0, "description": "USD per UTC day."},
    "budget_month": {"type": ["number", "null"], "minimum": 0, "description": "USD per UTC month."},
    "models": {
        "type": ["array", "null"],
        "maxItems": 100,
        "items": TEXT | {"pattern": r"^[A-Za-z0-9._:/@*?\[\]-]{1,200}$"},
        "description": "Patterns of allowed models, such as `grok-4*`. An empty list allows all.",
    },
    "tools": {
        "enum": ["all", "no-collections", "client", "none", None],
        "description": "`client` allows functions that the client runs, but no tools that run at xAI; "
        "`no-collections` all tools, but no search in collections (vector stores).",
    },
}
_CHANGES = _LIMITS | {
    "expires_at": describe(MAYBE_TEXT, "A future time in ISO 8601, or a duration such as `30d`.")
}
_CLOSED: Schema = {"additionalProperties": False}
KEY_CHANGES = make_object(**_CHANGES) | _CLOSED
NEW_KEY = (
    make_object("name", name=TEXT | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}, **_CHANGES) | _CLOSED
)
ROTATION = _CLOSED | make_object(
    overlap=describe(
        TEXT | {"pattern": r"^\s*\d{1,6}\s*[smhdw]\s*$"},
        "How long the old secret stays valid, such as `24h`.",
    )
)

_ROW = {
    **dict.fromkeys((*FIELDS, *MORE_FIELDS), MAYBE_COUNT),
    **dict.fromkeys("request_id key route model id".split(), TEXT),
    **dict.fromkeys("model_served code upstream_request_id".split(), MAYBE_TEXT),
    **dict.fromkeys("estimated stream".split(), BOOL),
    "outcome": {"enum": [*map(str, Outcome), None]},
    "reached": {"enum": ["no", "sent", "answered", None]},
    "started_at": _TIME,
}
_KEY = {
    "name": TEXT,
    "status": {"enum": ["active", "expired", "revoked"]},
    "hint": _HINT,
    "created_at": _TIME,
    **dict.fromkeys("expires_at revoked_at".split(), _MAYBE_TIME),
    **_LIMITS,
    "secrets": {
        "type": "array",
        "items": make_answer(hint=_HINT, created_at=_TIME, expires_at=_MAYBE_TIME),
    },
}

_NEXT = describe(MAYBE_TEXT, "The next page's `before`.")
_COMPLETE = describe(BOOL, "False if the streams of other workers are not known.")
_STATUS: Schema = {"enum": ["ready", "draining"]}

ANSWERS: dict[str, Schema] = {
    "UpstreamAnswer": {
        "type": "object",
        "additionalProperties": True,
        "description": "The answer of xAI's API, as documented there.",
        "externalDocs": {"url": "https://docs.x.ai/docs/api-reference"},
    },
    "Analysis": make_answer(model=MAYBE_TEXT, created=MAYBE_COUNT, content=MAYBE_TEXT, usage=_MAYBE_OBJECT),
    "LedgerRow": describe(make_answer(**_ROW), "One exchange. 1 USD is 10^10 ticks. Its texts are not kept."),
    "Usage": make_answer(
        key=TEXT,
        limits=make_answer(**_LIMITS),
        remaining={"type": "object", "additionalProperties": MAYBE_COUNT},
        spent=make_answer(day_ticks=COUNT, month_ticks=COUNT),
        recent=_list_of("LedgerRow"),
    ),
    "Key": make_answer(**_KEY),
    "KeyWithSecret": make_answer(**_KEY, secret=describe(TEXT, "Shown in this answer only.")),
    "Keys": make_answer(keys=_list_of("Key")),
    "Ledger": make_answer(rows=_list_of("LedgerRow"), next=_NEXT),
    "Summary": make_answer(by=TEXT, since=MAYBE_TEXT, until=MAYBE_TEXT, rows=ITEMS),
    "Overview": make_answer(timings=OBJECT, stores=OBJECT),
    "Streams": make_answer(streams=ITEMS, complete=_COMPLETE),
    "Stopped": make_answer(request_id=TEXT, stopped=COUNT, asked=COUNT),
    "DiagnosisEvent": make_answer(number=COUNT, of=COUNT, sent_ms=COUNT),
    "Health": make_answer(status={"const": "ok"}),
    "Readiness": make_answer(status=_STATUS, rate_limits=OBJECT, limits=OBJECT, database=OBJECT),
    "OpenApi": OBJECT,
}
"""Answers, by their names in the document."""
