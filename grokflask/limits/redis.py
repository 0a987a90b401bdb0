"""The counters of many processes and machines, in Redis. Each operation is one script and one round trip.

The caller's client sets the timeouts. Every Redis error becomes a StoreUnavailableError with its cause. All
keys share one hash tag, so a cluster keeps them together. Redis must not evict them: set `maxmemory-policy`
to `noeviction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from grokflask.errors import StoreUnavailableError
from grokflask.limits.counters import (
    CORRECT_S,
    FAIR_SHARE,
    LEASE_S,
    LOAD_SLACK_S,
    MARK_S,
    RETRY_S,
    SEQ_S,
    Ask,
    Counters,
    Grant,
    Refusal,
    Settled,
    Standing,
    Unloaded,
    find_bucket,
    find_oldest_bucket,
    find_oldest_month,
    refuse_tokens,
)
from grokflask.storage.redis import prepare

_SCRIPTS = Path(__file__).parent / "lua"

PREFIX = "{grokflask}:"
MINUTE_S = 70
"""Lifetime of a minute's tokens after the last of them; they count for at most 65 s."""

SPENT_S = 40 * 86_400
"""Lifetime of a key's sums after they were last loaded."""

BATCH = 500
"""Leases that are renewed in one script, which blocks all other clients of Redis."""

_LEASES = tuple(PREFIX + name for name in ("expiries", "leases", "open", "streams", "tokens", "ticks"))
_WORKERS = (PREFIX + "workers", PREFIX + "capacities")
_SPENT = PREFIX + "spent:"
_MARKED = PREFIX + "marked"


