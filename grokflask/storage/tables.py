"""The database's tables and indexes: `migrations` creates them, and queries are written with them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    event,
)

metadata = MetaData()


def _columns(kind: Any, names: str, *, nullable: bool = True) -> list[Column[Any]]:
    return [Column(name, kind, nullable=nullable) for name in names.split()]


keys = Table(
    "keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("requests", Text),
    Column("tokens_per_minute", BigInteger),
    Column("streams", Integer),
    Column("budget_day_ticks", BigInteger),
    Column("budget_month_ticks", BigInteger),
    Column("models", Text, nullable=False),  # a JSON list
    Column("tools", Text, nullable=False, server_default="all"),  # keys.limits.Allowed
)
"""Keys without their secrets. Times are epoch seconds."""

key_secrets = Table(
    "key_secrets",
    metadata,
    Column("sha256", Text, primary_key=True),  # of the secret, in hex: the secret itself is not stored
    Column("key_name", Text, ForeignKey("keys.name"), nullable=False),
    Column("hint", Text, nullable=False),  # its first and last characters, for people
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Index("key_secrets_by_key", "key_name"),
)
"""A key's secrets: one, or two while it is being rotated."""

key_changes = Table(
    "key_changes",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)
"""One row with the number of changes to keys. Keys that were read are valid until it increases."""

exchanges = Table(
    "exchanges",
    metadata,
    Column("id", Text, primary_key=True),
    *_columns(Text, "request_id key route model worker", nullable=False),
    Column("started_at", Double, nullable=False),
    Column("day", Text, nullable=False),  # of started_at: UTC, YYYY-MM-DD
    *_columns(Boolean, "stream estimated", nullable=False),
    *_columns(Text, "model_served outcome code upstream_request_id"),
    Column("status", Integer),
    *_columns(BigInteger, "ttft_ms duration_ms bytes_out cost_ticks"),
    *_columns(BigInteger, "prompt_tokens cached_tokens completion_tokens reasoning_tokens total_tokens"),
    Column("server_tools", BigInteger),  # calls of xAI's own tools, which are billed apart from tokens
    Column("reached", Text),  # whether upstream had the request: no, sent or answered
    # Ids are in the order of time, so the newest rows of a key need no sorting.
    Index("exchanges_by_key", "key", "id"),
    Index("exchanges_by_request", "request_id", "id"),
    Index("exchanges_by_day", "day"),
)
"""The ledger: a row for each exchange, open while `outcome` is null. The fields of LedgerRow, and its day."""

# SQLAlchemy's options for a partial index load the dialects of both databases: 2.5 MiB more in each worker.
_OPEN = DDL("CREATE INDEX exchanges_open ON exchanges (worker) WHERE outcome IS NULL")  # type: ignore[no-untyped-call]
event.listen(exchanges, "after_create", _OPEN)

daily = Table(
    "daily",
    metadata,
    Column("key", Text, primary_key=True),
    Column("day", Text, primary_key=True),  # UTC, YYYY-MM-DD, when the exchanges began
    Column("model", Text, primary_key=True),  # the one that answered, else the requested one
    Column("outcome", Text, primary_key=True),
    *_columns(BigInteger, "exchanges bytes_out cost_ticks", nullable=False),
    *_columns(BigInteger, "prompt_tokens cached_tokens completion_tokens reasoning_tokens", nullable=False),
    Column("estimated_ticks", BigInteger, nullable=False),  # the part of cost_ticks that is an estimate
    Index("daily_by_day", "day"),
)
"""Sums of settled rows, updated in the transaction that settles them. Frequent queries read these sums."""

retention = Table(
    "retention",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("complete_since", Text, nullable=False),
)
"""One row with the first day of which all rows are kept. Retention has deleted rows of earlier days."""

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seen_at", Double, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
)
"""Processes that write to the ledger, and when each last reported."""

owned = Table(
    "owned",
    metadata,
    Column("kind", Text, primary_key=True),  # such as "response"
    Column("id", Text, primary_key=True),  # upstream's
    Column("owner", Text, nullable=False),  # ApiKey.owner
    Column("key", Text, nullable=False),  # its name, for people
    Column("made_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("billed_at", Double),  # when its cost was booked, if that comes later
    Index("owned_by_end", "expires_at"),
)
"""Which key created what upstream keeps. Times are epoch seconds."""
