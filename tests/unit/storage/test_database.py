"""Access to the database: many threads and processes at once, and every kind of outage."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from psycopg import sql
from sqlalchemy import URL, Connection, create_engine, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from support.databases import PostgresServer
from support.processes import ROOT, wait_for
from support.scripted import WAIT_S

from grokflask.errors import StoreUnavailableError
from grokflask.storage.database import Database
from grokflask.storage.migrations import FIRST_VERSION, STEPS
from grokflask.storage.tables import metadata, workers

BOUND_S = 30.0
"""Far more than any timeout used here, far less than a hang."""


def count(connection: Connection) -> int:
    found: int = connection.execute(text("SELECT count(*) FROM workers")).scalar_one()
    return found


def add(name: str) -> Callable[[Connection], None]:
    def change(connection: Connection) -> None:
        connection.execute(insert(workers).values(id=name, seen_at=0.0, host="", pid=0))

    return change


TABLES = ("workers", "schema_version")


def fail(use: Callable[[], object]) -> StoreUnavailableError:
    """`use` reports in bounded time that the database is unavailable."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        use()
    assert time.monotonic() - began < BOUND_S
    return caught.value


def works(use: Callable[[], object]) -> bool:
    try:
        use()
    except StoreUnavailableError:
        return False
    return True


def recover(database: Database) -> None:
    """Reads and writes work again without help."""
    wait_for(lambda: works(lambda: database.read(count)), "reads to work again")
    wait_for(lambda: works(lambda: database.write(add(f"again-{time.time()}"))), "writes to work again")
    assert database.state == "up"


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "test.db"


