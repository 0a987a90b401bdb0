"""The database: its tables, and the one way to it. SQLite or PostgreSQL, by SQLAlchemy Core.

`read` and `write` run a function on a connection and wait for it, but never long: what does not answer in
time counts as away, and for a moment after that nothing is even tried. SQLite's calls block the thread they
run in, and with it every stream of a gevent worker; the server may hand over an `offload` that runs them in
a thread of the operating system. Nothing is logged from there.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from grokflask.errors import StoreUnavailableError
from grokflask.migrations import DatabaseVersionError, is_current, migrate
from grokflask.process import get_pid

READ_TIMEOUT_S = 0.5  # read at each call, so that the tests can give a slow machine more
WRITE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2
POOL_SIZE = 4
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0
PROGRESS_STEPS = 100_000  # of SQLite's machine, between two looks at the clock: about a millisecond

_CONFLICTS = ("40001", "40P01")  # serialization failure, deadlock
_GONE = ("no such table", "does not exist", "unable to open database file", "readonly database")

T = TypeVar("T")

_log = logging.getLogger("grokflask.db")


class Database:
    """The way to one database. Opened by the first use, and after a fork anew.

    Attributes:
        outages: how often it has gone away since the start.
        offload: called with a function and a tuple of its arguments, gives its result, from a thread of the
            operating system. Used for SQLite alone.
    """

    def __init__(self, url: str) -> None:
        self.outages = 0
        self.offload: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = _call
        self._url = make_url(_name_driver(url))
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        # By process: what a fork has inherited is neither used nor closed there, for the parent's sake.
        self._opened: dict[int, _Opened] = {}
        # A full disk or a read-only replica fails writes alone.
        self._reads = _Breaker()
        self._writes = _Breaker()
        self._used = False
        # Only a process that has not seen the tables yet makes them. Later their absence is an outage: new
        # ones would have no keys in them, and all callers would be told that theirs are wrong.
        self._made = False

    @property
    def state(self) -> Literal["unused", "up", "away"]:
        """`away` while reads or writes fail, or both; `unused` before the first use."""
        if self._reads.away or self._writes.away:
            return "away"
        return "up" if self._used else "unused"

    def read(self, query: Callable[[Connection], T], timeout_s: float | None = None) -> T:
        """What `query` finds, in one transaction. On SQLite, and for less than a second, it waits for nobody.

        Raises StoreUnavailableError, after `timeout_s` (READ_TIMEOUT_S) at the latest; errors that are not
        the database's being away (DataError, ProgrammingError) come as they are.
        """
        return self._run(query, timeout_s or READ_TIMEOUT_S, writes=False)

    def write(self, change: Callable[[Connection], T], timeout_s: float = WRITE_TIMEOUT_S) -> T:
        """Runs `change` in one transaction: all of it happens or nothing. It may be run twice.

        Raises StoreUnavailableError: whether it has happened is then not known for sure, if the connection
        died at the very end. IntegrityError, DataError and ProgrammingError come as they are.
        """
        return self._run(change, timeout_s, writes=True)

    def upgrade(self) -> int:
        """Brings the tables up to date, which the first use does by itself; returns their version.

        Raises StoreUnavailableError, also for tables of a later version.
        """
        return self._run(migrate, WRITE_TIMEOUT_S, writes=True)

    def close(self) -> None:
        """Closes the connections; a later use opens new ones. Idempotent."""
        opened = self._opened.pop(get_pid(), None)
        if opened is None:
            return
        if opened.anchor is not None:
            self.offload(opened.anchor.close, ())
        for engine in (opened.engine, opened.writes, opened.reports):
            if engine is not None:
                engine.dispose()

    def _run(self, work: Callable[[Connection], T], timeout_s: float, *, writes: bool) -> T:
        breaker = self._writes if writes else self._reads
        breaker.check()
        try:
            if self.is_sqlite:
                engine = self._open(timeout_s).engine
                result: T = self.offload(_work_on_sqlite, (engine, work, timeout_s, writes))
            elif writes:
                result = self._work_on_postgresql(work, timeout_s, writes)
            else:
                result = _call_within(timeout_s, lambda: self._work_on_postgresql(work, timeout_s, writes))
        except (DBAPIError, PoolTimeoutError, OSError, DatabaseVersionError) as error:
            if not _is_outage(error):
                raise
            unavailable = StoreUnavailableError()
            unavailable.detail = _describe(error)
            if not _took_too_long(error):
                self._note_away(breaker, unavailable.detail)
            raise unavailable from error
        self._note_up(breaker)
        return result

    def _work_on_postgresql(self, work: Callable[[Connection], T], timeout_s: float, writes: bool) -> T:
        opened = self._open(timeout_s)
        is_long = timeout_s > READ_TIMEOUT_S
        # Neither a report nor a writer that waits takes a connection from those that are in a hurry.
        engine = opened.writes if writes else opened.reports if is_long else opened.engine
        assert engine is not None
        again_until = time.monotonic() + timeout_s / 2
        while True:
            begun = False
            try:
                with engine.connect() as connection, _shut_after(connection, timeout_s), connection.begin():
                    if is_long:
                        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(timeout_s * 900)}")
                    begun = writes
                    return work(connection)
            except DBAPIError as error:
                # Once more: a kept connection had died since its last use, or two transactions stood in each
                # other's way. Nothing of this one has happened.
                died = error.connection_invalidated and not begun
                if not (died or _read_sqlstate(error) in _CONFLICTS) or time.monotonic() > again_until:
                    raise
                again_until = 0.0

    def _open(self, timeout_s: float) -> _Opened:
        """The connections of this process, its tables up to date."""
        opened = self._opened.get(get_pid())
        if opened is None:
            opened = self._opened.setdefault(get_pid(), _Opened())
        if opened.engine is not None:
            return opened
        # Not inside `offload`: there a lock that gevent has patched would stop the whole thread.
        if not opened.lock.acquire(timeout=timeout_s):
            raise TimeoutError("the database is still being opened")
        try:
            if opened.engine is None:
                self._open_new(opened, timeout_s)
        finally:
            opened.lock.release()
        return opened

    def _open_new(self, opened: _Opened, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        if not self.is_sqlite:
            engine = self._make_postgresql(pool_size=POOL_SIZE, max_overflow=0, pool_timeout=READ_TIMEOUT_S)
            opened.writes = self._make_postgresql(pool_size=2, max_overflow=0, pool_timeout=WRITE_TIMEOUT_S)
            opened.reports = self._make_postgresql(poolclass=NullPool)
            try:
                with engine.connect() as connection, _shut_after(connection, timeout_s):
                    _find_tables(connection, make=not self._made)
            except BaseException:
                engine.dispose()
                raise
            opened.engine, self._made = engine, True
            return
        engine = self._make_sqlite()
        if not self._made and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        first = engine if self._made else self._make_sqlite("rwc")
        while True:
            try:
                opened.anchor = self.offload(_prepare_sqlite, (first, timeout_s, not self._made))
            except DBAPIError as error:
                # Several processes make the same new file, and SQLite does not wait at every step of that.
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                opened.engine, self._made = engine, True
                return

    def _make_postgresql(self, **pool: Any) -> Engine:
        # Less than READ_TIMEOUT_S, so that a server that is only slow can say so.
        limits = (
            f"-c statement_timeout={int(READ_TIMEOUT_S * 900)} -c lock_timeout={int(WRITE_TIMEOUT_S * 1000)}"
        )
        connect_args = {"connect_timeout": CONNECT_TIMEOUT_S, "options": f"{limits} -c timezone=UTC"}
        return create_engine(self._url, connect_args=connect_args, **pool)

    def _make_sqlite(self, mode: Literal["rw", "rwc"] = "rw") -> Engine:
        url = self._url.set(database=f"file:{quote(self._url.database or '')}")
        url = url.update_query_dict({"mode": mode, "uri": "true"})
        # No pool: a connection is cheap, and one that is never shared needs no lock between threads.
        engine = create_engine(url, poolclass=NullPool, connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _note_away(self, breaker: _Breaker, detail: str) -> None:
        was = self.state
        breaker.trip(detail)
        if any(words in detail for words in _GONE):
            self.close()  # it was taken away under us: the next use opens what is there then
        if was != "away":
            self.outages += 1
            kind = "writes" if breaker is self._writes else "reads"
            fields = {"outages": self.outages, "failing": kind, "detail": detail}
            _log.error("the database is away", extra={"fields": fields})

    def _note_up(self, breaker: _Breaker) -> None:
        self._used = True
        if not self._reads.away and not self._writes.away:
            return
        self._reads.reset()  # what can be written can be read
        if breaker is self._writes:
            self._writes.reset()
        if self.state == "up":
            _log.warning("the database is back")


class _Opened:
    """What one process has open.

    On SQLite all uses share `engine`, which keeps no connections. While `anchor` is open SQLite keeps its
    log; closing the last connection would fold it into the file, with an fsync, every time.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Engine | None = None
        self.writes: Engine | None = None
        self.reports: Engine | None = None
        self.anchor: Connection | None = None


