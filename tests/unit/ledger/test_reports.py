"""What the ledger tells: rows by page, sums, what is spent, and whether rows and sums agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from grokflask.ledger import statements
from grokflask.ledger.reports import (
    Drift,
    RowFilter,
    check_daily,
    iterate_rows,
    read_open,
    read_rows,
    read_spent,
    repair_daily,
    summarize,
)
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.statements import read_fields
from grokflask.storage.database import Database

DAY_S = 86400.0
START = 1_790_000_000.0  # 2026-09-21
TODAY = "2026-09-21"


def make_row(at: float = START, **fields: Any) -> LedgerRow:
    """A settled row."""
    values: dict[str, Any] = {
        "id": make_id(at),
        "request_id": "r",
        "key": "alice",
        "route": "chat",
        "model": "grok-4",
        "started_at": at,
        "outcome": "complete",
        "prompt_tokens": 10,
        "cost_ticks": 100,
    }
    return LedgerRow(**{**values, **fields})


def fill(database: Database, rows: Iterable[LedgerRow]) -> None:
    fields = [read_fields(row) for row in rows]
    database.write(lambda connection: statements.store(connection, fields))


def run(database: Database, statement: str) -> int:
    changed: int = database.write(lambda c: c.execute(text(statement)).rowcount)
    return changed


def test_a_row_comes_back_as_it_was(database: Database) -> None:
    """Zero stays zero, nothing stays nothing, yes stays yes."""
    full = make_row(
        stream=True, estimated=True, ttft_ms=0, reasoning_tokens=2**40, model_served="x", worker="w"
    )
    bare = make_row(START - 1, prompt_tokens=None, cost_ticks=None, outcome=None)
    fill(database, [full, bare])
    assert read_rows(database, RowFilter(), 10) == [full, bare]
    assert read_rows(database, RowFilter(), 10)[0].stream is True


def test_pages(database: Database) -> None:
    """Newest first; each page begins where the last one ended, and `iterate_rows` gives them all."""
    rows = [make_row(START + number, request_id=f"r{number}") for number in range(25)]
    fill(database, rows)
    newest_first = rows[::-1]
    first = read_rows(database, RowFilter(), 10)
    assert first == newest_first[:10]
    assert read_rows(database, RowFilter(), 10, before_id=first[-1].id) == newest_first[10:20]
    for page in (1, 5, 25, 26):
        assert list(iterate_rows(database, RowFilter(), page)) == newest_first


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (RowFilter(), "edcba"),
        (RowFilter(since=START + 1), "edcb"),
        (RowFilter(until=START + 1), "a"),
        (RowFilter(since=START + 1, until=START + 3), "cb"),
        (RowFilter(since=START + 1, until=START + 1), ""),
        (RowFilter(since=-1e18, until=1e18), "edcba"),
        (RowFilter(key="bob"), "db"),
        (RowFilter(model="grok-3"), "c"),
        (RowFilter(outcome="lost"), "ed"),
        (RowFilter(request_id="x"), "e"),
        (RowFilter(key="bob", outcome="lost"), "d"),
        (RowFilter(key="' OR 1=1 --"), ""),
    ],
)
def test_filters(database: Database, wanted: RowFilter, expected: str) -> None:
    """Each filter, their combinations, and values that are no SQL."""
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"key": "bob"},
        "c": {"model": "grok-3"},
        "d": {"key": "bob", "outcome": "lost"},
        "e": {"outcome": "lost", "request_id": "x"},
    }
    rows = [make_row(START + number, code=name, **changes[name]) for number, name in enumerate(changes)]
    fill(database, rows)
    assert "".join(row.code or "" for row in read_rows(database, wanted, 10)) == expected


def test_summaries(database: Database) -> None:
    """Sums by key, model, day and outcome, of all days or of some, open rows left out."""
    fill(
        database,
        [
            make_row(model_served="grok-4-0709", cached_tokens=3, bytes_out=7),
            make_row(key="bob", cost_ticks=50, estimated=True, outcome="client_abort"),
            make_row(START + DAY_S, reasoning_tokens=4, completion_tokens=2),
            make_row(START + DAY_S, outcome=None),
        ],
    )

    def show(by: Any, since: str | None = None, until: str | None = None) -> list[tuple[str, int, int]]:
        return [(s.name, s.exchanges, s.cost_ticks) for s in summarize(database, since, until, by)]

    assert show("key") == [("alice", 2, 200), ("bob", 1, 50)]
    assert show("model") == [("grok-4", 2, 150), ("grok-4-0709", 1, 100)]
    assert show("day") == [(TODAY, 2, 150), ("2026-09-22", 1, 100)]
    assert show("outcome") == [("client_abort", 1, 50), ("complete", 2, 200)]
    assert show("key", "2026-09-22") == [("alice", 1, 100)]
    assert show("key", None, TODAY) == [("alice", 1, 100), ("bob", 1, 50)]
    assert summarize(database, None, None, "key", key="bob") == summarize(database, None, None, "key")[1:]
    alice = dataclasses.asdict(summarize(database, None, None, "key")[0])
    assert alice == {
        "name": "alice",
        "exchanges": 2,
        "prompt_tokens": 20,
        "cached_tokens": 3,
        "completion_tokens": 2,
        "reasoning_tokens": 4,
        "cost_ticks": 200,
        "estimated_ticks": 0,
        "bytes_out": 7,
        "saved_ticks": 3 * (12_500 - 2_000),
    }


def test_what_the_cache_saved(database: Database) -> None:
    """Each model's cached tokens by that model's own prices, also where a sum is of several models."""
    fill(
        database,
        [
            make_row(model="grok-4.7", cached_tokens=1000),
            make_row(model="grok-4", model_served="grok-4.3", cached_tokens=100),
            make_row(model="grok-build-0.1", cached_tokens=10),  # its cached price is the full one
            make_row(START + DAY_S, key="bob", model="grok-4.7", cached_tokens=1),
            make_row(key="bob", model="grok-4.7", cached_tokens=None),
        ],
    )
    dear, usual = 15_000, 10_500

    def show(by: Any, key: str | None = None) -> dict[str, int]:
        return {each.name: each.saved_ticks for each in summarize(database, None, None, by, key)}

    assert show("key") == {"alice": 1000 * dear + 100 * usual, "bob": dear}
    assert show("model") == {"grok-4.7": 1001 * dear, "grok-4.3": 100 * usual, "grok-build-0.1": 0}
    assert show("day", "bob") == {TODAY: 0, "2026-09-22": dear}


def test_spent(database: Database) -> None:
    """The day and the month of one key; days before and after the month, and others' keys, do not count."""
    sept_1, sept_21, aug_31, oct_1 = START - 20 * DAY_S, START, START - 21 * DAY_S, START + 10 * DAY_S
    fill(database, [make_row(at, cost_ticks=10**n) for n, at in enumerate([sept_1, sept_21, aug_31, oct_1])])
    fill(database, [make_row(key="bob", cost_ticks=7), make_row(cost_ticks=200, outcome="lost")])
    assert read_spent(database, "alice", TODAY) == (210, 211)
    assert read_spent(database, "alice", "2026-09-30") == (0, 211)
    assert read_spent(database, "alice", "2026-10-01") == (1000, 1000)
    assert read_spent(database, "nobody", TODAY) == (0, 0)


