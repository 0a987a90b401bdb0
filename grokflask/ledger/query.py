"""What people ask the ledger for: texts of the command line or a query string, read into filters and days.

`since` and `until` are times in ISO 8601 (UTC unless they say otherwise), or so long ago (`24h`). `until`
is not included, but a bare date means that whole day.
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
    """The rows that `texts` (RowFilter's fields; None and "" ask for nothing) describe.

    Raises InvalidRequestError, naming the field.
    """
    for name in ("key", "model", "request_id"):
        text = texts.get(name) or ""
        if len(text) > MAX_CHARS or not text.isprintable():
            message = f"{name!r} expects at most {MAX_CHARS} characters that can be printed."
            raise InvalidRequestError(message, param=name)
    outcome = texts.get("outcome") or None
    if outcome is not None and outcome not in set(Outcome):
        message = f"'outcome' expects one of: {', '.join(Outcome)}."
        raise InvalidRequestError(message, param="outcome")
    return RowFilter(
        since=_read_time("since", texts.get("since"), now),
        until=_read_time("until", texts.get("until"), now),
        key=texts.get("key") or None,
        model=texts.get("model") or None,
        outcome=outcome,
        request_id=texts.get("request_id") or None,
    )


def read_days(texts: Mapping[str, str | None], now: float) -> tuple[str | None, str | None]:
    """The first and the last UTC day (`YYYY-MM-DD`) that `since` and `until` touch; None is open.

    Raises InvalidRequestError.
    """
    since = _read_time("since", texts.get("since"), now)
    until = _read_time("until", texts.get("until"), now)
    last = None if until is None else to_day(max(until - 0.001, 0.0))
    return None if since is None else to_day(since), last


def read_grouping(text: str | None) -> By:
    """What sums have in common; the key when nothing is said. Raises InvalidRequestError."""
    for grouping in GROUPINGS:
        if grouping == (text or "key"):
            return grouping
    raise InvalidRequestError(f"'by' expects one of: {', '.join(GROUPINGS)}.", param="by")


def name_sums(grouping: By, sums: Summary) -> dict[str, Any]:
    """The sums' fields, the first one being called after what it is the name of."""
    fields = asdict(sums)
    return {grouping: fields.pop("name"), **fields}


def _read_time(name: str, text: str | None, now: float) -> float | None:
    """Epoch seconds. Raises InvalidRequestError."""
    if not text:
        return None
    try:
        at = read_moment(text, now)
    except ValueError as error:
        raise InvalidRequestError(f"{name!r} {error}.", param=name) from None
    return at + DAY_S if name == "until" and _DATE.fullmatch(text.strip()) else at
