"""Connections to SQLite.

SQLite's calls block the thread that they run in, and with it every stream of a gevent worker. They run in
`offload`, where nothing may be logged and no lock that gevent has patched may be taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from grokflask.runtime import Offload
from grokflask.storage.files import close_files, make_file
from grokflask.storage.migrations import prepare_tables

PROGRESS_STEPS = 100_000
"""Steps of SQLite's virtual machine between two looks at the clock: about a millisecond."""
RETRY_S = 0.02

T = TypeVar("T")

_log = logging.getLogger("grokflask.db")


class SQLiteConnections:
    """The connections of one process. They are cheap, so each transaction opens its own."""

    def __init__(self, url: URL, offload: Offload) -> None:
        self._url = url
        self._offload = offload
        self._engine = _make_engine(url, "rw")
        # While one connection is open, SQLite keeps its log. Closing the last one would fold the log into the
        # file, with an fsync, after every transaction.
        self._anchor: Connection | None = None

    def open(self, timeout_s: float, *, create: bool) -> None:
        """Opens the file and prepares its tables; `create` allows a new file or tables.

        Other users of this machine lose their rights to the files, which older versions gave them.
        """
        end = time.monotonic() + timeout_s
        engine = _make_engine(self._url, "rwc") if create else self._engine
        path = Path(self._url.database or "")
        if create:
            make_file(path)
        while self._anchor is None:
            try:
                self._anchor = self._offload(_open_anchor, (engine, timeout_s, create))
            except DBAPIError as error:
                # If several processes create the file at once, SQLite does not wait at every step.
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)
        if open_files := close_files(path):
            fields = {"files": ",".join(map(str, open_files))}
            _log.warning("other users have rights to the database's files", extra={"fields": fields})

    def run(self, work: Callable[[Connection], T], timeout_s: float, *, writes: bool) -> T:
        """Runs `work` in one transaction."""
        result: T = self._offload(_run, (self._engine, work, timeout_s, writes))
        return result

    def close(self) -> None:
        """Closes what is open."""
        if self._anchor is not None:
            self._offload(self._anchor.close, ())
        self._engine.dispose()


def _make_engine(url: URL, mode: Literal["rw", "rwc"]) -> Engine:
    url = url.set(database=f"file:{quote(url.database or '')}")
    url = url.update_query_dict({"mode": mode, "uri": "true"})
    # No pool: a connection that is never shared needs no lock between threads.
    engine = create_engine(url, poolclass=NullPool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin` starts the transactions
    connection.execute("PRAGMA busy_timeout = 200")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    # A write transaction takes its lock at once: one that began as a read could not wait for it later.
    connection.exec_driver_sql(connection.info.get("begin", "BEGIN"))


def _open_anchor(engine: Engine, timeout_s: float, create: bool) -> Connection:
    anchor = engine.connect()
    try:
        _driver(anchor).execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
        prepare_tables(anchor, create=create)
    except BaseException:
        anchor.close()
        raise
    return anchor


def _run(engine: Engine, work: Callable[[Connection], T], timeout_s: float, writes: bool) -> T:
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
