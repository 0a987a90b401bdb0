"""The tables' versions: new databases, existing ones, and those that this code cannot use."""

from __future__ import annotations

from contextlib import closing

import pytest
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import ProgrammingError

from grokflask.errors import StoreUnavailableError
from grokflask.storage import migrations
from grokflask.storage.database import Database
from grokflask.storage.migrations import FIRST_VERSION, STEPS, is_current, migrate
from grokflask.storage.tables import metadata

CURRENT = FIRST_VERSION + len(STEPS)


def read_versions(database: Database) -> list[int]:
    query = text("SELECT version FROM schema_version ORDER BY version")
    return list(database.read(lambda c: c.execute(query).scalars().all(), timeout_s=20))


def set_version(database: Database, version: int) -> None:
    query = text("UPDATE schema_version SET version = :version")
    database.write(lambda c: c.execute(query, {"version": version}).rowcount)


def test_a_new_database(database: Database) -> None:
    """The first use creates all tables and notes the version; a second upgrade changes nothing."""
    assert database.upgrade() == database.upgrade() == CURRENT
    assert database.read(is_current)
    assert read_versions(database) == [CURRENT]
    names = database.read(lambda c: inspect(c).get_table_names(), timeout_s=20)
    assert set(names) == {*metadata.tables, "schema_version"}
    found = database.read(lambda c: c.execute(text("SELECT id, number FROM key_changes")).all())
    assert [tuple(row) for row in found] == [(1, 0)]


def test_a_new_step(database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes an existing database once, and a new one never: its tables are created with the change."""

    def add_column(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE workers ADD COLUMN added TEXT"))

    database.upgrade()
    monkeypatch.setattr(migrations, "STEPS", (*STEPS, add_column))
    assert not database.read(is_current)
    assert database.upgrade() == database.upgrade() == CURRENT + 1
    assert database.read(is_current)
    assert read_versions(database) == [CURRENT, CURRENT + 1]
    database.read(lambda c: c.execute(text("SELECT added FROM workers")).all())
    with closing(Database(database_url)) as again:
        assert read_versions(again) == [CURRENT, CURRENT + 1]

    def drop(connection: Connection) -> None:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE schema_version"))

    database.write(drop)
    assert database.upgrade() == CURRENT + 1
    assert read_versions(database) == [CURRENT + 1]
    columns = database.read(lambda c: inspect(c).get_columns("workers"), timeout_s=20)
    assert "added" not in [column["name"] for column in columns]


def test_an_old_database(database: Database) -> None:
    """The released steps make of it what a new one is."""

    def describe(connection: Connection) -> dict[str, list[tuple[str, str]]]:
        tables = {name: inspect(connection).get_columns(name) for name in metadata.tables}
        return {
            name: [(column["name"], str(column["type"])) for column in columns]
            for name, columns in tables.items()
        }

    def age(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE exchanges DROP COLUMN reached"))
        connection.execute(text("UPDATE schema_version SET version = :first"), {"first": FIRST_VERSION})

    database.upgrade()
    new = database.read(describe, timeout_s=20)
    database.write(age)
    assert database.upgrade() == CURRENT
    assert database.read(describe, timeout_s=20) == new


def test_a_step_that_fails_leaves_no_trace(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All missing steps run in one transaction: if one fails, none has happened."""

    def succeed(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE workers ADD COLUMN added TEXT"))

    def fail(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE nowhere ADD COLUMN added TEXT"))

    database.upgrade()
    monkeypatch.setattr(migrations, "STEPS", (*STEPS, succeed, fail))
    with pytest.raises((StoreUnavailableError, ProgrammingError)) as caught:
        database.upgrade()
    assert "nowhere" in str(getattr(caught.value, "detail", None) or caught.value)
    monkeypatch.undo()
    with closing(Database(database._url.render_as_string(hide_password=False))) as other:
        assert read_versions(other) == [CURRENT]
        columns = other.read(lambda c: inspect(c).get_columns("workers"), timeout_s=20)
        assert "added" not in [column["name"] for column in columns]


def test_a_table_in_the_way(database: Database) -> None:
    """A database with tables of someone else gets none of ours, and keeps its own."""

    def make_foreign(connection: Connection) -> None:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE schema_version"))
        connection.execute(text("CREATE TABLE daily (obstacle INTEGER)"))

    database.upgrade()
    database.write(make_foreign)
    with pytest.raises((StoreUnavailableError, ProgrammingError)) as caught:  # SQLite tells no difference
        database.write(migrate)
    assert "daily" in str(getattr(caught.value, "detail", None) or caught.value)
    assert database.read(lambda c: inspect(c).get_table_names(), timeout_s=20) == ["daily"]


@pytest.mark.parametrize(
    ("version", "remedy"), [(FIRST_VERSION - 1, "set DATABASE_URL to a new one"), (999, "use a newer one")]
)
def test_a_version_that_cannot_be_used(
    database: Database, database_url: str, version: int, remedy: str
) -> None:
    """The error says what to do, and nothing is changed."""
    database.upgrade()
    set_version(database, version)
    with closing(Database(database_url)) as other:
        with pytest.raises(StoreUnavailableError) as caught:
            other.read(is_current)
        assert caught.value.detail is not None
        assert remedy in caught.value.detail
        assert (other.state, other.unusable) == ("away", True)
    assert read_versions(database) == [version]
