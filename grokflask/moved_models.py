"""Models that answer in another's place: xAI redirects retired ids to newer models, which cost more."""

from __future__ import annotations

import logging

MOST = 10_000
"""So many pairs of key and model are remembered; beyond them the log says some again."""

_log = logging.getLogger("grokflask.models")


class MovedModels:
    """Says once a day for each key and model that another model has answered."""

    def __init__(self) -> None:
        self._day = ""
        self._told: set[tuple[str, str]] = set()

    def note(self, key: str, asked: str, served: str, day: str) -> None:
        """`served` has answered a request of `key`'s for `asked`; `day` is `YYYY-MM-DD`, in UTC."""
        if day != self._day or len(self._told) >= MOST:
            self._day = day
            self._told.clear()
        if (key, asked) in self._told:
            return
        self._told.add((key, asked))
        fields = {"key": key, "model": asked, "model_served": served}
        _log.warning("another model answers, and may cost more", extra={"fields": fields})
