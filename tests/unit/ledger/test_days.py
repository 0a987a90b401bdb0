"""Days and months turn under running exchanges: each counts on the day on which it began, for everybody."""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from redis import Redis

from grokflask.billing.bill import Bill, Estimate
from grokflask.config import Settings
from grokflask.errors import BudgetSpentError
from grokflask.keys.limits import KeyLimits
from grokflask.ledger.reports import Drift, check_daily, read_spent, summarize
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits.admission import Limits
from grokflask.limits.counters import Counters
from grokflask.limits.holds import Hold
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.reconciliation import check_counters
from grokflask.limits.redis import RedisCounters
from grokflask.protocol.usage import Usage
from grokflask.storage.database import Database

MIDNIGHT = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
BEFORE, AFTER = "2026-11-30", "2026-12-01"
KEYS = {
    "ann": KeyLimits(budget_day_ticks=10**12),
    "bob": KeyLimits(budget_month_ticks=10**12, tokens_per_minute=10**9),
    "cyd": KeyLimits(),
}
ESTIMATE = Estimate("tokens", "grok-4.3", 100, 100, 1_000, 5_000)
FLUSH_S = 30.0


class Books:
    """The limits, the counters and the ledger of one process, by a clock that the test moves."""

    def __init__(self, database: Database, counters: Counters) -> None:
        self.now = MIDNIGHT - 3600
        self.database = database
        self.counters = counters
        self.writer = LedgerWriter(database, worker="w1", retention_days=0, clock=lambda: self.now)
        self.limits = Limits(
            Settings(capacity=1000),
            counters,
            shared=True,
            worker=lambda: "w1",
            find_spent=self._find_spent,
            clock=lambda: self.now,
        )

    def _find_spent(self, key: str, day: str) -> tuple[int, int]:
        assert self.writer.flush(FLUSH_S)
        return read_spent(self.database, key.removeprefix("key:"), day)

    def begin(self, key: str, limits: KeyLimits) -> tuple[LedgerRow, Hold]:
        """An exchange that begins now. Raises BudgetSpentError."""
        row = LedgerRow(make_id(self.now), "r", key, "chat", "grok-4.3", self.now, cost_ticks=1_000)
        hold = self.limits.admit(
            f"key:{key}", limits, ESTIMATE, id=row.id, request_id="r", day=row.day, stream=True
        )
        self.writer.open(row)
        return row, hold

    def end(self, row: LedgerRow, hold: Hold, ticks: int) -> None:
        """It ends now."""
        hold.settle(Bill(Usage(prompt_tokens=3, total_tokens=5, cost_ticks=ticks), estimated=False))
        self.writer.settle(dataclasses.replace(row, outcome="complete", prompt_tokens=3, cost_ticks=ticks))

    def find_drift(
        self, *, repair: bool = False, sleep: Callable[[float], None] = lambda _: None
    ) -> list[Drift]:
        """Where the counters and the ledger differ."""
        return check_counters(
            self.counters, self.database, repair=repair, clock=lambda: self.now, sleep=sleep
        )


@pytest.fixture(params=["memory", "redis"])
def books(request: pytest.FixtureRequest, database: Database) -> Iterator[Books]:
    """Over each pair of stores."""
    if request.param == "memory":
        books = Books(database, MemoryCounters(capacity=1000))
        yield books
    else:
        with Redis.from_url(request.getfixturevalue("redis_server").url) as redis:
            books = Books(database, RedisCounters(redis, capacity=1000))
            yield books
    assert books.writer.close(FLUSH_S)


@pytest.mark.parametrize("seed", range(3))
def test_exchanges_over_midnight_and_the_end_of_a_month(books: Books, seed: int) -> None:
    """Of 300 exchanges around it, many of them open over it, ledger and counters have the same sums."""
    dice = random.Random(seed)
    begins = sorted(MIDNIGHT + dice.uniform(-1800, 1800) for _ in range(298))
    begins += [MIDNIGHT - 0.001, MIDNIGHT]  # the last millisecond, and the first
    running: list[tuple[float, int, LedgerRow, Hold]] = []
    spent: Counter[tuple[str, str]] = Counter()
    over_midnight = 0

    def end_until(moment: float) -> None:
        nonlocal over_midnight
        while running and running[0][0] <= moment:
            books.now, ticks, row, hold = heapq.heappop(running)
            over_midnight += row.started_at < MIDNIGHT <= books.now
            spent[row.key, BEFORE if row.started_at < MIDNIGHT else AFTER] += ticks
            books.end(row, hold, ticks)
        books.now = moment

    for number, begun_at in enumerate(sorted(begins)):
        end_until(begun_at)
        key = dice.choice(list(KEYS))
        row, hold = books.begin(key, KEYS[key])
        # Ticks tell the exchanges apart, so that the heap never has to compare rows.
        running_s = dice.choice([0.0, dice.uniform(0, 5), dice.uniform(0, 3600)])
        heapq.heappush(running, (begun_at + running_s, 1_000 * number + dice.randrange(1_000), row, hold))
    end_until(MIDNIGHT + 7200)
    assert over_midnight > 20
    assert books.writer.flush(FLUSH_S)

    for key, limits in KEYS.items():
        before, after = spent[key, BEFORE], spent[key, AFTER]
        assert before
        assert after
        assert read_spent(books.database, key, BEFORE) == (before, before)
        assert read_spent(books.database, key, AFTER) == (after, after)
        by_day = {each.name: each.cost_ticks for each in summarize(books.database, None, None, "day", key)}
        assert by_day == {BEFORE: before, AFTER: after}
        for day, ticks in ((BEFORE, before), (AFTER, after)):
            standing = books.counters.standing(f"key:{key}", day, books.now)
            counted = ticks if limits != KEYS["cyd"] else None  # without a budget nothing is counted
            assert (standing.day_ticks, standing.month_ticks) == (counted, counted)
            assert (standing.streams, standing.held_ticks) == (0, 0)
            shown = books.limits.find_standing(f"key:{key}", day)
            assert (shown.day_ticks, shown.month_ticks) == (ticks, ticks)
    assert check_daily(books.database) == []
    assert books.find_drift() == []


