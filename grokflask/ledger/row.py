"""One row of the ledger: what is kept of an exchange. Prompts, answers and secrets have no field. No IO."""

from __future__ import annotations

import dataclasses
import random
import time
from dataclasses import dataclass
from typing import Any

from grokflask.times import to_day, to_iso


@dataclass(slots=True)
class LedgerRow:
    """An exchange, open while `outcome` is None.

    While it is open its tokens and cost are an estimate of the prompt's: what is paid at least should the
    process be killed. Zero is a figure, None is a missing one.

    Attributes:
        id: unique, and in the order of time; the client's `request_id` need not be either.
        started_at: UTC, epoch seconds.
        cost_ticks: 1 USD = 10^10 ticks.
        server_tools: calls of tools that run at xAI's, where it tells how many.
        estimated: tokens or cost are the gateway's estimate, not upstream's own figures.
        worker: the process that carries it.
    """

    id: str
    request_id: str
    key: str
    route: str
    model: str
    started_at: float
    worker: str = ""
    stream: bool = False
    model_served: str | None = None
    outcome: str | None = None
    status: int | None = None
    code: str | None = None
    ttft_ms: int | None = None
    duration_ms: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    cost_ticks: int | None = None
    estimated: bool = False
    bytes_out: int | None = None
    upstream_request_id: str | None = None
    server_tools: int | None = None

    @property
    def day(self) -> str:
        """The UTC day that it counts under, `YYYY-MM-DD`: the one on which it began."""
        return to_day(self.started_at)

    def to_fields(self) -> dict[str, Any]:
        """The row as it is shown everywhere, `FIELDS` first; the time as ISO 8601."""
        fields = {name: getattr(self, name) for name in (*FIELDS, *MORE_FIELDS)}
        fields["started_at"] = to_iso(self.started_at)
        return fields


FIELDS = (
    *("request_id", "key", "route", "model", "model_served", "outcome", "status", "started_at", "ttft_ms"),
    *("duration_ms", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    *("total_tokens", "cost_ticks", "estimated", "bytes_out"),
)
"""The fields that are promised to be there, in this order."""

MORE_FIELDS = ("id", "stream", "code", "upstream_request_id", "server_tools")

MAX_TEXT = 200
"""Characters of a model's name that are kept; it comes from the client."""

COLUMNS = tuple(item.name for item in dataclasses.fields(LedgerRow))


def make_id(now: float | None = None) -> str:
    """A new row's id: 12 hex digits of milliseconds and 16 of chance, so that ids sort by time."""
    # Of chance, but no secret: the system's generator would be a system call for each exchange.
    chance = random.getrandbits(64)
    return f"{int((time.time() if now is None else now) * 1000):012x}{chance:016x}"


def clean(text: str) -> str:
    """A text from outside as the ledger keeps it: of bounded length, and without what a database refuses."""
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:MAX_TEXT])
