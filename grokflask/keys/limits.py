"""What a key may do: its limits and budgets, and how they are read from people and shown to them. No IO.

The command line and the admin API share these names: `requests`, `tokens_per_minute`, `streams`,
`budget_day`, `budget_month` (USD), `models` (patterns), `tools`, `expires_at`. None is "no limit of its own".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from grokflask.billing.money import parse_usd, to_usd
from grokflask.errors import InvalidRequestError, ToolsNotAllowedError
from grokflask.setting_types import read_rate
from grokflask.shaping.tools import Use
from grokflask.times import LATEST, read_duration, read_iso, to_iso

Allowed = Literal["all", "client", "none"]
"""Which tools a key may ask for; `client` are functions that the client runs itself."""

MAX_TOKENS = 10**12
MAX_STREAMS = 10**6
MAX_PATTERNS = 100
MAX_RATE_CHARS = 200
"""In a limit such as 100/15minutes, the 15."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9._:/@*?\[\]-]{1,200}")
_COUNT = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key.

    Attributes:
        requests: per window, in flask-limiter's notation.
        tokens_per_minute: prompt, completion and reasoning together.
        streams: open at once.
        budget_day_ticks: per UTC day; 1 USD = 10^10 ticks.
        budget_month_ticks: per UTC month.
        models: patterns as `fnmatch` knows them; () allows all.
        tools: which tools it may ask for: `all`, `client` (functions of its own) or `none`.
    """

    requests: str | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    budget_day_ticks: int | None = None
    budget_month_ticks: int | None = None
    models: tuple[str, ...] = ()
    tools: Allowed = "all"

    def allows(self, model: str) -> bool:
        """`model` may be asked for. The letters' case counts, as it does for xAI."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    @property
    def are_metered(self) -> bool:
        """They hold only where it is seen what a request is for, and what it costs."""
        limits = (self.tokens_per_minute, self.budget_day_ticks, self.budget_month_ticks)
        return bool(self.models) or self.tools != "all" or any(limit is not None for limit in limits)

    def to_fields(self) -> dict[str, Any]:
        """The limits under their public names, budgets in USD."""
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
    """What `fields` (public names) ask to store, under the stored names: `KeyLimits`' and `expires_at`.

    None takes a limit away. `expires_at` is epoch seconds in the result. Raises InvalidRequestError, naming
    the field: unknown ones too, for a limit that is not stored would be one that does not hold.
    """
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _READERS:
            known = ", ".join(_READERS)
            raise InvalidRequestError(f"{name[:64]!r} is no field of a key; there are: {known}.", param=name)
        stored, read = _READERS[name]
        try:
            changes[stored] = _EMPTY.get(name) if value is None else read(value, now)
        except ValueError as error:
            raise InvalidRequestError(f"{name!r} {error}.", param=name) from None
    return changes


def read_name(value: object) -> str:
    """A key's name. Raises InvalidRequestError."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequestError(
            "'name' expects 1 to 64 letters, digits and . _ - that begin with a letter or digit.",
            param="name",
        )
    return value


def _read_requests(value: object, _now: float) -> str:
    if not isinstance(value, str) or len(value) > MAX_RATE_CHARS:
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
            raise ValueError("expects patterns of a model's letters with * ? and [ ], such as grok-4*")
    return tuple(value)


def _read_tools(value: object, _now: float) -> str:
    if value not in ("all", "client", "none"):
        raise ValueError("expects all, client or none")
    return str(value)


def _read_expiry(value: object, now: float) -> float:
    """A duration from now, or a time. Raises ValueError."""
    try:
        at = now + read_duration(value)
    except ValueError:
        at = read_iso(value)
    if not now < at < LATEST:
        raise ValueError(f"expects a time to come, not {to_iso(at) if 0 <= at < LATEST else value!r}")
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
_EMPTY: dict[str, object] = {"models": (), "tools": "all"}
"""What stands for no limit where that is not None."""

FIELDS = tuple(_READERS)


def check_tools(use: Use, allowed: Allowed) -> None:
    """Raises ToolsNotAllowedError unless a key with this setting may do so."""
    if not use or allowed == "all" or use == allowed:
        return
    if allowed == "client":
        raise ToolsNotAllowedError("This API key may use functions of its own, but no tools that run at xAI.")
    raise ToolsNotAllowedError