def test_spent_uses_the_index(database: Database) -> None:
    """What one key has spent is found along the index of `daily`, not by looking at all of it."""
    if database.is_sqlite:
        plan = database.read(
            lambda c: c.execute(
                text(
                    "EXPLAIN QUERY PLAN SELECT sum(cost_ticks) FROM daily "
                    "WHERE key = 'alice' AND day >= '2026-09-01' AND day <= '2026-09-31'"
                )
            ).all()
        )
        assert "SEARCH daily USING INDEX" in str(plan)
        assert "key=?" in str(plan)
        return

    def explain(connection: Connection) -> str:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = "EXPLAIN SELECT sum(cost_ticks) FROM daily WHERE key = 'alice' AND day >= '2026-09-01'"
        return str(connection.execute(text(query)).all())

    assert "daily_pkey" in database.write(explain)


DAMAGES = [
    ("UPDATE daily SET cost_ticks = cost_ticks + 5 WHERE key = 'alice'", ("cost_ticks", 205, 200)),
    ("UPDATE daily SET exchanges = 7 WHERE key = 'alice'", ("exchanges", 7, 2)),
    ("UPDATE exchanges SET bytes_out = 3 WHERE request_id = 'b'", ("bytes_out", 0, 3)),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_drift_is_found_and_mended(database: Database, damage: str, expected: tuple[str, int, int]) -> None:
    """A sum that is not its rows' is named with both figures, and made right."""
    fill(database, [make_row(request_id="a"), make_row(request_id="b"), make_row(key="bob")])
    assert check_daily(database) == []
    assert run(database, damage) == 1
    drift = [Drift("alice", TODAY, "grok-4", "complete", *expected)]
    assert check_daily(database) == drift
    assert repair_daily(database) == drift
    assert check_daily(database) == []
    assert repair_daily(database) == []


def test_sums_without_rows_and_rows_without_sums(database: Database) -> None:
    """A sum that has no rows goes, and rows that have no sum get one."""
    fill(database, [make_row(), make_row(key="bob", estimated=True)])
    run(database, "DELETE FROM daily WHERE key = 'bob'")
    run(database, "DELETE FROM exchanges WHERE key = 'alice'")
    found = {(each.key, each.field, each.stored, each.actual) for each in check_daily(database)}
    assert found == {
        ("alice", "exchanges", 1, 0),
        ("alice", "prompt_tokens", 10, 0),
        ("alice", "cost_ticks", 100, 0),
        ("bob", "exchanges", 0, 1),
        ("bob", "prompt_tokens", 0, 10),
        ("bob", "cost_ticks", 0, 100),
        ("bob", "estimated_ticks", 0, 100),
    }
    repair_daily(database)
    assert [each.name for each in summarize(database, None, None, "key")] == ["bob"]


def test_a_repair_leaves_days_without_their_rows(database: Database) -> None:
    """What retention has deleted is not taken for a mistake: those sums are all that is left."""
    fill(database, [make_row(START - 5 * DAY_S), make_row(START)])
    assert database.write(lambda c: statements.prune(c, TODAY, 100)) == 1
    assert database.write(lambda c: statements.prune(c, "2026-09-01", 100)) == 0  # a longer retention
    run(database, "UPDATE daily SET exchanges = 9")
    assert [each.day for each in repair_daily(database)] == [TODAY]
    days = {each.name: each.exchanges for each in summarize(database, None, None, "day")}
    assert days == {"2026-09-16": 9, TODAY: 1}


def test_open_streams_are_found_without_looking_at_the_others(database: Database) -> None:
    """Rows of streams that are not settled, the oldest first; by the index of open rows."""
    fill(database, [make_row(START + number) for number in range(50)])
    fill(database, [make_row(START + 9, outcome=None, request_id="whole", worker="w1")])
    late = make_row(START + 8, outcome=None, request_id="late", worker="w1", stream=True)
    early = make_row(START + 3, outcome=None, request_id="early", worker="w2", stream=True)
    fill(database, [late, early])
    assert [row.request_id for row in read_open(database)] == ["early", "late"]
    assert [row.id for row in read_open(database, "late")] == [late.id]
    assert read_open(database, "r") == []
    if database.is_sqlite:
        plan = "EXPLAIN QUERY PLAN SELECT * FROM exchanges WHERE outcome IS NULL"
        found = database.read(lambda connection: connection.execute(text(plan)).all())
        assert "exchanges_open" in str(found)
