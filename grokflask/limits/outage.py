"""What limits a key during an outage of the shared counters: this worker's own memory.

For each limit a setting says `open` (not enforced), `local` (this worker enforces its part) or `closed`
(requests of keys with such a limit are refused).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from grokflask.config import Settings
from grokflask.errors import StoreUnavailableError
from grokflask.limits.counters import Ask, Grant, Refusal, Standing, Unloaded
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.settlements import Settlements

FindSpent = Callable[[str, str], tuple[int, int]]
"""Takes a key and a day; returns ticks spent on that day and in its month. Raises StoreUnavailableError."""


class AwayError(Exception):
    """The store is unreachable."""


class SpendingUnknownError(Exception):
    """The key's spending is neither in the store nor available from the ledger."""


@dataclass(slots=True)
class StoreState:
    """State of the store for /ready: `store` is where limits are counted now."""

    store: Literal["memory", "redis", "local"]
    outages: int = 0
    waiting: int = 0


class OutageCounters:
    """Counters of this worker for the time of an outage.

    Args:
        worker: returns this process's name.
        find_spent: reads from the ledger what a key has spent already.
        clock: epoch seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        worker: Callable[[], str],
        find_spent: FindSpent,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._parts = max(1, settings.workers)
        self._worker = worker
        self._find_spent = find_spent
        self._clock = clock
        self._counters = MemoryCounters(capacity=settings.max_exchanges, fair_share=settings.fair_share)
        self._settlements = Settlements(self._counters, worker, clock)
        self._spent: dict[tuple[str, str], tuple[int, int]] = {}  # by key and day: when the outage began

    def admit(self, ask: Ask) -> Grant | Refusal:
        """Like `Counters.admit`, with this worker's part of each limit. Raises StoreUnavailableError."""
        if ask.max_streams is not None:
            part = max(1, ask.max_streams // self._parts)
            streams = _choose(self._settings.streams_outage, min(ask.max_streams, part))
            ask = replace(ask, max_streams=streams)
        if ask.tokens_per_minute is not None:
            tokens = _choose(self._settings.tokens_outage, ask.tokens_per_minute // self._parts)
            ask = replace(ask, tokens_per_minute=tokens)
        if ask.budget_day_ticks is not None or ask.budget_month_ticks is not None:
            ask = self._part_budgets(ask)
        answer = self._counters.admit(ask, self._clock())
        assert not isinstance(answer, Unloaded)
        return answer

    def extend(self, ask: Ask, ticks: int) -> int:
        """Like `Counters.extend`, with this worker's part of each budget. Raises StoreUnavailableError."""
        part = self._part_budgets(ask)
        # What was admitted before the outage is not held here, but what it takes from now on is.
        self._counters.renew(self._worker(), 0, [replace(ask, tokens=0, ticks=0)], self._clock())
        if part.budget_day_ticks is None and part.budget_month_ticks is None:
            return ticks
        held = self._counters.extend(part, ticks, self._clock())
        assert not isinstance(held, Unloaded)
        return held

    def settle(self, ask: Ask, tokens: int, ticks: int) -> None:
        """Releases what `ask` held here and books what it used."""
        self._settlements.add(ask, tokens, ticks)
        self._settlements.deliver()

    def renew(self, find_asks: Callable[[], Sequence[Ask]]) -> None:
        """Renews the leases of `find_asks`."""
        with self._settlements.pause():
            self._counters.renew(self._worker(), 0, find_asks(), self._clock())

    def find_standing(self, key: str, day: str) -> Standing:
        """What the key has open and has used in this worker."""
        return self._counters.standing(key, day, self._clock())

    def forget(self, key: str, day: str) -> None:
        """Drops the key's spending, because the shared counters have it again."""
        self._spent.pop((key, day), None)

    def clear(self) -> None:
        """Forgets everything: the outage is over."""
        self._counters.clear()
        self._spent.clear()

    def _part_budgets(self, ask: Ask) -> Ask:
        """Replaces the budgets by this worker's part of what was left when the outage began."""
        if _choose(self._settings.budgets_outage, 1) is None:
            return replace(ask, budget_day_ticks=None, budget_month_ticks=None)
        spent = self._spent.get((ask.key, ask.day))
        if spent is None:
            asked_at = self._clock()
            try:
                spent = self._find_spent(ask.key, ask.day)
            except StoreUnavailableError:
                spent = 0, 0  # unknown: only what this worker sees from now on counts
            self._spent[ask.key, ask.day] = spent
            self._counters.replace(ask.key, ask.day, *spent, asked_at)
        return replace(
            ask,
            budget_day_ticks=self._part(ask.budget_day_ticks, spent[0]),
            budget_month_ticks=self._part(ask.budget_month_ticks, spent[1]),
        )

    def _part(self, budget: int | None, spent: int) -> int | None:
        return None if budget is None else min(budget, spent + max(0, budget - spent) // self._parts)


def _choose(policy: str, local: int) -> int | None:
    """The limit to enforce in an outage. Raises StoreUnavailableError if the policy is `closed`."""
    if policy == "closed":
        raise StoreUnavailableError("The gateway cannot count this key's limits right now.")
    return None if policy == "open" else local
