"""The table of routes: what is not in it does not exist.

Paths are relative to the prefixes `/api/v1` and `/v1`. A new route is a row here and, where its body
needs one, a rule in `shaping`; relay, limits, errors and log line are the same for all. No IO.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from grokflask.protocol.dialects import CHAT, MESSAGES, RESPONSES, Dialect

PREFIXES = ("/api/v1", "/v1")

Billing = Literal["tokens", "images", "fetched", "free"]
"""`fetched`: what is fetched has cost something, once, if its answer tells so."""

Kind = Literal["response", "deferred", "file", "batch", "video"]
"""What upstream keeps under an id."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way in.

    Attributes:
        name: what the log line says, and the key under which `shaping` knows the body's rules.
        method: the one HTTP method that it takes.
        path: below the prefix, in Flask's notation.
        upstream_path: below upstream's base URL; `{model_id}` and its like are filled in from the path. ""
            where the gateway answers by itself: that is neither counted nor an exchange.
        streams: `stream: true` may be answered with events.
        billing: what upstream charges for.
        kind: what upstream keeps there: only the key that made it gets at it.
        act: what is done to it: `make` gives out a new one, `list` shows the key's own, `delete` ends one;
            "" for all else.
        body: of a POST: `json`, a `form` with a file, or `none`.
        content: its answer is the content of a file, of any type.
        query: names in the query string that go upstream.
        unmetered: what it costs is not told here, so keys with limits on that may not call it.
        catalogue: its answer tells of models: it is kept for a moment, and shown without those that the
            calling key may not use.
        dialect: how upstream answers here, and how errors are told.
    """

    name: str
    method: str
    path: str
    upstream_path: str
    streams: bool = False
    billing: Billing = "free"
    dialect: Dialect = CHAT
    kind: Kind | None = None
    act: Literal["", "make", "list", "delete"] = ""
    body: Literal["json", "form", "none"] = "json"
    content: bool = False
    query: tuple[str, ...] = ()
    unmetered: bool = False
    catalogue: bool = False

    @property
    def rewrites(self) -> bool:
        """Its answer is not passed on unread."""
        return self.act != "" or self.catalogue or self.name == "vision"


_PAGE = ("limit", "pagination_token", "order", "sort_by", "after", "before", "purpose")
"""What lists take, of xAI's and of OpenAI's names."""

ROUTES = (
    Route("chat", "POST", "/chat/completions", "/chat/completions", streams=True, billing="tokens"),
    Route(
        "deferred",
        "GET",
        "/chat/deferred-completion/<item_id>",
        "/chat/deferred-completion/{item_id}",
        billing="fetched",
        kind="deferred",
    ),
    Route("tokenize", "POST", "/tokenize-text", "/tokenize-text"),
    Route("responses", "POST", "/responses", "/responses", streams=True, billing="tokens", dialect=RESPONSES),
    Route(
        "response", "GET", "/responses/<item_id>", "/responses/{item_id}", kind="response", dialect=RESPONSES
    ),
    Route(
        "response-delete",
        "DELETE",
        "/responses/<item_id>",
        "/responses/{item_id}",
        kind="response",
        act="delete",
        dialect=RESPONSES,
    ),
    Route(
        "responses-compact",
        "POST",
        "/responses/compact",
        "/responses/compact",
        billing="tokens",
        dialect=RESPONSES,
    ),
    Route("messages", "POST", "/messages", "/messages", streams=True, billing="tokens", dialect=MESSAGES),
    Route("images", "POST", "/images/generate", "/images/generations", billing="images"),
    Route("images", "POST", "/images/generations", "/images/generations", billing="images"),
    Route("images-edits", "POST", "/images/edits", "/images/edits", billing="images"),
    Route("vision", "POST", "/vision/analyze", "/chat/completions", billing="tokens"),
    *(
        Route(
            "videos", "POST", f"/videos/{what}", f"/videos/{what}", billing="images", kind="video", act="make"
        )
        for what in ("generations", "edits", "extensions")
    ),
    Route("video", "GET", "/videos/<item_id>", "/videos/{item_id}", billing="fetched", kind="video"),
    Route("files", "POST", "/files", "/files", kind="file", act="make", body="form"),
    Route("files", "GET", "/files", "/files", kind="file", act="list", query=_PAGE),
    Route("file", "GET", "/files/<item_id>", "/files/{item_id}", kind="file"),
    Route("file", "DELETE", "/files/<item_id>", "/files/{item_id}", kind="file", act="delete"),
    Route(
        "file-content",
        "GET",
        "/files/<item_id>/content",
        "/files/{item_id}/content",
        kind="file",
        content=True,
    ),
    Route("batches", "POST", "/batches", "/batches", kind="batch", act="make", unmetered=True),
    Route("batches", "GET", "/batches", "/batches", kind="batch", act="list", query=_PAGE),
    Route("batch", "GET", "/batches/<item_id>", "/batches/{item_id}", kind="batch"),
    *(
        Route(
            "batch-cancel",
            "POST",
            f"/batches/<item_id>{end}",
            "/batches/{item_id}:cancel",
            kind="batch",
            body="none",
        )
        for end in (":cancel", "/cancel")
    ),
    Route(
        "batch-requests",
        "POST",
        "/batches/<item_id>/requests",
        "/batches/{item_id}/requests",
        kind="batch",
        unmetered=True,
    ),
    *(
        Route(
            f"batch-{what}",
            "GET",
            f"/batches/<item_id>/{what}",
            f"/batches/{{item_id}}/{what}",
            kind="batch",
            query=_PAGE,
        )
        for what in ("requests", "results")
    ),
    Route("models", "GET", "/models", "/models", catalogue=True),
    Route("model", "GET", "/models/<model_id>", "/models/{model_id}", catalogue=True),
    *(
        row
        for kind in ("language-models", "image-generation-models", "video-generation-models")
        for row in (
            Route(kind, "GET", f"/{kind}", f"/{kind}", catalogue=True),
            Route(kind, "GET", f"/{kind}/<model_id>", f"/{kind}/{{model_id}}", catalogue=True),
        )
    ),
    Route("usage", "GET", "/usage", ""),
)

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")


def is_plain_segment(value: str) -> bool:
    """`value` may stand in an upstream path: no slash, no dot segment, nothing to decode."""
    return _SEGMENT.fullmatch(value) is not None
