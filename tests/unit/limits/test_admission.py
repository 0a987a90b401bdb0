"""Admission and settlement as one worker sees them, with a store that can be away."""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace
from support.scripted import WAIT_S

from grokflask.billing.bill import Bill, Estimate
from grokflask.config import Settings
from grokflask.errors import (
    BudgetSpentError,
    FairShareError,
    GrokflaskError,
    StoreUnavailableError,
    TokenLimitError,
    TooManyStreamsError,
)
from grokflask.keys.limits import KeyLimits
from grokflask.ledger.row import LedgerRow
from grokflask.limits.admission import Limits
from grokflask.limits.counters import LEASE_S, Ask, Grant, Refusal, Settled, Standing, Unloaded
from grokflask.limits.holds import Hold
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.settlements import BATCH, Settlements
from grokflask.protocol.usage import Usage

DAY = "2026-11-24"
NOON = 1_795_521_600.0
KEY = "key:alice"
ESTIMATE = Estimate("tokens", "grok-4.3", 100, 100, 1_000, 5_000)
BILL = Bill(Usage(prompt_tokens=20, completion_tokens=10, total_tokens=30, cost_ticks=700), estimated=False)


class Store(MemoryCounters):
    """Counters that many workers share, and that can be away."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"capacity": 1000, **options})
        self.away = False
        self.loses_answers = False

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailableError

    def admit(self, ask: Ask, now: float) -> Grant | Refusal | Unloaded:
        self._answer()
        return super().admit(ask, now)

    def renew(self, worker: str, capacity: int, leases: Sequence[Ask], now: float) -> None:
        self._answer()
        super().renew(worker, capacity, leases, now)

    def extend(self, ask: Ask, ticks: int, now: float) -> int | Unloaded:
        self._answer()
        return super().extend(ask, ticks, now)

    def settle(self, settlements: Sequence[Settled], worker: str, now: float) -> None:
        self._answer()
        super().settle(settlements, worker, now)
        if self.loses_answers:
            raise StoreUnavailableError

    def standing(self, key: str, day: str, now: float) -> Standing:
        self._answer()
        return super().standing(key, day, now)


class Worker:
    """One worker's limits on `store`."""

    def __init__(self, store: Store | None = None, name: str = "w1", **settings: Any) -> None:
        self.store = store or Store()
        self.now = NOON
        self.spent: tuple[int, int] | None = (0, 0)
        self.lookups = 0
        self.stopped: list[str] = []
        self._ids = 0
        self._name = name
        self.limits = Limits(
            Settings(**{"capacity": 1000, **settings}),
            self.store,
            shared=True,
            worker=lambda: name,
            find_spent=self._find_spent,
            stop=self._stop,
            clock=lambda: self.now,
        )

    def _find_spent(self, _key: str, _day: str) -> tuple[int, int]:
        self.lookups += 1
        if self.spent is None:
            raise StoreUnavailableError
        return self.spent

    def _stop(self, ids: Container[str]) -> int:
        self.stopped += [id_ for id_ in self.limits._holds if id_ in ids]
        return len(self.stopped)

    def admit(self, limits: KeyLimits, *, stream: bool = True, estimate: Estimate = ESTIMATE) -> Hold:
        self._ids += 1
        return self.limits.admit(
            KEY, limits, estimate, id=f"{self._name}-{self._ids}", request_id="r", day=DAY, stream=stream
        )

    def count(self, limits: KeyLimits, tries: int = 20) -> int:
        """How many of `tries` requests are admitted; they stay open."""
        admitted = 0
        for _ in range(tries):
            try:
                self.admit(limits)
            except (TooManyStreamsError, TokenLimitError, BudgetSpentError):
                continue
            admitted += 1
        return admitted

    @property
    def standing(self) -> Standing:
        return MemoryCounters.standing(self.store, KEY, DAY, self.now)

    def outlast(self) -> None:
        """The store is away, and the worker knows."""
        self.store.away = True
        self.limits.keep_up()
        assert self.limits.state.store == "local"

    def recover(self) -> None:
        self.store.away = False
        self.limits.keep_up()
        assert self.limits.state.store == "redis"


