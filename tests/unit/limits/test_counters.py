"""Counters and leases, every rule over both stores: one process's memory and a real Redis."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace
from redis import BlockingConnectionPool, Redis
from support.processes import RedisServer
from support.scripted import WAIT_S

from grokflask.limits.counters import (
    LEASE_S,
    MARK_S,
    MAX_AMOUNT,
    Ask,
    Counters,
    Grant,
    Refusal,
    Settled,
    Standing,
    Unloaded,
)
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.redis import RedisCounters

NOW = 1_796_000_003.25  # in a bucket that began 3.25 s before
DAY = "2026-11-30"
NEXT_DAY = "2026-12-01"
NOBODY = Standing(0, 0, 0, None, None)
WEIRD = [
    "plain",
    "with space",
    "Zoë 鍵 🔑",
    "a:b:{c}",
    "{grokflask}:spent:x",
    "*[a-z]?\\",
    "%s %d",
    "1 2 3",
    "-",
]

Make = Callable[..., Counters]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis for this module."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of it, as the gateway makes one; Redis is empty."""
    pool = BlockingConnectionPool.from_url(redis_server.url, max_connections=32, socket_timeout=WAIT_S)
    client = Redis(connection_pool=pool)
    client.flushall()
    yield client
    pool.disconnect()


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a store of either kind, with room for all unless the test says otherwise."""
    if request.param == "memory":
        return lambda capacity=10_000, **options: MemoryCounters(capacity, **options)
    client = request.getfixturevalue("redis")
    return lambda capacity=10_000, **options: RedisCounters(client, capacity, **options)


@pytest.fixture
def store(make: Make) -> Counters:
    """A store of either kind."""
    return make()


def ask(id_: str, **fields: Any) -> Ask:
    defaults = {
        "key": "alice",
        "request_id": f"req-{id_}",
        "stream": True,
        "tokens": 0,
        "ticks": 0,
        "day": DAY,
    }
    return Ask(id_, **{**defaults, **fields})


def settled(seq: int, id_: str, **fields: Any) -> Settled:
    defaults = {"key": "alice", "day": DAY, "tokens": 0, "ticks": 0, "settled_at": NOW, "counts_tokens": True}
    return Settled(seq, id_, **{**defaults, **fields})


def use(store: Counters, tokens: int, at: float, *, seq: int) -> None:
    """Tokens of alice's minute, settled at `at` and booked at once."""
    store.settle([settled(seq, f"used-{seq}", tokens=tokens, settled_at=at)], "w", at)


# Streams


def test_streams_are_held_and_freed(store: Counters) -> None:
    """Up to the limit streams open; one more is refused until one has ended."""
    assert store.admit(ask("a", max_streams=2), NOW) == Grant(1, None)
    assert store.admit(ask("b", max_streams=2), NOW) == Grant(2, None)
    assert store.admit(ask("c", max_streams=2), NOW) == Refusal("streams", 1.0, 2, 2)
    store.settle([settled(1, "a")], "w", NOW)
    assert store.admit(ask("c", max_streams=2), NOW) == Grant(2, None)


def test_requests_that_do_not_stream_are_no_streams(store: Counters) -> None:
    """They are neither counted nor refused by that limit; a limit of 0 refuses every stream."""
    for name in "abc":
        assert store.admit(ask(name, stream=False, max_streams=1), NOW) == Grant(0, None)
    assert store.admit(ask("d", max_streams=1), NOW) == Grant(1, None)
    assert store.admit(ask("e", stream=False, max_streams=1), NOW) == Grant(1, None)
    assert store.admit(ask("f", key="bob", max_streams=0), NOW) == Refusal("streams", 1.0, 0, 0)


def test_keys_do_not_share(store: Counters) -> None:
    """What one key holds and has used is no other's."""
    store.admit(ask("a", tokens=90, ticks=90, max_streams=1, tokens_per_minute=100), NOW)
    assert store.admit(ask("b", key="bob", tokens=90, max_streams=1, tokens_per_minute=100), NOW) == Grant(
        1, 10
    )
    assert store.standing("alice", DAY, NOW) == Standing(1, 90, 90, None, None)
    assert store.standing("bob", DAY, NOW) == Standing(1, 90, 0, None, None)
    assert store.standing("carol", DAY, NOW) == NOBODY


def test_the_same_lease_is_held_once(store: Counters) -> None:
    """A request that is admitted again, its first answer having been lost, holds no more than before."""
    wanted = ask("a", tokens=60, max_streams=1, tokens_per_minute=100)
    assert store.admit(wanted, NOW) == Grant(1, 40)
    assert store.admit(wanted, NOW) == Grant(1, 40)
    assert store.standing("alice", DAY, NOW) == Standing(1, 60, 0, None, None)


# Tokens a minute


