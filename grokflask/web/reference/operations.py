"""What /openapi.json says about each operation beyond its row in the table of routes. No IO."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grokflask.errors import Outcome
from grokflask.web.reference import schemas
from grokflask.web.reference.schemas import TEXT, Schema, describe

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A PNG of one pixel, as base64."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The words and schemas of one operation. The fields from `errors` on follow from a row of the table."""

    tag: str
    summary: str
    #: Schema of the request body; None if it has none.
    body: Schema | None = None
    #: Request bodies that work on the sandbox.
    examples: dict[str, Any] = field(default_factory=dict)
    #: Name of the answer's schema; "" if the answer is not JSON.
    answer: str = "UpstreamAnswer"
    media_type: str = "application/json"
    status: int = 200
    #: Other statuses that are not errors.
    more: dict[int, str] = field(default_factory=dict)
    body_required: bool = True
    request_type: str = "application/json"
    #: Name of the schema of an event's JSON; "" if the answer is never a stream.
    events: str = ""
    errors: tuple[int | str, ...] = (500,)
    #: Prefix of the errors' names: "", "Stream" or "Messages".
    shape: str = ""
    query: dict[str, Schema] = field(default_factory=dict)
    #: Request headers.
    parameters: tuple[str, ...] = ("X-Request-ID",)
    #: Response headers.
    headers: tuple[str, ...] = ("X-Request-ID",)
    #: The security schemes, any of which will do; none if no key is needed.
    tokens: tuple[str, ...] = ()


def _streams(body: dict[str, Any]) -> dict[str, Any]:
    return {"whole": body | {"stream": False}, "stream": body | {"stream": True}}


_CHAT = {"model": "grok-4.3", "messages": [{"role": "user", "content": "Say hello in one sentence."}]}
_STORY = {"model": "grok-4.3", "input": "A short story."}
_EDIT = {"prompt": "Make it blue", "image": {"url": f"data:image/png;base64,{PIXEL}"}}
_CLIP = {"prompt": "Waves on a beach", "video": {"url": "https://example.com/beach.mp4"}}
_PENDING = {202: "Not done yet. Ask again in a moment."}

API: dict[tuple[str, str], Operation] = {
    ("POST", "chat"): Operation("Chat", "Create a chat completion", schemas.CHAT, _streams(_CHAT)),
    ("GET", "deferred"): Operation("Chat", "Fetch a deferred chat completion, once", more=_PENDING),
    ("POST", "vision"): Operation(
        "Chat",
        "Ask about a picture",
        schemas.VISION,
        {"picture": {"image": {"b64_json": PIXEL}, "prompt": "What is in it?"}},
        "Analysis",
    ),
    ("POST", "tokenize"): Operation(
        "Chat", "Split a text into tokens", schemas.OBJECT, {"text": {"model": "grok-4.3", "text": "Hello!"}}
    ),
    ("POST", "responses"): Operation("Responses", "Create a response", schemas.RESPONSE, _streams(_STORY)),
    ("GET", "response"): Operation("Responses", "Fetch a stored response"),
    ("DELETE", "response-delete"): Operation("Responses", "Delete a stored response"),
    ("POST", "responses-compact"): Operation(
        "Responses", "Compact a conversation", schemas.COMPACTION, {"conversation": _STORY}
    ),
    ("POST", "messages"): Operation(
        "Messages", "Create a message", schemas.MESSAGES, _streams(_CHAT | {"max_tokens": 100})
    ),
    ("POST", "images"): Operation(
        "Pictures", "Create pictures", schemas.IMAGE, {"one": {"prompt": "A lighthouse at dusk"}}
    ),
    ("POST", "images-edits"): Operation("Pictures", "Edit pictures", schemas.IMAGE_EDIT, {"one": _EDIT}),
    ("POST", "videos"): Operation("Videos", "Start a video", schemas.VIDEO, {"one": _CLIP}),
    ("GET", "video"): Operation("Videos", "Fetch a video", more=_PENDING),
    ("POST", "files"): Operation("Files", "Upload a file", schemas.UPLOAD),
    ("GET", "files"): Operation("Files", "List the key's files"),
    ("GET", "file"): Operation("Files", "Show a file"),
    ("DELETE", "file"): Operation("Files", "Delete a file"),
    ("GET", "file-content"): Operation("Files", "Download a file", answer="", media_type="*/*"),
    ("POST", "batches"): Operation(
        "Batches", "Create a batch", schemas.BATCH, {"empty": {"name": "nightly"}}
    ),
    ("GET", "batches"): Operation("Batches", "List the key's batches"),
    ("GET", "batch"): Operation("Batches", "Show a batch"),
    ("POST", "batch-cancel"): Operation("Batches", "Cancel a batch"),
    ("POST", "batch-requests"): Operation("Batches", "Add requests to a batch", schemas.OBJECT),
    ("GET", "batch-requests"): Operation("Batches", "List the requests of a batch"),
    ("GET", "batch-results"): Operation("Batches", "List the results of a batch"),
    ("GET", "models"): Operation("Models", "List the models that the key may use"),
    ("GET", "model"): Operation("Models", "Show a model"),
    **{
        ("GET", f"{kind}-models"): Operation("Models", f"List or show {kind.replace('-', ' ')} models")
        for kind in ("language", "image-generation", "video-generation")
    },
    ("GET", "usage"): Operation("Usage", "Show the key's limits and what it has spent", answer="Usage"),
}
"""By method and name of a row of the table of routes."""

