"""One row of the ledger. Prompts, answers and secrets have no field. No IO."""

from __future__ import annotations

import dataclasses
import random
import time
from dataclasses import dataclass
from typing import Any

from grokflask.times import to_day, to_iso


@dataclass(slots=True)
class LedgerRow:
    """An exchange. It is open while `outcome` is None.

    The tokens and cost of an open row are an estimate of its prompt, which is paid at least if the process is
    killed. Zero is a figure; None is a missing one.
    """

    id: str  # unique and in order of time, unlike the client's `request_id`
    request_id: str
    key: str
    route: str
    model: str
    started_at: float  # UTC, epoch seconds
    worker: str = ""  # the process that handles the exchange
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
    cost_ticks: int | None = None  # 1 USD = 10^10 ticks
    estimated: bool = False  # tokens or cost are the gateway's estimate, not upstream's figures
    bytes_out: int | None = None
    upstream_request_id: str | None = None
    server_tools: int | None = None  # calls of tools that run at xAI, if upstream reports them
    reached: str | None = None  # "no", "sent" or "answered": whether upstream had the whole request

    @property
    def day(self) -> str:
        """The UTC day under which it counts, `YYYY-MM-DD`: the day on which it began."""
        return to_day(self.started_at)

    def to_fields(self) -> dict[str, Any]:
        """The row as it is shown everywhere: `FIELDS` first, the time in ISO 8601."""
        fields = {name: getattr(self, name) for name in (*FIELDS, *MORE_FIELDS)}
        fields["started_at"] = to_iso(self.started_at)
        return fields


FIELDS = tuple(
    "request_id key route model model_served outcome status started_at ttft_ms duration_ms prompt_tokens "
    "cached_tokens completion_tokens reasoning_tokens total_tokens cost_ticks estimated bytes_out".split()
)
"""The fields that the API promises, in this order."""

MORE_FIELDS = ("id", "stream", "code", "upstream_request_id", "server_tools", "reached")

MAX_TEXT = 200
"""Characters that are stored of a text from outside, such as a model's name."""

COLUMNS = tuple(item.name for item in dataclasses.fields(LedgerRow))


def make_id(now: float | None = None) -> str:
    """A new row's id: 12 hex digits of milliseconds and 16 random ones, so ids sort by time."""
    # Need not be secret. The system's generator would cost a system call for each exchange.
    chance = random.getrandbits(64)
    return f"{int((time.time() if now is None else now) * 1000):012x}{chance:016x}"


def clean(text: str) -> str:
    """A text from outside, bounded in length and without characters that a database refuses."""
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:MAX_TEXT])
