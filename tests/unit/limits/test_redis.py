"""What only the counters in Redis do: many processes, one round trip, restarts. And both stores agree."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from support.ports import refuse_port
from support.processes import ROOT, RedisServer
from support.scripted import WAIT_S

from grokflask.errors import StoreUnavailableError
from grokflask.limits.counters import LEASE_S, Ask, Grant, Refusal, Settled, Standing
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.redis import BATCH, PREFIX, RedisCounters
from grokflask.storage.redis import CONNECTIONS, open_pool

NOW = 1_796_000_003.25
DAY = "2026-11-30"
DAYS = [DAY, "2026-12-01"]
KEYS = ["alice", "bob", "Zoë: 1 {x}"]
LEFT_OVER = {"expiries", "leases", "open", "streams", "tokens", "ticks"}


class CountingRedis(Redis):
    """A client that notes the commands it sends, each of which is a round trip."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sent: list[str] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.sent.append(args[0])
        return super().execute_command(*args, **options)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis for this module."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[CountingRedis]:
    """A client of it; Redis is empty and knows no script."""
    client = CountingRedis(port=redis_server.port, socket_timeout=WAIT_S)
    client.flushall()
    client.script_flush()
    client.sent.clear()
    yield client
    client.close()


def ask(id_: str, **fields: Any) -> Ask:
    defaults = {"key": "alice", "request_id": "r", "stream": True, "tokens": 0, "ticks": 0, "day": DAY}
    return Ask(id_, **{**defaults, **fields})


def list_names(client: Redis) -> set[str]:
    """The Redis keys that there are, without the prefix that all of them have."""
    names = {name.decode() for name in client.scan_iter()}
    assert all(name.startswith(PREFIX) for name in names)
    return {name.removeprefix(PREFIX) for name in names}


# Round trips, restarts, outages


def test_one_round_trip_an_operation(client: CountingRedis) -> None:
    """Admission against all limits is one command, and so is a batch of settlements; the start sends none."""
    store = RedisCounters(client, 100)
    assert client.sent == []
    wanted = [
        ask(str(number), tokens_per_minute=9, max_streams=99, budget_day_ticks=9, budget_month_ticks=9)
        for number in range(5)
    ]
    batch = [Settled(number, one.id, "alice", DAY, 1, 1, NOW, True) for number, one in enumerate(wanted)]

    def run_all() -> None:
        store.load("alice", DAY, 0, 0, NOW)
        for one in wanted:
            store.admit(one, NOW)
        store.renew("w", 10, wanted, NOW)
        store.settle(batch, "w", NOW)
        store.standing("alice", DAY, NOW)

    run_all()  # sends the scripts
    client.sent.clear()
    run_all()
    assert client.sent == ["EVALSHA"] * 9


def test_many_leases_are_renewed_in_parts(client: CountingRedis) -> None:
    """No script handles more than BATCH leases, so that others get their turn; none of them is left out."""
    store = RedisCounters(client, 100)
    store.renew("w", 10, [], NOW)
    client.sent.clear()
    store.renew("w", 10, [ask(str(number)) for number in range(2 * BATCH + 1)], NOW)
    assert client.sent == ["EVALSHA"] * 3
    assert store.standing("alice", DAY, NOW).streams == 2 * BATCH + 1


def test_a_restarted_redis_is_no_error(client: CountingRedis) -> None:
    """A Redis that has lost scripts and counters is used as before, and renewing brings leases back."""
    store = RedisCounters(client, 100)
    held = ask("a", tokens=5, max_streams=1)
    store.admit(held, NOW)
    for _ in range(2):
        client.flushall()
        client.script_flush()
        store.renew("w", 10, [held], NOW)
        assert store.admit(ask("b", max_streams=1), NOW) == Refusal("streams", 1.0, 1, 1)
        assert store.standing("alice", DAY, NOW) == Standing(1, 5, 0, None, None)


def test_an_outage_is_an_error_of_ours() -> None:
    """A Redis that is away does not hinder the start; every operation raises one error, with its cause."""
    away = Redis(port=refuse_port(), socket_timeout=WAIT_S, retry=Retry(NoBackoff(), 0))
    store = RedisCounters(away, 100)
    for operation in (
        lambda: store.admit(ask("a"), NOW),
        lambda: store.load("alice", DAY, 0, 0, NOW),
        lambda: store.correct("alice", DAY, 0, 0),
        lambda: store.mark(["a"], NOW),
        lambda: store.list_marked(NOW),
        lambda: store.settle([], "w", NOW),
        lambda: store.renew("w", 10, [], NOW),
        lambda: store.standing("alice", DAY, NOW),
        store.list_keys,
    ):
        with pytest.raises(StoreUnavailableError) as caught:
            operation()
        assert isinstance(caught.value.__cause__, RedisConnectionError)


