"""Compares what a key has spent by the counters and by the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from grokflask.ledger.reports import Drift, read_spent
from grokflask.limits.counters import Counters
from grokflask.storage.database import Database
from grokflask.times import to_day

ARRIVAL_S = 1.0
"""Time within which the counters and the ledger both have an ended exchange."""

FIELDS = ("counter_day_ticks", "counter_month_ticks")


def check_counters(
    counters: Counters,
    database: Database,
    *,
    repair: bool,
    keys: Collection[str] | None = None,
    lowers: bool = True,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Drift]:
    """The sums of these `keys` (default: all) that differ from the ledger's; `repair` corrects the counters.

    Exchanges end meanwhile, and reach the ledger a moment later than the counters. So a sum is wrong only if
    it is below what the ledger had before or above what it has afterwards. It is corrected by a difference,
    to keep what was counted since; that can leave it too high by what was spent within ARRIVAL_S, never too
    low. Unless `lowers`, a sum above the ledger is left alone: its rows may still be on their way. Counters
    in another process's memory are out of reach: that process reads the ledger when it starts. Raises
    StoreUnavailableError.
    """
    day = to_day(clock())
    keys = counters.list_keys() if keys is None else keys
    before = {key: read_spent(database, _name(key), day) for key in keys}
    suspects = [
        key for key, spent in before.items() if _find_wrong(_count(counters, key, day, clock()), spent, spent)
    ]
    if not suspects:
        return []
    sleep(ARRIVAL_S)
    counted = {key: _count(counters, key, day, clock()) for key in suspects}
    sleep(ARRIVAL_S)
    found: list[Drift] = []
    for key in suspects:
        after = read_spent(database, _name(key), day)
        wrong = _find_wrong(counted[key], before[key], after)
        shifts = [0, 0]
        for place, stored in wrong.items():
            if after[place] < stored and not lowers:
                continue
            shifts[place] = after[place] - stored
            period = (day, day[:7])[place]
            found.append(Drift(_name(key), period, "", "", FIELDS[place], stored, after[place]))
        if any(shifts) and repair and counters.claim_correction(key):
            counters.correct(key, day, *shifts)
    return found


def _count(counters: Counters, key: str, day: str, now: float) -> tuple[int | None, int | None]:
    """The counters' sums of the day and its month; None where they are not loaded."""
    standing = counters.standing(key, day, now)
    return standing.day_ticks, standing.month_ticks


def _find_wrong(
    counted: tuple[int | None, int | None], before: tuple[int, int], after: tuple[int, int]
) -> dict[int, int]:
    """Those of the two sums that cannot be right, by their position."""
    triples = enumerate(zip(counted, before, after, strict=True))
    return {
        place: stored
        for place, (stored, low, high) in triples
        if stored is not None and not low <= stored <= high
    }


def _name(key: str) -> str:
    """The key's name in the ledger."""
    return key.removeprefix("key:")
