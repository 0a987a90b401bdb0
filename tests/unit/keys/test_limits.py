"""What a key may do, read from people: each field by itself, and everything that is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from grokflask.errors import InvalidRequestError
from grokflask.keys.limits import FIELDS, MAX_PATTERNS, MAX_STREAMS, MAX_TOKENS, KeyLimits, read_changes
from grokflask.times import LATEST, read_duration, read_moment

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("requests", "100/hour", {"requests": "100/hour"}),
        ("requests", " 5 per second;9/day ", {"requests": "5 per second;9/day"}),
        ("requests", "10/15minutes", {"requests": "10/15minutes"}),
        ("tokens_per_minute", 0, {"tokens_per_minute": 0}),
        ("tokens_per_minute", "1000", {"tokens_per_minute": 1000}),
        ("tokens_per_minute", MAX_TOKENS, {"tokens_per_minute": MAX_TOKENS}),
        ("streams", " 7 ", {"streams": 7}),
        ("streams", MAX_STREAMS, {"streams": MAX_STREAMS}),
        ("budget_day", 2.5, {"budget_day_ticks": 25 * 10**9}),
        ("budget_month", "3", {"budget_month_ticks": 3 * 10**10}),
        ("models", [], {"models": ()}),
        ("models", ["grok-4*", "grok-[23]?"], {"models": ("grok-4*", "grok-[23]?")}),
        ("expires_at", "90s", {"expires_at": NOW + 90}),
        ("expires_at", "4w", {"expires_at": NOW + 28 * 86400}),
        ("expires_at", "2030-01-31", {"expires_at": datetime(2030, 1, 31, tzinfo=UTC).timestamp()}),
        ("expires_at", "2027-01-15T08:00:09Z", {"expires_at": NOW + 9}),
        *((field, None, {stored: None}) for field, stored in (
            ("requests", "requests"), ("streams", "streams"), ("budget_day", "budget_day_ticks"),
            ("budget_month", "budget_month_ticks"), ("tokens_per_minute", "tokens_per_minute"),
            ("expires_at", "expires_at"))),
        ("models", None, {"models": ()}),
        ("tools", "no-collections", {"tools": "no-collections"}),
        ("tools", "none", {"tools": "none"}), ("tools", "client", {"tools": "client"}),
        ("tools", "all", {"tools": "all"}), ("tools", None, {"tools": "all"}),
    ],
)  # fmt: skip
def test_a_field_is_read(field: str, value: Any, stored: dict[str, Any]) -> None:
    """A field becomes what is stored, and None takes it away."""
    assert read_changes({field: value}, NOW) == stored


WRONG: dict[str, list[Any]] = {
    "requests": ["", "x", "100", "100/eon", "-1/hour", "1.5/hour", "1/0hours", "1/1001hours", 100, True, [],
                 "1/99999999999999999999hours", "1/hour;" * 40, "1/hour;", "9" * 13 + "/hour", "none"],
    "tokens_per_minute": [-1, MAX_TOKENS + 1, 1.0, "1.0", "", "x", "-1", "1e3", True, [], "\u0663",
                          "9" * 400, 10**400],
    "streams": [-1, MAX_STREAMS + 1, "1_0", False, {}, 0.5],
    "budget_day": [-1, "x", True, "", 10**9, float("nan"), [1], "9" * 400],
    "budget_month": [-0.01, "1e3", object(), 10**400],
    "models": ["grok-4", "", 3, {}, [1], [""], ["a b"], ["a,b"], ["x" * 201], ["a"] * (MAX_PATTERNS + 1),
               [None], ["\x00"], ["[!a]"]],
    "tools": ["", "None", "server", [], ["all"], True, 1, {}, "ALL"],
    "expires_at": ["", "x", "0s", "-1d", "1y", "1.5h", 30, True, [], "2001-01-01", "99999w1", "9999-12-31",
                   "999999w",
                   "2030-13-01", "0001-01-01T00:00+23:59", "2030-01-31 25:00", "9999-12-31T23:59:59-23:59"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused(field: str, value: Any) -> None:
    """What is no value of the field is a 400 that names it and says what is expected."""
    with pytest.raises(InvalidRequestError) as caught:
        read_changes({"streams": 1, field: value}, NOW)
    assert (caught.value.status, caught.value.param) == (400, field)
    assert caught.value.message.startswith(f"'{field}' expects ")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "name", ["", "stream", "Streams", "budget", "budget_day_ticks", "name", "expires", "x" * 9999]
)
def test_an_unknown_field_is_refused(name: str) -> None:
    """A limit under a wrong name would be one that does not hold."""
    with pytest.raises(InvalidRequestError, match="fields are: requests") as caught:
        read_changes({name: 1}, NOW)
    assert caught.value.param == name[:64]
    assert len(caught.value.message) < 300


def test_fields_are_those_of_the_contract() -> None:
    """The public names, in the order in which they are shown."""
    names = "requests tokens_per_minute streams budget_day budget_month models tools expires_at"
    assert " ".join(FIELDS) == names
    assert tuple(KeyLimits().to_fields()) == FIELDS[:-1]


def test_shown_limits_can_be_sent_back() -> None:
    """What is shown of a key is what would store it again."""
    limits = KeyLimits("9/hour", 10, 2, 123_456_789, 5 * 10**10, ("grok-4*",))
    assert KeyLimits(**read_changes(limits.to_fields(), NOW)) == limits
    assert KeyLimits(**read_changes(KeyLimits().to_fields(), NOW)) == KeyLimits()


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        ((), "anything", True),
        (("grok-4*",), "grok-4.3", True),
        (("grok-4*",), "grok-4", True),
        (("grok-4*",), "grok-3", False),
        (("grok-4*",), "Grok-4", False),
        (("grok-4",), "grok-4.3", False),
        (("grok-?",), "grok-3", True),
        (("grok-[34]",), "grok-4", True),
        (("grok-[34]",), "grok-2", False),
        (("grok-3", "grok-4"), "grok-4", True),
        (("*",), "", True),
        (("grok-4*",), "", False),
    ],
)
def test_allowed_models(patterns: tuple[str, ...], model: str, allowed: bool) -> None:
    """One of the patterns must match the whole name; the letters' case counts."""
    assert KeyLimits(models=patterns).allows(model) is allowed


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("0s", 0), ("90s", 90), ("15m", 900), ("2 h", 7200), (" 1d ", 86400), ("1w", 604800)],
)
def test_durations(text: str, duration_s: float) -> None:
    """A whole number and its unit."""
    assert read_duration(text) == duration_s