class _Breaker:
    """Whether one kind of use works. While it does not, one try is let through after each pause."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """It works."""
        self.away = False
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = 0.0
        self._detail = ""

    def trip(self, detail: str) -> None:
        """It has failed."""
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if self.away else FIRST_PAUSE_S
        self._retry_at = time.monotonic() + self._pause_s
        self._detail = detail
        self.away = True

    def check(self) -> None:
        """Raises StoreUnavailableError unless a try is due."""
        if not self.away:
            return
        now = time.monotonic()
        if now < self._retry_at:
            error = StoreUnavailableError()
            error.detail = self._detail
            raise error
        self._retry_at = now + self._pause_s


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _name_driver(url: str) -> str:
    """The URL with the driver that is installed; Heroku's says `postgres://`."""
    for scheme in ("postgres://", "postgresql://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not by themselves
    connection.execute("PRAGMA busy_timeout = 200")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A write transaction takes its lock at once: one that began as a read could not wait for it later.
    connection.exec_driver_sql(connection.info.get("begin", "BEGIN"))


def _prepare_sqlite(engine: Engine, timeout_s: float, make: bool) -> Connection:
    """Finds the tables, or makes them; gives the anchor."""
    anchor = engine.connect()
    try:
        _driver(anchor).execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
        _find_tables(anchor, make=make)
    except BaseException:
        anchor.close()
        raise
    return anchor


def _find_tables(connection: Connection, *, make: bool) -> None:
    """Migrates if need be and `make` holds; looks first, for that takes no lock."""
    try:
        with connection.begin():
            if is_current(connection):
                return
    except (OperationalError, ProgrammingError):
        if not make:
            raise
        # No tables yet; anything else shows again at once.
    connection.info["begin"] = "BEGIN IMMEDIATE"
    try:
        with connection.begin():
            migrate(connection)
    finally:
        connection.info.pop("begin", None)


def _work_on_sqlite(engine: Engine, work: Callable[[Connection], T], timeout_s: float, writes: bool) -> T:
    with engine.connect() as connection:
        driver = _driver(connection)
        driver.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
        if writes:
            connection.info["begin"] = "BEGIN IMMEDIATE"
        else:
            end = time.monotonic() + timeout_s
            driver.set_progress_handler(lambda: time.monotonic() > end, PROGRESS_STEPS)
        with connection.begin():
            return work(connection)


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


@contextmanager
def _shut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Shuts the socket of `connection` after `timeout_s`.

    A server that hangs says nothing, so its own statement_timeout does not help.
    """
    driver = _driver(connection)
    if driver.closed:
        yield  # its next statement fails
        return
    # A duplicate, for by then the number could be another's.
    twin = socket.socket(fileno=os.dup(driver.pgconn.socket))
    timer = threading.Timer(timeout_s, _shut, (twin,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        twin.close()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _is_outage(error: Exception) -> bool:
    """It is the database's being away, not what was asked of it."""
    if isinstance(error, ProgrammingError):
        return _read_sqlstate(error) == "42P01"  # there is no such table
    return not isinstance(error, IntegrityError | DataError | NotSupportedError)


def _took_too_long(error: Exception) -> bool:
    """The database is there, but what was asked took more than its time, or found no free connection."""
    if isinstance(error, PoolTimeoutError):
        return True  # if those that have the connections wait in vain, they will say so
    return _read_sqlstate(error) == "57014" or str(getattr(error, "orig", "")) == "interrupted"


def _read_sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"[:300]


def _call_within(timeout_s: float, function: Callable[[], T]) -> T:
    """What `function` gives, from a thread of its own. Raises TimeoutError; the thread ends by itself."""
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="database-read", daemon=True).start()
    if not done.wait(timeout_s):
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if errors:
        raise errors[0]
    return results[0]
