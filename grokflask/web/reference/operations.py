"""What /openapi.json says of each operation beyond the table of routes. Data, no IO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grokflask.errors import Outcome
from grokflask.web.reference.requests import TEXT, Schema

PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A PNG of one pixel."""


@dataclass(frozen=True, slots=True)
class Words:
    """What is told of an operation.

    Attributes:
        tag: the chapter that it stands in.
        answer: the schema of what it answers; "" for what is no JSON.
        body: the schema of what it takes.
        events: the schema of an event's JSON, where the answer may stream.
        examples: bodies that work on the sandbox, by what they show.
        more: further statuses that are no errors, and what they mean.
        status: of the answer.
        errors: statuses of errors, for what is none of the API's routes.
        query: parameters in the query string, for the same.
        tokens: the security schemes, for the same; none where anybody may ask.
        media_type: of an answer that is no JSON.
    """

    tag: str
    summary: str
    answer: str = ""
    body: str = ""
    events: str = ""
    examples: dict[str, Any] = field(default_factory=dict)
    more: dict[int, str] = field(default_factory=dict)
    status: int = 200
    errors: tuple[int, ...] = ()
    query: dict[str, Schema] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    media_type: str = "application/json"
    body_required: bool = True


_HELLO = [{"role": "user", "content": "Say hello in one sentence."}]
_CHAT = {"model": "grok-4.3", "messages": _HELLO}
_PENDING = "It is not done yet: ask again in a moment."

API: dict[tuple[str, str], Words] = {
    ("POST", "chat"): Words(
        *("Chat", "Answer a chat", "ChatCompletion", "ChatRequest", "ChatEvent"),
        examples={"whole": _CHAT | {"stream": False}, "stream": _CHAT | {"stream": True}},
    ),
    ("GET", "deferred"): Words(
        "Chat", "Fetch the answer to a deferred chat, once", "ChatCompletion", more={202: _PENDING}
    ),
    ("POST", "vision"): Words(
        *("Chat", "Ask about a picture", "Analysis", "VisionRequest"),
        examples={"picture": {"image": {"b64_json": PIXELS}, "prompt": "What is in it?"}},
    ),
    ("POST", "tokenize"): Words(
        *("Chat", "Cut a text into tokens", "Tokens", "TokenizeRequest"),
        examples={"text": {"model": "grok-4.3", "text": "Hello, world!"}},
    ),
    ("POST", "responses"): Words(
        *("Responses", "Make a response", "Response", "ResponsesRequest", "ResponseEvent"),
        examples={
            "whole": {"model": "grok-4.3", "input": "Say hello."},
            "stream": {"model": "grok-4.3", "input": "Say hello.", "stream": True},
        },
    ),
    ("GET", "response"): Words("Responses", "Fetch a stored response", "Response"),
    ("DELETE", "response-delete"): Words("Responses", "Delete a stored response", "Deleted"),
    ("POST", "responses-compact"): Words(
        *("Responses", "Compact a conversation", "Response", "CompactRequest"),
        examples={"conversation": {"model": "grok-4.3", "input": "A long story."}},
    ),
    ("POST", "messages"): Words(
        *("Messages", "Answer a message", "Message", "MessagesRequest", "MessageEvent"),
        examples={
            "whole": _CHAT | {"max_tokens": 100},
            "stream": _CHAT | {"max_tokens": 100, "stream": True},
        },
    ),
    ("POST", "images"): Words(
        *("Pictures", "Make pictures", "Images", "ImageRequest"),
        examples={"one": {"prompt": "A lighthouse at dusk", "response_format": "b64_json"}},
    ),
    ("POST", "images-edits"): Words(
        *("Pictures", "Edit a picture", "Images", "ImageEditRequest"),
        examples={
            "one": {"prompt": "Make it blue", "image": {"url": f"data:image/png;base64,{PIXELS}"}},
        },
    ),
    ("POST", "videos"): Words(
        *("Videos", "Begin a video", "Begun", "VideoRequest"),
        examples={
            "one": {"prompt": "Waves on a beach", "video": {"url": "https://example.com/beach.mp4"}},
        },
    ),
    ("GET", "video"): Words("Videos", "Fetch a video", "Video", more={202: _PENDING}),
    ("POST", "files"): Words("Files", "Upload a file", "File", "FileUpload"),
    ("GET", "files"): Words("Files", "List the key's files", "Files"),
    ("GET", "file"): Words("Files", "Show a file", "File"),
    ("DELETE", "file"): Words("Files", "Delete a file", "Deleted"),
    ("GET", "file-content"): Words("Files", "Fetch a file's content", media_type="*/*"),
    ("POST", "batches"): Words(
        *("Batches", "Make a batch", "Batch", "BatchRequest"), examples={"empty": {"name": "nightly"}}
    ),
    ("GET", "batches"): Words("Batches", "List the key's batches", "Batches"),
    ("GET", "batch"): Words("Batches", "Show a batch", "Batch"),
    ("POST", "batch-cancel"): Words("Batches", "Cancel a batch", "Batch"),
    ("POST", "batch-requests"): Words("Batches", "Add requests to a batch", "Page", "BatchItemsRequest"),
    ("GET", "batch-requests"): Words("Batches", "List a batch's requests", "Page"),
    ("GET", "batch-results"): Words("Batches", "List a batch's results", "Page"),
    ("GET", "models"): Words("Models", "List the models", "ModelList"),
    ("GET", "model"): Words("Models", "Show a model", "Model"),
    **{
        ("GET", f"{kind}-models"): Words("Models", f"List or show the {kind} models", "Models")
        for kind in ("language", "image-generation", "video-generation")
    },
    ("GET", "usage"): Words("Usage", "What the key may do, and what it has spent", "Usage"),
}
"""By method and name of a row of the table of routes."""

