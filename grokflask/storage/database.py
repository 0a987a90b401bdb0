"""Access to the database, SQLite or PostgreSQL, with SQLAlchemy Core.

`read` and `write` run a function on a connection and wait for it, within a time limit. A database that does
not answer in time is unavailable, and for a moment after that it is not tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeVar

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from grokflask.errors import StoreUnavailableError
from grokflask.runtime import Offload, get_pid, run_here
from grokflask.storage.migrations import DatabaseVersionError, is_current, migrate
from grokflask.storage.outages import OPEN_TIMEOUT_S, Breaker, TimeLimits, describe, is_outage, is_slow
from grokflask.storage.postgresql import PostgreSQLConnections, call_within
from grokflask.storage.sqlite import SQLiteConnections

WAIT_S = 2.0
"""After this time an access says that it waits."""

_GONE = ("no such table", "does not exist", "unable to open database file", "readonly database")

T = TypeVar("T")

_log = logging.getLogger("grokflask.db")


class Database:
    """Access to one database. The first use opens it, and after a fork opens it anew.

    Attributes:
        unusable: its tables are of another version than this program's.
        limits: how long it may take; may be changed before the first use.
        on_wait: called in another thread when an access takes longer than WAIT_S.
    """

    def __init__(self, url: str, limits: TimeLimits | None = None) -> None:
        self.limits = limits or TimeLimits()
        self.on_wait: Callable[[], None] | None = None
        self.unusable = False
        #: Outages since the start of the process.
        self.outages = 0
        #: Used for SQLite, whose calls would block every stream of a gevent worker.
        self.offload: Offload = run_here
        self._url = make_url(_name_driver(url))
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        # By process: connections that a fork has inherited are neither used nor closed there, because the
        # parent still uses them.
        self._connections: dict[int, SQLiteConnections | PostgreSQLConnections] = {}
        self._locks: dict[int, threading.Lock] = {}
        # A full disk or a read-only replica fails writes alone.
        self._reads = Breaker()
        self._writes = Breaker()
        self._used = False
        # A process creates tables only before it has seen any. If they vanish later, that is an outage: new
        # ones would contain no keys, and all callers would be refused.
        self._has_seen_tables = False

    @property
    def state(self) -> Literal["unused", "up", "away"]:
        """`away` while reads or writes fail; `unused` before the first use."""
        if self._reads.tripped or self._writes.tripped:
            return "away"
        return "up" if self._used else "unused"

    def read(self, query: Callable[[Connection], T], timeout_s: float | None = None) -> T:
        """Returns what `query` returns, in one transaction. A short read never waits for a writer.

        Raises StoreUnavailableError after `timeout_s` (default: `limits.read_s`). Errors of the query itself,
        such as DataError and ProgrammingError, are raised unchanged.
        """
        return self._run(query, timeout_s or self.limits.read_s, writes=False)

    def write(self, change: Callable[[Connection], T], timeout_s: float | None = None) -> T:
        """Runs `change` in one transaction: all of it happens or nothing. It may be called twice.

        Raises StoreUnavailableError; the change may have happened nevertheless if the connection died at the
        very end. IntegrityError, DataError and ProgrammingError are raised unchanged.
        """
        return self._run(change, timeout_s or self.limits.write_s, writes=True)

    def upgrade(self) -> int:
        """Brings the tables up to date, as the first use does too; returns their version.

        Raises StoreUnavailableError, also for tables of a later version.
        """
        return self._run(migrate, self.limits.write_s, writes=True)

    def close(self) -> None:
        """Closes the connections; a later use opens new ones. Idempotent."""
        connections = self._connections.pop(get_pid(), None)
        if connections is not None:
            connections.close()

    def _run(self, work: Callable[[Connection], T], timeout_s: float, *, writes: bool) -> T:
        breaker = self._writes if writes else self._reads
        if breaker.tripped and not writes:
            # No request waits for a database that is away: a thread of its own finds out that it is back.
            if breaker.is_due():
                threading.Thread(target=self._probe, name="database-probe", daemon=True).start()
            breaker.refuse()
        breaker.check()
        return self._attempt(work, timeout_s, breaker)

    def _probe(self) -> None:
        with suppress(StoreUnavailableError):
            self._attempt(is_current, self.limits.read_s, self._reads)

    def _attempt(self, work: Callable[[Connection], T], timeout_s: float, breaker: Breaker) -> T:
        writes = breaker is self._writes
        # Only a server may be so far away that creating the tables takes long.
        open_s = timeout_s if self.is_sqlite else OPEN_TIMEOUT_S

        def run() -> T:
            return self._open(open_s).run(work, timeout_s, writes=writes)

        try:
            with self._report_wait():
                if self.is_sqlite or writes:
                    result = run()
                else:
                    connect_s = self.limits.connect_s if get_pid() in self._connections else open_s
                    result = call_within(timeout_s + connect_s, run)
        except (DBAPIError, PoolTimeoutError, OSError, DatabaseVersionError) as error:
            if not is_outage(error):
                raise
            self.unusable = isinstance(error, DatabaseVersionError)
            unavailable = StoreUnavailableError()
            unavailable.detail = describe(error)
            if not is_slow(error):
                self._note_failure(breaker, unavailable.detail)
            raise unavailable from error
        self._note_success(breaker)
        return result

    @contextmanager
    def _report_wait(self) -> Iterator[None]:
        if self.on_wait is None:
            yield
            return
        timer = threading.Timer(WAIT_S, self.on_wait)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _open(self, timeout_s: float) -> SQLiteConnections | PostgreSQLConnections:
        """The connections of this process, its tables up to date."""
        pid = get_pid()
        connections = self._connections.get(pid)
        if connections is not None:
            return connections
        lock = self._locks.setdefault(pid, threading.Lock())
        if not lock.acquire(timeout=timeout_s):
            raise TimeoutError("the database is still being opened")
        try:
            connections = self._connections.get(pid)
            if connections is None:
                if self.is_sqlite:
                    # Looked up at each use: the server sets `offload` after the app may have read its keys.
                    connections = SQLiteConnections(self._url, lambda *call: self.offload(*call))
                else:
                    connections = PostgreSQLConnections(self._url, self.limits)
                connections.open(timeout_s, create=not self._has_seen_tables)
                self._has_seen_tables = True
                self._connections[pid] = connections
            return connections
        finally:
            lock.release()

    def _note_failure(self, breaker: Breaker, detail: str) -> None:
        was = self.state
        breaker.trip(detail)
        if any(words in detail for words in _GONE):
            self.close()  # the database was moved away: the next use opens what is there then
        if was != "away":
            self.outages += 1
            failing = "writes" if breaker is self._writes else "reads"
            fields = {"outages": self.outages, "failing": failing, "detail": detail}
            _log.error("the database is unavailable", extra={"fields": fields})

    def _note_success(self, breaker: Breaker) -> None:
        self._used, self.unusable = True, False
        if not self._reads.tripped and not self._writes.tripped:
            return
        self._reads.reset()  # a database that can be written can be read
        if breaker is self._writes:
            self._writes.reset()
        if self.state == "up":
            _log.warning("the database is available again")


def _name_driver(url: str) -> str:
    """The URL with the installed driver. Heroku's URLs start with `postgres://`."""
    for scheme in ("postgres://", "postgresql://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url
