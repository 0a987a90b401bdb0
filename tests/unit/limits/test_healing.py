"""Healing: which keys are compared when, and that several workers mend a sum once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import redis
from support.processes import RedisServer, wait_for

from grokflask.errors import StoreUnavailableError
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits import healing
from grokflask.limits.healing import Healer
from grokflask.limits.reconciliation import check_counters
from grokflask.limits.redis import RedisCounters
from grokflask.storage.database import Database
from grokflask.times import to_day


@pytest.fixture
def counters(tmp_path: Path) -> Iterator[Callable[[], RedisCounters]]:
    """Makes the counters of one more worker on the same Redis."""
    server = RedisServer(tmp_path)
    clients: list[redis.Redis] = []

    def make() -> RedisCounters:
        clients.append(redis.Redis.from_url(server.url))
        return RedisCounters(clients[-1], capacity=100, fair_share=1.0)

    yield make
    for client in clients:
        client.close()
    server.kill()


def test_each_key_once_an_interval() -> None:
    """A comparison has the keys that were used since the last one, and after an outage all that ever were."""
    seen: list[set[str]] = []
    healer = Healer(lambda keys: seen.append(set(keys)), 0.0)
    for key in ("a", "b"):
        healer.note(key)
    healer.compare()
    healer.note("b")
    healer.compare()
    healer.expect_older()
    healer.compare()
    assert seen == [{"a", "b"}, {"b"}, {"a", "b"}]


def test_a_failure_forgets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread tries the same keys again, whatever went wrong."""
    monkeypatch.setattr(healing, "RETRY_S", 0.01)
    errors: list[Exception] = [StoreUnavailableError(), ValueError("a bug")]
    seen: list[set[str]] = []

    def heal(keys: Collection[str]) -> None:
        seen.append(set(keys))
        if errors:
            raise errors.pop(0)

    healer = Healer(heal, 0.0)
    healer.note("a")
    healer.start()
    wait_for(lambda: len(seen) == 3, "the third comparison")
    healer.close(60)
    assert seen == [{"a"}] * 3


def test_workers_that_find_the_same_difference(counters: Callable[[], RedisCounters], tmp_path: Path) -> None:
    """The sum is mended once, not once a worker."""
    now = time.time()
    day = to_day(now)
    workers = [counters() for _ in range(3)]
    workers[0].load("key:a", day, 300, 300, now)
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    database.upgrade()
    row = LedgerRow(make_id(now), "r", "a", "chat", "grok-4.3", now, outcome="complete", cost_ticks=600)
    writer = LedgerWriter(database, worker="w", retention_days=0)
    writer.settle(row)
    assert writer.flush(60)
    together = Barrier(3)

    def heal(worker: RedisCounters) -> None:
        check_counters(
            worker, database, repair=True, keys=["key:a"], lowers=False, sleep=lambda _: together.wait(60)
        )

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(heal, workers))
    standing = workers[0].standing("key:a", day, now)
    assert (standing.day_ticks, standing.month_ticks) == (600, 600)
    writer.close(60)
    database.close()