@pytest.fixture
def sqlite(sqlite_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{sqlite_path}")
    yield database
    database.close()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[Database]:
    postgres_server.start()
    url = postgres_server.make_database()
    database = Database(url)
    yield database
    database.close()
    postgres_server.start()
    postgres_server.drop_database(url)


def test_tables_are_what_the_code_thinks(database: Database) -> None:
    """A new database has exactly the columns that the tables in the code have."""

    def look(connection: Connection) -> None:
        found = inspect(connection)
        for table in metadata.tables.values():
            names = [column["name"] for column in found.get_columns(table.name)]
            assert names == [column.name for column in table.columns]

    database.read(look, timeout_s=WAIT_S)
    assert database.upgrade() == FIRST_VERSION + len(STEPS)


def test_nothing_is_opened_before_the_first_use(sqlite_path: Path) -> None:
    """Making a Database touches nothing, whatever the URL."""
    database = Database(f"sqlite:///{sqlite_path}")
    assert database.state == "unused"
    assert not sqlite_path.parent.exists()
    database.close()


def test_threads_write_at_once(database: Database) -> None:
    """8 threads with 25 changes each: every change happens once."""

    def work(thread: int) -> None:
        for number in range(25):
            database.write(add(f"{thread}-{number}"), timeout_s=60)
            database.read(count, timeout_s=60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert database.read(count) == 200
    assert database.outages == 0


WORK = """
import sys
from sqlalchemy import insert
from grokflask.storage.database import Database
from grokflask.storage.tables import workers
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    row = insert(workers).values(id=f"{sys.argv[2]}-{number}", seen_at=0.0, host="", pid=0)
    database.write(lambda connection: connection.execute(row).rowcount, timeout_s=60)
database.close()
"""


def test_processes_open_a_new_database_at_once(database_url: str) -> None:
    """4 processes open an empty database: one creates the tables, and no write is lost."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, database_url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=100)
        assert process.returncode == 0
    with closing(Database(database_url)) as database:
        assert database.read(count) == 100
        versions = database.read(lambda c: c.execute(text("SELECT version FROM schema_version")).all())
        assert [tuple(row) for row in versions] == [(FIRST_VERSION + len(STEPS),)]


def test_a_fork_uses_connections_of_its_own(database: Database) -> None:
    """After a fork both processes work, and the child's exit does not harm the parent's connections."""
    database.write(add("before"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            database.write(add("child"))
            database.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    database.write(add("parent"))
    assert database.read(count) == 3
    assert database.outages == 0


def test_reads_do_not_wait_for_a_writer(database: Database) -> None:
    """While a transaction writes, others read the state before it."""
    database.write(add("first"))

    def change(connection: Connection) -> int:
        add("second")(connection)
        return database.read(count)

    assert database.write(change) == 1
    assert database.read(count) == 2


def test_a_change_happens_whole_or_not_at_all(database: Database) -> None:
    """A change that fails is undone."""

    def change(connection: Connection) -> None:
        add("first")(connection)
        raise LookupError

    with pytest.raises(LookupError):
        database.write(change)
    assert database.read(count) == 0


def test_errors_of_the_query_are_no_outage(database: Database) -> None:
    """A duplicate row, a value out of range and bad SQL raise their own errors, and are no outage."""
    database.write(add("first"))
    with pytest.raises(IntegrityError):
        database.write(add("first"))
    if not database.is_sqlite:
        with pytest.raises(DataError):
            database.write(lambda c: c.execute(text("UPDATE workers SET pid = 1::bigint << 40")).rowcount)
        with pytest.raises(ProgrammingError):
            database.read(lambda c: c.execute(text("SELECT nothing FROM workers")).all())
    assert (database.state, database.outages) == ("up", 0)


@pytest.mark.usefixtures("hasty")
def test_a_slow_query_is_no_outage(database: Database) -> None:
    """A read that takes too long ends in time, and delays no others."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    query = endless if database.is_sqlite else "SELECT pg_sleep(60)"
    database.read(count)
    error = fail(lambda: database.read(lambda c: c.execute(text(query)).all(), timeout_s=3.0))
    assert error.detail is not None
    assert (database.state, database.outages) == ("up", 0)
    assert database.read(count) == 0


def test_a_long_wait_is_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands say that they wait."""
    monkeypatch.setattr("grokflask.storage.database.WAIT_S", 0.01)
    told = threading.Event()
    database.on_wait = told.set
    assert database.read(lambda _: told.wait(WAIT_S), timeout_s=WAIT_S)


def test_a_locked_file_fails_writes_alone(sqlite: Database, sqlite_path: Path, logged: io.StringIO) -> None:
    """A process that keeps SQLite's lock stops writers until their timeout, but not readers."""
    sqlite.write(add("first"))
    with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        fail(lambda: sqlite.write(add("second"), timeout_s=0.2))
        assert sqlite.state == "away"
        assert sqlite.read(count) == 1
        at_once = fail(lambda: sqlite.write(add("second")))
        assert at_once.__cause__ is None  # not even tried
        assert "locked" in str(at_once.detail)
        assert sqlite.read(count) == 1
        other.execute("ROLLBACK")
    recover(sqlite)
    assert sqlite.outages == 1
    assert logged.getvalue().count('msg="the database is unavailable"') == 1
    assert logged.getvalue().count('msg="the database is available again"') == 1


def test_a_writer_waits_for_the_lock(sqlite: Database, sqlite_path: Path) -> None:
    """A lock that is released within the timeout is no outage."""
    sqlite.write(add("first"))
    with closing(sqlite3.connect(sqlite_path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.5, other.execute, ("ROLLBACK",))
        timer.start()
        sqlite.write(add("second"), timeout_s=60)
        timer.join()
    assert sqlite.read(count) == 2
    assert sqlite.outages == 0


@pytest.mark.usefixtures("hasty")
def test_a_file_that_is_locked_whole(sqlite: Database, sqlite_path: Path) -> None:
    """An exclusive lock makes reads fail too, in bounded time, until it is released."""
    sqlite.write(add("first"))
    sqlite.close()
    with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        fail(lambda: sqlite.read(count))
    recover(sqlite)


def test_the_directory_is_taken_away(sqlite: Database, sqlite_path: Path, logged: io.StringIO) -> None:
    """A missing directory is an outage until it is back."""
    sqlite.write(add("first"))
    aside = sqlite_path.parent.rename(sqlite_path.parent.with_name("aside"))
    fail(lambda: sqlite.read(count))
    fail(lambda: sqlite.write(add("second")))
    assert not sqlite_path.parent.exists()
    assert logged.getvalue().count('msg="the database is unavailable"') == 1
    aside.rename(sqlite_path.parent)
    recover(sqlite)
    assert sqlite.read(count) == 2
    assert sqlite.outages == 1


def test_the_file_is_taken_away(sqlite: Database, sqlite_path: Path) -> None:
    """A missing file is an outage: a new one would contain no keys, and all callers would be refused.

    A process that starts later creates a new one.
    """
    sqlite.write(add("first"))
    sqlite_path.unlink()
    for _ in range(3):
        fail(lambda: sqlite.read(count))
        sqlite._reads.reset()
        fail(lambda: sqlite.write(add("second")))
        sqlite._writes.reset()
    assert not sqlite_path.exists()
    with closing(Database(f"sqlite:///{sqlite_path}")) as other:
        other.upgrade()
    recover(sqlite)
    assert sqlite.read(count) == 1


def test_the_tables_are_taken_away(database: Database) -> None:
    """Missing tables, for example during a restore, are an outage until they are back."""
    database.write(add("first"))

    def rename(old: str, new: str) -> Callable[[Connection], object]:
        return lambda c: [c.execute(text(f"ALTER TABLE {t}{old} RENAME TO {t}{new}")) for t in TABLES]

    database.write(rename("", "_aside"))
    for _ in range(3):
        fail(lambda: database.read(count))
        database._reads.reset()
    engine = create_engine(database._url)
    assert "workers" not in inspect(engine).get_table_names()
    with engine.begin() as connection:
        rename("_aside", "")(connection)
    engine.dispose()
    recover(database)
    assert database.read(count) == 2


@pytest.mark.parametrize("name", ["a b.db", "ü?x=1#y%20.db", "c'\"d.db"])
def test_files_with_any_name(tmp_path: Path, name: str) -> None:
    """The path is taken literally, whatever its characters mean in a URI."""
    url = URL.create("sqlite", database=f"{tmp_path}/{name}").render_as_string()
    with closing(Database(url)) as database:
        database.write(add("first"))
        assert database.read(count) == 1
    assert (tmp_path / name).exists()


def test_a_file_that_is_no_database(sqlite: Database, sqlite_path: Path) -> None:
    """A file that is no database is an outage, not a crash, and stays unchanged."""
    sqlite_path.parent.mkdir()
    sqlite_path.write_text("no database " * 1000)
    fail(lambda: sqlite.read(count))
    fail(lambda: sqlite.write(add("first")))
    assert sqlite_path.read_text().startswith("no database ")


FILL = """
import resource, sys, time
from sqlalchemy import insert, text
from grokflask.storage.database import Database
from grokflask.storage.tables import workers
from grokflask.errors import StoreUnavailableError
database = Database(sys.argv[1])
database.upgrade()
count = lambda c: c.execute(text("SELECT count(*) FROM workers")).scalar_one()
row = lambda n: insert(workers).values(id=f"{n}" + "x" * 10_000, seen_at=0.0, host="", pid=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
written = 0
try:
    while True:
        database.write(lambda c: c.execute(row(written)).rowcount)
        written += 1
except StoreUnavailableError:
    pass
assert database.state == "away"
assert database.read(count) == written > 10, written
assert database.state == "away"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        database.write(lambda c: c.execute(row(written)).rowcount)
        break
    except StoreUnavailableError:
        time.sleep(0.05)
assert database.read(count) == written + 1
assert (database.state, database.outages) == ("up", 1)
print("done")
"""


def test_a_full_disk(sqlite_path: Path) -> None:
    """On a full disk writes fail as a whole and reads work; with room again both work."""
    command = [sys.executable, "-c", FILL, f"sqlite:///{sqlite_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_postgresql_ends_and_returns(
    postgres: Database, postgres_server: PostgresServer, how: str, logged: io.StringIO
) -> None:
    """A stopped or killed server is one outage with one log line, and ends without help."""
    postgres.write(add("first"))
    getattr(postgres_server, how)()
    fail(lambda: postgres.read(count))
    fail(lambda: postgres.write(add("second")))
    assert logged.getvalue().count('msg="the database is unavailable"') == 1
    postgres_server.start()
    recover(postgres)
    assert postgres.outages == 1
    assert logged.getvalue().count('msg="the database is available again"') == 1


@pytest.mark.usefixtures("hasty")
def test_postgresql_that_hangs(postgres: Database, postgres_server: PostgresServer) -> None:
    """A server that hangs with open connections is unavailable after about the timeout."""
    postgres.write(add("first"))
    postgres_server.pause()
    fail(lambda: postgres.read(count))
    fail(lambda: postgres.write(add("second"), timeout_s=0.5))
    postgres_server.resume()
    recover(postgres)


@pytest.mark.usefixtures("hasty")
def test_postgresql_that_hangs_from_the_start(postgres: Database, postgres_server: PostgresServer) -> None:
    """The same without an earlier connection."""
    postgres_server.pause()
    fail(lambda: postgres.read(count))
    fail(lambda: postgres.write(add("first"), timeout_s=0.5))
    postgres_server.resume()
    recover(postgres)


def test_connections_that_died_in_the_pool(postgres: Database, postgres_server: PostgresServer) -> None:
    """Pooled connections that have died are replaced, and callers do not notice."""
    name = postgres._url.database
    kill = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}").format(
        sql.Literal(name)
    )
    postgres.write(add("first"))
    assert len(postgres_server.run(kill)) >= 1
    assert postgres.read(count) == 1
    postgres_server.run(kill)
    postgres.write(add("second"))
    postgres_server.run(kill)
    assert postgres.read(count) == 2
    assert (postgres.state, postgres.outages) == ("up", 0)


def test_postgresql_that_only_reads(postgres: Database, postgres_server: PostgresServer) -> None:
    """A read-only server is unavailable for writes alone."""
    postgres.write(add("first"))
    name = sql.Identifier(str(postgres._url.database))
    alter = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    postgres_server.run(alter.format(name, sql.SQL("on")))
    postgres.close()
    assert postgres.read(count) == 1
    fail(lambda: postgres.write(add("second")))
    assert postgres.read(count) == 1
    assert postgres.state == "away"
    postgres_server.run(alter.format(name, sql.SQL("off")))
    postgres.close()
    recover(postgres)


def test_transactions_in_each_others_way(postgres: Database) -> None:
    """Of two transactions in a deadlock PostgreSQL ends one, which is tried again."""
    postgres.write(add("a"))
    postgres.write(add("b"))
    both = threading.Barrier(2)
    met = {"ab": False, "ba": False}

    def swap(order: str) -> None:
        def change(connection: Connection) -> None:
            update = text("UPDATE workers SET pid = pid + 1 WHERE id = :id")
            connection.execute(update, {"id": order[0]})
            if not met[order]:
                met[order] = True
                both.wait(WAIT_S)
            connection.execute(update, {"id": order[1]})

        postgres.write(change, timeout_s=60)  # it is tried again within half of that

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(swap, ["ab", "ba"]))
    assert postgres.read(lambda c: c.execute(select(workers.c.pid)).scalars().all()) == [2, 2]
    assert postgres.outages == 0


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, time
import gevent, gevent.pool, gevent.threadpool
from sqlalchemy import insert, text
from grokflask.storage.database import Database
from grokflask.storage.tables import workers
database = Database(sys.argv[1])
if database.is_sqlite:
    threads = gevent.threadpool.ThreadPool(8)
    database.offload = threads.apply
