"""What a key holds and has used: leases of open requests, tokens of the last minute, money spent.

One atomic step admits a request against all limits of its key and holds an estimate; a later step settles it
with what it really used. A lease expires unless its worker renews it, so what a killed process held is freed.

This module has the values and the protocol of `memory` and `redis`. A store handles no outages, does
not know the ledger and reads no clock: `now` comes from the caller, in epoch seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

LEASE_S = 30.0
"""Lifetime of a lease, and of a worker, after its last renewal."""

RENEW_S = 10.0
"""Interval of renewals."""

FAIR_SHARE = 0.8
"""The part of all slots that must be in use before each key is limited to its share."""

BUCKET_S = 5
WINDOW_BUCKETS = 12
"""Full buckets that count besides the one being filled: tokens count for 60 to 65 s."""

CORRECT_S = 30
"""Longer than the workers' comparisons of one difference are apart."""

LOAD_SLACK_S = 1.0
"""A settlement may be this much older than the loading of a sum and is still added to it, because the ledger
is written a moment after an exchange ends. One that was included already counts twice, on the safe side."""

MARK_S = 60.0
"""Time that a lease stays marked. All workers look more often."""

SEQ_S = 86_400
"""Time after a worker's last settlement for which the store remembers its number."""

MAX_AMOUNT = 10**15
"""The most tokens or ticks that one request can count: Redis counts in 64 bits, which must not overflow."""

RETRY_S = 1.0
"""Retry-After when another request of the key has to end first."""

HELD_RETRY_S = 5.0
"""Retry-After when a request is refused only because of held tokens."""


class Ask(msgspec.Struct, frozen=True):
    """What a request needs to hold, and the limits of its key (None: no such limit).

    Attributes:
        id: the lease's unique id.
        key: names the counters; any printable text.
        request_id: for people.
        stream: counts as an open stream.
        tokens: estimate, held against `tokens_per_minute`; clamped to 0..MAX_AMOUNT.
        ticks: estimate, held against the budgets; 1 USD = 10^10 ticks; clamped likewise.
        least_tokens, least_ticks: where the estimate does not fit but this does, what is left is held.
        alone_tokens, alone_ticks: the same for a key that has nothing else open.
        day: the UTC day that will be booked, `YYYY-MM-DD`; its first seven letters are the month.
    """

    id: str
    key: str
    request_id: str
    stream: bool
    tokens: int
    ticks: int
    day: str
    max_streams: int | None = None
    tokens_per_minute: int | None = None
    budget_day_ticks: int | None = None
    budget_month_ticks: int | None = None
    least_tokens: int = MAX_AMOUNT
    least_ticks: int = MAX_AMOUNT
    alone_tokens: int = MAX_AMOUNT
    alone_ticks: int = MAX_AMOUNT

    def __post_init__(self) -> None:
        if not (0 <= self.tokens <= MAX_AMOUNT and 0 <= self.ticks <= MAX_AMOUNT):
            msgspec.structs.force_setattr(self, "tokens", max(0, min(self.tokens, MAX_AMOUNT)))
            msgspec.structs.force_setattr(self, "ticks", max(0, min(self.ticks, MAX_AMOUNT)))

    @property
    def is_limited(self) -> bool:
        """Its key has any of these limits."""
        limits = (self.max_streams, self.tokens_per_minute, self.budget_day_ticks, self.budget_month_ticks)
        return any(limit is not None for limit in limits)


class Grant(msgspec.Struct, frozen=True):
    """The request is admitted and holds its lease.

    Attributes:
        streams: the key's open streams, this one included.
        tokens_left: what is left of this minute's tokens if everything held is used; None without a limit.
        held: tokens and ticks that it holds, if not all that it asked for.
    """

    streams: int
    tokens_left: int | None
    held: tuple[int, int] | None = None


class Refusal(msgspec.Struct, frozen=True):
    """The request is refused, and nothing has changed.

    Attributes:
        retry_after_s: seconds until a retry can succeed; None if this request never can, or only in the
            next budget period.
        used: open streams, tokens used and held, ticks spent and held, or open requests.
        limit: the limit of the same.
    """

    reason: Literal["streams", "tokens", "budget_day", "budget_month", "share"]
    retry_after_s: float | None
    used: int
    limit: int


class Unloaded(msgspec.Struct, frozen=True):
    """The store does not know yet what a key with a budget has spent: call `load`, then `admit` again."""


