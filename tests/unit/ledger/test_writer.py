"""The ledger's writer: no row lost, none counted twice, whoever dies or goes away in between."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from support.databases import PostgresServer
from support.processes import ROOT, wait_for
from support.scripted import WAIT_S

from grokflask.ledger import statements
from grokflask.ledger.reports import RowFilter, check_daily, iterate_rows, read_rows, summarize
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.statements import Worker, read_fields
from grokflask.ledger.writer import FLUSH_S, LedgerWriter
from grokflask.storage.database import Database

NOON = 1_790_000_000.0
LONG_S = 60.0


def make_row(number: int = 0, **fields: Any) -> LedgerRow:
    """An open row with an estimate of its prompt."""
    values: dict[str, Any] = {
        "id": make_id(NOON + number),
        "request_id": f"r{number}",
        "key": "alice",
        "route": "chat",
        "model": "grok-4",
        "started_at": NOON + number,
        "prompt_tokens": 10,
        "cost_ticks": 100,
        "estimated": True,
    }
    return LedgerRow(**{**values, **fields})


def settle(row: LedgerRow, outcome: str = "complete", **fields: Any) -> LedgerRow:
    """The row with what is known at the end."""
    known = {"cost_ticks": 700, "completion_tokens": 5, "estimated": False, "duration_ms": 30, "bytes_out": 9}
    return dataclasses.replace(row, outcome=outcome, **{**known, **fields})


def list_rows(database: Database) -> list[LedgerRow]:
    return list(iterate_rows(database, RowFilter()))


def sum_up(database: Database) -> dict[str, tuple[int, int]]:
    """Exchanges and cost by outcome, as the daily sums have them."""
    sums = summarize(database, None, None, by="outcome")
    return {each.name: (each.exchanges, each.cost_ticks) for each in sums}


def run(database: Database, statement: str, **values: object) -> int:
    changed: int = database.write(lambda c: c.execute(text(statement), values).rowcount)
    return changed


def list_workers(database: Database) -> list[str]:
    found = database.read(lambda c: c.execute(text("SELECT id FROM workers ORDER BY id")).scalars().all())
    return list(found)


MakeWriter = Callable[..., LedgerWriter]


@pytest.fixture
def make_writer(database: Database) -> Iterator[MakeWriter]:
    """Writers on `database`, closed at the end."""
    writers: list[LedgerWriter] = []

    def make(worker: str = "me", **options: Any) -> LedgerWriter:
        writer = LedgerWriter(database, worker=worker, **{"retention_days": 0, **options})
        writers.append(writer)
        return writer

    yield make
    for writer in writers:
        writer.close(5)


def test_a_row_is_opened_and_settled(database: Database, make_writer: MakeWriter) -> None:
    """An open row is in the ledger and in no sum; settled it is in both, with every field as it was."""
    writer = make_writer()
    row = make_row(stream=True, bytes_out=0)
    writer.open(row)
    assert writer.flush(LONG_S)
    assert list_rows(database) == [dataclasses.replace(row, worker="me")]
    assert sum_up(database) == {}
    row = settle(row, model_served="grok-4-0709", upstream_request_id="up", ttft_ms=0, status=200)
    writer.settle(row)
    assert writer.flush(LONG_S)
    assert list_rows(database) == [row]
    assert sum_up(database) == {"complete": (1, 700)}
    assert [each.name for each in summarize(database, None, None, by="model")] == ["grok-4-0709"]
    assert (writer.queued, writer.dropped, writer.refused, writer.state) == (0, 0, 0, "up")


def test_a_row_is_copied(database: Database, make_writer: MakeWriter) -> None:
    """What the caller does to a row after handing it over waits for the next time."""
    writer = make_writer()
    row = make_row()
    writer.open(row)
    row.cost_ticks, row.outcome = 1, "complete"
    assert writer.flush(LONG_S)
    assert [(row.cost_ticks, row.outcome) for row in list_rows(database)] == [(100, None)]


def test_open_and_settled_in_one_batch(database: Database, make_writer: MakeWriter) -> None:
    """Both within one batch, in one insert; and an opening that comes late changes nothing."""
    writer = make_writer()
    row = make_row()
    writer.open(row)
    writer.settle(settle(row))
    writer.open(row)
    assert writer.flush(LONG_S)
    writer.open(row)
    assert writer.flush(LONG_S)
    assert [row.outcome for row in list_rows(database)] == ["complete"]
    assert sum_up(database) == {"complete": (1, 700)}


def test_a_settlement_delivered_again(database: Database, make_writer: MakeWriter) -> None:
    """The same settlement counts once, by one writer or by two; another figure replaces the first."""
    writers = [make_writer("a"), make_writer("b")]
    row = settle(make_row())
    for writer in writers * 2:
        writer.settle(row)
        assert writer.flush(LONG_S)
    assert sum_up(database) == {"complete": (1, 700)}
    writers[0].settle(settle(row, "truncated", cost_ticks=900))
    assert writers[0].flush(LONG_S)
    assert sum_up(database) == {"truncated": (1, 900)}
    assert check_daily(database) == []


def test_batches_from_many_threads(database: Database, make_writer: MakeWriter) -> None:
    """3,000 exchanges from 6 threads, in several batches: each is there once, and in the sums once."""
    writer = make_writer()

    def work(thread: int) -> None:
        for number in range(500):
            row = make_row(number, key=f"key-{thread}", id=make_id(NOON) + f"-{thread}-{number}")
            writer.open(row)
            writer.settle(settle(row))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert writer.flush(LONG_S)
    assert len(list_rows(database)) == 3000
    sums = summarize(database, None, None, by="key")
    assert [(each.exchanges, each.cost_ticks) for each in sums] == [(500, 350_000)] * 6
    assert check_daily(database) == []


def test_one_bad_row_does_not_hold_up_the_rest(
    database: Database, make_writer: MakeWriter, logged: io.StringIO
) -> None:
    """A row that the database cannot take is counted and logged; those beside it are written."""
    writer = make_writer()
    rows = [settle(make_row(number)) for number in range(20)]
    rows[7].cost_ticks = 2**80
    rows[13].code = "\ud800"
    for row in rows:
        writer.settle(row)
    assert writer.flush(LONG_S)
    assert len(list_rows(database)) == 18
    assert sum_up(database) == {"complete": (18, 18 * 700)}
    assert (writer.refused, writer.queued, database.outages) == (2, 0, 0)
    assert logged.getvalue().count("rejected a ledger row") == 2


def test_no_more_room(database: Database, make_writer: MakeWriter, logged: io.StringIO) -> None:
    """While the database is away `max_queued` rows wait, and are written in the end.

    New ones are refused; settlements of those that wait are not.
    """
    with closing(Blockade(database)) as blockade:
        writer = make_writer(max_queued=10, flush_s=0.01)
        rows = [make_row(number) for number in range(15)]
        for row in rows:
            writer.open(row)
        for row in rows:
            writer.settle(settle(row))
        assert (writer.queued, writer.dropped) == (10, 10)
        wait_for(lambda: writer.state == "away", "the writer to notice")
        wait_for(lambda: "the queue is full" in logged.getvalue(), "a line about it")
        assert not writer.flush(0.01)
        blockade.end()
        assert writer.flush(LONG_S)
    assert sum_up(database) == {"complete": (10, 7000)}
    assert logged.getvalue().count("the queue is full") == 1
    assert logged.getvalue().count("the ledger cannot be written") == 1
    assert logged.getvalue().count("the ledger can be written again") == 1


class Blockade:
    """Makes every write to the database fail, by taking a table away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.upgrade()
        self._ended = False
        run(database, "ALTER TABLE workers RENAME TO hidden")

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            wait_for(self._try, "the table's return")

    def _try(self) -> bool:
        with closing(Database(self._database._url.render_as_string(hide_password=False))) as other:
            run(other, "ALTER TABLE hidden RENAME TO workers")
        return True

    def close(self) -> None:
        self.end()


