"""The tables' versions: a new database gets what `tables` defines, an existing one the missing steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from grokflask.storage.tables import key_changes, metadata

FIRST_VERSION = 8
"""The oldest version that can be brought up to date; there was no release before it."""


def _add_reached(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE exchanges ADD COLUMN reached TEXT"))


STEPS: tuple[Callable[[Connection], None], ...] = (_add_reached,)
"""Changes of the tables since FIRST_VERSION, each together with the same change in `tables`. A released step
is never changed. All missing steps run in one transaction, in SQL that SQLite and PostgreSQL understand."""

LOCK_ID = 6_772_111_507  # of a PostgreSQL advisory lock, which is any number


class DatabaseVersionError(Exception):
    """The database is of a version that this grokflask cannot use."""


def is_current(connection: Connection) -> bool:
    """Whether the tables are up to date. Raises DBAPIError if there are none."""
    return _read_version(connection) == FIRST_VERSION + len(STEPS)


def prepare_tables(connection: Connection, *, create: bool) -> None:
    """Migrates if necessary, outside a transaction; `create` allows new tables. Up-to-date ones need no lock.

    Raises DatabaseVersionError, and DBAPIError if there are no tables.
    """
    try:
        with connection.begin():
            if is_current(connection):
                return
    except (OperationalError, ProgrammingError):
        if not create:
            raise
        # There are no tables yet; any other cause makes the next statements fail too.
    connection.info["begin"] = "BEGIN IMMEDIATE"
    try:
        with connection.begin():
            migrate(connection)
    finally:
        connection.info.pop("begin", None)


def migrate(connection: Connection) -> int:
    """Creates the tables or applies the missing steps, in the caller's transaction; returns the version.

    Of several processes that start at once, one does it and the others wait. Raises DatabaseVersionError.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS schema_version "
            "(version INTEGER PRIMARY KEY, applied_at DOUBLE PRECISION NOT NULL)"
        )
    )
    version, current = _read_version(connection), FIRST_VERSION + len(STEPS)
    if version == 0:
        # An existing table is an error: this is not a new database then.
        metadata.create_all(connection, checkfirst=False)
        connection.execute(insert(key_changes).values(id=1, number=0))
    else:
        if not FIRST_VERSION <= version <= current:
            remedy = "use a newer one" if version > current else "set DATABASE_URL to a new one"
            raise DatabaseVersionError(f"this grokflask cannot use a database of version {version}: {remedy}")
        for step in STEPS[version - FIRST_VERSION :]:
            step(connection)
    if version != current:
        connection.execute(
            text("INSERT INTO schema_version (version, applied_at) VALUES (:version, :at)"),
            {"version": current, "at": time.time()},
        )
    return current


def _read_version(connection: Connection) -> int:
    query = text("SELECT coalesce(max(version), 0) FROM schema_version")
    version: int = connection.execute(query).scalar_one()
    return version
