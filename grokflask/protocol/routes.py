"""The table of routes: a path that is not in it does not exist.

Paths are relative to the prefixes `/api/v1` and `/v1`. A new route is a row here and, where its body needs
one, a rule in `shaping.bodies`. Relay, limits, errors and log line are the same for all. No IO.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from grokflask.protocol.analysis import read_analysis
from grokflask.protocol.dialects import CHAT, MESSAGES, RESPONSES, Dialect

PREFIXES = ("/api/v1", "/v1")

SAME = "<same>"

Billing = Literal["tokens", "images", "fetched", "free"]
"""`fetched`: what is fetched has a cost, charged once, if its answer reports one."""

Kind = Literal["response", "deferred", "file", "batch", "video"]
"""What upstream keeps under an id."""


class Shape(Enum):
    """The shapes of JSON bodies. `shaping.bodies` has a rule for each."""

    CHAT = auto()
    VISION = auto()
    RESPONSE = auto()
    COMPACTION = auto()
    MESSAGE = auto()
    IMAGE = auto()
    IMAGE_EDIT = auto()
    VIDEO = auto()
    BATCH = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """One row: a method and a path."""

    name: str
    """As the log and the ledger have it."""
    method: str
    path: str
    """Below the prefix, in Flask's notation."""
    upstream_path: str = SAME
    """Below upstream's base URL, with the path's variables as `{model_id}`. "" for a route that the gateway
    answers itself: it is not counted, and not an exchange."""
    streams: bool = False
    """`stream: true` may be answered with events."""
    billing: Billing = "free"
    """What upstream charges for."""
    dialect: Dialect = CHAT
    """How upstream answers, and how errors are rendered."""
    shape: Shape | None = None
    """Of a JSON body; None for a POST without one, and for other methods."""
    kind: Kind | None = None
    """What upstream keeps at this path. Only the key that made it has access."""
    act: Literal["", "make", "list", "delete"] = ""
    """`make` returns the id of a new object, `list` the key's own objects, `delete` removes one."""
    body: Literal["json", "form", "none"] = "json"
    """Of a POST. A form has a file."""
    content: bool = False
    """The answer is the content of a file, of any type."""
    query: tuple[str, ...] = ()
    """Names of query parameters that are forwarded."""
    unmetered: bool = False
    """The gateway does not see its cost, so keys with limits on cost may not call it."""
    catalogue: bool = False
    """The answer lists models. It is cached, and models that the key may not use are removed."""
    rewrite: Callable[[bytes], bytes] | None = None
    """Turns upstream's answer into the client's."""

    def __post_init__(self) -> None:
        if self.upstream_path == SAME:
            object.__setattr__(self, "upstream_path", re.sub(r"<(\w+)>", r"{\1}", self.path))

    @property
    def rewrites(self) -> bool:
        """Its answer is read before it is passed on."""
        return self.act != "" or self.catalogue or self.rewrite is not None


_PAGE = ("limit", "pagination_token", "order", "sort_by", "after", "before", "purpose")
"""The query parameters of lists, with xAI's and with OpenAI's names."""

ROUTES = (
    Route("chat", "POST", "/chat/completions", streams=True, billing="tokens", shape=Shape.CHAT),
    Route("deferred", "GET", "/chat/deferred-completion/<item_id>", billing="fetched", kind="deferred"),
    Route("tokenize", "POST", "/tokenize-text", shape=Shape.OTHER),
    Route(
        "responses",
        "POST",
        "/responses",
        streams=True,
        billing="tokens",
        dialect=RESPONSES,
        shape=Shape.RESPONSE,
    ),
    Route("response", "GET", "/responses/<item_id>", kind="response", dialect=RESPONSES),
    Route(
        "response-delete", "DELETE", "/responses/<item_id>", kind="response", act="delete", dialect=RESPONSES
    ),
    Route(
        "responses-compact",
        "POST",
        "/responses/compact",
        billing="tokens",
        dialect=RESPONSES,
        shape=Shape.COMPACTION,
    ),
    Route(
        "messages", "POST", "/messages", streams=True, billing="tokens", dialect=MESSAGES, shape=Shape.MESSAGE
    ),
    Route("images", "POST", "/images/generate", "/images/generations", billing="images", shape=Shape.IMAGE),
    Route("images", "POST", "/images/generations", billing="images", shape=Shape.IMAGE),
    Route("images-edits", "POST", "/images/edits", billing="images", shape=Shape.IMAGE_EDIT),
    Route(
        "vision",
        "POST",
        "/vision/analyze",
        "/chat/completions",
        billing="tokens",
        shape=Shape.VISION,
        rewrite=read_analysis,
    ),
    *(
        Route(
            "videos", "POST", f"/videos/{made}", billing="images", shape=Shape.VIDEO, kind="video", act="make"
        )
        for made in ("generations", "edits", "extensions")
    ),
    Route("video", "GET", "/videos/<item_id>", billing="fetched", kind="video"),
    Route("files", "POST", "/files", kind="file", act="make", body="form"),
    Route("files", "GET", "/files", kind="file", act="list", query=_PAGE),
    Route("file", "GET", "/files/<item_id>", kind="file"),
    Route("file", "DELETE", "/files/<item_id>", kind="file", act="delete"),
    Route("file-content", "GET", "/files/<item_id>/content", kind="file", content=True),
    Route("batches", "POST", "/batches", shape=Shape.BATCH, kind="batch", act="make", unmetered=True),
    Route("batches", "GET", "/batches", kind="batch", act="list", query=_PAGE),
    Route("batch", "GET", "/batches/<item_id>", kind="batch"),
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
        shape=Shape.OTHER,
        kind="batch",
        unmetered=True,
    ),
    Route("batch-requests", "GET", "/batches/<item_id>/requests", kind="batch", query=_PAGE),
    Route("batch-results", "GET", "/batches/<item_id>/results", kind="batch", query=_PAGE),
    Route("models", "GET", "/models", catalogue=True),
    Route("model", "GET", "/models/<model_id>", catalogue=True),
    *(
        Route(f"{kind}-models", "GET", f"/{kind}-models{end}", catalogue=True)
        for kind in ("language", "image-generation", "video-generation")
        for end in ("", "/<model_id>")
    ),
    Route("usage", "GET", "/usage", ""),
)

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")


def is_plain_segment(value: str) -> bool:
    """`value` is safe in an upstream path: it has no slash, no dot segment and nothing to decode."""
    return _SEGMENT.fullmatch(value) is not None
