"""The counters against the ledger: what a key has spent, by either."""

from __future__ import annotations

import time
from collections.abc import Callable

from grokflask.counters import Counters
from grokflask.db import Database
from grokflask.ledger_row import to_day
from grokflask.reports import Drift, read_spent

ARRIVAL_S = 1.0
"""What is on its way, to the database or to the counters, has arrived after that; real drift lasts longer."""


def check_counters(
    counters: Counters,
    database: Database,
    *,
    repair: bool,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Drift]:
    """Where the counters' sums of this day and month differ from the ledger's; `repair` sets them right.

    Counters in another process's memory are out of reach: that process reads the ledger when it starts.
    Raises StoreUnavailableError.
    """
    suspects = [key for key in counters.list_keys() if _compare(counters, database, key, clock())]
    if suspects:
        sleep(ARRIVAL_S)
    found: list[Drift] = []
    for key in suspects:
        now = clock()
        drift = _compare(counters, database, key, now)
        if drift and repair:
            day = to_day(now)
            counters.replace(key, day, *read_spent(database, _name(key), day), now)
        found += drift
    return found


def _compare(counters: Counters, database: Database, key: str, now: float) -> list[Drift]:
    day = to_day(now)
    standing = counters.standing(key, day, now)
    day_ticks, month_ticks = read_spent(database, _name(key), day)
    pairs = (
        (day, "counter_day_ticks", standing.day_ticks, day_ticks),
        (day[:7], "counter_month_ticks", standing.month_ticks, month_ticks),
    )
    return [
        Drift(_name(key), period, "", "", field, stored, actual)
        for period, field, stored, actual in pairs
        if stored is not None and stored != actual
    ]


def _name(key: str) -> str:
    """The key's name in the ledger."""
    return key.removeprefix("key:")
