"""The counters of one process, in its memory."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec.structs import replace

from grokflask.limits.counters import (
    FAIR_SHARE,
    LEASE_S,
    LOAD_SLACK_S,
    MARK_S,
    MAX_AMOUNT,
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


@dataclass(slots=True)
class _Sum:
    ticks: int
    loaded_at: float


@dataclass(slots=True)
class _Account:
    """What one key holds (in `open` requests) and has used."""

    open: int = 0
    streams: int = 0
    tokens: int = 0
    ticks: int = 0
    minute: dict[int, int] = field(default_factory=dict)
    spent: dict[str, _Sum] = field(default_factory=dict)  # by day and by month


@dataclass(slots=True)
class _Lease:
    ask: Ask
    expiry: float


class MemoryCounters(Counters):
    """`Counters` for one process.

    Args:
        capacity: slots of this process.
        fair_share: as FAIR_SHARE, from 0 to 1.
    """

    def __init__(self, capacity: int, fair_share: float = FAIR_SHARE) -> None:
        self._capacity = capacity
        self._threshold = fair_share * capacity
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._active = 0  # accounts with an open lease
        self._leases: dict[str, _Lease] = {}
        self._expiries: list[
            tuple[float, str]
        ] = []  # a heap; renewed and freed leases stay in it for a while
        self._buckets: deque[tuple[int, str]] = deque()  # all of them with their keys, oldest first
        self._applied: dict[str, tuple[int, float]] = {}  # by worker: the highest seq, and when
        self._marked: dict[str, float] = {}  # by lease: until when
        self._month = ""

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            for store in (self._accounts, self._leases, self._expiries, self._buckets, self._applied):
                store.clear()
            self._marked.clear()
            self._active, self._month = 0, ""

    def admit(self, ask: Ask, now: float) -> Grant | Refusal | Unloaded:
        with self._lock:
            self._prune(now)
            account = self._accounts.get(ask.key) or _Account()
            lease = self._leases.get(ask.id)
            if lease is None:
                obstacle = self._check_share(account) or _check_streams(account, ask)
                tokens = obstacle or _check_tokens(account, ask, now)
                ticks = obstacle or _check_budgets(account, ask)
                for verdict in (obstacle, tokens, ticks):
                    if isinstance(verdict, Refusal | Unloaded):
                        return verdict
                fits = tokens == ask.tokens and ticks == ask.ticks
                held = ask if fits else replace(ask, tokens=tokens, ticks=ticks)
                lease = self._hold(held, now + LEASE_S)
                account = self._accounts[ask.key]
            limit = ask.tokens_per_minute
            left = None if limit is None else limit - _count_tokens(account, now)
            return Grant(
                account.streams, left, None if lease.ask is ask else (lease.ask.tokens, lease.ask.ticks)
            )

    def extend(self, ask: Ask, ticks: int, now: float) -> int | Unloaded:
        with self._lock:
            self._prune(now)
            account = self._accounts.get(ask.key) or _Account()
            if _is_unloaded(account, ask):
                return Unloaded()
            lease = self._leases.get(ask.id)
            held = lease.ask.ticks if lease else ask.ticks
            left = (budget - account.spent[name].ticks for _, name, budget in _list_budgets(ask))
            step = min(ticks - held, min(left, default=MAX_AMOUNT) - account.ticks)
            if step <= 0 or 4 * step < ticks - held:
                return held
            if lease:
                lease.ask = replace(lease.ask, ticks=held + step)
                account.ticks += step
            return held + step

    def load(self, key: str, day: str, day_ticks: int, month_ticks: int, now: float) -> None:
        with self._lock:
            self._turn_month(day)
            spent = self._accounts.setdefault(key, _Account()).spent
            spent.setdefault(day, _Sum(day_ticks, now))
            spent.setdefault(day[:7], _Sum(month_ticks, now))

    def correct(self, key: str, day: str, day_ticks: int, month_ticks: int) -> None:
        with self._lock:
            spent = self._accounts[key].spent if key in self._accounts else {}
            for name, ticks in ((day, day_ticks), (day[:7], month_ticks)):
                if name in spent:
                    spent[name].ticks += ticks

    def claim_correction(self, key: str) -> bool:
        return True  # no other worker has these counters

    def replace(self, key: str, day: str, day_ticks: int, month_ticks: int, now: float) -> None:
        """Like `load`, but replaces sums that are loaded."""
        with self._lock:
            self._turn_month(day)
            spent = self._accounts.setdefault(key, _Account()).spent
            spent[day] = _Sum(day_ticks, now)
            spent[day[:7]] = _Sum(month_ticks, now)

    def settle(self, settlements: Sequence[Settled], worker: str, now: float) -> None:
        with self._lock:
            for name in [name for name, mark in self._applied.items() if mark[1] <= now - SEQ_S]:
                del self._applied[name]
            last = self._applied.get(worker, (-1, now))[0]
            for settled in settlements:
                if settled.seq > last:
                    last = settled.seq
                    self._release(settled.id)
                    self._book(settled, now)
            self._applied[worker] = (last, now)

    def renew(self, worker: str, capacity: int, leases: Sequence[Ask], now: float) -> None:
        """The slots stay those of this process."""
        with self._lock:
            for ask in leases:
                lease = self._leases.get(ask.id)
                if lease is None:
                    self._hold(ask, now + LEASE_S)
                else:
                    lease.expiry = now + LEASE_S
                    self._note_expiry(lease)

    def standing(self, key: str, day: str, now: float) -> Standing:
        with self._lock:
            self._prune(now)
            account = self._accounts.get(key) or _Account()
            sums = [account.spent.get(name) for name in (day, day[:7])]
            day_ticks, month_ticks = (None if one is None else one.ticks for one in sums)
            tokens = _count_tokens(account, now)
            return Standing(account.streams, tokens, account.ticks, day_ticks, month_ticks)

    def mark(self, ids: Sequence[str], now: float) -> None:
        with self._lock:
            self._marked = {id_: end for id_, end in self._marked.items() if end > now}
            self._marked |= dict.fromkeys(ids, now + MARK_S)

    def list_marked(self, now: float) -> list[str]:
        with self._lock:
            return sorted(id_ for id_, end in self._marked.items() if end > now)

    def list_keys(self) -> list[str]:
        with self._lock:
            return sorted(key for key, account in self._accounts.items() if account.spent)

    def _check_share(self, account: _Account) -> Refusal | None:
        # A key with nothing open has room in any share; the others are among the active.
        if account.open == 0 or len(self._leases) < self._threshold:
            return None
        share = max(1, self._capacity // self._active)
        return None if account.open < share else Refusal("share", RETRY_S, account.open, share)

    def _hold(self, ask: Ask, expiry: float) -> _Lease:
        account = self._accounts.setdefault(ask.key, _Account())
        self._active += account.open == 0
        account.open += 1
        account.streams += ask.stream
        account.tokens += ask.tokens
        account.ticks += ask.ticks
        lease = self._leases[ask.id] = _Lease(ask, expiry)
        self._note_expiry(lease)
        return lease

    def _note_expiry(self, lease: _Lease) -> None:
        heapq.heappush(self._expiries, (lease.expiry, lease.ask.id))
        if len(self._expiries) > 2 * len(self._leases) + 1000:
            self._expiries = [(one.expiry, id_) for id_, one in self._leases.items()]
            heapq.heapify(self._expiries)

    def _release(self, id_: str) -> None:
        lease = self._leases.pop(id_, None)
        if lease is None:
            return
        ask = lease.ask
        account = self._accounts[ask.key]
        account.open -= 1
        account.streams -= ask.stream
        account.tokens -= ask.tokens
        account.ticks -= ask.ticks
        self._active -= account.open == 0
        self._forget_if_empty(ask.key, account)

    def _prune(self, now: float) -> None:
        """Frees expired leases and drops buckets that no longer count."""
        while self._expiries and self._expiries[0][0] <= now:
            id_ = heapq.heappop(self._expiries)[1]
            lease = self._leases.get(id_)
            if lease is not None and lease.expiry <= now:
                self._release(id_)
        oldest = find_oldest_bucket(now)
        while self._buckets and self._buckets[0][0] < oldest:
            bucket, key = self._buckets.popleft()
            account = self._accounts[key]
            del account.minute[bucket]
            self._forget_if_empty(key, account)

    def _book(self, settled: Settled, now: float) -> None:
        bucket = find_bucket(settled, now)
        if bucket is not None:
            minute = self._accounts.setdefault(settled.key, _Account()).minute
            if bucket not in minute:
                self._buckets.append((bucket, settled.key))
            minute[bucket] = minute.get(bucket, 0) + settled.tokens
        spent = self._accounts[settled.key].spent if settled.key in self._accounts else {}
        for name in (settled.day, settled.day[:7]):
            total = spent.get(name)
            if total is not None and settled.settled_at >= total.loaded_at - LOAD_SLACK_S:
                total.ticks += settled.ticks

    def _turn_month(self, day: str) -> None:
        """In a new month, drops the sums from before the previous one."""
        if day[:7] <= self._month:
            return
        self._month = day[:7]
        oldest = find_oldest_month(day)
        for key, account in list(self._accounts.items()):
            account.spent = {name: one for name, one in account.spent.items() if name[:7] >= oldest}
            self._forget_if_empty(key, account)

    def _forget_if_empty(self, key: str, account: _Account) -> None:
        if not (account.open or account.minute or account.spent):
            del self._accounts[key]


def _check_streams(account: _Account, ask: Ask) -> Refusal | None:
    limit = ask.max_streams
    if not ask.stream or limit is None or account.streams < limit:
        return None
    return Refusal("streams", RETRY_S, account.streams, limit)


def _check_tokens(account: _Account, ask: Ask, now: float) -> Refusal | int:
    """The tokens to hold."""
    limit = ask.tokens_per_minute
    if limit is None:
        return ask.tokens
    used = _count_tokens(account, now)
    if used + ask.tokens <= limit:
        return ask.tokens
    least = min(ask.tokens, ask.least_tokens if account.open else ask.alone_tokens)
    if used + least <= limit:
        return limit - used
    surplus = used - account.tokens + least - limit
    last = None
    for bucket in sorted(account.minute):
        if surplus > 0 and bucket >= find_oldest_bucket(now):
            surplus -= account.minute[bucket]
            last = bucket
    return refuse_tokens(ask, used, last, now)


def _list_budgets(ask: Ask) -> list[tuple[Literal["budget_day", "budget_month"], str, int]]:
    budgets: list[tuple[Literal["budget_day", "budget_month"], str, int]] = []
    if ask.budget_day_ticks is not None:
        budgets.append(("budget_day", ask.day, ask.budget_day_ticks))
    if ask.budget_month_ticks is not None:
        budgets.append(("budget_month", ask.day[:7], ask.budget_month_ticks))
    return budgets


def _is_unloaded(account: _Account, ask: Ask) -> bool:
    return any(name not in account.spent for _, name, _ in _list_budgets(ask))


def _check_budgets(account: _Account, ask: Ask) -> Refusal | Unloaded | int:
    """The ticks to hold."""
    if _is_unloaded(account, ask):
        return Unloaded()
    ticks = ask.ticks
    least = min(ticks, ask.least_ticks if account.open else ask.alone_ticks)
    for reason, name, budget in _list_budgets(ask):
        spent = account.spent[name].ticks
        left = budget - spent - account.ticks
        has_money_left = budget > 0 and spent < budget
        # A request without a known cost is admitted until the budget is spent.
        if not (has_money_left and (least == 0 or least <= left)):
            return Refusal(reason, None, budget - left, budget)
        ticks = max(0, min(ticks, left))
    return ticks


def _count_tokens(account: _Account, now: float) -> int:
    """Tokens used in the last minute, plus those that are held."""
    if not account.minute:
        return account.tokens
    oldest = find_oldest_bucket(now)
    return account.tokens + sum(tokens for bucket, tokens in account.minute.items() if bucket >= oldest)