turns = 0
written_at = []
def tick():
    global turns
    while True:
        gevent.sleep(0.005)
        turns += 1
count = lambda c: c.execute(text("SELECT count(*) FROM workers")).scalar_one()
def work(greenlet):
    for number in range(5):
        row = insert(workers).values(id=f"{greenlet}-{number}", seen_at=0.0, host="", pid=0)
        database.write(lambda connection: connection.execute(row).rowcount, timeout_s=60)
        written_at.append(turns)
        database.read(count, timeout_s=60)
database.read(count)
ticker = gevent.spawn(tick)
pool = gevent.pool.Pool(40)
for greenlet in range(40):
    pool.spawn(work, greenlet)
print("ready", flush=True)
pool.join(timeout=100, raise_error=True)
assert database.read(count) == 200, database.read(count)
assert database.outages == 0
ticker.kill()
database.close()
print(written_at[0])
"""


def test_greenlets_and_the_hub(database: Database, database_url: str) -> None:
    """Under gevent 40 greenlets read and write at once, and the hub runs while a lock is held.

    The lock is held for two seconds. A hub that is blocked turns a few times until the first row is written,
    otherwise hundreds of times. As in the gateway, SQLite has its own threads.
    """
    database.upgrade()
    with closing(HeldLock(database)) as lock:
        process = subprocess.Popen(
            [sys.executable, "-c", GREENLETS, database_url], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lock.release_after(2.0)
        out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert int(out) > 20


class HeldLock:
    """Keeps others from writing to `workers`, from a thread, until it is released."""

    def __init__(self, database: Database) -> None:
        self._free = threading.Event()
        self._held = threading.Event()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=database.write, args=(self._hold, 60.0))
        self._thread.start()
        assert self._held.wait(WAIT_S)

    def _hold(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE workers IN SHARE MODE"))
        self._held.set()
        assert self._free.wait(60)

    def release_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._free.set)
        timer.start()
        self._timers.append(timer)

    def close(self) -> None:
        self._free.set()
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
            timer.join()


@pytest.mark.parametrize(
    ("url", "is_sqlite"),
    [("sqlite:///x.db", True), ("postgres://u:p@h/d", False), ("postgresql://u:p@h/d", False)],
)
def test_urls(url: str, is_sqlite: bool) -> None:
    """Heroku's URLs work too."""
    assert Database(url).is_sqlite is is_sqlite
