"""How the services of one app are tied together."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from grokflask.config import load_settings
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.limits.counters import Settled
from grokflask.services import Services, build_services


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    environ = {"XAI_API_KEY": "xai-key", "DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db"}
    services = build_services(load_settings(environ, dotenv=None), "http://127.0.0.1:9/v1")
    yield services
    services.ledger_writer.close(30)
    services.database.close()


def test_budgets_are_not_lowered_to_a_ledger_that_lacks_rows(services: Services, tmp_path: Path) -> None:
    """While rows wait for the database, the counters know more than it does."""
    services.database.upgrade()
    now = time.time()
    row = LedgerRow(make_id(now), "r1", "alice", "chat", "grok-4.3", now, outcome="complete", cost_ticks=700)
    services.counters.load("key:alice", row.day, 0, 0, now)
    services.counters.settle([Settled(1, "a", "key:alice", row.day, 1, 700, now, False)], "w", now)
    services.healer.note("key:alice")

    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        services.ledger_writer.settle(row)
        services.healer.compare()
        assert services.counters.standing("key:alice", row.day, now).day_ticks == 700
        other.execute("ROLLBACK")

    assert services.ledger_writer.flush(60)
    services.healer.compare()
    assert services.counters.standing("key:alice", row.day, now).day_ticks == 700
