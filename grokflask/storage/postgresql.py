"""Connections to PostgreSQL, with a time limit for everything."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from grokflask.storage.migrations import prepare_tables
from grokflask.storage.outages import TimeLimits, is_conflict

POOL_SIZE = 4
CONFLICT_PAUSE_S = 0.05
"""Pause before a transaction that lost a conflict runs again: at once, it could meet the winner again."""

T = TypeVar("T")


class PostgreSQLConnections:
    """The connections of one process. Short reads, long reads and writes do not wait for each other's.

    There may be a pooler such as PgBouncer in between that gives each transaction another connection to the
    server. So nothing is set for a connection, and no statement is prepared on one.
    """

    def __init__(self, url: URL, limits: TimeLimits) -> None:
        self._limits = limits
        connect_args = {"connect_timeout": max(2, math.ceil(limits.connect_s)), "prepare_threshold": None}

        def make_engine(**pool: Any) -> Engine:
            # With autocommit, psycopg leaves BEGIN to `_begin`. Looking for hstore would be a round trip.
            engine = create_engine(
                url, connect_args=connect_args, isolation_level="AUTOCOMMIT", use_native_hstore=False, **pool
            )
            event.listen(engine, "begin", _begin)
            return engine

        self._reads = make_engine(pool_size=POOL_SIZE, max_overflow=0, pool_timeout=limits.read_s)
        self._writes = make_engine(pool_size=2, max_overflow=0, pool_timeout=limits.write_s)
        self._reports = make_engine(poolclass=NullPool)

    def open(self, timeout_s: float, *, create: bool) -> None:
        """Connects and prepares the tables; `create` allows new ones."""
        try:
            with _connect(self._reads, timeout_s) as connection, _shut_after(connection, timeout_s):
                prepare_tables(connection, create=create)
        except BaseException:
            self._reads.dispose()
            raise

    def run(self, work: Callable[[Connection], T], timeout_s: float, *, writes: bool) -> T:
        """Runs `work` in one transaction, and again after a lost connection or a conflict."""
        is_long = timeout_s > self._limits.read_s
        engine = self._writes if writes else self._reports if is_long else self._reads
        retry_until = time.monotonic() + timeout_s / 2
        while True:
            begun = False
            try:
                with (
                    _connect(engine, timeout_s) as connection,
                    _shut_after(connection, timeout_s),
                    connection.begin(),
                ):
                    begun = writes
                    return work(connection)
            except DBAPIError as error:
                # A pooled connection had died since its last use, or another transaction was in the way.
                # Either way, this transaction has changed nothing.
                died = error.connection_invalidated and not begun
                conflict = is_conflict(error)
                if not (died or conflict) or time.monotonic() > retry_until:
                    raise
                if conflict:
                    time.sleep(CONFLICT_PAUSE_S)
                else:
                    retry_until = 0.0

    def close(self) -> None:
        """Closes what is open."""
        for engine in (self._reads, self._writes, self._reports):
            engine.dispose()


def call_within(timeout_s: float, function: Callable[[], T]) -> T:
    """Calls `function` in a thread of its own. Raises TimeoutError; the thread then ends by itself."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="database-read", daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None


def _connect(engine: Engine, timeout_s: float) -> Connection:
    # Less than `timeout_s`, so that a server that is only slow can answer so.
    return engine.connect().execution_options(statement_ms=int(timeout_s * 900))


def _begin(connection: Connection) -> None:
    """Begins a transaction and sets its time limits, in one round trip."""
    statement_ms = connection.get_execution_options()["statement_ms"]
    connection.exec_driver_sql(
        f"BEGIN; SET LOCAL statement_timeout = {statement_ms}",
        execution_options={"no_parameters": True},
    )


@contextmanager
def _shut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Shuts the socket of `connection` after `timeout_s`: a server that hangs ignores statement_timeout."""
    driver: Any = connection.connection.driver_connection
    if driver.closed:
        yield  # its next statement fails
        return
    # A duplicate, because the number could belong to another connection by then.
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
