"""The app of `wsgi`, with stores that may take their time.

A request waits two seconds for the database and a fifth of one for Redis, then it does without. That is right
for users, and on a machine with more to do than it has cores it happens to stores that are well. So tests
that are not about slow stores give them more.
"""

from __future__ import annotations

from typing import Any

from grokflask.config import Settings
from grokflask.ledger import writer
from grokflask.storage import redis
from grokflask.storage.outages import TimeLimits

STORE_S = 4.5
"""Below the 5 seconds and more that reports have, which are read over other connections than the rest."""

_PLACES: list[tuple[Any, str]] = [
    (vars(writer), "FLUSH_TIMEOUT_S"),
    (vars(redis), "TIMEOUT_S"),
    (Settings.__init__.__kwdefaults__, "database_read_timeout_s"),
]


def read_times() -> dict[str, Any]:
    """The times that stores have now."""
    return {name: place[name] for place, name in _PLACES} | {"limits": TimeLimits.__init__.__defaults__}


def set_times(times: dict[str, Any]) -> None:
    """For all stores of this process that are opened from now on."""
    for place, name in _PLACES:
        place[name] = times[name]
    TimeLimits.__init__.__defaults__ = times["limits"]


HASTY = read_times()
"""The times that users' stores have."""

_connect_s, _read_s, _write_s = HASTY["limits"]
PATIENT = {name: STORE_S for _, name in _PLACES} | {"limits": (_connect_s, STORE_S, _write_s)}
"""The times that tests' stores have."""


def be_patient() -> None:
    """For all stores of this process that are opened from now on."""
    set_times(PATIENT)
