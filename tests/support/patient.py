"""The app of `wsgi`, with stores that may take their time.

A request waits half a second for the database and a fifth for Redis, then it does without. That is right for
users, and on a machine with more to do than it has cores it happens to stores that are well. So tests that
are not about slow stores give them more.
"""

from __future__ import annotations

from types import ModuleType

from grokflask.ledger import writer
from grokflask.storage import outages, redis

STORE_S = 4.5
"""Below the 5 seconds and more that reports have, which are read over other connections than the rest."""

_PLACES = [(outages, "READ_TIMEOUT_S"), (writer, "FLUSH_TIMEOUT_S"), (redis, "TIMEOUT_S")]
STORES: dict[tuple[ModuleType, str], float] = {
    (module, name): getattr(module, name) for module, name in _PLACES
}
"""The times that users' stores have."""


def be_patient() -> None:
    """For all stores of this process that are opened from now on."""
    for module, name in STORES:
        setattr(module, name, STORE_S)
