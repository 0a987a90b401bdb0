"""The schemas of answers in /openapi.json: what clients may count on. Data, no IO."""

from __future__ import annotations

from grokflask.errors import Outcome
from grokflask.ledger.row import FIELDS, MORE_FIELDS
from grokflask.web.reference.requests import (
    ANY,
    BOOL,
    COUNT,
    ITEMS,
    LIMITS,
    MAYBE_COUNT,
    MAYBE_TEXT,
    MAYBE_WHEN,
    OBJECT,
    SECRET_HINT,
    TEXT,
    WHEN,
    Schema,
    list_of,
    make_object,
    refer,
)

_UPSTREAM: dict[str, Schema] = {
    "ChatCompletion": make_object(
        _text="With `deferred: true` only a `request_id`.",
        id=TEXT,
        object=TEXT,
        created=COUNT,
        model=TEXT,
        choices=ITEMS,
        usage={"type": ["object", "null"]},
        request_id=TEXT,
    ),
    "ChatChunk": make_object("choices", _text="The JSON of one event of a chat.", id=TEXT, choices=ITEMS),
    "ChatEvent": {"anyOf": [refer("ChatChunk"), refer("ErrorEvent")]},
    "Response": make_object(
        "id", "object", id=TEXT, object=TEXT, model=TEXT, status=TEXT, output=ITEMS, usage=ANY
    ),
    "ResponseEvent": make_object("type", _text="The JSON of one event of a response.", type=TEXT),
    "Message": make_object("type", id=TEXT, type=TEXT, model=TEXT, content=ITEMS, usage=OBJECT),
    "MessageEvent": make_object("type", _text="The JSON of one event of a message.", type=TEXT),
    "Images": make_object("data", data=ITEMS, usage=ANY),
    "Analysis": make_object(
        *("model", "created", "content", "usage"),
        model=MAYBE_TEXT,
        created=MAYBE_COUNT,
        content=MAYBE_TEXT,
        usage={"type": ["object", "null"]},
    ),
    "Begun": make_object("request_id", request_id=TEXT | {"description": "Fetch the video by it."}),
    "Video": make_object(_text="Pending, done, or failed.", status=TEXT, video=ANY, usage=ANY),
    "Tokens": make_object("token_ids", token_ids=ITEMS),
    "File": make_object("id", id=TEXT, object=TEXT, bytes=COUNT, filename=TEXT, purpose=MAYBE_TEXT),
    "Files": make_object("data", "has_more", data=list_of("File"), has_more=BOOL),
    "Batch": make_object(_text="As xAI shows it: under `batch_id`, with counters.", name=TEXT, state=OBJECT),
    "Batches": make_object("batches", batches=list_of("Batch")),
    "Page": make_object(_text="A page, as xAI sends it.", pagination_token=MAYBE_TEXT),
    "Deleted": make_object("id", "deleted", id=TEXT, deleted=BOOL),
    "Model": make_object("id", id=TEXT, object=TEXT, created=COUNT, aliases={"type": ["array", "null"]}),
    "ModelList": make_object("data", _text="Those that the key may use.", data=list_of("Model")),
    "Models": make_object("models", _text="Those that the key may use.", models=list_of("Model")),
}

_FIGURES = {
    **dict.fromkeys(("request_id", "key", "route", "model", "id"), TEXT),
    **dict.fromkeys(("model_served", "code", "upstream_request_id"), MAYBE_TEXT),
    **dict.fromkeys(("estimated", "stream"), BOOL),
    "outcome": {"enum": [*(str(each) for each in Outcome), None]},
    "started_at": WHEN,
}
_SECRET = make_object("hint", hint=SECRET_HINT, created_at=WHEN, expires_at=MAYBE_WHEN)
_KEY = {
    "name": TEXT,
    "status": {"enum": ["active", "expired", "revoked"]},
    "hint": SECRET_HINT,
    "created_at": WHEN,
    "expires_at": MAYBE_WHEN,
    "revoked_at": MAYBE_WHEN,
    **LIMITS,
    "secrets": {"type": "array", "items": _SECRET},
}

_OWN: dict[str, Schema] = {
    "LedgerRow": make_object(
        *(*FIELDS, *MORE_FIELDS),
        _text="One exchange. 1 USD is 10^10 ticks. Prompts and answers are not kept.",
        **{name: _FIGURES.get(name, MAYBE_COUNT) for name in (*FIELDS, *MORE_FIELDS)},
    ),
    "Limits": make_object(*LIMITS, **LIMITS),
    "Usage": make_object(
        *("key", "limits", "remaining", "spent", "recent"),
        key=TEXT,
        limits=refer("Limits"),
        remaining={"type": "object", "additionalProperties": MAYBE_COUNT},
        spent=make_object("day_ticks", "month_ticks", day_ticks=COUNT, month_ticks=COUNT),
        recent=list_of("LedgerRow"),
    ),
    "Key": make_object(*_KEY, **_KEY),
    "KeyWithSecret": make_object(
        *_KEY, "secret", **_KEY, secret=TEXT | {"description": "Shown here and never again."}
    ),
    "Keys": make_object("keys", keys=list_of("Key")),
    "Ledger": make_object(
        "rows",
        "next",
        rows=list_of("LedgerRow"),
        next=MAYBE_TEXT | {"description": "`before` of the next page."},
    ),
    "Summary": make_object(
        "by", "since", "until", "rows", by=TEXT, since=MAYBE_TEXT, until=MAYBE_TEXT, rows=ITEMS
    ),
    "Overview": make_object(
        "timings",
        "stores",
        _text="Spend and its series, outcomes, percentiles, and the stores.",
        stores=OBJECT,
    ),
    "Streams": make_object(
        "streams",
        "complete",
        streams=ITEMS,
        complete={"type": "boolean", "description": "False without those of other workers."},
    ),
    "Stopped": make_object("request_id", "stopped", "asked", request_id=TEXT, stopped=COUNT, asked=COUNT),
    "DiagnosisEvent": make_object("number", "of", "sent_ms", number=COUNT, of=COUNT, sent_ms=COUNT),
    "Health": make_object("status", status={"const": "ok"}),
    "Readiness": make_object(
        "status", "open", "upstream", status={"enum": ["ready", "draining"]}, open=COUNT, upstream=TEXT
    ),
}

ANSWERS: dict[str, Schema] = {**_UPSTREAM, **_OWN}
"""By the names that they have in the document."""