@pytest.mark.parametrize(
    ("used", "held", "tokens", "limit", "expected"),
    [
        (0, 0, 100, 100, Grant(2, 0)),
        (40, 30, 30, 100, Grant(2, 0)),
        (40, 30, 29, 100, Grant(2, 1)),
        (40, 30, 61, 100, Refusal("tokens", 61.75, 70, 100)),  # 1 of the 40 is too many, whatever is held
        (10, 60, 31, 100, Refusal("tokens", 5.0, 70, 100)),  # without those that are held it would fit
        (0, 100, 1, 100, Refusal("tokens", 5.0, 100, 100)),
        (100, 0, 1, 100, Refusal("tokens", 61.75, 100, 100)),
        (150, 0, 1, 100, Refusal("tokens", 61.75, 150, 100)),  # an answer was longer than its estimate
        (0, 0, 101, 100, Refusal("tokens", None, 0, 100)),
        (10**12, 0, 1, 10**12, Refusal("tokens", 61.75, 10**12, 10**12)),
        (0, 0, 1, 0, Refusal("tokens", None, 0, 0)),
    ],
)
def test_tokens_table(
    store: Counters, used: int, held: int, tokens: int, limit: int, expected: Grant | Refusal
) -> None:
    """What was used in the minute, is held and is asked for stays within the limit, to the token."""
    use(store, used, NOW, seq=1)
    store.admit(ask("held", tokens=held), NOW)
    assert store.admit(ask("a", tokens=tokens, tokens_per_minute=limit), NOW) == expected


def test_the_real_usage_takes_the_place_of_the_estimate(store: Counters) -> None:
    """At the end the estimate is free again, and what was really used counts."""
    store.admit(ask("a", tokens=80, tokens_per_minute=100), NOW)
    store.settle([settled(1, "a", tokens=30)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 30, 0, None, None)
    assert store.admit(ask("b", tokens=70, tokens_per_minute=100), NOW) == Grant(1, 0)


@pytest.mark.parametrize("offset_s", [0.0, 0.01, 2.5, 4.99])
def test_edges_of_the_minute(store: Counters, offset_s: float) -> None:
    """Tokens count for 60 s wherever in their five seconds they fell, and for less than 65.01 s."""
    began = 1_796_000_000.0
    use(store, 7, began + offset_s, seq=1)
    for later_s in (0.0, 59.9, 60.0):
        assert store.standing("alice", DAY, began + offset_s + later_s).tokens == 7
    assert store.standing("alice", DAY, began + 64.99).tokens == 7
    assert store.standing("alice", DAY, began + 65.0) == NOBODY


def test_waiting_as_told_is_enough(store: Counters) -> None:
    """`retry_after_s` is when enough has fallen out of the minute: then it passes, and not just before."""
    for seq, (tokens, later_s) in enumerate([(20, 0), (30, 7), (50, 22)], start=1):
        use(store, tokens, NOW + later_s, seq=seq)
    at = NOW + 30
    for number, (tokens, falls_s) in enumerate([(20, 61.75), (21, 71.75), (50, 71.75), (51, 86.75)]):
        wanted = ask(f"a{number}", key="alice", tokens=tokens, tokens_per_minute=100)
        refusal = store.admit(wanted, at)
        assert isinstance(refusal, Refusal)
        assert refusal.retry_after_s == NOW + falls_s - at
    wanted = ask("b", tokens=50, tokens_per_minute=100)
    assert isinstance(store.admit(wanted, NOW + 71.74), Refusal)
    assert store.admit(wanted, NOW + 71.75) == Grant(1, 0)


def test_tokens_count_when_they_were_used(store: Counters) -> None:
    """A settlement that comes late counts for the rest of its minute; one from a fast clock counts now."""
    store.settle([settled(1, "a", tokens=5, settled_at=NOW - 50)], "w", NOW)
    store.settle([settled(2, "b", tokens=6, settled_at=NOW - 70)], "w", NOW)
    store.settle([settled(3, "c", tokens=7, settled_at=NOW + 500)], "w", NOW)
    assert store.standing("alice", DAY, NOW).tokens == 12
    assert store.standing("alice", DAY, NOW + 15).tokens == 7
    assert store.standing("alice", DAY, NOW + 65).tokens == 0


def test_tokens_without_a_limit_are_not_kept(store: Counters) -> None:
    """The minute of a key without such a limit interests nobody; less than no tokens count as none."""
    store.settle([settled(1, "a", tokens=5, counts_tokens=False), settled(2, "b", tokens=-5)], "w", NOW)
    assert store.standing("alice", DAY, NOW).tokens == 0


# Budgets


@pytest.mark.parametrize("which", ["day", "month"])
@pytest.mark.parametrize(
    ("spent", "held", "ticks", "budget", "fits"),
    [
        (0, 0, 100, 100, True),
        (40, 30, 30, 100, True),
        (40, 30, 31, 100, False),
        (99, 0, 0, 100, True),
        (99, 50, 0, 100, True),  # what costs nothing that is known passes until the budget is spent
        (100, 0, 0, 100, False),
        (100, 0, 1, 100, False),
        (0, 0, 0, 0, False),
        (-5, 0, 0, 0, False),
        (10**15 - 1, 0, 1, 10**15, True),
        (10**15, 0, 1, 10**15, False),
        (9 * 10**15 - 10, 7, 3, 9 * 10**15, True),
        (9 * 10**15 - 10, 7, 4, 9 * 10**15, False),
    ],
)
def test_budgets_table(
    store: Counters, which: str, spent: int, held: int, ticks: int, budget: int, fits: bool
) -> None:
    """What was spent, is held and is asked for stays within the budget, to the tick."""
    store.load("alice", DAY, *((spent, 0) if which == "day" else (0, spent)), now=NOW)
    store.admit(ask("held", ticks=held), NOW)
    answer = store.admit(ask("a", ticks=ticks, **{f"budget_{which}_ticks": budget}), NOW)
    reason: Any = f"budget_{which}"
    assert answer == (Grant(2, None) if fits else Refusal(reason, None, spent + held, budget))


def test_what_was_spent_adds_up(store: Counters) -> None:
    """Settlements go to their day and its month, corrections below zero too; other days stay."""
    store.load("alice", DAY, 100, 1000, NOW)
    store.load("alice", NEXT_DAY, 0, 0, NOW)
    store.settle([settled(1, "a", ticks=10), settled(2, "b", ticks=-3)], "w", NOW)
    store.settle([settled(3, "c", ticks=5, day=NEXT_DAY)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 107, 1007)
    assert store.standing("alice", NEXT_DAY, NOW) == Standing(0, 0, 0, 5, 5)


def test_a_budget_waits_for_its_sums(store: Counters) -> None:
    """Before they are loaded, a key with a budget is told so and nothing is held; others pass."""
    assert store.admit(ask("a", ticks=5, budget_day_ticks=10), NOW) == Unloaded()
    assert store.admit(ask("a", ticks=5, budget_month_ticks=10), NOW) == Unloaded()
    assert store.standing("alice", DAY, NOW) == NOBODY
    assert store.admit(ask("a", ticks=5), NOW) == Grant(1, None)
    store.load("alice", DAY, 0, 0, NOW)
    assert store.admit(ask("b", ticks=5, budget_day_ticks=10, budget_month_ticks=10), NOW) == Grant(2, None)
    assert store.admit(ask("c", day=NEXT_DAY, budget_day_ticks=10), NOW) == Unloaded()


def test_loading_fills_only_what_is_missing(store: Counters) -> None:
    """Two processes may load at once, and the second one late: what has been booked since stays."""
    store.load("alice", "2026-11-29", 7, 50, NOW)
    store.settle([settled(1, "a", ticks=1, day="2026-11-29")], "w", NOW)
    store.load("alice", "2026-11-29", 7, 50, NOW)
    store.load("alice", DAY, 3, 9999, NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 3, 51)
    assert store.standing("alice", "2026-11-29", NOW) == Standing(0, 0, 0, 8, 51)


def test_corrections_are_added(store: Counters) -> None:
    """To the sums that are there, the day's and the month's each by its own; what is missing stays so."""
    store.correct("alice", DAY, 1, 1)
    assert store.standing("alice", DAY, NOW) == NOBODY
    store.load("alice", "2026-11-29", 7, 50, NOW)
    store.correct("alice", DAY, 5, -60)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, None, -10)
    store.load("alice", DAY, 3, 50, NOW)
    store.correct("alice", DAY, -1, 10**15)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 2, 10**15 - 10)
    assert store.standing("alice", "2026-11-29", NOW) == Standing(0, 0, 0, 7, 10**15 - 10)