_OPEN = {"since": TEXT, "until": TEXT}
_READ = (400, 401, 404, 429, 500, 503)
_WRITE = (*_READ, 408, 413, 415)
_ADMIN: dict[str, Any] = {"tag": "Admin", "tokens": ("adminToken",)}
_ROWS: dict[str, Schema] = {
    **_OPEN,
    "key": TEXT | {"maxLength": 512},
    "model": TEXT | {"maxLength": 512},
    "outcome": {"enum": [str(each) for each in Outcome]},
    "request_id": TEXT | {"maxLength": 512},
}
_PAGE: dict[str, Schema] = {
    **_ROWS,
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    "before": TEXT | {"pattern": "^[0-9a-f]{28}$", "description": "`next` of an earlier page."},
}
_BY: Schema = {"enum": ["key", "model", "day", "outcome"], "default": "key"}

OWN: dict[tuple[str, str], Words] = {
    ("GET", "/health"): Words("Operation", "The process is alive", "Health", errors=(500,)),
    ("GET", "/ready"): Words(
        *("Operation", "The process takes new work", "Readiness"),
        more={503: "It is about to end and takes no new work."},
        errors=(500,),
    ),
    ("GET", "/metrics"): Words(
        *("Operation", "Figures for Prometheus"),
        tokens=("metricsToken",),
        media_type="text/plain",
        errors=(401, 404, 429, 500),
    ),
    ("GET", "/diagnose/stream"): Words(
        *("Operation", "A few timed events, by which `flask doctor` tells what proxies do to streams"),
        media_type="text/event-stream",
        events="DiagnosisEvent",
        tokens=("clientKey", "adminToken"),
        errors=(401, 403, 429, 500, 503),
    ),
    ("GET", "/openapi.json"): Words(
        *("Operation", "This document", "OpenApi"),
        more={304: "It is still what the client has."},
        errors=(500,),
    ),
    ("GET", "/admin/api/keys"): Words(**_ADMIN, summary="List the keys", answer="Keys", errors=_READ),
    ("POST", "/admin/api/keys"): Words(
        **_ADMIN,
        summary="Make a key",
        answer="KeyWithSecret",
        body="NewKey",
        status=201,
        errors=(*_WRITE, 409),
        examples={"limited": {"name": "reader", "requests": "100/hour", "budget_day": 2.5}},
    ),
    ("GET", "/admin/api/keys/{name}"): Words(**_ADMIN, summary="Show a key", answer="Key", errors=_READ),
    ("PATCH", "/admin/api/keys/{name}"): Words(
        **_ADMIN, summary="Change a key's limits", answer="Key", body="KeyChanges", errors=(*_WRITE, 409)
    ),
    ("DELETE", "/admin/api/keys/{name}"): Words(**_ADMIN, summary="Revoke a key", answer="Key", errors=_READ),
    ("POST", "/admin/api/keys/{name}/rotate"): Words(
        **_ADMIN,
        summary="Give a key a new secret",
        answer="KeyWithSecret",
        body="Rotation",
        body_required=False,
        errors=(*_WRITE, 409),
    ),
    ("GET", "/admin/api/ledger"): Words(
        **_ADMIN, summary="List exchanges, newest first", answer="Ledger", errors=_READ, query=_PAGE
    ),
    ("GET", "/admin/api/summary"): Words(
        **_ADMIN, summary="Sum up whole days", answer="Summary", errors=_READ, query={**_OPEN, "by": _BY}
    ),
    ("GET", "/admin/api/overview"): Words(
        **_ADMIN,
        summary="The dashboard's figures",
        answer="Overview",
        errors=_READ,
        query={
            "days": {"enum": [7, 30, 90], "default": 30},
            "by": {"enum": ["key", "model"], "default": "key"},
        },
    ),
    ("GET", "/admin/api/ledger.csv"): Words(
        **_ADMIN,
        summary="Export exchanges",
        media_type="text/csv",
        errors=_READ,
        query=_ROWS,
    ),
    ("GET", "/admin/api/streams"): Words(
        **_ADMIN, summary="List open streams", answer="Streams", errors=(400, 401, 404, 429, 500)
    ),
    ("DELETE", "/admin/api/streams/{request_id}"): Words(
        **_ADMIN,
        summary="End a stream",
        answer="Stopped",
        more={202: "Other workers have it, and have been told."},
        errors=(*_READ, 409),
    ),
}
"""What is no row of the table of routes, by method and path."""