_READ = (400, 401, 404, 429, 500, 503)
_WRITE = (400, 401, 404, 408, 409, 413, 415, 429, 500, 503)
_DAYS = {"since": TEXT, "until": TEXT}
_FILTERS: dict[str, Schema] = {
    **_DAYS,
    **dict.fromkeys("key model request_id".split(), TEXT | {"maxLength": 512}),
    "outcome": {"enum": [*map(str, Outcome)]},
}
_PAGE: dict[str, Schema] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    "before": describe(TEXT | {"pattern": "^[0-9a-f]{28}$"}, "`next` of the previous page."),
}
_BY: Schema = {"enum": ["key", "model", "day", "outcome"], "default": "key"}
_VIEW: dict[str, Schema] = {
    "days": {"enum": [7, 30, 90], "default": 30},
    "by": {"enum": ["key", "model"], "default": "key"},
}
_LIMITED = {"name": "reader", "requests": "100/hour", "budget_day": 2.5}


def _admin(
    summary: str, answer: str, errors: tuple[int, ...] = _READ, body: Schema | None = None, **more: Any
) -> Operation:
    return Operation("Admin", summary, body, answer=answer, errors=errors, tokens=("adminToken",), **more)


_operate = partial(Operation, "Operation", answer="")

OWN: dict[tuple[str, str], Operation] = {
    ("GET", "/health"): _operate("Is the process running?", answer="Health"),
    ("GET", "/ready"): _operate(
        "Does the process accept new requests?", answer="Readiness", more={503: "It is shutting down."}
    ),
    ("GET", "/metrics"): _operate(
        "Metrics for Prometheus",
        errors=(401, 404, 429, 500),
        tokens=("metricsToken",),
        media_type="text/plain",
    ),
    ("GET", "/diagnose/stream"): _operate(
        "A short timed stream that `flask doctor` uses to find proxies that buffer",
        errors=(401, 403, 429, 500, 503),
        media_type="text/event-stream",
        events="DiagnosisEvent",
        tokens=("clientKey", "adminToken"),
    ),
    ("GET", "/openapi.json"): _operate(
        "This document", answer="OpenApi", more={304: "Not modified."}, headers=("X-Request-ID", "ETag")
    ),
    ("GET", "/admin/api/keys"): _admin("List the keys", "Keys"),
    ("POST", "/admin/api/keys"): _admin(
        "Create a key", "KeyWithSecret", _WRITE, schemas.NEW_KEY, status=201, examples={"limited": _LIMITED}
    ),
    ("GET", "/admin/api/keys/{name}"): _admin("Show a key", "Key"),
    ("PATCH", "/admin/api/keys/{name}"): _admin("Change a key", "Key", _WRITE, schemas.KEY_CHANGES),
    ("DELETE", "/admin/api/keys/{name}"): _admin("Revoke a key", "Key"),
    ("POST", "/admin/api/keys/{name}/rotate"): _admin(
        "Give a key a new secret", "KeyWithSecret", _WRITE, schemas.ROTATION, body_required=False
    ),
    ("GET", "/admin/api/ledger"): _admin("List exchanges, newest first", "Ledger", query=_FILTERS | _PAGE),
    ("GET", "/admin/api/summary"): _admin("Sums of whole UTC days", "Summary", query=_DAYS | {"by": _BY}),
    ("GET", "/admin/api/overview"): _admin("The figures of the dashboard", "Overview", query=_VIEW),
    ("GET", "/admin/api/ledger.csv"): _admin("Export exchanges", "", media_type="text/csv", query=_FILTERS),
    ("GET", "/admin/api/streams"): _admin("List open streams", "Streams", (400, 401, 404, 429, 500)),
    ("DELETE", "/admin/api/streams/{request_id}"): _admin(
        "End a stream",
        "Stopped",
        (*_READ, 409),
        more={202: "The workers that serve the stream have been asked to end it."},
    ),
}
"""Operations that are not in the table of routes, by method and path."""
