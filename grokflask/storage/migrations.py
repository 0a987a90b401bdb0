"""The tables' history: numbered steps that bring a database of any age up to date, on SQLite and PostgreSQL.

A step that has been released is never changed. Each is SQL that both databases understand, and runs once,
in the transaction in which its number is noted; of several processes that start at once one does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, text

LOCK_ID = 6_772_111_507  # PostgreSQL's advisory locks are numbers; this one is ours


class DatabaseVersionError(Exception):
    """The database is of a later version than this code knows."""


def is_current(connection: Connection) -> bool:
    """Nothing is missing. Raises DBAPIError where there are no tables at all."""
    return _read_version(connection) == len(MIGRATIONS)


def migrate(connection: Connection) -> int:
    """Applies what is missing, inside the caller's transaction; returns the version.

    Raises DatabaseVersionError.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS schema_version "
            "(version INTEGER PRIMARY KEY, applied_at DOUBLE PRECISION NOT NULL)"
        )
    )
    version = _read_version(connection)
    if version > len(MIGRATIONS):
        raise DatabaseVersionError(
            f"the database is of version {version}, this grokflask knows {len(MIGRATIONS)}: use a newer one"
        )
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        step(connection)
        connection.execute(
            text("INSERT INTO schema_version (version, applied_at) VALUES (:version, :at)"),
            {"version": number, "at": time.time()},
        )
    return len(MIGRATIONS)


def _read_version(connection: Connection) -> int:
    query = text("SELECT coalesce(max(version), 0) FROM schema_version")
    version: int = connection.execute(query).scalar_one()
    return version


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))


def _1_create_keys(connection: Connection) -> None:
    _run(
        connection,
        """CREATE TABLE keys (
            name TEXT PRIMARY KEY,
            created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION,
            revoked_at DOUBLE PRECISION,
            requests TEXT,
            tokens_per_minute BIGINT,
            streams INTEGER,
            budget_day_ticks BIGINT,
            budget_month_ticks BIGINT,
            models TEXT NOT NULL
        )""",
        """CREATE TABLE key_secrets (
            sha256 TEXT PRIMARY KEY,
            key_name TEXT NOT NULL REFERENCES keys (name),
            hint TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION
        )""",
        "CREATE INDEX key_secrets_by_key ON key_secrets (key_name)",
    )


def _2_create_ledger(connection: Connection) -> None:
    _run(
        connection,
        """CREATE TABLE exchanges (
            id TEXT PRIMARY KEY,
            request_id TEXT NOT NULL,
            key TEXT NOT NULL,
            route TEXT NOT NULL,
            model TEXT NOT NULL,
            started_at DOUBLE PRECISION NOT NULL,
            day TEXT NOT NULL,
            worker TEXT NOT NULL,
            stream BOOLEAN NOT NULL,
            model_served TEXT,
            outcome TEXT,
            status INTEGER,
            code TEXT,
            ttft_ms BIGINT,
            duration_ms BIGINT,
            prompt_tokens BIGINT,
            cached_tokens BIGINT,
            completion_tokens BIGINT,
            reasoning_tokens BIGINT,
            total_tokens BIGINT,
            cost_ticks BIGINT,
            estimated BOOLEAN NOT NULL,
            bytes_out BIGINT,
            upstream_request_id TEXT
        )""",
        # `id` is in the order of time, so the newest rows of a key need no sorting.
        "CREATE INDEX exchanges_by_key ON exchanges (key, id)",
        "CREATE INDEX exchanges_by_request ON exchanges (request_id, id)",
        "CREATE INDEX exchanges_by_day ON exchanges (day)",
        "CREATE INDEX exchanges_open ON exchanges (worker) WHERE outcome IS NULL",
        """CREATE TABLE workers (
            id TEXT PRIMARY KEY,
            seen_at DOUBLE PRECISION NOT NULL,
            host TEXT NOT NULL,
            pid INTEGER NOT NULL
        )""",
    )


def _3_keep_daily_sums(connection: Connection) -> None:
    """Sums by key, day, model and outcome, begun with what the ledger holds already."""
    _run(
        connection,
        """CREATE TABLE daily (
            key TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            outcome TEXT NOT NULL,
            exchanges BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            cached_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            reasoning_tokens BIGINT NOT NULL,
            cost_ticks BIGINT NOT NULL,
            estimated_ticks BIGINT NOT NULL,
            bytes_out BIGINT NOT NULL,
            PRIMARY KEY (key, day, model, outcome)
        )""",
        "CREATE INDEX daily_by_day ON daily (day)",
        """INSERT INTO daily
            SELECT key, day, coalesce(model_served, model), outcome, count(*),
                coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),
                coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0),
                coalesce(sum(cost_ticks), 0),
                coalesce(sum(CASE WHEN estimated THEN cost_ticks ELSE 0 END), 0),
                coalesce(sum(bytes_out), 0)
            FROM exchanges WHERE outcome IS NOT NULL
            GROUP BY key, day, coalesce(model_served, model), outcome""",
    )


def _4_note_retention(connection: Connection) -> None:
    """From which day on all rows are there: the sums of earlier days have lost theirs to retention."""
    _run(
        connection,
        "CREATE TABLE retention (id INTEGER PRIMARY KEY CHECK (id = 1), complete_since TEXT NOT NULL)",
    )


def _5_count_key_changes(connection: Connection) -> None:
    """One number tells whether any key has changed."""
    _run(
        connection,
        "CREATE TABLE key_changes (id INTEGER PRIMARY KEY CHECK (id = 1), number BIGINT NOT NULL)",
        "INSERT INTO key_changes (id, number) VALUES (1, 0)",
    )


def _6_create_owned(connection: Connection) -> None:
    """Which key made what upstream keeps."""
    _run(
        connection,
        """CREATE TABLE owned (
            kind TEXT NOT NULL,
            id TEXT NOT NULL,
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            made_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION NOT NULL,
            billed_at DOUBLE PRECISION,
            PRIMARY KEY (kind, id)
        )""",
        "CREATE INDEX owned_by_end ON owned (expires_at)",
    )


def _7_limit_tools(connection: Connection) -> None:
    """Keys that were there may use all of them, as before."""
    _run(connection, "ALTER TABLE keys ADD COLUMN tools TEXT NOT NULL DEFAULT 'all'")


def _8_count_server_tools(connection: Connection) -> None:
    """How often xAI's own tools were called: they are paid apart from tokens."""
    _run(connection, "ALTER TABLE exchanges ADD COLUMN server_tools BIGINT")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _1_create_keys,
    _2_create_ledger,
    _3_keep_daily_sums,
    _4_note_retention,
    _5_count_key_changes,
    _6_create_owned,
    _7_limit_tools,
    _8_count_server_tools,
)
