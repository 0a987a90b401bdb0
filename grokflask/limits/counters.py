"""What a key holds and has used: leases of open requests, the tokens of the last minute, the money spent.

A request is admitted against all limits of its key in one atomic step, which holds an estimate for it; a
later step settles it with what it really used. This module has the values and the protocol of a store;
`memory_counters` is the store of one process, `redis_counters` that of many. None decides anything about
outages, knows the ledger or reads a clock: `now` comes from the caller, in epoch seconds.

A lease lapses unless its worker renews it, so what a killed process held comes back by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

LEASE_S = 30.0
"""How long a lease, and a worker, lives after it was last renewed."""

RENEW_S = 10.0
"""How often a worker renews."""

FAIR_SHARE = 0.8
"""From which part of all slots in use on each key is held to its share of them."""

BUCKET_S = 5
WINDOW_BUCKETS = 12
"""Full buckets that count, besides the one that is being filled: tokens count for 60 to 65 s."""

LOAD_SLACK_S = 1.0
"""Settlements up to this much older than the loading of a sum are added to it: the ledger is written a moment
after an exchange has ended. One that was in it already counts twice, which errs on the safe side."""

MARK_S = 60.0
"""How long a lease stays marked: all workers look more often."""

SEQ_S = 86_400
"""How long it is remembered which settlements of a worker have been applied, after the last of them."""

MOST = 10**15
"""No figure of one request counts for more: Redis counts in 64 bits, and nobody may make that overflow."""

RETRY_S = 1.0
HELD_RETRY_S = 5.0


class Ask(msgspec.Struct, frozen=True):
    """What a request wants to hold, and the limits of its key (None: no such limit).

    Attributes:
        id: the lease's, unique.
        key: whose counters; any printable text.
        request_id: for people.
        stream: counts as an open stream.
        tokens: an estimate, held against `tokens_per_minute`. It is brought within 0 and MOST, as `ticks` is.
        ticks: an estimate, held against the budgets; 1 USD = 10^10 ticks.
        day: the UTC day under which it will be booked, `YYYY-MM-DD`; its month is the first seven letters.
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

    def __post_init__(self) -> None:
        if not (0 <= self.tokens <= MOST and 0 <= self.ticks <= MOST):
            msgspec.structs.force_setattr(self, "tokens", max(0, min(self.tokens, MOST)))
            msgspec.structs.force_setattr(self, "ticks", max(0, min(self.ticks, MOST)))


class Grant(msgspec.Struct, frozen=True):
    """The request may go on, and holds its lease.

    Attributes:
        streams: the key's open streams, this one included.
        tokens_left: of this minute, once all that is held has been used; None without a limit.
    """

    streams: int
    tokens_left: int | None


class Refusal(msgspec.Struct, frozen=True):
    """The request may not go on. Nothing has changed.

    Attributes:
        retry_after_s: when trying again makes sense; None is never as asked, or a budget's next day or month.
        used: what stands in the way: open streams, tokens used and held, ticks spent and held, open requests.
        limit: of the same.
    """

    reason: Literal["streams", "tokens", "budget_day", "budget_month", "share"]
    retry_after_s: float | None
    used: int
    limit: int


class Unloaded(msgspec.Struct, frozen=True):
    """The key has a budget, and what it has spent is not in this store yet: `load`, then ask again."""