@pytest.mark.parametrize(("age_s", "counts"), [(-1.0, True), (0.0, True), (1.0, True), (1.01, False)])
def test_settlements_older_than_the_sum(store: Counters, age_s: float, counts: bool) -> None:
    """What ended more than a second before the ledger was asked was in it already; day and month differ."""
    store.load("alice", "2026-11-29", 0, 100, NOW - 50)
    store.load("alice", DAY, 10, 100, NOW)
    store.settle([settled(1, "a", ticks=5, settled_at=NOW - age_s)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 15 if counts else 10, 105)


def test_settlements_without_a_sum(store: Counters) -> None:
    """The ledger has them; a sum that is not there does not begin with them."""
    store.settle([settled(1, "a", ticks=5)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == NOBODY
    assert store.list_keys() == []


def test_sums_of_long_ago_are_forgotten(store: Counters) -> None:
    """A month's sums stay until the month after the next has begun, for settlements that come late."""
    store.load("alice", "2026-10-31", 1, 2, NOW)
    store.load("alice", "2026-11-01", 3, 4, NOW)
    assert store.standing("alice", "2026-10-31", NOW) == Standing(0, 0, 0, 1, 2)
    store.load("alice", "2026-12-31", 5, 6, NOW)
    assert store.standing("alice", "2026-10-31", NOW) == NOBODY
    assert store.standing("alice", "2026-11-01", NOW) == Standing(0, 0, 0, 3, 4)
    store.load("alice", "2027-01-01", 7, 8, NOW)
    assert store.standing("alice", "2026-11-01", NOW) == NOBODY
    assert store.standing("alice", "2026-12-31", NOW) == Standing(0, 0, 0, 5, 6)


# All limits together


EVERYTHING = {"max_streams": 1, "tokens_per_minute": 10, "budget_day_ticks": 10, "budget_month_ticks": 10}


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        ({}, "streams"),
        ({"max_streams": 9}, "tokens"),
        ({"max_streams": 9, "tokens_per_minute": 99}, "budget_day"),
        ({"max_streams": 9, "tokens_per_minute": 99, "budget_day_ticks": 99}, "budget_month"),
    ],
)
def test_a_refusal_changes_nothing(store: Counters, raised: dict[str, int], reason: str) -> None:
    """Limits are checked in one order, and a refusal by the last leaves nothing of the first behind."""
    store.load("alice", DAY, 0, 0, NOW)
    store.admit(ask("held", tokens=10, ticks=10), NOW)
    before = store.standing("alice", DAY, NOW)
    refusal = store.admit(ask("a", tokens=1, ticks=1, **{**EVERYTHING, **raised}), NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert store.standing("alice", DAY, NOW) == before
    store.settle([settled(1, "a", counts_tokens=False)], "w", NOW)  # it holds no lease that could be freed
    assert store.standing("alice", DAY, NOW) == before


def test_the_share_comes_first(make: Make) -> None:
    """A key over its share is told so, whatever else is used up."""
    store = make(capacity=1, fair_share=1.0)
    store.admit(ask("held", tokens=10), NOW)
    assert store.admit(ask("a", **EVERYTHING), NOW) == Refusal("share", 1.0, 1, 1)


LIMITS = {
    "streams": {"max_streams": 5},
    "tokens": {"tokens": 20, "tokens_per_minute": 119},
    "budget_day": {"ticks": 20, "budget_day_ticks": 119},
    "budget_month": {"ticks": 20, "budget_month_ticks": 119},
}


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few steps, so that what is not locked shows."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("reason", LIMITS)
def test_exact_under_parallel_requests(store: Counters, reason: str) -> None:
    """200 requests at once against room for 5: exactly 5 are granted."""
    store.load("alice", DAY, 0, 0, NOW)
    barrier = threading.Barrier(200)

    def admit(number: int) -> Grant | Refusal | Unloaded:
        barrier.wait(60)
        return store.admit(ask(str(number), **LIMITS[reason]), NOW)

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(admit, range(200)))
    assert sum(isinstance(answer, Grant) for answer in answers) == 5
    assert {answer.reason for answer in answers if isinstance(answer, Refusal)} == {reason}
    assert store.standing("alice", DAY, NOW).streams == 5


@pytest.mark.usefixtures("restless")
def test_exact_in_many_turns(store: Counters) -> None:
    """Eight threads that ask again and again get exactly what there is."""
    barrier = threading.Barrier(8)

    def work(worker: int) -> int:
        barrier.wait(60)
        asks = [ask(f"{worker}-{turn}", tokens=1, max_streams=1000) for turn in range(250)]
        return sum(isinstance(store.admit(one, NOW), Grant) for one in asks)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 1000
    assert store.standing("alice", DAY, NOW) == Standing(1000, 1000, 0, None, None)


@pytest.mark.usefixtures("restless")
def test_exact_while_settled_in_parallel(store: Counters) -> None:
    """Threads that admit and settle in turn leave nothing behind, and every tick is booked once."""
    store.load("alice", DAY, 0, 0, NOW)

    def work(worker: int) -> int:
        granted = 0
        for turn in range(25):
            lease = f"{worker}-{turn}"
            if isinstance(store.admit(ask(lease, tokens=3, ticks=3, max_streams=4), NOW), Grant):
                granted += 1
                assert store.standing("alice", DAY, NOW).streams <= 4
                store.settle([settled(turn, lease, tokens=2, ticks=2)], f"w{worker}", NOW)
        return granted

    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(work, range(16)))
    assert granted >= 4
    assert store.standing("alice", DAY, NOW) == Standing(0, 2 * granted, 0, 2 * granted, 2 * granted)