def test_close(database: Database, make_writer: MakeWriter) -> None:
    """`close` writes what is queued, and the worker is gone; twice is no harm, and a late row is written."""
    writer = make_writer(flush_s=60)
    writer.start()
    writer.settle(settle(make_row(1)))
    assert writer.close(LONG_S)
    assert writer.close(LONG_S)
    assert (writer.state, list_workers(database)) == ("idle", [])
    assert sum_up(database) == {"complete": (1, 700)}
    writer.settle(settle(make_row(2)))
    assert writer.close(LONG_S)
    assert sum_up(database) == {"complete": (2, 1400)}


def test_close_with_an_open_row(database: Database, make_writer: MakeWriter) -> None:
    """Who leaves an open row behind stays known, so that the row is found when the time has come."""
    writer = make_writer()
    writer.open(make_row())
    assert writer.close(LONG_S)
    assert list_workers(database) == ["me"]


def test_close_while_the_database_is_away(tmp_path: Path, logged: io.StringIO) -> None:
    """`close` takes no longer than it may, says that rows are left, and a later start writes them."""
    (tmp_path / "ledger").write_text("in the way")
    database = Database(f"sqlite:///{tmp_path}/ledger/test.db")
    writer = LedgerWriter(database, worker="me", retention_days=0)
    writer.settle(settle(make_row()))
    assert not writer.close(0.5)
    wait_for(lambda: "ledger rows were not written" in logged.getvalue(), "a line about it")
    assert writer.queued == 1
    (tmp_path / "ledger").unlink()
    writer.start()
    assert writer.flush(LONG_S)
    assert sum_up(database) == {"complete": (1, 700)}
    assert writer.close(LONG_S)
    database.close()