class Settled(msgspec.Struct, frozen=True):
    """What a request has really used.

    Attributes:
        seq: of this worker, rising: a settlement that is delivered twice counts once.
        id: the lease's.
        day: as in the Ask.
        tokens: brought within 0 and MOST.
        ticks: within -MOST and MOST; below zero for a correction.
        settled_at: epoch seconds.
        counts_tokens: the key has a limit of tokens, so its minute is worth keeping.
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
        if not (0 <= self.tokens <= MOST and -MOST <= self.ticks <= MOST):
            msgspec.structs.force_setattr(self, "tokens", max(0, min(self.tokens, MOST)))
            msgspec.structs.force_setattr(self, "ticks", max(-MOST, min(self.ticks, MOST)))


class Standing(msgspec.Struct, frozen=True):
    """Where a key stands.

    Attributes:
        streams: open ones.
        tokens: used in the last minute, and held.
        held_ticks: by open requests.
        day_ticks: spent on the day asked for; None is not loaded, as with `month_ticks`.
    """

    streams: int
    tokens: int
    held_ticks: int
    day_ticks: int | None
    month_ticks: int | None


class Counters(Protocol):
    """A store of counters. Safe in threads. `now` is epoch seconds; workers' clocks agree to a second or so.

    A store behind a network may be away: any method then raises StoreUnavailableError, within the timeouts of
    its client, and may have had its effect. It can be repeated, with the same lease or seq, without harm.
    """

    def admit(self, ask: Ask, now: float) -> Grant | Refusal | Unloaded:
        """Holds all that `ask` wants, or nothing. A lease that is held already is granted as it is.

        Checked in this order: the fair share, streams, tokens, budget of the day, budget of the month.
        """

    def load(self, key: str, day: str, day_ticks: int, month_ticks: int, now: float) -> None:
        """Puts in place what the key has spent, as far as it is missing.

        `now` is when the ledger was asked, taken before it was.
        """

    def correct(self, key: str, day: str, day_ticks: int, month_ticks: int) -> None:
        """Adds these, which may be below zero, to what the key has spent, as far as that is loaded.

        Unlike the other steps it has its effect again when it is repeated.
        """

    def settle(self, settlements: Sequence[Settled], worker: str, now: float) -> None:
        """Frees the leases and books what was used, in this order; what was applied before is skipped.

        A sum that is not loaded stays so: the ledger has the figures. Nor is one booked that is older than
        the sum, by more than LOAD_SLACK_S: it came with it.
        """

    def renew(self, worker: str, capacity: int, leases: Sequence[Ask], now: float) -> None:
        """The worker, with its slots, and all its leases live on for LEASE_S; lost leases are held anew.

        Never list a lease whose settlement may have been applied: it would be held for another LEASE_S.
        So one thread of a worker does both, or a lock keeps them apart.
        """

    def standing(self, key: str, day: str, now: float) -> Standing:
        """Where the key stands, its sums being those of `day` and its month."""

    def mark(self, ids: Sequence[str], now: float) -> None:
        """Asks the workers that hold these leases to end what they hold them for."""

    def list_marked(self, now: float) -> list[str]:
        """The leases that were marked within MARK_S, whether or not they are held still."""

    def list_keys(self) -> list[str]:
        """The keys whose sums are loaded, sorted."""


def find_oldest_bucket(now: float) -> int:
    """The oldest bucket of the minute that counts at `now`."""
    return int(now // BUCKET_S) - WINDOW_BUCKETS


def find_bucket(settled: Settled, now: float) -> int | None:
    """The bucket that its tokens go into; None when they do not count, or not any more."""
    bucket = int(min(settled.settled_at, now) // BUCKET_S)
    counts = settled.counts_tokens and settled.tokens > 0 and bucket >= find_oldest_bucket(now)
    return bucket if counts else None


def find_oldest_month(day: str) -> str:
    """The oldest month whose sums are kept on `day`: the one before, for settlements that come late."""
    year, month = int(day[:4]), int(day[5:7])
    return f"{year:04d}-{month - 1:02d}" if month > 1 else f"{year - 1:04d}-12"


def refuse_tokens(ask: Ask, used: int, last: int | None, now: float) -> Refusal:
    """The refusal of an ask whose way is free, as far as tokens were used, once the bucket `last` falls out.

    Without such a bucket only tokens that are held stand in the way, and they may come back at any time.
    """
    assert ask.tokens_per_minute is not None
    retry_after_s: float | None = HELD_RETRY_S
    if ask.tokens > ask.tokens_per_minute:
        retry_after_s = None
    elif last is not None:
        retry_after_s = (last + WINDOW_BUCKETS + 1) * BUCKET_S - now
    return Refusal("tokens", retry_after_s, used, ask.tokens_per_minute)
