"""Money is an integer of ticks: 1 USD = 10^10 ticks, the unit of xAI's `cost_in_usd_ticks`. No IO."""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite

TICKS_PER_USD = 10**10
MAX_USD = 10**8
"""Higher than any budget, and far below the limit of 64 bits of ticks."""

_NUMBER = re.compile(r"\d{1,20}(\.\d{1,20})?|\.\d{1,20}", re.ASCII)


def parse_usd(value: object) -> int:
    """Ticks for USD, given as a number or as text ("2.50"), rounded to the nearest. Raises ValueError."""
    usd = _read_decimal(value)
    if usd is None:
        raise ValueError("expects a number of USD, such as 2.50")
    if not 0 <= usd <= MAX_USD:
        raise ValueError(f"expects USD from 0 to {MAX_USD}")
    ticks = int((usd * TICKS_PER_USD).to_integral_value())
    if usd and not ticks:
        # as 0 it would block the key
        raise ValueError(f"expects 0, or at least {Decimal(1) / TICKS_PER_USD:f} USD")
    return ticks


def to_usd(ticks: int) -> float:
    """USD as a JSON number: exact to the cent up to MAX_USD, and to the tick below 100,000 USD."""
    return float(Decimal(ticks) / TICKS_PER_USD)


def format_usd(ticks: int | None) -> str:
    """USD for display: with cents, or with the digits that a smaller sum needs. "" for None."""
    if ticks is None:
        return ""
    if ticks < 0:
        return "-" + format_usd(-ticks)
    usd = Decimal(ticks) / TICKS_PER_USD
    if ticks == 0 or usd >= 1:
        return f"{usd:.2f}"
    return f"{usd:.6f}".rstrip("0").ljust(4, "0") if usd >= Decimal("0.000001") else f"{usd:.10f}"


def _read_decimal(value: object) -> Decimal | None:
    if isinstance(value, str):
        return Decimal(value.strip()) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        return Decimal(repr(value)) if isfinite(value) else None
    return Decimal(value)
