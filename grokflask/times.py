"""Times and durations as text: days, ISO 8601, and `30d`. UTC everywhere. No IO."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

_DURATION = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def read_duration(value: object) -> float:
    """Seconds for a text such as `90s`, `15m`, `12h`, `30d` or `4w`. Raises ValueError."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expects a duration such as 90s, 15m, 12h, 30d or 4w")
    return float(int(match[1]) * _UNITS_S[match[2]])


def read_moment(value: object, now: float) -> float:
    """Epoch seconds of a time in ISO 8601, or of a duration before `now` (`24h`). Raises ValueError."""
    try:
        at = now - read_duration(value)
    except ValueError:
        at = read_iso(value)
    return min(max(at, 0.0), LATEST)


def read_iso(value: object) -> float:
    """Epoch seconds of a time in ISO 8601; UTC unless it has an offset. Raises ValueError."""
    try:
        time = datetime.fromisoformat(value.strip() if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("expects a duration such as 30d, or a time such as 2027-01-31T12:00Z") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def to_day(seconds: float) -> str:
    """The UTC day of an epoch second, `YYYY-MM-DD`."""
    return _format_day(int(seconds // 86400))


@lru_cache(maxsize=8)
def _format_day(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(day)).isoformat()


def to_iso(seconds: float | None) -> str | None:
    """An epoch second as ISO 8601 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
