"""Numbers for people: money, tokens, times. `static/format.js` formats them the same way in the browser."""

from __future__ import annotations

import time
from collections.abc import Callable

from grokflask.billing.money import TICKS_PER_USD

THIN_SPACE = "\u2009"
NONE = "\u2013"
"""An unknown number."""

_STEPS = ((60, "s"), (3600, "min"), (86400, "h"), (float("inf"), "d"))


def show_money(ticks: int | None) -> str:
    """Ticks as USD: cents from one dollar on, four decimal places below."""
    if ticks is None:
        return NONE
    usd = ticks / TICKS_PER_USD
    if ticks == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}" if usd > 0 else f"-${-usd:,.2f}"
    if abs(usd) < 0.00005:
        return "<$0.0001"
    return f"${usd:.4f}"


def show_count(number: int | None) -> str:
    """A number with thin spaces between thousands."""
    return NONE if number is None else f"{number:,}".replace(",", THIN_SPACE)


def show_duration(milliseconds: float | None) -> str:
    """`340 ms`, `2.1 s`, `3 min 20 s`, `2 h 5 min`."""
    if milliseconds is None:
        return NONE
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def show_bytes(number: int | None) -> str:
    """`812 B`, `3.4 kB`, `1.2 MB`; a kB is 1,000 bytes."""
    if number is None:
        return NONE
    size = float(number)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def show_ago(moment: float | None, now: float | None = None) -> str:
    """Epoch seconds as `5 min ago` or `in 2 h`."""
    if moment is None:
        return "never"
    passed = (time.time() if now is None else now) - moment
    if abs(passed) < 5:
        return "just now"
    size = 1.0
    for limit, unit in _STEPS:
        if abs(passed) < limit:
            figure = f"{int(abs(passed) / size)} {unit}"
            return f"{figure} ago" if passed > 0 else f"in {figure}"
        size = limit
    raise AssertionError  # the last step is infinite


def show_utc(moment: float | None) -> str:
    """Epoch seconds as a date and time, to the second."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


FILTERS: tuple[Callable[..., str], ...] = (
    show_money,
    show_count,
    show_duration,
    show_bytes,
    show_ago,
    show_utc,
)
"""Templates name them without `show_`."""
