"""`make growth`: what admission and reports cost with a thousand rows in the ledger, and with a million.

Fills a database of its own with made-up settled exchanges and their daily sums, and times what a running
gateway asks of it. There are so few keys, days and outcomes that a thousand rows have nearly all the sums
that a million have: what differs is the number of rows. Prints a Markdown table; ratios are within one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.databases import PostgresServer  # noqa: E402 - the path comes first

from grokflask.ledger import statements  # noqa: E402
from grokflask.ledger.overview import read_spend, read_timings, read_uses  # noqa: E402
from grokflask.ledger.reports import RowFilter, read_rows, read_spent, summarize  # noqa: E402
from grokflask.ledger.row import LedgerRow, make_id, to_day  # noqa: E402
from grokflask.storage.database import Database  # noqa: E402

KEYS, DAYS, BATCH = 5, 30, 5_000
OUTCOMES = ("complete", "client_abort")


def main() -> None:
    """Measures each size on each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[1_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    few, many = arguments.sizes
    machine = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"
    print(f"{date.today()}, {machine}. Medians of {arguments.rounds} calls, in milliseconds.\n", flush=True)
    print(f"| database | what is asked | {few:,} rows | {many:,} rows | ratio |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure_kind("SQLite", lambda size: f"sqlite:///{folder}/{size}.db", arguments)
    server = PostgresServer()
    server.start()
    try:
        measure_kind("PostgreSQL", lambda _size: server.make_database(), arguments)
    finally:
        server.close()


def measure_kind(kind: str, make_url: Callable[[int], str], arguments: argparse.Namespace) -> None:
    """Both sizes of one kind, taking turns, so that a busy moment of the machine meets both."""
    databases = [Database(make_url(size)) for size in arguments.sizes]
    for database, size in zip(databases, arguments.sizes, strict=True):
        fill(database, size)
    for what, ask in list_questions():
        times_ms: list[list[float]] = [[], []]
        for _ in range(arguments.rounds):
            for database, times in zip(databases, times_ms, strict=True):
                started_at = time.perf_counter()
                ask(database)
                times.append(1000 * (time.perf_counter() - started_at))
        few, many = (statistics.median(times) for times in times_ms)
        print(f"| {kind} | {what} | {few:.2f} | {many:.2f} | {many / few:.2f} |", flush=True)
    for database in databases:
        database.close()


def list_questions() -> Iterator[tuple[str, Callable[[Database], object]]]:
    """What the gateway asks, by the moment at which it does."""
    today = to_day(time.time())
    yield "admission: a key's spending", lambda database: read_spent(database, "key-3", today)
    yield "/usage: a key's last 20 rows", lambda database: read_rows(database, RowFilter(key="key-3"), 20)
    yield "the last 50 rows", lambda database: read_rows(database, RowFilter(), 50)
    yield "one row by its request id", lambda database: read_rows(database, RowFilter(request_id="r-5"), 5)
    since = to_day(time.time() - 30 * 86400)
    yield "summary of 30 days, by key", lambda database: summarize(database, since, None, "key")
    yield "dashboard: spend of 30 days, by key", lambda database: read_spend(database, since, since, "key")
    yield (
        "dashboard: the newest 1,000 timings",
        lambda database: read_timings(database, time.time() - 30 * 86400),
    )
    names = [f"key-{number}" for number in range(KEYS)]
    yield "dashboard: each key's last use and spending", lambda database: read_uses(database, names, today)


def fill(database: Database, size: int) -> None:
    """Settled rows, as the writer stores them."""
    dice = random.Random(1)
    now = time.time()
    for first in range(0, size, BATCH):
        rows = [make_row(dice, number, now) for number in range(first, min(first + BATCH, size))]
        fields = [statements.read_fields(row) for row in rows]
        database.write(lambda connection, fields=fields: statements.store(connection, fields), timeout_s=60)
    # As PostgreSQL does by itself after a while: without figures of its own it guesses how to look.
    database.write(lambda connection: connection.exec_driver_sql("ANALYZE"), timeout_s=60)


def make_row(dice: random.Random, number: int, now: float) -> LedgerRow:
    """A made-up exchange."""
    started_at = now - dice.random() * DAYS * 86400
    tokens = dice.randrange(10, 5000)
    return LedgerRow(
        make_id(started_at),
        f"r-{number}",
        f"key-{dice.randrange(KEYS)}",
        "chat",
        "grok-4.3",
        started_at,
        worker="growth",
        stream=True,
        outcome=dice.choice(OUTCOMES),
        status=200,
        prompt_tokens=tokens,
        completion_tokens=tokens,
        total_tokens=2 * tokens,
        cost_ticks=tokens * 30_000,
        bytes_out=tokens * 200,
    )


if __name__ == "__main__":
    main()