def test_a_burst_is_no_outage(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More callers than connections wait for one, for longer than Redis may take for a step."""
    monkeypatch.setitem(open_pool.__globals__, "TIMEOUT_S", 1.0)
    monkeypatch.setitem(open_pool.__globals__, "WAIT_S", WAIT_S)
    pool = open_pool(redis_server.url)
    store = RedisCounters(Redis(connection_pool=pool), 100)
    taken = [pool.get_connection() for _ in range(CONNECTIONS)]
    release = threading.Timer(1.5, lambda: [pool.release(each) for each in taken])
    release.start()
    assert store.standing("nobody else's", DAY, NOW).streams == 0
    release.join()
    pool.disconnect()


def test_a_client_that_decodes_replies(redis_server: RedisServer, client: CountingRedis) -> None:
    """It makes no difference whether the client gives text or bytes."""
    with Redis(port=redis_server.port, socket_timeout=WAIT_S, decode_responses=True) as decoding:
        store = RedisCounters(decoding, 100)
        store.load("Zoë", DAY, 1, 2, NOW)
        assert store.admit(ask("a", key="Zoë", tokens=1, tokens_per_minute=5), NOW) == Grant(1, 4)
        assert store.list_keys() == ["Zoë"]
        assert store.standing("Zoë", DAY, NOW) == Standing(1, 1, 0, 1, 2)


# Many processes


ADMIT_50 = """
import sys
from redis import Redis
from grokflask.limits.counters import Ask, Grant
from grokflask.limits.redis import RedisCounters
store = RedisCounters(Redis(port=int(sys.argv[1]), socket_timeout=20), 1000)
sys.stdin.read()
limits = (6, 119, 119, 119)
asks = [Ask(f"{sys.argv[2]}-{n}", "alice", "r", True, 20, 20, "2026-11-30", *limits) for n in range(50)]
print(sum(isinstance(store.admit(ask, float(sys.argv[3])), Grant) for ask in asks))
"""


def test_exact_over_processes(redis_server: RedisServer, client: CountingRedis) -> None:
    """Four processes ask 200 times at once where there is room for 5: exactly 5 are granted."""
    store = RedisCounters(client, 1000)
    store.load("alice", DAY, 0, 0, NOW)
    command = [sys.executable, "-c", ADMIT_50, str(redis_server.port)]
    processes = [
        subprocess.Popen(
            [*command, str(number), repr(NOW)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    assert sum(int(process.communicate(timeout=60)[0]) for process in processes) == 5
    assert store.standing("alice", DAY, NOW) == Standing(5, 100, 100, 0, 0)


def test_shares_are_of_all_workers(client: CountingRedis) -> None:
    """The slots of the live workers add up; one that no longer renews is gone with its slots."""
    store = RedisCounters(client, 4, fair_share=0.5)
    for worker, capacity in (("w1", 4), ("w2", 3), ("w2", 6)):
        store.renew(worker, capacity, [], NOW)
    store.admit(ask("b", key="bob"), NOW)
    for number in range(5):
        assert store.admit(ask(str(number)), NOW) == Grant(number + 1, None)
    assert store.admit(ask("5"), NOW) == Refusal("share", 1.0, 5, 5)  # 6 of 10 are open, each may have 5
    store.renew("w1", 4, [ask(str(number)) for number in range(5)], NOW + 1)
    store.renew("w1", 4, [ask("b", key="bob")], NOW + 1)
    assert store.admit(ask("5"), NOW + LEASE_S - 0.001) == Refusal("share", 1.0, 5, 5)
    assert store.admit(ask("5"), NOW + LEASE_S) == Refusal(
        "share", 1.0, 5, 2
    )  # w2 has gone: 4 slots are left
    assert client.hgetall(PREFIX + "capacities") == {b"w1": b"4"}
    assert client.zcard(PREFIX + "workers") == 1


def test_dead_workers_are_forgotten(client: CountingRedis) -> None:
    """Workers that come and go leave nothing behind, also when there is always room for everybody."""
    store = RedisCounters(client, 100)
    for number in range(20):
        store.renew(f"w{number}", 5, [], NOW + 10 * number)
    assert set(client.hgetall(PREFIX + "capacities")) == {b"w17", b"w18", b"w19"}
    assert client.zcard(PREFIX + "workers") == 3


def test_own_slots_count_before_the_first_renewal(client: CountingRedis) -> None:
    """A worker that no other knows of yet has at least its own slots."""
    store = RedisCounters(client, 10, fair_share=0.5)
    store.renew("w2", 2, [], NOW)
    store.admit(ask("b", key="bob"), NOW)
    for number in range(4):
        assert store.admit(ask(str(number)), NOW) == Grant(number + 1, None)
    assert store.admit(ask("4"), NOW) == Grant(5, None)
    assert store.admit(ask("5"), NOW) == Refusal("share", 1.0, 5, 5)


# What stays in Redis


def test_nothing_stays_of_what_is_over(client: CountingRedis) -> None:
    """After the last lease only what expires by itself is left: minutes, sums, and what was applied."""
    store = RedisCounters(client, 100)
    for number in range(20):
        store.load(f"key {number}", DAY, 0, 0, NOW)
        store.admit(ask(str(number), key=f"key {number}", tokens=3, ticks=3), NOW)
    ended = [Settled(n, str(n), f"key {n}", DAY, 1, 1, NOW, True) for n in range(10)]
    store.settle(ended, "w", NOW)
    assert list_names(client) >= LEFT_OVER
    store.standing("alice", DAY, NOW + LEASE_S)  # the other ten lapse
    names = list_names(client)
    assert names == {
        "seq:w",
        *(f"minute:key {number}" for number in range(10)),
        *(f"spent:key {number}" for number in range(20)),
    }
    assert all(client.ttl(PREFIX + name) > 0 for name in names)


def test_expiries_are_long_enough(client: CountingRedis) -> None:
    """A minute outlives its 65 s, sums the month after theirs, and what was applied outlives an outage."""
    store = RedisCounters(client, 100)
    store.load("alice", DAY, 0, 0, NOW)
    store.settle([Settled(1, "a", "alice", DAY, 1, 1, NOW, True)], "w", NOW)
    floors = {"minute:alice": 65, "spent:alice": 39 * 86_400, "seq:w": 86_000}
    for name, floor_s in floors.items():
        assert client.ttl(PREFIX + name) > floor_s


def test_a_minute_is_bounded(client: CountingRedis) -> None:
    """A key that is only ever settled keeps no more than a few buckets."""
    store = RedisCounters(client, 100)
    for number in range(100):
        at = NOW + 5 * number
        store.settle([Settled(number, "a", "alice", DAY, 1, 0, at, True)], "w", at)
        assert client.hlen(PREFIX + "minute:alice") <= 26
    assert store.standing("alice", DAY, at) == Standing(0, 13, 0, None, None)
    assert client.hlen(PREFIX + "minute:alice") == 13


# Both stores agree


class Agreement(RuleBasedStateMachine):
    """The same operations on both stores, beside a plain account of which leases ought to be open.

    Time goes on in steps that meet the edges of leases and buckets. Nobody is admitted with a clock that is
    behind, so the account knows when leases have lapsed.
    """

    server: RedisServer

    @initialize(capacity=st.integers(1, 12), fair_share=st.sampled_from([0.0, 0.5, 0.8, 1.0]))
    def begin(self, capacity: int, fair_share: float) -> None:
        self.client = Redis(port=self.server.port, socket_timeout=WAIT_S)
        self.client.flushall()
        self.capacity = capacity
        self.stores = (
            MemoryCounters(capacity, fair_share),
            RedisCounters(self.client, capacity, fair_share),
        )
        self.now = NOW
        self.open: dict[str, tuple[Ask, float]] = {}
        self.asks = 0
        self.applied: dict[str, int] = {}

    def teardown(self) -> None:
        """Once all has lapsed, neither store holds a thing."""
        if not hasattr(self, "client"):
            return
        self.now += 100
        self.agree("standing", "alice", DAY)
        assert not list_names(self.client) & LEFT_OVER
        memory = self.stores[0]
        assert not memory._leases
        assert memory._active == 0
        assert all(account.spent for account in memory._accounts.values())
        self.client.close()

    def agree(self, operation: str, *args: Any) -> Any:
        answers = [getattr(store, operation)(*args, self.now) for store in self.stores]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(step_s=st.sampled_from([0.001, 0.999, 1.0, 4.999, 5.0, 10.0, 29.999, 30.0, 61.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @rule(
        key=st.sampled_from(KEYS),
        stream=st.booleans(),
        tokens=st.sampled_from([0, 1, 5, 20, 101]),
        ticks=st.sampled_from([0, 1, 7, 10**15]),
        day=st.sampled_from(DAYS),
        limits=st.tuples(
            st.sampled_from([None, 0, 1, 3]),
            st.sampled_from([None, 0, 20, 100]),
            st.sampled_from([None, 0, 10, 3 * 10**15]),
            st.sampled_from([None, 0, 10, 3 * 10**15]),
        ),
        again=st.booleans(),
    )
    def admit(
        self,
        key: str,
        stream: bool,
        tokens: int,
        ticks: int,
        day: str,
        limits: tuple[int | None, ...],
        again: bool,
    ) -> None:
        self.asks += 1
        wanted = Ask(str(self.asks), key, "r", stream, tokens, ticks, day, *limits)
        if again and self.open:
            wanted = next(iter(self.open.values()))[0]
        answer = self.agree("admit", wanted)
        self.lapse()
        if isinstance(answer, Grant) and wanted.id not in self.open:
            self.open[wanted.id] = (wanted, self.now + LEASE_S)

    @rule(key=st.sampled_from(KEYS), day=st.sampled_from(DAYS), spent=st.sampled_from([0, 3, 10**15]))
    def load(self, key: str, day: str, spent: int) -> None:
        self.agree("load", key, day, spent, spent + 1)

    @rule(key=st.sampled_from(KEYS), day=st.sampled_from(DAYS), ticks=st.sampled_from([-9, 0, 9]))
    def correct(self, key: str, day: str, ticks: int) -> None:
        for store in self.stores:
            store.correct(key, day, ticks, ticks + 1)

    @rule(
        worker=st.sampled_from(["w", "v"]),
        batch=st.lists(
            st.tuples(
                st.integers(-2, 3),  # how far the seq is ahead of the last
                st.integers(1, 60),
                st.sampled_from(KEYS),
                st.sampled_from(DAYS),
                st.sampled_from([-3, 0, 1, 40]),
                st.sampled_from([-4, 0, 5, 10**15]),
                st.sampled_from([-3.0, 0.0, 1.0, 1.001, 30.0, 60.0, 66.0]),  # its age
                st.booleans(),
            ),
            max_size=4,
        ),
    )
    def settle(self, worker: str, batch: list[tuple[int, int, str, str, int, int, float, bool]]) -> None:
        seq = self.applied.get(worker, 0)
        settlements = []
        for ahead, id_, key, day, tokens, ticks, age_s, counts in batch:
            number = max(0, seq + ahead)
            settlements.append(Settled(number, str(id_), key, day, tokens, ticks, self.now - age_s, counts))
            if number > self.applied.get(worker, -1):
                self.applied[worker] = seq = number
                self.open.pop(str(id_), None)
        self.agree("settle", settlements, worker)

    @precondition(lambda self: self.open)
    @rule(part=st.integers(1, 3))
    def renew(self, part: int) -> None:
        self.lapse()
        kept = [wanted for wanted, _ in self.open.values()][::part]
        self.agree("renew", "w", self.capacity, kept)
        self.open.update({wanted.id: (wanted, self.now + LEASE_S) for wanted in kept})

    @precondition(lambda self: self.open)
    @rule()
    def lose_everything(self) -> None:
        """Both stores start empty, and the worker renews."""
        self.stores[0].clear()
        self.client.flushall()
        self.applied.clear()
        self.renew(1)

    @invariant()
    def figures_are_those_of_the_open_leases(self) -> None:
        if not hasattr(self, "client"):
            return
        self.lapse()
        for key in KEYS:
            mine = [wanted for wanted, _ in self.open.values() if wanted.key == key]
            for day in DAYS:
                standing = self.agree("standing", key, day)
            assert standing.streams == sum(wanted.stream for wanted in mine)
            assert standing.held_ticks == sum(wanted.ticks for wanted in mine)
            assert standing.tokens >= sum(wanted.tokens for wanted in mine)
            assert int(self.client.hget(PREFIX + "open", key) or 0) == len(mine)
        assert self.stores[0].list_keys() == self.stores[1].list_keys()

    def lapse(self) -> None:
        self.open = {id_: held for id_, held in self.open.items() if held[1] > self.now}


def test_both_stores_agree(redis_server: RedisServer) -> None:
    """Whatever is done in whatever order, memory and Redis give the same answers, and nothing leaks."""
    Agreement.server = redis_server
    run_state_machine_as_test(Agreement, settings=settings(max_examples=100, stateful_step_count=40))
