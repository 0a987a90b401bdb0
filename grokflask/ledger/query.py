"""Parses ledger queries from the command line or a query string into filters and days.

`since` and `until` are times in ISO 8601 (UTC by default), or durations before now (`24h`). `until` is
exclusive, but a bare date includes the whole day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from grokflask.errors import InvalidRequestError, Outcome
from grokflask.ledger.reports import By, RowFilter, Summary
from grokflask.times import read_moment, to_day

MAX_CHARS = 512
DAY_S = 86400.0
GROUPINGS: tuple[By, ...] = get_args(By)

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def read_filter(texts: Mapping[str, str | None], now: float) -> RowFilter:
    """Parses `texts`, which has RowFilter's fields. Raises InvalidRequestError with the field's name."""
    for name in ("key", "model", "request_id"):
        text = texts.get(name) or ""
        if len(text) > MAX_CHARS or not text.isprintable():
            message = f"{name!r} expects at most {MAX_CHARS} printable characters."
            raise InvalidRequestError(message, param=name)
    if texts.get("outcome") and texts["outcome"] not in set(Outcome):
        message = f"'outcome' expects one of: {', '.join(Outcome)}."
        raise InvalidRequestError(message, param="outcome")
    rest = {name: texts.get(name) or None for name in ("key", "model", "outcome", "request_id")}
    return RowFilter(_read_time("since", texts, now), _read_time("until", texts, now), **rest)


def read_days(texts: Mapping[str, str | None], now: float) -> tuple[str | None, str | None]:
    """The first and last UTC day (`YYYY-MM-DD`) of the range; None is open. Raises InvalidRequestError."""
    since, until = _read_time("since", texts, now), _read_time("until", texts, now)
    last = None if until is None else to_day(max(until - 0.001, 0.0))
    return None if since is None else to_day(since), last


def read_grouping(text: str | None) -> By:
    """What to group sums by; the default is the key. Raises InvalidRequestError."""
    for grouping in GROUPINGS:
        if grouping == (text or "key"):
            return grouping
    raise InvalidRequestError(f"'by' expects one of: {', '.join(GROUPINGS)}.", param="by")


def name_sums(grouping: By, sums: Summary) -> dict[str, Any]:
    """The fields of `sums`, with `name` called after the grouping."""
    fields = asdict(sums)
    return {grouping: fields.pop("name"), **fields}


def _read_time(name: str, texts: Mapping[str, str | None], now: float) -> float | None:
    """Epoch seconds. Raises InvalidRequestError."""
    text = texts.get(name)
    if not text:
        return None
    try:
        at = read_moment(text, now)
    except ValueError as error:
        raise InvalidRequestError(f"{name!r} {error}.", param=name) from None
    return at + DAY_S if name == "until" and _DATE.fullmatch(text.strip()) else at