# Leases


def test_a_lease_lapses(store: Counters) -> None:
    """What nobody renews comes back after LEASE_S, to the last token; another key's request clears it up."""
    store.load("alice", DAY, 0, 0, NOW)
    for name in "ab":
        store.admit(ask(name, tokens=5, ticks=5, max_streams=2), NOW)
    store.admit(ask("later", tokens=3, ticks=4), NOW + 10)
    store.admit(ask("other", key="bob"), NOW + LEASE_S - 0.001)
    assert store.standing("alice", DAY, NOW + LEASE_S - 0.001) == Standing(3, 13, 14, 0, 0)
    store.admit(ask("another", key="bob"), NOW + LEASE_S)
    assert store.standing("alice", DAY, NOW + LEASE_S) == Standing(1, 3, 4, 0, 0)
    assert store.standing("alice", DAY, NOW + LEASE_S + 10) == Standing(0, 0, 0, 0, 0)


def test_a_lease_that_has_lapsed_makes_room(store: Counters) -> None:
    """The request that finds it lapsed has its place."""
    for limits in LIMITS.values():
        store.load("alice", DAY, 0, 0, NOW)
        for number in range(5):
            store.admit(ask(f"{limits}{number}", **limits), NOW)
    for number, limits in enumerate(LIMITS.values()):
        assert isinstance(store.admit(ask(f"early {number}", **limits), NOW + LEASE_S - 0.001), Refusal)
    for number, limits in enumerate(LIMITS.values()):
        assert isinstance(store.admit(ask(f"a{number}", **limits), NOW + LEASE_S), Grant)