class Settled(msgspec.Struct, frozen=True):
    """What a request really used, ready to be booked.

    Attributes:
        seq: its number in this worker, increasing, so that a repeated delivery counts once.
        id: the lease's id.
        day: as in the Ask.
        tokens: clamped to 0..MAX_AMOUNT.
        ticks: clamped to -MAX_AMOUNT..MAX_AMOUNT; below zero for a correction.
        settled_at: epoch seconds.
        counts_tokens: the key has a token limit, so the store keeps its minute.
    """

    seq: int
    id: str
    key: str
    day: str
    tokens: int
    ticks: int
    settled_at: float
    counts_tokens: bool

    def __post_init__(self) -> None:
        if not (0 <= self.tokens <= MAX_AMOUNT and -MAX_AMOUNT <= self.ticks <= MAX_AMOUNT):
            msgspec.structs.force_setattr(self, "tokens", max(0, min(self.tokens, MAX_AMOUNT)))
            msgspec.structs.force_setattr(self, "ticks", max(-MAX_AMOUNT, min(self.ticks, MAX_AMOUNT)))


class Standing(msgspec.Struct, frozen=True):
    """What a key has open and has used.

    Attributes:
        streams: open streams.
        tokens: used in the last minute, plus those held.
        held_ticks: held by open requests.
        day_ticks: spent on the requested day; None if not loaded.
        month_ticks: likewise for its month.
    """

    streams: int
    tokens: int
    held_ticks: int
    day_ticks: int | None
    month_ticks: int | None


class Counters(Protocol):
    """A store of counters. Safe in threads. `now` is epoch seconds; workers' clocks agree to about a second.

    While a store behind a network is unreachable, every method raises StoreUnavailableError within its
    client's timeouts, and may have had its effect. Repeating it with the same lease or seq is harmless.
    """

    def admit(self, ask: Ask, now: float) -> Grant | Refusal | Unloaded:
        """Holds everything that `ask` needs, or nothing. Grants a lease that is held already.

        Checked in this order: the fair share, streams, tokens, budget of the day, budget of the month.
        """

    def extend(self, ask: Ask, ticks: int, now: float) -> int | Unloaded:
        """Lets the lease of `ask` hold `ticks`, or what the budgets have left of the difference.

        Less than a quarter of the difference is not taken. Returns what is held then. A lease that is freed
        or lost stays so.
        """

    def load(self, key: str, day: str, day_ticks: int, month_ticks: int, now: float) -> None:
        """Stores what the key has spent, where that is missing. `now` is taken before the ledger is read."""

    def correct(self, key: str, day: str, day_ticks: int, month_ticks: int) -> None:
        """Adds these (possibly negative) amounts to the sums that are loaded. Not idempotent."""

    def claim_correction(self, key: str) -> bool:
        """Whether this worker is the first within CORRECT_S that wants to correct the key's sums.

        All workers find the same difference at about the same time.
        """

    def settle(self, settlements: Sequence[Settled], worker: str, now: float) -> None:
        """Frees the leases and books what was used, in this order. Skips what it has applied before.

        Sums that are not loaded are left out, because the ledger has the figures. So are settlements older
        than a sum by more than LOAD_SLACK_S: the sum includes them.
        """

    def renew(self, worker: str, capacity: int, leases: Sequence[Ask], now: float) -> None:
        """Renews the worker with its slots, and all its leases, for LEASE_S. Restores lost leases.

        Never pass a lease whose settlement may have been applied: it would be held for another LEASE_S.
        """

    def standing(self, key: str, day: str, now: float) -> Standing:
        """What the key has open and has used, with its sums of `day` and its month."""

    def mark(self, ids: Sequence[str], now: float) -> None:
        """Asks the workers that hold these leases to end their streams."""

    def list_marked(self, now: float) -> list[str]:
        """The leases that were marked within MARK_S, whether still held or not."""

    def list_keys(self) -> list[str]:
        """The keys whose sums are loaded, sorted."""


def find_oldest_bucket(now: float) -> int:
    """The oldest bucket that counts at `now`."""
    return int(now // BUCKET_S) - WINDOW_BUCKETS


def find_bucket(settled: Settled, now: float) -> int | None:
    """The bucket for its tokens; None if they do not count, or no longer."""
    bucket = int(min(settled.settled_at, now) // BUCKET_S)
    counts = settled.counts_tokens and settled.tokens > 0 and bucket >= find_oldest_bucket(now)
    return bucket if counts else None


def find_oldest_month(day: str) -> str:
    """The oldest month whose sums are kept on `day`: the previous one, for late settlements."""
    year, month = int(day[:4]), int(day[5:7])
    return f"{year:04d}-{month - 1:02d}" if month > 1 else f"{year - 1:04d}-12"


def refuse_tokens(ask: Ask, used: int, last: int | None, now: float) -> Refusal:
    """The refusal for the token limit. A retry can succeed once the bucket `last` no longer counts.

    Without such a bucket only held tokens are in the way, and they may be freed at any time.
    """
    assert ask.tokens_per_minute is not None
    retry_after_s: float | None = HELD_RETRY_S
    if min(ask.tokens, ask.alone_tokens) > ask.tokens_per_minute:
        retry_after_s = None
    elif last is not None:
        retry_after_s = (last + WINDOW_BUCKETS + 1) * BUCKET_S - now
    return Refusal("tokens", retry_after_s, used, ask.tokens_per_minute)
