"""What one exchange asks of its key's limits, and what it holds of them. No IO."""

from __future__ import annotations

import threading
from typing import Protocol

from grokflask.billing.bill import Bill, Estimate
from grokflask.keys.limits import KeyLimits
from grokflask.limits.counters import Ask
from grokflask.limits.learning import Learning

FIRST_STEP_TOKENS = 256
"""Output for which there must be room, where a request does not fit as a whole and others are open."""


class Holder(Protocol):
    """What made a hold: `Limits`."""

    learning: Learning

    def extend(self, hold: Hold, ticks: int) -> int:
        """Lets it hold more. Returns the ticks that it holds then."""

    def settle(self, hold: Hold, tokens: int, ticks: int) -> None:
        """Releases it."""


class Hold:
    """What one exchange has reserved. `settle` releases it once.

    Attributes:
        ask: what is held, and the key's limits.
        estimate: what the exchange is expected to use.
        local: (also) this worker's outage counters hold it.
        headers: response headers with what is left of the limits.
        is_metered: its key has a budget, so it may need more than it holds.
        silent_pace: tokens a second that a silence of upstream counts.
    """

    def __init__(
        self, limits: Holder, ask: Ask, estimate: Estimate, *, local: bool, headers: dict[str, str]
    ) -> None:
        self.ask = ask
        self.estimate = estimate
        self.local = local
        self.headers = headers
        has_budget = ask.budget_day_ticks is not None or ask.budget_month_ticks is not None
        self.is_metered = has_budget and estimate.output_ticks > 0
        self.silent_pace = estimate.pace if estimate.reasons else 0.0
        self._limits = limits
        self._lock = threading.Lock()
        self._settled = False

    def extend(self, ticks: int) -> int:
        """As `Limits.extend`."""
        return self._limits.extend(self, ticks)

    def guess_output(self, seconds: float) -> int:
        """The tokens that upstream has written unseen: by its pace, up to the usual length."""
        return min(self.estimate.output_tokens, int(seconds * self.estimate.pace))

    def settle(self, bill: Bill | None = None, seconds: float = 0.0) -> None:
        """Releases the reservation and books `bill`, or nothing if the request was not sent upstream.

        An answer that was complete and took some `seconds` is one to learn from.
        """
        with self._lock:
            if self._settled:
                return
            self._settled = True
        tokens = bill.tokens if bill else 0
        if bill and seconds and not bill.estimated and self.estimate.output_tokens:
            self._limits.learning.note(self.estimate, bill.usage, tokens, seconds)
        self._limits.settle(self, tokens, bill.ticks if bill else 0)


def make_ask(
    estimate: Estimate,
    limits: KeyLimits,
    max_streams: int | None,
    *,
    key: str,
    id: str,
    request_id: str,
    day: str,
    stream: bool,
) -> Ask:
    """What a request with this estimate asks for."""
    first_tokens = min(FIRST_STEP_TOKENS, estimate.output_tokens)
    return Ask(
        id=id,
        key=key,
        request_id=request_id,
        stream=stream,
        tokens=estimate.tokens,
        ticks=estimate.ticks,
        day=day,
        max_streams=max_streams if limits.streams is None else limits.streams,
        tokens_per_minute=limits.tokens_per_minute,
        budget_day_ticks=limits.budget_day_ticks,
        budget_month_ticks=limits.budget_month_ticks,
        least_tokens=estimate.prompt_tokens + first_tokens,
        least_ticks=estimate.prompt_ticks + first_tokens * estimate.output_ticks,
        alone_tokens=estimate.prompt_tokens,
        alone_ticks=estimate.prompt_ticks,
    )
