"""The lists of models: cached for a moment, and shown to each key without the models that it may not use.

xAI has three forms: a short and a long one under `data`, and `models` of one kind. If no model is removed,
the answer stays byte for byte as upstream sent it.
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
from grokflask.protocol.raw_json import decode_fields, decode_list

MAX_KEPT = 200
MAX_KEPT_BYTES = 2**20
"""The number of cached answers, and the size of each."""

MAX_PAIRS = 10_000
"""Pairs of key and model that are remembered. Beyond them, warnings are repeated."""

_log = logging.getLogger("grokflask.models")


class _Item(msgspec.Struct):
    id: str = ""
    aliases: list[str] | None = None


_ITEM = msgspec.json.Decoder(_Item)


class Catalogue:
    """A cache of upstream's answers about models, by path and by xAI key.

    Args:
        keep_s: how long an answer is used; 0 turns the cache off.
        clock: monotonic seconds.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str | None], tuple[bytes, float]] = {}

    def find(self, path: str, key: ApiKey) -> tuple[bytes, int] | None:
        """Upstream's answer for `path`, and its age in seconds; None when the cache has none."""
        kept = self._kept.get((path, key.upstream_key))
        if kept is None or (age_s := self._clock() - kept[1]) >= self._keep_s:
            return None
        return kept[0], int(age_s)

    def keep(self, path: str, key: ApiKey, body: bytes) -> None:
        """Caches `body`, upstream's answer for `path`."""
        if not self._keep_s or len(body) > MAX_KEPT_BYTES:
            return
        with self._lock:
            self._kept.pop((path, key.upstream_key), None)
            self._kept[path, key.upstream_key] = (body, self._clock())
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]


def filter_models(body: bytes, limits: KeyLimits) -> bytes:
    """`body` without the models that the key may not use under any of their names.

    Raises ModelNotAllowedError when `body` is such a model itself, or cannot be read.
    """
    if not limits.models:
        return body
    try:
        fields = decode_fields(body)
        name = next((name for name in ("data", "models") if name in fields), None)
        if name is None:
            if not _may_use(body, limits):
                raise ModelNotAllowedError
            return body
        items = decode_list(fields[name])
        allowed = [item for item in items if _may_use(item, limits)]
    except MALFORMED:
        raise ModelNotAllowedError from None
    if len(allowed) == len(items):
        return body
    fields[name] = msgspec.Raw(msgspec.json.encode(allowed))
    return msgspec.json.encode(fields)


def _may_use(item: bytes | msgspec.Raw, limits: KeyLimits) -> bool:
    model = _ITEM.decode(item)
    return any(limits.allows(name) for name in (model.id, *(model.aliases or ())))


class MovedModels:
    """Warns once a day for each key and model when another model answers."""

    def __init__(self) -> None:
        self._day = ""
        self._warned: set[tuple[str, str]] = set()

    def note(self, key: str, model: str, served: str, day: str) -> None:
        """A request of `key` for `model` was answered by `served`. `day` is `YYYY-MM-DD`, in UTC."""
        if day != self._day or len(self._warned) >= MAX_PAIRS:
            self._day = day
            self._warned.clear()
        if (key, model) in self._warned:
            return
        self._warned.add((key, model))
        fields = {"key": key, "model": model, "model_served": served}
        _log.warning("another model answers, and may cost more", extra={"fields": fields})