@pytest.mark.parametrize(
    "value", [None, 5, "", "5", "h", "1.5h", "-1h", "1h30m", "1000000s", "\u0663h", "1H", "1 month"]
)
def test_what_is_no_duration(value: Any) -> None:
    """Anything else is refused in words."""
    with pytest.raises(ValueError, match=r"^expects a duration"):
        read_duration(value)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("24h", NOW - 86400),
        ("0s", NOW),
        ("2027-01-15T08:00Z", NOW),
        ("2027-01-15T08:00:00", NOW),
        ("2027-01-15 10:00+02:00", NOW),
        ("2027-01-15", NOW - 8 * 3600),
        ("999999w", 0),
        ("1969-12-31", 0),
        ("0001-01-01T00:00+23:59", 0),
        ("9999-12-31T23:59:59-23:59", LATEST),
    ],
)
def test_moments(text: str, at: float) -> None:
    """A time in ISO 8601, UTC unless it says otherwise, or so long ago; always one that has a day."""
    assert read_moment(text, NOW) == at


@pytest.mark.parametrize("value", [None, "", "now", "yesterday", 5, "2027-02-30", "24:00"])
def test_what_is_no_moment(value: Any) -> None:
    """Anything else is refused in words."""
    with pytest.raises(ValueError, match=r"^expects a duration such as"):
        read_moment(value, NOW)