STREAMS = KeyLimits(streams=4)
TOKENS = KeyLimits(tokens_per_minute=800)
BUDGET = KeyLimits(budget_day_ticks=20_000)
MONTH = KeyLimits(budget_month_ticks=20_000)


def test_an_exchange_from_admission_to_settlement() -> None:
    """The estimate is held while it runs; then the real usage is booked, once, whoever says so how often."""
    worker = Worker()
    limits = KeyLimits(streams=4, tokens_per_minute=800, budget_day_ticks=20_000)
    hold = worker.admit(limits)
    assert hold.headers == {"X-RateLimit-Limit-Tokens": "800", "X-RateLimit-Remaining-Tokens": "600"}
    assert worker.standing == Standing(1, 200, 5_000, 0, 0)
    for _ in range(3):
        hold.settle(BILL)
    assert worker.standing == Standing(0, 30, 0, 700, 700)


def test_what_never_went_upstream_is_given_back() -> None:
    """A hold that is settled without a bill leaves nothing behind."""
    worker = Worker()
    worker.admit(KeyLimits(streams=1, tokens_per_minute=800, budget_day_ticks=20_000)).settle()
    assert worker.standing == Standing(0, 0, 0, 0, 0)


def test_no_limits_no_headers() -> None:
    """A key without limits is told of none, and its lease counts for the fair share all the same."""
    worker = Worker()
    assert worker.admit(KeyLimits()).headers == {}
    assert worker.standing.streams == 1


REFUSALS: list[tuple[KeyLimits, type[GrokflaskError], str, str, str | None]] = [
    (STREAMS, TooManyStreamsError, "too_many_streams", "already has 4 open streams", "1"),
    (TOKENS, TokenLimitError, "token_limit_exceeded", "used or reserved 800", "5"),
    (
        KeyLimits(tokens_per_minute=99),
        TokenLimitError,
        "token_limit_exceeded",
        "a shorter prompt",
        None,
    ),
    (BUDGET, BudgetSpentError, "insufficient_quota", "0.000002 USD for the day", None),
    (MONTH, BudgetSpentError, "insufficient_quota", "USD for the month", None),
]


@pytest.mark.parametrize(("limits", "kind", "code", "words", "retry_after"), REFUSALS)
def test_refusals(
    limits: KeyLimits, kind: type[GrokflaskError], code: str, words: str, retry_after: str | None
) -> None:
    """A refused request is told which limit, by how much, and when to come back where that helps."""
    worker = Worker()
    worker.count(limits, 4)
    before = worker.standing
    with pytest.raises(kind) as caught:
        worker.admit(limits)
    assert worker.standing == before
    assert (caught.value.status, caught.value.code) == (429, code)
    assert words in caught.value.message
    assert caught.value.headers.get("Retry-After") == retry_after
    # Where waiting does not help, OpenAI's SDKs are told not to try again.
    assert (caught.value.headers.get("x-should-retry") == "false") == (retry_after is None)
    if limits.tokens_per_minute:
        left = limits.tokens_per_minute - before.tokens
        assert caught.value.headers["X-RateLimit-Limit-Tokens"] == str(limits.tokens_per_minute)
        assert caught.value.headers["X-RateLimit-Remaining-Tokens"] == str(left)


def test_the_fair_share_is_told() -> None:
    """Nearly full, a key that has its part is told so."""
    worker = Worker(Store(capacity=10, fair_share=0.5))
    for number in range(5):
        worker.limits.admit(
            f"key:{number}", KeyLimits(), ESTIMATE, id=f"o{number}", request_id="r", day=DAY, stream=True
        )
    worker.admit(KeyLimits())
    with pytest.raises(FairShareError) as caught:
        worker.admit(KeyLimits())
    assert caught.value.headers["Retry-After"] == "1"


def test_the_default_number_of_streams() -> None:
    """A key without a number of its own has the settings'; its own goes before, also a larger one."""
    assert Worker(max_streams=2).count(KeyLimits()) == 2
    assert Worker(max_streams=2).count(KeyLimits(streams=3)) == 3


def test_whole_replies_are_no_streams() -> None:
    """Requests that do not stream are not counted as open streams; tokens and budgets hold for them too."""
    worker = Worker()
    for _ in range(10):
        worker.admit(STREAMS, stream=False)
    assert worker.count(STREAMS) == 4
    assert worker.count(BUDGET) == 0