def test_a_fork(database: Database, make_writer: MakeWriter) -> None:
    """A child's writer has a name of its own and writes its own rows; the parent's it leaves alone."""
    writer = make_writer(flush_s=60)
    writer.start()
    assert writer.flush(LONG_S)
    writer.settle(settle(make_row(1)))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            writer.settle(settle(make_row(2)))
            code = 0 if writer.queued == 1 and writer.worker != "me" and writer.close(LONG_S) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert writer.flush(LONG_S)
    assert {row.request_id: row.worker for row in list_rows(database)} == {"r1": "me", "r2": f"me-{child}"}
    assert sum_up(database) == {"complete": (2, 1400)}


CRASH = """
import sys, time
from grokflask.storage.database import Database
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.writer import LedgerWriter
writer = LedgerWriter(Database(sys.argv[1]), worker="dead", retention_days=0, flush_s=float(sys.argv[2]))
def open_rows(first, count):
    for number in range(first, first + count):
        row = LedgerRow(make_id(), f"r{number}", "alice", "chat", "grok-4", time.time())
        row.prompt_tokens, row.cost_ticks, row.estimated = 10, 100, True
        writer.open(row)
open_rows(0, 100)
assert writer.flush(60)
open_rows(100, 7)
print("ready", flush=True)
sys.stdin.read()
"""