def test_renewing_keeps_leases(store: Counters) -> None:
    """The leases of a worker live for another LEASE_S, those it does not list lapse in their time."""
    kept, left = ask("kept", tokens=1), ask("left", tokens=2)
    store.admit(kept, NOW)
    store.admit(left, NOW)
    store.renew("w", 10, [kept], NOW + 20)
    assert store.standing("alice", DAY, NOW + LEASE_S) == Standing(1, 1, 0, None, None)
    store.renew("w", 10, [kept], NOW + 40)
    store.renew("w", 10, [], NOW + 41)
    assert store.standing("alice", DAY, NOW + 69.9) == Standing(1, 1, 0, None, None)
    assert store.standing("alice", DAY, NOW + 70) == NOBODY


def test_renewing_holds_anew_what_was_lost(store: Counters, request: pytest.FixtureRequest) -> None:
    """A store that has started empty knows all leases again after one renewal; twice is once."""
    asks = [ask(str(number), key=key, tokens=2, ticks=3) for number, key in enumerate("aaab" * 300)]
    for one in asks:
        store.admit(one, NOW)
    full = [store.standing(key, DAY, NOW) for key in "ab"]
    assert full[0] == Standing(900, 1800, 2700, None, None)
    if isinstance(store, MemoryCounters):
        store.clear()
    else:
        request.getfixturevalue("redis").flushall()
    assert store.standing("a", DAY, NOW) == NOBODY
    store.renew("w", 10, asks, NOW)
    store.renew("w", 10, asks, NOW)
    assert [store.standing(key, DAY, NOW) for key in "ab"] == full
    store.settle(
        [settled(number, one.id, key=one.key, counts_tokens=False) for number, one in enumerate(asks)],
        "w",
        NOW,
    )
    assert [store.standing(key, DAY, NOW) for key in "ab"] == [NOBODY, NOBODY]