def test_spending_is_looked_up_once_for_many() -> None:
    """Fifty first requests at the same moment ask the ledger once, and room for four admits four."""
    worker = Worker()
    started = threading.Barrier(50)

    def ask(number: int) -> bool:
        started.wait(WAIT_S)
        try:
            worker.limits.admit(KEY, BUDGET, ESTIMATE, id=f"p{number}", request_id="r", day=DAY, stream=True)
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(50))) == 4
    assert worker.lookups == 1


def test_spending_from_the_ledger_counts() -> None:
    """What was spent before this process began is known at the first request."""
    worker = Worker()
    worker.spent = (10_000, 15_000)
    assert worker.count(BUDGET) == 2
    worker = Worker()
    worker.spent = (10_000, 15_000)
    assert worker.count(MONTH) == 1


def test_long_exchanges_keep_their_leases() -> None:
    """A stream of an hour counts as open all the time, and no longer."""
    worker = Worker()
    hold = worker.admit(STREAMS)
    for _ in range(10):
        worker.now += LEASE_S - 1
        worker.limits._renew()  # what `keep_up` does every RENEW_S
        assert worker.standing.streams == 1
    hold.settle(BILL)
    worker.limits._renew()
    assert worker.standing.streams == 0


def test_leases_of_a_killed_worker_lapse() -> None:
    """What nobody renews is free again."""
    worker = Worker()
    assert worker.count(STREAMS) == 4
    other = Worker(worker.store, "w2")
    assert other.count(STREAMS) == 0
    other.now += LEASE_S + 1
    assert other.count(STREAMS) == 4


OUTAGES: list[tuple[str, KeyLimits]] = [
    ("streams_outage", STREAMS),
    ("tokens_outage", TOKENS),
    ("budgets_outage", BUDGET),
    ("budgets_outage", MONTH),
]


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize(("setting", "limits"), OUTAGES)
@pytest.mark.parametrize(("policy", "admitted"), [("open", 20), ("local", 2), ("closed", None)])
def test_what_holds_in_an_outage(
    setting: str, limits: KeyLimits, policy: str, admitted: int | None, known: bool
) -> None:
    """`open` lets all pass, `local` holds this worker to its part (one of two here), `closed` is a 503.

    Whether the outage is known already, or this request finds it, makes no difference.
    """
    worker = Worker(workers=2, **{setting: policy})
    if known:
        worker.outlast()
    else:
        worker.store.away = True
    if admitted is None:
        with pytest.raises(StoreUnavailableError):
            worker.admit(limits)
        worker.admit(KeyLimits())  # a key without this limit is not concerned
    else:
        assert worker.count(limits) == admitted
    assert worker.limits.state.outages == 1


def test_a_local_budget_is_a_part_of_what_was_left() -> None:
    """Half of it was spent when the outage began, so this worker has a quarter, of two workers."""
    worker = Worker(workers=2)
    worker.spent = (10_000, 10_000)
    worker.outlast()
    assert worker.count(BUDGET) == 1
    worker = Worker(workers=2)
    worker.spent = (0, 0)
    worker.outlast()
    held = [worker.admit(BUDGET), worker.admit(BUDGET)]
    worker.spent = (20_000, 20_000)  # in the ledger by now, this worker's own among it: not counted twice
    for hold in held:
        hold.settle(replace(BILL, usage=Usage(cost_ticks=2_500)))
    assert worker.count(BUDGET) == 1


def test_settlements_wait_for_the_store() -> None:
    """What ends in an outage is booked when the store is back, once; so is what had been admitted in it."""
    worker = Worker()
    limits = KeyLimits(streams=4, budget_day_ticks=20_000)
    before = worker.admit(limits)
    worker.outlast()
    during = worker.admit(limits)
    before.settle(BILL)
    still_open = worker.admit(limits)
    during.settle(BILL)
    assert worker.limits.state.waiting == 2
    worker.recover()
    assert worker.limits.state.waiting == 0
    assert worker.standing == Standing(1, 200, 5_000, 1_400, 1_400)
    still_open.settle(BILL)
    worker.limits.keep_up()
    assert worker.standing == Standing(0, 0, 0, 2_100, 2_100)