class RedisCounters(Counters):
    """`Counters` in one Redis. Scripts that a restarted Redis has forgotten are sent again.

    Args:
        client: needs timeouts, because every method waits for it. It may retry: a repeated step counts once.
        capacity: slots of this process.
        fair_share: as FAIR_SHARE, from 0 to 1; of the slots of all workers.
    """

    def __init__(self, client: Redis, capacity: int, fair_share: float = FAIR_SHARE) -> None:
        self._client = client
        self._own = (capacity, repr(fair_share))
        self._run_admit = prepare(client, _SCRIPTS, "leases", "admit")
        self._run_extend = prepare(client, _SCRIPTS, "leases", "extend")
        self._run_settle = prepare(client, _SCRIPTS, "leases", "settle")
        self._run_renew = prepare(client, _SCRIPTS, "leases", "renew")
        self._run_standing = prepare(client, _SCRIPTS, "leases", "standing")
        self._run_load = prepare(client, _SCRIPTS, "load")
        self._run_correct = prepare(client, _SCRIPTS, "correct")

    def admit(self, ask: Ask, now: float) -> Grant | Refusal | Unloaded:
        limits = (ask.max_streams, ask.tokens_per_minute, ask.budget_day_ticks, ask.budget_month_ticks)
        reply = self._run_admit(
            (*_LEASES, *_WORKERS, _minute(ask.key), _SPENT + ask.key),
            (
                repr(now),
                repr(now + LEASE_S),
                ask.id,
                ask.key,
                int(ask.stream),
                ask.tokens,
                ask.ticks,
                ask.day,
                ask.day[:7],
                find_oldest_bucket(now),
                *("" if limit is None else limit for limit in limits),
                *self._own,
                *(min(ask.tokens, ask.least_tokens), min(ask.ticks, ask.least_ticks)),
                *(min(ask.tokens, ask.alone_tokens), min(ask.ticks, ask.alone_ticks)),
            ),
        )
        verdict = _text(reply[0])
        match verdict:
            case "granted":
                held = None if reply[3:] == [ask.tokens, ask.ticks] else (reply[3], reply[4])
                return Grant(reply[1], reply[2], held)
            case "unloaded":
                return Unloaded()
            case "tokens":
                return refuse_tokens(ask, reply[1], reply[3], now)
            case "budget_day" | "budget_month":
                return Refusal(verdict, None, reply[1], reply[2])
            case "streams" | "share":
                return Refusal(verdict, RETRY_S, reply[1], reply[2])
        raise AssertionError(verdict)

    def extend(self, ask: Ask, ticks: int, now: float) -> int | Unloaded:
        budgets = (ask.budget_day_ticks, ask.budget_month_ticks)
        held: int | None = self._run_extend(
            (*_LEASES, _SPENT + ask.key),
            (
                *(repr(now), ask.id, ask.key, ask.ticks, ticks, ask.day, ask.day[:7]),
                *("" if budget is None else budget for budget in budgets),
            ),
        )
        return Unloaded() if held is None else held

    def load(self, key: str, day: str, day_ticks: int, month_ticks: int, now: float) -> None:
        sums = (day, day_ticks, day[:7], month_ticks)
        self._run_load((_SPENT + key,), (repr(now), SPENT_S, find_oldest_month(day), *sums))

    def correct(self, key: str, day: str, day_ticks: int, month_ticks: int) -> None:
        self._run_correct((_SPENT + key,), (day, day_ticks, day[:7], month_ticks))

    def claim_correction(self, key: str) -> bool:
        try:
            return bool(self._client.set(f"{PREFIX}corrected:{key}", 1, nx=True, ex=CORRECT_S))
        except RedisError as error:
            raise StoreUnavailableError from error

    def settle(self, settlements: Sequence[Settled], worker: str, now: float) -> None:
        keys = [*_LEASES, f"{PREFIX}seq:{worker}"]
        args: list[Any] = [SEQ_S, find_oldest_bucket(now), LOAD_SLACK_S, MINUTE_S]
        for one in settlements:
            bucket = find_bucket(one, now)
            keys += (_minute(one.key), _SPENT + one.key)
            args += (one.seq, one.id, "" if bucket is None else bucket, one.tokens, one.ticks)
            args += (one.day, one.day[:7], repr(one.settled_at))
        self._run_settle(keys, args)

    def renew(self, worker: str, capacity: int, leases: Sequence[Ask], now: float) -> None:
        """Makes one round trip for every BATCH leases."""
        for start in range(0, max(1, len(leases)), BATCH):
            args: list[Any] = [repr(now), repr(now + LEASE_S), worker, capacity]
            for ask in leases[start : start + BATCH]:
                args += (ask.id, ask.key, int(ask.stream), ask.tokens, ask.ticks)
            self._run_renew((*_LEASES, *_WORKERS), args)

    def standing(self, key: str, day: str, now: float) -> Standing:
        keys = (*_LEASES, _minute(key), _SPENT + key)
        return Standing(*self._run_standing(keys, (repr(now), key, day, day[:7], find_oldest_bucket(now))))

    def mark(self, ids: Sequence[str], now: float) -> None:
        try:
            with self._client.pipeline() as steps:
                steps.zremrangebyscore(_MARKED, "-inf", now)
                steps.zadd(_MARKED, dict.fromkeys(ids, now + MARK_S))
                steps.expire(_MARKED, int(2 * MARK_S))
                steps.execute()
        except RedisError as error:
            raise StoreUnavailableError from error

    def list_marked(self, now: float) -> list[str]:
        try:
            found: Any = self._client.zrangebyscore(_MARKED, f"({now!r}", "+inf")
        except RedisError as error:
            raise StoreUnavailableError from error
        return sorted(_text(id_) for id_ in found)

    def list_keys(self) -> list[str]:
        """Scans all of Redis: not for use in a request."""
        try:
            found = {_text(name) for name in self._client.scan_iter(match=_SPENT + "*", count=1000)}
        except RedisError as error:
            raise StoreUnavailableError from error
        return sorted(name.removeprefix(_SPENT) for name in found)


def _minute(key: str) -> str:
    return f"{PREFIX}minute:{key}"


def _text(value: bytes | str) -> str:
    """A reply's text, whether the client decodes replies or not."""
    return value if isinstance(value, str) else value.decode()
