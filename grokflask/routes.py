"""The table of routes: what is not in it does not exist.

Paths are relative to the prefixes `/api/v1` and `/v1`. A new route is a row here and, where its body
needs one, a rule in `shaping`; relay, limits, errors and log line are the same for all. No IO.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIXES = ("/api/v1", "/v1")


@dataclass(frozen=True, slots=True)
class Route:
    """One way in.

    Attributes:
        name: what the log line says, and the key under which `shaping` knows the body's rules.
        method: the one HTTP method that it takes.
        path: below the prefix, in Flask's notation.
        upstream_path: below upstream's base URL; `{model_id}` is filled in from the path.
        streams: `stream: true` may be answered with events.
    """

    name: str
    method: str
    path: str
    upstream_path: str
    streams: bool = False


ROUTES = (
    Route("chat", "POST", "/chat/completions", "/chat/completions", streams=True),
    Route("images", "POST", "/images/generate", "/images/generations"),
    Route("images", "POST", "/images/generations", "/images/generations"),
    Route("vision", "POST", "/vision/analyze", "/chat/completions"),
    Route("models", "GET", "/models", "/models"),
    Route("model", "GET", "/models/<model_id>", "/models/{model_id}"),
)

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")


def is_plain_segment(value: str) -> bool:
    """`value` may stand in an upstream path: no slash, no dot segment, nothing to decode."""
    return _SEGMENT.fullmatch(value) is not None