def test_an_answer_that_is_lost_counts_once() -> None:
    """The store booked a settlement and its answer did not arrive: the repetition changes nothing."""
    worker = Worker()
    hold = worker.admit(BUDGET)
    worker.store.loses_answers = True
    hold.settle(BILL)
    assert worker.limits.state == worker.limits.state.__class__("local", 1, 1)
    worker.limits.keep_up()
    worker.store.loses_answers = False
    worker.recover()
    assert worker.standing == Standing(0, 0, 0, 700, 700)
    assert worker.limits.state.waiting == 0


def test_a_store_that_forgot_everything() -> None:
    """It comes back empty: open leases are held anew, and the spending is looked up again."""
    worker = Worker()
    limits = KeyLimits(streams=4, budget_day_ticks=40_000)
    hold = worker.admit(limits)
    worker.outlast()
    worker.store.clear()
    worker.recover()
    assert worker.standing == Standing(1, 200, 5_000, None, None)
    worker.spent = (3_000, 3_000)
    worker.admit(limits)
    assert worker.standing == Standing(2, 400, 10_000, 3_000, 3_000)
    hold.settle(BILL)
    assert worker.standing == Standing(1, 200, 5_000, 3_700, 3_700)


def test_spending_that_nobody_can_tell() -> None:
    """The ledger is away and the counters do not know the key: its budget is this worker's until they do."""
    worker = Worker()
    worker.spent = None
    holds = [worker.admit(BUDGET) for _ in range(4)]
    assert worker.count(BUDGET) == 0
    assert worker.limits.state.store == "redis"  # that is in order
    worker.spent = (15_000, 15_000)
    assert worker.count(BUDGET) == 0  # with what they hold
    for hold in holds:
        hold.settle()
    assert worker.count(BUDGET) == 1
    closed = Worker(budgets_outage="closed")
    closed.spent = None
    with pytest.raises(StoreUnavailableError):
        closed.admit(BUDGET)
    assert closed.count(STREAMS) == 4


def test_only_budgets_need_the_ledger() -> None:
    """While nobody can tell what a key has spent, its other limits hold in the store, with all workers."""
    limits = KeyLimits(streams=4, tokens_per_minute=800, budget_day_ticks=10**9)
    for policy in ("open", "local"):
        worker = Worker(budgets_outage=policy, streams_outage="closed", tokens_outage="closed")
        worker.spent = None
        other = Worker(worker.store, "w2", budgets_outage=policy)
        other.spent = None
        holds = [worker.admit(limits), other.admit(limits)]
        assert worker.standing == Standing(2, 400, 10_000, None, None)
        assert worker.count(limits) == 2
        for hold in holds:
            hold.settle(BILL)
        worker.spent = (5, 5)
        assert worker.admit(limits).local is False


def test_a_refusal_by_either_leaves_nothing() -> None:
    """The stand-in granted and the store refused, or the other way round: neither keeps a lease."""
    worker = Worker()
    worker.spent = None
    both = KeyLimits(streams=1, budget_day_ticks=20_000)
    hold = worker.admit(both)
    for _ in range(10):
        with pytest.raises(TooManyStreamsError):
            worker.admit(both)
    hold.settle()
    assert worker.count(KeyLimits(streams=10, budget_day_ticks=20_000)) == 4
    assert worker.standing.streams == 4


def test_lost_rows_are_charged() -> None:
    """What a killed process may have used is booked to its key, if its spending is counted here."""
    worker = Worker()
    row = LedgerRow("0", "r", "alice", "chat", "grok-4.3", NOON, cost_ticks=900, outcome="lost")
    worker.limits.charge([row])
    worker.limits.keep_up()
    assert worker.standing.day_ticks is None  # it will be looked up, and is in it
    worker.spent = (900, 900)
    worker.admit(BUDGET)
    worker.now += 10
    worker.limits.charge([row])
    worker.limits.keep_up()
    assert worker.standing.day_ticks == 1_800


def test_standing() -> None:
    """Whoever asks is told of the ledger's figures where the counters have none."""
    worker = Worker()
    worker.spent = (5, 6)
    assert worker.limits.find_standing(KEY, DAY) == Standing(0, 0, 0, 5, 6)
    worker.outlast()
    worker.count(STREAMS, 1)
    assert worker.limits.find_standing(KEY, DAY) == Standing(1, 200, 5_000, 5, 6)


