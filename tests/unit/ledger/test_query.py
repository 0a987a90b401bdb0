"""What people ask the ledger for, read from texts."""

from __future__ import annotations

import pytest

from grokflask.errors import InvalidRequestError, Outcome
from grokflask.ledger.query import name_sums, read_days, read_filter, read_grouping
from grokflask.ledger.reports import RowFilter, Summary

NOW = 1_800_000_000.0  # 2027-01-15T08:00Z
MIDNIGHT = NOW - 8 * 3600


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ({}, RowFilter()),
        ({"key": None, "model": "", "since": "", "outcome": None}, RowFilter()),
        ({"since": "24h"}, RowFilter(since=NOW - 86400)),
        ({"since": "2027-01-15"}, RowFilter(since=MIDNIGHT)),
        ({"until": "2027-01-15"}, RowFilter(until=MIDNIGHT + 86400)),
        ({"until": "2027-01-15T00:00Z"}, RowFilter(until=MIDNIGHT)),
        ({"until": "0s"}, RowFilter(until=NOW)),
        ({"key": "=alice"}, RowFilter(key="=alice")),
        ({"model": "grok-4.3", "request_id": "r 1"}, RowFilter(model="grok-4.3", request_id="r 1")),
        *(({"outcome": outcome.value}, RowFilter(outcome=outcome.value)) for outcome in Outcome),
    ],
)
def test_filters(texts: dict[str, str | None], wanted: RowFilter) -> None:
    """Each text asks for its own; nothing and the empty text ask for nothing."""
    assert read_filter(texts, NOW) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("since", "yesterday"),
        ("until", "2027-02-30"),
        ("outcome", "completed"),
        ("outcome", "Complete"),
        *((name, text) for name in ("key", "model", "request_id") for text in ("a\x00", "\ud800", "x" * 513)),
    ],
)
def test_wrong_filters(name: str, text: str) -> None:
    """What cannot be meant is refused, and so is text that a database would stumble over."""
    with pytest.raises(InvalidRequestError) as caught:
        read_filter({name: text}, NOW)
    assert caught.value.param == name
    assert caught.value.message.startswith(f"'{name}' expects ")


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        (None, None, (None, None)),
        ("2027-01-14", "2027-01-14", ("2027-01-14", "2027-01-14")),
        ("24h", "0s", ("2027-01-14", "2027-01-15")),
        ("2027-01-14T23:59Z", "2027-01-15T00:00Z", ("2027-01-14", "2027-01-14")),
        ("999999w", "999999w", ("1970-01-01", "1970-01-01")),
        (None, "9999-12-31T23:59:59-23:59", (None, "9998-12-31")),
    ],
)
def test_days(since: str | None, until: str | None, days: tuple[str | None, str | None]) -> None:
    """Sums are of whole days: the first and the last that the times touch, the end not included."""
    assert read_days({"since": since, "until": until}, NOW) == days


def test_groupings() -> None:
    """Sums are by key unless something else is said, and only by what there is."""
    assert [read_grouping(text) for text in (None, "", "day", "model", "outcome")] == [
        *("key", "key", "day", "model", "outcome"),
    ]
    with pytest.raises(InvalidRequestError) as caught:
        read_grouping("week")
    assert caught.value.param == "by"


def test_named_sums() -> None:
    """The name of a sum stands first, under what it is the name of."""
    fields = name_sums("day", Summary("2027-01-15", 1, 2, 3, 4, 5, 6, 7, 8))
    assert list(fields.items())[:2] == [("day", "2027-01-15"), ("exchanges", 1)]
    assert "name" not in fields