@pytest.mark.parametrize(
    "limits", [KeyLimits(budget_day_ticks=10_000), KeyLimits(budget_month_ticks=10_000)], ids=["day", "month"]
)
def test_a_spent_budget_is_there_again_at_midnight(books: Books, limits: KeyLimits) -> None:
    """Not a millisecond earlier; and what is still running from before does not take of the new one."""
    books.now = MIDNIGHT - 10
    first, second = books.begin("ann", limits), books.begin("ann", limits)
    books.end(*first, 9_000)
    books.now = MIDNIGHT - 0.001
    with pytest.raises(BudgetSpentError):
        books.begin("ann", limits)
    books.now = MIDNIGHT
    books.end(*second, 7_000)  # it began before
    for _ in range(2):
        books.end(*books.begin("ann", limits), 4_900)
    with pytest.raises(BudgetSpentError):
        books.begin("ann", limits)
    assert books.writer.flush(FLUSH_S)
    assert read_spent(books.database, "ann", BEFORE) == (16_000, 16_000)
    assert read_spent(books.database, "ann", AFTER) == (9_800, 9_800)
    assert books.limits.find_standing("key:ann", BEFORE).day_ticks == 16_000
    assert books.limits.find_standing("key:ann", AFTER).day_ticks == 9_800


class Traffic:
    """Exchanges that end one by one: the counters know of each at once, the ledger when the next ends."""

    def __init__(self, books: Books, limits: KeyLimits) -> None:
        self._books = books
        self._limits = limits
        self._late: LedgerRow | None = None
        self.end_another()

    def end_another(self, _: float = 0.0) -> None:
        self.arrive()
        row, hold = self._books.begin("ann", self._limits)
        hold.settle(Bill(Usage(prompt_tokens=3, total_tokens=5, cost_ticks=1_000), estimated=False))
        self._late = dataclasses.replace(row, outcome="complete", cost_ticks=1_000)

    def arrive(self) -> None:
        """The ledger has all."""
        if self._late is not None:
            self._books.writer.settle(self._late)
        assert self._books.writer.flush(FLUSH_S)


LIMITED = KeyLimits(budget_day_ticks=10**12, budget_month_ticks=10**12)


def test_what_is_on_its_way_is_no_drift(books: Books) -> None:
    """While exchanges end all the time the counters are ahead of the ledger, which is as it should be.

    Told to repair, the check leaves such counters alone: what they are ahead by would be lost.
    """
    traffic = Traffic(books, LIMITED)
    assert books.find_drift(sleep=traffic.end_another) == []
    assert books.find_drift(repair=True, sleep=traffic.end_another) == []
    traffic.arrive()
    standing = books.counters.standing("key:ann", BEFORE, books.now)
    assert standing.day_ticks == read_spent(books.database, "ann", BEFORE)[0] == 5_000
    assert books.find_drift() == []


@pytest.mark.parametrize("shift_ticks", [-50_000, 70_000])
def test_drift_is_mended_while_exchanges_end(books: Books, shift_ticks: int) -> None:
    """A counter that has gone wrong is found and mended; nothing that ends meanwhile is missing after it."""
    traffic = Traffic(books, LIMITED)
    for _ in range(100):
        traffic.end_another()
    books.counters.correct("key:ann", BEFORE, shift_ticks, 0)
    (drift,) = books.find_drift(repair=True, sleep=traffic.end_another)
    assert (drift.key, drift.day, drift.field) == ("ann", BEFORE, "counter_day_ticks")
    assert drift.stored - drift.actual in (shift_ticks, shift_ticks - 1_000)
    traffic.arrive()
    standing = books.counters.standing("key:ann", BEFORE, books.now)
    spent, _ = read_spent(books.database, "ann", BEFORE)
    assert standing.day_ticks is not None
    assert 0 <= standing.day_ticks - spent <= 1_000
    assert standing.month_ticks == spent
    books.find_drift(repair=True)
    assert books.counters.standing("key:ann", BEFORE, books.now).day_ticks == spent
    assert books.find_drift() == []