def test_many_settlements_in_a_long_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one key and day are added up when too many wait, and none is lost or counted twice."""
    monkeypatch.setattr("grokflask.limits.settlements.MAX_WAITING", 1_000)
    store = MemoryCounters(capacity=1)
    settlements = Settlements(store, lambda: "w", lambda: NOON)
    store.load("a", DAY, 0, 0, NOON)
    store.load("b", DAY, 0, 0, NOON)
    for number in range(10_000):
        ask = Ask(str(number), "ab"[number % 2], "r", True, 0, 0, DAY, None, 10**9, None, None)
        settlements.add(ask, 3, 7)
        assert len(settlements) <= 1_001 + BATCH
    settlements.deliver()
    assert len(settlements) == 0
    for key in "ab":
        assert store.standing(key, DAY, NOON) == Standing(0, 15_000, 0, 35_000, 35_000)


def test_one_worker_ends_what_another_holds() -> None:
    """What is marked is ended by the worker that holds it, in its next round, and by nobody else."""
    store = Store()
    holder, asker = Worker(store, "w1"), Worker(store, "w2")
    mine, other = holder.admit(STREAMS), holder.admit(STREAMS)
    asker.admit(STREAMS)
    assert asker.limits.stop_elsewhere([mine.ask.id])
    asker.limits.keep_up()
    holder.limits.keep_up()
    assert (holder.stopped, asker.stopped) == ([mine.ask.id], [])
    mine.settle()
    other.settle()


def test_nobody_else_is_reached_without_a_shared_store() -> None:
    """Counters in memory reach no other process, and it is not pretended that they do."""
    limits = Limits(
        Settings(), MemoryCounters(1), shared=False, worker=lambda: "w", find_spent=lambda *_: (0, 0)
    )
    assert not limits.stop_elsewhere(["a"])


# Steps


OPEN_ENDED = Estimate("tokens", "grok-4.3", 100, 1000, 1_000, 11_000, 10)


def test_a_request_that_does_not_fit_holds_what_is_left() -> None:
    """The first of a key with its prompt's room, others with a first step's; what is held can grow."""
    worker = Worker()
    budget = KeyLimits(budget_day_ticks=15_000)
    first, second = (worker.admit(budget, estimate=OPEN_ENDED) for _ in range(2))
    assert (first.ask.ticks, second.ask.ticks) == (11_000, 4_000)
    with pytest.raises(BudgetSpentError, match=r"0\.0000001000 USD to begin"):
        worker.admit(budget, estimate=OPEN_ENDED)
    first.settle(BILL)
    assert second.extend(9_000) == second.ask.ticks == 9_000
    assert second.extend(99_000) == 9_000  # a quarter of that is not there
    assert second.extend(16_000) == 14_300
    second.settle()
    assert second.extend(99_000) == 14_300
    assert worker.standing == Standing(0, 0, 0, 700, 700)


def test_steps_in_an_outage() -> None:
    """They follow the budgets' rule, and are held in this worker until the exchange ends."""
    steps = {}
    for policy in ("open", "local", "closed"):
        worker = Worker(budgets_outage=policy, workers=2)
        hold = worker.admit(KeyLimits(budget_day_ticks=20_000), estimate=OPEN_ENDED)
        worker.outlast()
        try:
            steps[policy] = hold.extend(30_000)
        except StoreUnavailableError:
            steps[policy] = -1
        worker.recover()
        assert worker.standing.held_ticks == max(11_000, min(steps[policy], 11_000))
        hold.settle(BILL)
        assert worker.standing == Standing(0, 0, 0, 700, 700)
    assert steps == {"open": 30_000, "local": 11_000, "closed": -1}


def test_a_step_finds_the_store_away_or_its_sums_gone() -> None:
    """The outage begins with it; a store that came back empty is told again what was spent."""
    worker = Worker()
    hold = worker.admit(KeyLimits(budget_day_ticks=50_000), estimate=OPEN_ENDED)
    worker.store.clear()
    assert hold.extend(20_000) == 20_000
    worker.store.away = True
    assert hold.extend(30_000) == 30_000
    assert worker.limits.state.store == "local"