def test_freeing_twice_is_freeing_once(store: Counters) -> None:
    """A lease that is gone, lapsed or was never known is freed without harm to the others."""
    for name in "ab":
        store.admit(ask(name, tokens=5, ticks=5), NOW)
    store.settle([settled(1, "a"), settled(2, "a"), settled(3, "never"), settled(4, "a")], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(1, 5, 5, None, None)
    store.admit(ask("c", tokens=1, ticks=1), NOW + LEASE_S)  # b has lapsed
    store.settle([settled(5, "b"), settled(6, "a")], "w", NOW + LEASE_S)
    assert store.standing("alice", DAY, NOW + LEASE_S) == Standing(1, 1, 1, None, None)


# Settlements


def test_a_settlement_counts_once(store: Counters) -> None:
    """Delivered again, alone or in another batch, it changes nothing; each worker has its own numbers."""
    store.load("alice", DAY, 0, 0, NOW)
    first = [settled(seq, str(seq), tokens=10, ticks=10) for seq in (1, 2, 3)]
    later = [settled(seq, str(seq), tokens=10, ticks=10) for seq in (2, 3, 3, 4, 1)]
    for batch in (first, first, first[2:], later, later, []):
        store.settle(batch, "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 40, 0, 40, 40)
    store.settle(first, "v", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 70, 0, 70, 70)


def test_a_settlement_that_was_applied_frees_nothing(store: Counters) -> None:
    """What is skipped is skipped as a whole."""
    store.settle([settled(5, "x")], "w", NOW)
    store.admit(ask("a"), NOW)
    store.settle([settled(5, "a")], "w", NOW)
    assert store.standing("alice", DAY, NOW).streams == 1


def test_a_worker_that_was_away_is_still_known(store: Counters) -> None:
    """A batch delivered again after minutes without Redis counts once, though the worker was dropped."""
    store.load("alice", DAY, 0, 0, NOW)
    batch = [settled(1, "a", ticks=10, settled_at=NOW)]
    store.renew("w", 10, [], NOW)
    store.settle(batch, "w", NOW)
    store.admit(ask("other", key="bob"), NOW + 600)
    store.settle(batch, "w", NOW + 600)
    assert store.standing("alice", DAY, NOW + 600).day_ticks == 10


# The fair share


def test_nobody_is_held_back_while_there_is_room(make: Make) -> None:
    """Below the threshold one key may have all there is."""
    store = make(capacity=10, fair_share=0.8)
    store.admit(ask("b", key="bob"), NOW)
    for number in range(7):
        assert isinstance(store.admit(ask(str(number), stream=False), NOW), Grant)
    assert store.admit(ask("7"), NOW) == Refusal("share", 1.0, 7, 5)


def test_shares_are_exact(make: Make) -> None:
    """From the threshold on each key gets its equal part, a new one included, and at least one place."""
    store = make(capacity=12, fair_share=0.5)
    for number in range(6):
        store.admit(ask(f"a{number}"), NOW)
    assert store.admit(ask("a6"), NOW) == Grant(7, None)  # alone it may have all 12
    for number in range(6):
        assert store.admit(ask(f"b{number}", key="bob"), NOW) == Grant(number + 1, None)
    assert store.admit(ask("b6", key="bob"), NOW) == Refusal("share", 1.0, 6, 6)
    assert store.admit(ask("a7"), NOW) == Refusal("share", 1.0, 7, 6)
    for number in range(4):
        assert store.admit(ask(f"c{number}", key="carol"), NOW) == Grant(number + 1, None)
    assert store.admit(ask("c4", key="carol"), NOW) == Refusal("share", 1.0, 4, 4)
    for number in range(20):
        assert store.admit(ask(f"d{number}", key=f"d{number}"), NOW) == Grant(1, None)
        assert store.admit(ask(f"e{number}", key=f"d{number}"), NOW) == (
            Grant(2, None) if 12 // (number + 4) >= 2 else Refusal("share", 1.0, 1, 1)
        )


def test_shares_follow_who_is_there(make: Make) -> None:
    """A key that has ended, or whose leases have lapsed, leaves its part to the others."""
    store = make(capacity=4, fair_share=0.5)
    for name in ("a0", "a1"):
        store.admit(ask(name), NOW)
    store.admit(ask("b0", key="bob"), NOW + 1)
    assert store.admit(ask("a2"), NOW + 1) == Refusal("share", 1.0, 2, 2)
    store.settle([settled(1, "b0", key="bob")], "w", NOW + 1)
    assert store.admit(ask("a2"), NOW + 1) == Grant(3, None)
    store.admit(ask("b1", key="bob"), NOW + 2)
    assert store.admit(ask("b2", key="bob"), NOW + 2) == Grant(2, None)
    assert store.admit(ask("b3", key="bob"), NOW + 2) == Refusal("share", 1.0, 2, 2)
    # Of alice's leases one is left, and then none.
    assert store.admit(ask("b3", key="bob"), NOW + LEASE_S) == Refusal("share", 1.0, 2, 2)
    assert store.admit(ask("b3", key="bob"), NOW + LEASE_S + 1) == Grant(3, None)


@pytest.mark.parametrize("fair_share", [0.0, 1.0])
def test_the_ends_of_the_threshold(make: Make, fair_share: float) -> None:
    """0 keeps to the shares from the first request on, 1 only when everything is taken."""
    store = make(capacity=2, fair_share=fair_share)
    store.admit(ask("b", key="bob"), NOW)
    assert store.admit(ask("a0"), NOW) == Grant(1, None)
    assert store.admit(ask("a1"), NOW) == Refusal("share", 1.0, 1, 1)


# Figures and names at the edges


def test_huge_ticks_are_exact(store: Counters) -> None:
    """10^15 ticks and one are told apart, held, freed, spent and read back."""
    store.load("alice", DAY, 10**15, 3 * 10**15, NOW)
    wanted = ask("a", tokens=10**15 - 1, ticks=10**15 - 1, budget_month_ticks=4 * 10**15 - 1)
    assert store.admit(wanted, NOW) == Grant(1, None)
    assert store.standing("alice", DAY, NOW) == Standing(1, 10**15 - 1, 10**15 - 1, 10**15, 3 * 10**15)
    store.settle([settled(1, "a", ticks=10**15 - 1)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 2 * 10**15 - 1, 4 * 10**15 - 1)
    assert store.admit(replace(wanted, ticks=1), NOW) == Refusal(
        "budget_month", None, 4 * 10**15 - 1, 4 * 10**15 - 1
    )


def test_figures_beyond_reason_break_nothing(store: Counters) -> None:
    """No estimate of a client's and no cost of upstream's is too big or too small to be counted and freed."""
    store.load("alice", DAY, 0, 0, NOW)
    assert store.admit(ask("a", tokens=10**30, ticks=10**30), NOW) == Grant(1, None)
    assert store.admit(ask("b", tokens=-7, ticks=-7), NOW) == Grant(2, None)
    assert store.standing("alice", DAY, NOW) == Standing(2, MAX_AMOUNT, MAX_AMOUNT, 0, 0)
    huge = [settled(1, "a", tokens=10**30, ticks=10**30), settled(2, "b", ticks=-(10**30))]
    store.settle(huge, "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, MAX_AMOUNT, 0, 0, 0)


@pytest.mark.parametrize("key", WEIRD)
def test_keys_with_any_letters(store: Counters, key: str) -> None:
    """A key's name is only a name: another one that looks like it is another one."""
    for name in (key, key + " ", key + "@", f"0 {key}"):
        store.load(name, DAY, len(name), 100, NOW)
        wanted = ask(f"{name} id", key=name, tokens=4, ticks=2, tokens_per_minute=9, budget_day_ticks=999)
        assert store.admit(wanted, NOW) == Grant(1, 5)
    assert store.standing(key, DAY, NOW) == Standing(1, 4, 2, len(key), 100)
    store.settle([settled(1, f"{key} id", key=key, tokens=3, ticks=1)], f"{key}@worker", NOW)
    assert store.standing(key, DAY, NOW) == Standing(0, 3, 0, len(key) + 1, 101)
    assert store.standing(key + " ", DAY, NOW) == Standing(1, 4, 2, len(key) + 1, 100)
    assert store.list_keys() == sorted((key, key + " ", key + "@", f"0 {key}"))
    assert store.standing(key, DAY, NOW + 65) == Standing(0, 0, 0, len(key) + 1, 101)


def test_lists_the_keys_with_sums(store: Counters) -> None:
    """Only what has sums is listed, sorted and once."""
    store.admit(ask("a", key="open"), NOW)
    for name in ("zoë", "alice", "alice"):
        store.load(name, DAY, 1, 1, NOW)
    store.load("bob", DAY, 1, 1, NOW)
    assert store.list_keys() == ["alice", "bob", "zoë"]


def test_marks_are_seen_for_a_while(store: Counters) -> None:
    """A marked lease is listed for MARK_S after it was last marked, whoever holds it."""
    store.mark(["b", "a"], NOW)
    store.mark(["b", "c"], NOW + 1)
    assert store.list_marked(NOW + 1) == ["a", "b", "c"]
    assert store.list_marked(NOW + MARK_S) == ["b", "c"]
    store.mark(["d"], NOW + MARK_S + 1)
    assert store.list_marked(NOW + MARK_S + 1) == ["d"]
    assert store.standing("alice", DAY, NOW) == NOBODY


# One process's memory


def test_memory_forgets_keys() -> None:
    """A key with nothing open, used or spent takes no memory, nor does a lease that has ended."""
    store = MemoryCounters(10**6)
    for number in range(3000):
        key = f"key {number}"
        store.admit(ask(f"a{number}", key=key, tokens=1), NOW + number)
        store.settle(
            [settled(number, f"a{number}", key=key, tokens=1, settled_at=NOW + number)], "w", NOW + number
        )
        store.admit(ask(f"refused{number}", key=f"no {number}", max_streams=0), NOW + number)
    store.settle([settled(9999, "none", key="nothing used", settled_at=NOW + 3000)], "w", NOW + 3000)
    assert "nothing used" not in store._accounts
    assert len(store._accounts) <= 66
    assert len(store._buckets) <= 66
    assert len(store._expiries) <= 1001
    assert not store._leases
    store.load("alice", DAY, 1, 1, NOW)
    store.standing("alice", DAY, NOW + 10_000)
    assert store._accounts.keys() == {"alice"}
    store.load("bob", "2027-01-01", 1, 1, NOW)
    assert store._accounts.keys() == {"bob"}


def test_memory_renews_in_bounded_room() -> None:
    """Renewing for ever does not grow."""
    store = MemoryCounters(100)
    asks = [ask(str(number)) for number in range(50)]
    for turn in range(200):
        store.renew("w", 100, asks, NOW + 10 * turn)
    assert len(store._leases) == 50
    assert len(store._expiries) <= 1101
    assert store.standing("alice", DAY, NOW + 1990 + LEASE_S) == NOBODY
    assert not store._accounts


def test_memory_begins_anew_with_other_sums() -> None:
    """A stand-in that takes over once more goes by what the ledger says then, whatever it had before."""
    store = MemoryCounters(100)
    store.load("alice", DAY, 7, 50, NOW - 50)
    store.replace("alice", DAY, 1, 2, NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 1, 2)
    store.settle([settled(1, "a", ticks=5, settled_at=NOW - 1.01)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 1, 2)


def test_memory_forgets_workers() -> None:
    """What was applied of a worker is known for a day after its last settlement."""
    store = MemoryCounters(100)
    for number in range(100):
        store.settle([settled(1, "a")], f"w{number}", NOW + 3600 * number)
    assert len(store._applied) <= 25


def test_clear_forgets_everything() -> None:
    """After `clear` the store is as new."""
    store = MemoryCounters(1, fair_share=0.0)
    store.load("alice", DAY, 1, 1, NOW)
    store.admit(ask("a", tokens=1), NOW)
    store.settle([settled(7, "b", tokens=5)], "w", NOW)
    store.mark(["a"], NOW)
    store.clear()
    assert store.list_marked(NOW) == []
    assert store.standing("alice", DAY, NOW) == NOBODY
    assert store.list_keys() == []
    assert store.admit(ask("a", tokens_per_minute=9), NOW) == Grant(1, 9)
    store.settle([settled(1, "a", tokens=5)], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 5, 0, None, None)


# What is left, and steps


def left(id_: str, **fields: Any) -> Ask:
    """An ask of 1,000 tokens and ticks that may begin with 300, or with 50 if nothing else is open."""
    least = {"least_tokens": 300, "least_ticks": 300, "alone_tokens": 50, "alone_ticks": 50}
    return ask(id_, **{"tokens": 1000, "ticks": 1000, **least, **fields})


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 1600}, {"budget_day_ticks": 1600}])
def test_what_is_left_is_held_if_a_first_step_fits(store: Counters, limits: dict[str, int]) -> None:
    """The second of two has what the first left; a third that cannot begin is refused."""
    store.load("alice", DAY, 0, 0, NOW)
    tokens, ticks = (600, 1000) if "tokens_per_minute" in limits else (1000, 600)
    first = store.admit(left("a", **limits), NOW)
    assert isinstance(first, Grant)
    assert first.held is None
    second = store.admit(left("b", **limits), NOW)
    assert isinstance(second, Grant)
    assert second.held == (tokens, ticks)
    assert store.admit(left("b", **limits), NOW) == second  # a repeated question has the same answer
    third = store.admit(left("c", **limits), NOW)
    assert isinstance(third, Refusal)
    assert (third.used, third.limit) == (1600, 1600)
    standing = store.standing("alice", DAY, NOW)
    assert (standing.tokens, standing.held_ticks) == (1000 + tokens, 1000 + ticks)
    store.settle([settled(1, "a"), settled(2, "b")], "w", NOW)
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 0, 0)


def test_the_only_request_needs_room_for_its_prompt(store: Counters) -> None:
    """A key with nothing else open is not refused because of what nobody can know; one with others is."""
    store.load("alice", DAY, 900, 900, NOW)
    both = {"budget_day_ticks": 1000, "budget_month_ticks": 990, "tokens_per_minute": 60}
    alone = store.admit(left("a", **both), NOW)
    assert isinstance(alone, Grant)
    assert alone.held == (60, 90)
    assert store.admit(left("b", tokens=0, **both), NOW) == Refusal("budget_day", None, 990, 1000)
    store.settle([settled(1, "a")], "w", NOW)
    assert store.admit(left("c", alone_ticks=91, **both), NOW) == Refusal("budget_month", None, 900, 990)


def test_steps(store: Counters) -> None:
    """A lease grows as far as both budgets have room; a repeated step counts once; settled, all is free."""
    store.load("alice", DAY, 0, 100, NOW)
    mine = ask("a", ticks=500, budget_day_ticks=5000, budget_month_ticks=2100)
    assert store.admit(mine, NOW) == Grant(1, None)
    for _ in range(2):
        assert store.extend(mine, 1000, NOW) == 1000
    assert store.standing("alice", DAY, NOW).held_ticks == 1000
    assert store.admit(ask("b", ticks=300, budget_day_ticks=5000), NOW) == Grant(2, None)
    assert store.extend(replace(mine, ticks=1000), 2000, NOW) == 1700  # what is left
    assert store.extend(replace(mine, ticks=1700), 2700, NOW) == 1700
    store.settle([settled(1, "b")], "w", NOW)
    assert store.extend(replace(mine, ticks=1700), 2900, NOW) == 2000
    store.settle([settled(2, "a", ticks=40)], "w", NOW)
    assert store.extend(replace(mine, ticks=2000), 2010, NOW) == 2010  # too late: nothing is held
    assert store.standing("alice", DAY, NOW) == Standing(0, 0, 0, 40, 140)


def test_a_step_too_small_to_be_worth_it(store: Counters) -> None:
    """A stream does not come back for every tick that is left."""
    store.load("alice", DAY, 0, 0, NOW)
    mine = ask("a", ticks=500, budget_day_ticks=749)
    assert store.admit(mine, NOW) == Grant(1, None)
    assert store.extend(mine, 1500, NOW) == 500
    assert store.extend(replace(mine, key="bob"), 1500, NOW) == Unloaded()


def test_parallel_steps_never_hold_more_than_the_budget(store: Counters) -> None:
    """Fifty leases that grow at once get what there is, to the tick."""
    store.load("alice", DAY, 0, 0, NOW)
    asks = [ask(str(number), ticks=10, budget_day_ticks=10_000) for number in range(50)]
    for each in asks:
        assert store.admit(each, NOW) == Grant(asks.index(each) + 1, None)

    def grow(each: Ask) -> int:
        for ticks in range(100, 1001, 100):
            held = store.extend(each, ticks, NOW)
            assert isinstance(held, int)
            each = replace(each, ticks=held)
        return each.ticks

    with ThreadPoolExecutor(16) as pool:
        held = sum(pool.map(grow, asks))
    assert held == store.standing("alice", DAY, NOW).held_ticks
    assert 9_900 <= held <= 10_000