def crash(url: str, flush_s: float = 60.0) -> None:
    """A process opens 100 rows that are written and 7 more, and is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, url, str(flush_s)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)


def make_stale(database: Database, worker: str) -> None:
    assert run(database, "UPDATE workers SET seen_at = seen_at - 100 WHERE id = :id", id=worker) == 1


def test_rows_of_a_killed_process(database: Database, database_url: str, make_writer: MakeWriter) -> None:
    """SIGKILL with 100 open rows: of two writers that look, each row goes to one.

    The 7 rows that were handed over within the pause before it are in no database.
    """
    database.upgrade()
    crash(database_url)
    if not database.is_sqlite:
        make_stale(database, "dead")
    found: list[LedgerRow] = []
    writers = [make_writer(f"finder-{n}", beat_s=0.05) for n in range(2)]
    for writer in writers:
        writer.on_lost = found.extend
    for writer in writers:
        writer.start()
    wait_for(lambda: sum(writer.lost for writer in writers) >= 100, "the rows to be found")
    wait_for(lambda: list_workers(database) == ["finder-0", "finder-1"], "the dead to be forgotten")
    for writer in writers:
        assert writer.close(LONG_S)
    assert sorted(row.request_id for row in found) == sorted(f"r{number}" for number in range(100))
    rows = list_rows(database)
    assert sorted(rows, key=lambda row: row.id) == sorted(found, key=lambda row: row.id)
    shown = {(row.outcome, row.estimated, row.prompt_tokens, row.cost_ticks, row.duration_ms) for row in rows}
    assert shown == {("lost", True, 10, 100, None)}
    assert sum_up(database) == {"lost": (100, 10_000)}
    assert check_daily(database) == []


def test_the_pause_is_what_can_be_lost(database: Database, database_url: str) -> None:
    """A row is written within the pause and no flush is asked for."""
    database.upgrade()
    writer = LedgerWriter(database, worker="me", retention_days=0)
    assert FLUSH_S <= 0.25
    writer.open(make_row())
    wait_for(lambda: writer.queued == 0, "the row to be written by itself")
    assert len(list_rows(database)) == 1
    assert writer.close(LONG_S)


def test_truth_after_lost(database: Database, make_writer: MakeWriter) -> None:
    """A process that was only slow settles rows that were given up: its figures replace the estimate."""
    slow, finder = make_writer("slow", beat_s=1000), make_writer("finder", beat_s=0.05)
    rows = [make_row(number) for number in range(3)]
    for row in rows:
        slow.open(row)
    assert slow.flush(LONG_S)
    make_stale(database, "slow")
    finder.start()
    wait_for(lambda: finder.lost == 3, "the rows to be given up")
    assert sum_up(database) == {"lost": (3, 300)}
    for row in rows[:2]:
        slow.settle(settle(row))
    assert slow.flush(LONG_S)
    assert sum_up(database) == {"complete": (2, 1400), "lost": (1, 100)}
    slow.settle(settle(rows[2]))
    assert slow.flush(LONG_S)
    assert sum_up(database) == {"complete": (3, 2100)}
    assert check_daily(database) == []


def sweep(database: Database, me: Worker, on_time: bool = True) -> int:
    return len(database.write(lambda c: statements.sweep(c, me, 15, on_time, 1000)))


def test_who_is_dead(database: Database) -> None:
    """Dead is who was not seen for long or is unknown, and only if the finder has been on time itself."""
    me = statements.find_self("me")
    elsewhere = Worker("fresh", "another host", 1)

    def prepare(connection: Connection) -> bool:
        for name in ("fresh", "old", "unknown", "me"):
            statements.store(connection, [read_fields(make_row(worker=name, id=name))])
        statements.beat(connection, elsewhere, 15)
        statements.beat(connection, elsewhere._replace(id="old"), 15)
        return statements.beat(connection, me, 15)

    assert database.write(prepare) is False  # the first time: who knows for how long nobody could write
    make_stale(database, "old")
    assert sweep(database, me, on_time=False) == 0
    assert sweep(database, me) == 2
    assert sweep(database, me) == 0
    assert {row.id for row in list_rows(database) if row.outcome} == {"old", "unknown"}
    assert list_workers(database) == ["fresh", "me"]
    assert database.write(lambda c: statements.beat(c, me, 15)) is True
    make_stale(database, "me")
    assert database.write(lambda c: statements.beat(c, me, 15)) is False


def test_a_pid_that_is_gone(database: Database) -> None:
    """On SQLite a process that ended beside this one is dead at once; one elsewhere, or alive, is not."""
    me = statements.find_self("me")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(WAIT_S)
    others = [
        Worker("ended", me.host, ended.pid),
        Worker("alive", me.host, os.getppid()),
        Worker("elsewhere", "another host", ended.pid),
    ]

    def prepare(connection: Connection) -> None:
        for other in others:
            statements.beat(connection, other, 15)
            statements.store(connection, [read_fields(make_row(worker=other.id, id=other.id))])

    database.write(prepare)
    known = database.is_sqlite and "pid:[" in me.host
    assert sweep(database, me, on_time=False) == (1 if known else 0)
    assert {row.id for row in list_rows(database) if row.outcome} == ({"ended"} if known else set())


def test_retention(database: Database, make_writer: MakeWriter) -> None:
    """Settled rows of earlier days go, their sums stay, and the check knows where rows are missing."""
    writer = make_writer(retention_days=2, clock=lambda: NOON)
    for days in range(6):
        for number in range(3):
            row = make_row(number, started_at=NOON - days * 86400, id=make_id(NOON - days * 86400))
            writer.settle(settle(row))
    writer.open(make_row(99, started_at=NOON - 5 * 86400))
    assert writer.flush(LONG_S)
    assert writer.close(LONG_S)
    again = make_writer("again", retention_days=2, clock=lambda: NOON)
    again.start()
    wait_for(lambda: len(list_rows(database)) == 10, "old rows to go")
    assert sum_up(database) == {"complete": (18, 18 * 700)}
    assert check_daily(database) == []
    run(database, "DELETE FROM exchanges WHERE request_id = 'r0'")
    assert {drift.day for drift in check_daily(database)} == {"2026-09-19", "2026-09-20", "2026-09-21"}


def test_without_retention_all_stays(database: Database, make_writer: MakeWriter) -> None:
    """0 days is for ever."""
    writer = make_writer(retention_days=0, clock=lambda: NOON)
    writer.settle(settle(make_row(started_at=0.0)))
    assert writer.flush(LONG_S)
    assert writer.close(LONG_S)
    assert len(read_rows(database, RowFilter(), 10)) == 1


class Flow:
    """Exchanges from 4 threads without a pause to speak of, until it is ended."""

    def __init__(self, writer: LedgerWriter) -> None:
        self.settled = 0
        self._writer = writer
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, thread: int) -> None:
        while not self._over.wait(0.005):
            row = make_row(key=f"key-{thread}", id=make_id())
            self._writer.open(row)
            self._over.wait(0.002)
            self._writer.settle(settle(row))
            with self._lock:
                self.settled += 1

    def wait_for_more(self) -> None:
        seen = self.settled
        wait_for(lambda: self.settled >= seen + 100, "the flow")

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def check_flow(database: Database, writer: LedgerWriter, flow: Flow) -> None:
    """All of the flow is in the ledger once."""
    flow.end()
    assert writer.flush(LONG_S)
    assert writer.dropped == writer.refused == 0
    assert sum_up(database) == {"complete": (flow.settled, flow.settled * 700)}
    assert check_daily(database) == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
def test_postgresql_goes_away_under_a_flow(postgres_server: PostgresServer, how: str) -> None:
    """Stopped, killed or paused and back, twice, in the midst of batches: nothing lost, nothing double."""
    postgres_server.start()
    url = postgres_server.make_database()
    database = Database(url)
    writer = LedgerWriter(database, worker="me", retention_days=0, flush_s=0.01, max_queued=10**6)
    flow = Flow(writer)
    try:
        for _ in range(2):
            flow.wait_for_more()
            getattr(postgres_server, how)()
            wait_for(lambda: writer.state == "away", "the writer to notice")
            flow.wait_for_more()
            postgres_server.start()
            wait_for(lambda: writer.state == "up", "the writer to go on")
        check_flow(database, writer, flow)
        assert database.outages >= 2
    finally:
        flow.end()
        writer.close(5)
        database.close()
        postgres_server.start()
        postgres_server.drop_database(url)


def test_sqlite_is_locked_under_a_flow(tmp_path: Path) -> None:
    """Another process keeps the lock for 3 seconds: handing over goes on, and nothing is lost."""
    path = tmp_path / "test.db"
    database = Database(f"sqlite:///{path}")
    writer = LedgerWriter(database, worker="me", retention_days=0, flush_s=0.01, max_queued=10**6)
    flow = Flow(writer)
    try:
        flow.wait_for_more()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = writer.queued
            time.sleep(3)  # the length of the outage
            flow.wait_for_more()
            assert writer.queued > before + 100
            other.execute("ROLLBACK")
        check_flow(database, writer, flow)
    finally:
        flow.end()
        writer.close(5)
        database.close()


def test_a_commit_whose_answer_was_lost(database: Database, make_writer: MakeWriter) -> None:
    """A batch that was stored, though the writer was told that it failed, is sent again and counts once."""
    writer = make_writer(flush_s=60)
    row = make_row()
    writer.open(row)
    assert writer.flush(LONG_S)
    settled = settle(row)
    database.write(lambda c: statements.store(c, [read_fields(settled)]))
    writer.settle(settled)
    writer.settle(settle(make_row(1)))
    assert writer.flush(LONG_S)
    assert sum_up(database) == {"complete": (2, 1400)}


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_events(database: Database, seed: int) -> None:
    """Rows opened, settled, delivered again, given up and settled after all, in any order and batch.

    The sums are always those of the rows, and each row has the last truth that was told.
    """
    chance = random.Random(seed)
    me = statements.find_self("me")
    rows = {f"id-{n}": make_row(n, id=f"id-{n}", worker=chance.choice("abc")) for n in range(40)}
    truth: dict[str, LedgerRow] = {}
    stored: set[str] = set()
    for _ in range(60):
        batch: dict[str, LedgerRow] = {}
        for id_ in chance.sample(sorted(rows), chance.randint(1, 10)):
            if chance.random() < 0.4:
                batch[id_] = rows[id_]
            else:
                outcome = chance.choice(["complete", "client_abort", "timeout"])
                cost = chance.choice([None, 0, 5, 10**12])
                served = chance.choice([None, "grok-4", "grok-4-0709"])
                fields = {"cost_ticks": cost, "model_served": served, "estimated": chance.random() < 0.5}
                batch[id_] = truth[id_] = settle(rows[id_], outcome, **fields)
        stored |= batch.keys()
        fields_of = [read_fields(row) for row in batch.values()]
        for _ in range(chance.choice([1, 1, 2])):
            database.write(lambda c, fields_of=fields_of: statements.store(c, fields_of))
        if chance.random() < 0.2:
            for row in database.write(lambda c: statements.sweep(c, me, 15, True, chance.randint(1, 9))):
                assert row.id not in truth
        assert check_daily(database) == []
    found = {row.id: row for row in list_rows(database)}
    assert found.keys() == stored
    assert {id_: row for id_, row in found.items() if id_ in truth} == truth
    assert {row.outcome for id_, row in found.items() if id_ not in truth} <= {None, "lost"}
