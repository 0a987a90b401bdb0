"""The tables' history: old databases with data come up to date, once and whole."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from grokflask.errors import StoreUnavailableError
from grokflask.ledger.reports import check_daily, summarize
from grokflask.storage.database import Database
from grokflask.storage.migrations import MIGRATIONS, is_current, migrate

OLD_ROW = text(
    "INSERT INTO exchanges (id, request_id, key, route, model, started_at, day, worker, stream, outcome, "
    "model_served, prompt_tokens, cost_ticks, estimated, bytes_out) "
    "VALUES (:id, 'r', :key, 'chat', 'grok-4', 0, '2026-01-01', 'w', :no, :outcome, :served, 10, :cost, "
    ":estimated, NULL)"
)


def make_old(connection: Connection, steps: int) -> None:
    """What an installation of that age has."""
    connection.execute(
        text(
            "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at DOUBLE PRECISION NOT NULL)"
        )
    )
    for number, step in enumerate(MIGRATIONS[:steps], start=1):
        step(connection)
        connection.execute(text("INSERT INTO schema_version VALUES (:number, 0)"), {"number": number})


def use_bare(database: Database) -> Database:
    """The database without the tables that its first use has made."""

    def drop(connection: Connection) -> None:
        tables = ("key_secrets", "keys", "key_changes", "exchanges", "workers", "daily", "retention")
        for table in (*tables, "owned", "schema_version"):
            connection.execute(text(f"DROP TABLE {table}"))

    database.upgrade()
    database.write(drop)
    return database


def test_each_step_runs_once(database: Database) -> None:
    """A second migration changes nothing, and the versions are noted."""
    assert database.upgrade() == len(MIGRATIONS)
    assert database.upgrade() == len(MIGRATIONS)
    assert database.read(is_current)
    versions = database.read(lambda c: c.execute(text("SELECT version FROM schema_version")).scalars().all())
    assert sorted(versions) == list(range(1, len(MIGRATIONS) + 1))


def test_an_old_ledger_gets_its_sums(database: Database) -> None:
    """Rows that were there before the sums are in them afterwards; open ones are not."""
    rows = [
        {
            "id": "a",
            "key": "alice",
            "outcome": "complete",
            "served": "grok-4-0709",
            "cost": 5,
            "estimated": False,
        },
        {
            "id": "b",
            "key": "alice",
            "outcome": "complete",
            "served": "grok-4-0709",
            "cost": 6,
            "estimated": True,
        },
        {"id": "c", "key": "alice", "outcome": "complete", "served": None, "cost": None, "estimated": False},
        {"id": "d", "key": "bob", "outcome": "lost", "served": None, "cost": 7, "estimated": True},
        {"id": "e", "key": "bob", "outcome": None, "served": None, "cost": 8, "estimated": True},
    ]

    def age(connection: Connection) -> None:
        make_old(connection, 2)
        connection.execute(OLD_ROW, [{**row, "no": False} for row in rows])

    use_bare(database).write(age)
    assert database.write(migrate) == len(MIGRATIONS)
    sums = summarize(database, None, None, by="model")
    assert [(each.name, each.exchanges, each.cost_ticks, each.estimated_ticks) for each in sums] == [
        ("grok-4", 2, 7, 7),
        ("grok-4-0709", 2, 11, 6),
    ]
    assert check_daily(database) == []


@pytest.mark.parametrize("steps", range(len(MIGRATIONS) + 1))
def test_from_every_age(database: Database, steps: int) -> None:
    """A database of any version becomes one of the last."""
    use_bare(database).write(lambda connection: make_old(connection, steps))
    assert database.write(migrate) == len(MIGRATIONS)
    assert database.read(is_current)
    assert check_daily(database) == []


def test_a_step_that_fails_leaves_no_trace(database: Database) -> None:
    """All missing steps happen in one transaction: with a table in the way none does."""

    def age(connection: Connection) -> None:
        make_old(connection, 2)
        connection.execute(text("CREATE TABLE daily (obstacle INTEGER)"))

    use_bare(database).write(age)
    with pytest.raises((StoreUnavailableError, ProgrammingError)) as caught:  # SQLite tells no difference
        database.write(migrate)
    assert "daily" in str(getattr(caught.value, "detail", None) or caught.value)
    version = database.read(lambda c: c.execute(text("SELECT max(version) FROM schema_version")).scalar_one())
    assert version == 2
