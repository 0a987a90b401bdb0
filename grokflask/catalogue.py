"""The lists of models: kept for a moment, and shown to each key without the models that it may not use.

xAI has three forms: a short and a long one under `data`, and `models` of one kind. Where no model is left
out an answer stays as upstream sent it, byte for byte.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from grokflask.errors import MALFORMED, ModelNotAllowedError
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey

MAX_KEPT = 200
MAX_KEPT_BYTES = 2**20
"""How many answers are kept, and how large one may be."""

Fields = dict[str, msgspec.Raw]


class _Item(msgspec.Struct):
    """A model in a list."""

    id: str = ""
    aliases: list[str] | None = None


_FIELDS = msgspec.json.Decoder(Fields)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder(_Item)


class Catalogue:
    """What upstream said of its models lately, by path; apart for each xAI key that asks, where these differ.

    Args:
        keep_s: for how long an answer is given again; 0 keeps none.
        clock: monotonic seconds.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str | None], tuple[bytes, float]] = {}

    def find(self, path: str, key: ApiKey) -> tuple[bytes, int] | None:
        """The answer for `path`, as upstream gave it, and its age in seconds; None when there is none."""
        found = self._kept.get((path, key.upstream_key))
        if found is None:
            return None
        body, came_at = found
        age_s = self._clock() - came_at
        return (body, int(age_s)) if age_s < self._keep_s else None

    def keep(self, path: str, key: ApiKey, body: bytes) -> None:
        """Upstream has just answered so."""
        if not self._keep_s or len(body) > MAX_KEPT_BYTES:
            return
        with self._lock:
            self._kept.pop((path, key.upstream_key), None)
            self._kept[path, key.upstream_key] = (body, self._clock())
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]


def filter_models(body: bytes, limits: KeyLimits) -> bytes:
    """`body` without the models that the key may use under no name of theirs.

    Raises ModelNotAllowedError where it is such a model by itself.
    """
    if not limits.models:
        return body
    try:
        fields = _FIELDS.decode(body)
        name = next((name for name in ("data", "models") if name in fields), None)
        if name is None:
            if not _may_use(body, limits):
                raise ModelNotAllowedError
            return body
        items = _ITEMS.decode(fields[name])
        left = [item for item in items if _may_use(item, limits)]
    except MALFORMED:
        raise ModelNotAllowedError from None  # what cannot be read cannot be looked through
    if len(left) == len(items):
        return body
    fields[name] = msgspec.Raw(msgspec.json.encode(left))
    return msgspec.json.encode(fields)


def _may_use(item: bytes | msgspec.Raw, limits: KeyLimits) -> bool:
    model = _ITEM.decode(item)
    return any(limits.allows(name) for name in (model.id, *(model.aliases or ())))


MAX_PAIRS = 10_000
"""Pairs of key and model that are remembered; beyond them the log repeats some."""


_log = logging.getLogger("grokflask.models")


class MovedModels:
    """Says once a day for each key and model that another model has answered."""

    def __init__(self) -> None:
        self._day = ""
        self._told: set[tuple[str, str]] = set()

    def note(self, key: str, asked: str, served: str, day: str) -> None:
        """`served` has answered a request of `key`'s for `asked`; `day` is `YYYY-MM-DD`, in UTC."""
        if day != self._day or len(self._told) >= MAX_PAIRS:
            self._day = day
            self._told.clear()
        if (key, asked) in self._told:
            return
        self._told.add((key, asked))
        fields = {"key": key, "model": asked, "model_served": served}
        _log.warning("another model answers, and may cost more", extra={"fields": fields})
