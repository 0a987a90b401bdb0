"""Money: USD from people become ticks and come back the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.billing.money import MAX_USD, TICKS_PER_USD, format_usd, parse_usd, to_usd


@pytest.mark.parametrize(
    ("value", "ticks"),
    [
        (0, 0),
        ("0", 0),
        (0.0, 0),
        (-0.0, 0),
        (1, TICKS_PER_USD),
        (2.5, 25 * 10**9),
        ("2.50", 25 * 10**9),
        (" 3 ", 3 * TICKS_PER_USD),
        (".5", 5 * 10**9),
        (0.1, 10**9),
        (0.1 + 0.2, 3 * 10**9),
        (1e-10, 1),
        ("0.0000000001", 1),
        ("0.00000000019", 2),
        (MAX_USD, MAX_USD * TICKS_PER_USD),
        (float(MAX_USD), MAX_USD * TICKS_PER_USD),
        ("99999999.9999999999", MAX_USD * TICKS_PER_USD - 1),
    ],
)
def test_usd_become_ticks(value: Any, ticks: int) -> None:
    """A number or its text becomes the nearest tick; a binary fraction is taken for what it looks like."""
    assert parse_usd(value) == ticks


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, [], {}, b"1", "", " ", "x", "-1", "+1", "1,5", "1_000", "$5", "5 USD", "1e3"),
        *(".", "1.", "1..2", "0x10", "nan", "inf", "\u0663", "1" * 21, "1\n2", "9" * 400),
        *(-1, -0.01, float("nan"), float("inf"), -float("inf"), MAX_USD + 1, 10**400, 1e300, 1e-11),
        "0.00000000001",
    ],
)  # fmt: skip
def test_what_is_no_sum(value: Any) -> None:
    """Anything else is refused in words; also what is less than a tick, which would be stored as nothing."""
    with pytest.raises(ValueError, match=r"^expects "):
        parse_usd(value)


@given(st.integers(0, 10**5 * TICKS_PER_USD - 1))
def test_every_tick_comes_back(ticks: int) -> None:
    """What is echoed in USD and sent again is the same sum, to the tick, below 100,000 USD."""
    assert parse_usd(to_usd(ticks)) == ticks


@given(st.integers(0, MAX_USD * 100))
def test_every_cent_comes_back(cents: int) -> None:
    """Whole cents come back up to the largest sum, as a number and as text."""
    ticks = cents * TICKS_PER_USD // 100
    assert parse_usd(to_usd(ticks)) == ticks
    assert parse_usd(f"{cents // 100}.{cents % 100:02d}") == ticks


@pytest.mark.parametrize(
    ("ticks", "text"),
    [
        (None, ""),
        (0, "0.00"),
        (TICKS_PER_USD, "1.00"),
        (-TICKS_PER_USD, "-1.00"),
        (123_456_789_000, "12.35"),
        (5 * 10**9, "0.50"),
        (-5 * 10**9, "-0.50"),
        (12_345_678, "0.001235"),
        (10**4, "0.000001"),
        (9999, "0.0000009999"),
        (1, "0.0000000001"),
        (TICKS_PER_USD - 1, "1.00"),
    ],
)
def test_money_for_people(ticks: int | None, text: str) -> None:
    """Cents from a dollar on, six digits below, all ten for less than they show."""
    assert format_usd(ticks) == text
