"""What a key may do: its limits and budgets, parsed from input and formatted for output. No IO.

The command line and the admin API share these names: `requests`, `tokens_per_minute`, `streams`,
`budget_day`, `budget_month` (USD), `models` (patterns), `tools`, `expires_at`. None means no own limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from grokflask.billing.money import parse_usd, to_usd
from grokflask.errors import InvalidRequestError, ToolsNotAllowedError
from grokflask.setting_types import read_rate
from grokflask.shaping.tools import Use
from grokflask.times import LATEST, read_duration, read_iso, to_iso

Allowed = Literal["all", "no-collections", "client", "none"]
"""Which tools a key may use: all, none, or functions that the client runs itself. `no-collections` allows
xAI's tools as well, but no search in the collections (vector stores) of the operator's team."""

MAX_TOKENS = 10**12
MAX_STREAMS = 10**6
MAX_PATTERNS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9._:/@*?\[\]-]{1,200}")
_COUNT = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key.

    `requests` has flask-limiter's notation. Tokens are prompt, completion and reasoning together. Budgets are
    per UTC day and month; 1 USD = 10^10 ticks. `models` are `fnmatch` patterns, and () allows all.
    """

    requests: str | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    budget_day_ticks: int | None = None
    budget_month_ticks: int | None = None
    models: tuple[str, ...] = ()
    tools: Allowed = "all"

    def allows(self, model: str) -> bool:
        """The key may use `model`. Case-sensitive, as at xAI."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    @property
    def are_metered(self) -> bool:
        """Some limit needs the model, the tools or the cost of each request to be known."""
        limits = (self.tokens_per_minute, self.budget_day_ticks, self.budget_month_ticks)
        return bool(self.models) or self.tools != "all" or any(limit is not None for limit in limits)

    def to_fields(self) -> dict[str, Any]:
        """The limits under their public names; budgets in USD."""
        return {
            "requests": self.requests,
            "tokens_per_minute": self.tokens_per_minute,
            "streams": self.streams,
            "budget_day": None if self.budget_day_ticks is None else to_usd(self.budget_day_ticks),
            "budget_month": None if self.budget_month_ticks is None else to_usd(self.budget_month_ticks),
            "models": list(self.models),
            "tools": self.tools,
        }


def read_changes(fields: Mapping[str, object], now: float) -> dict[str, Any]:
    """Parses `fields` (public names) into stored values under the names of `KeyLimits`, and `expires_at`.

    None removes a limit. `expires_at` becomes epoch seconds. Raises InvalidRequestError with the field's
    name, also for unknown fields: a limit that is silently not stored would not be enforced.
    """
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _READERS:
            known = ", ".join(_READERS)
            raise InvalidRequestError(
                f"{name[:64]!r} is not a field of a key; the fields are: {known}.", param=name[:64]
            )
        stored, read = _READERS[name]
        try:
            changes[stored] = getattr(_NO_LIMITS, stored, None) if value is None else read(value, now)
        except ValueError as error:
            raise InvalidRequestError(f"{name!r} {error}.", param=name) from None
    return changes


def read_name(value: object) -> str:
    """A key's name. Raises InvalidRequestError."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequestError(
            "'name' expects 1 to 64 letters, digits, or . _ - and begins with a letter or digit.",
            param="name",
        )
    return value


def _read_requests(value: object, _now: float) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("expects a number per window, such as 100/hour")
    return read_rate(value.strip())


def _whole(high: int) -> Callable[[object, float], int]:
    def read(value: object, _now: float) -> int:
        if isinstance(value, str) and _COUNT.fullmatch(value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
            raise ValueError(f"expects a whole number from 0 to {high}")
        return value

    return read


def _read_models(value: object, _now: float) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_PATTERNS:
        raise ValueError(f"expects a list of at most {MAX_PATTERNS} patterns, such as grok-4*")
    for pattern in value:
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            raise ValueError("expects model patterns with * ? and [ ], such as grok-4*")
    return tuple(value)


def _read_tools(value: object, _now: float) -> str:
    if value not in get_args(Allowed):
        raise ValueError(f"expects one of {', '.join(get_args(Allowed))}")
    return str(value)


def _read_expiry(value: object, now: float) -> float:
    """Epoch seconds of a duration from now, or of a time. Raises ValueError."""
    try:
        at = now + read_duration(value)
    except ValueError:
        at = read_iso(value)
    if not now < at < LATEST:
        raise ValueError(f"expects a time in the future, not {to_iso(at) if 0 <= at < LATEST else value!r}")
    return at


_READERS: dict[str, tuple[str, Callable[[object, float], Any]]] = {
    "requests": ("requests", _read_requests),
    "tokens_per_minute": ("tokens_per_minute", _whole(MAX_TOKENS)),
    "streams": ("streams", _whole(MAX_STREAMS)),
    "budget_day": ("budget_day_ticks", lambda value, _now: parse_usd(value)),
    "budget_month": ("budget_month_ticks", lambda value, _now: parse_usd(value)),
    "models": ("models", _read_models),
    "tools": ("tools", _read_tools),
    "expires_at": ("expires_at", _read_expiry),
}
_NO_LIMITS = KeyLimits()

FIELDS = tuple(_READERS)


def check_tools(use: Use, allowed: Allowed) -> None:
    """Raises ToolsNotAllowedError unless a key with this setting may use these tools."""
    # `Use` goes from the least to the most, `Allowed` from the most to the least.
    if get_args(Use).index(use) + get_args(Allowed).index(allowed) < len(get_args(Use)):
        return
    if allowed == "no-collections":
        raise ToolsNotAllowedError("This API key may not search collections (vector stores).")
    if allowed == "client":
        raise ToolsNotAllowedError("This API key may use its own functions, but no tools that run at xAI.")
    raise ToolsNotAllowedError
