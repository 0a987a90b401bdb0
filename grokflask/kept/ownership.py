"""Which key owns an object that upstream keeps: a response, deferred answer, file, batch or video.

Upstream knows only the gateway's key, so the gateway keeps its clients apart. An id belongs to the key that
made it. For all other keys, and once it has expired, it does not exist.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from grokflask.errors import RouteNotFoundError, StoreUnavailableError
from grokflask.keys.ring import ApiKey
from grokflask.protocol.routes import Kind, is_plain_segment
from grokflask.storage.database import Database
from grokflask.storage.tables import owned as table

DAY_S = 86400.0
KEPT_S: dict[Kind, float] = {
    "response": 31 * DAY_S,
    "deferred": 2 * DAY_S,
    "file": 400 * DAY_S,
    "batch": 400 * DAY_S,
    "video": 31 * DAY_S,
}
"""Lifetime of an id here. xAI keeps a response for 30 days and a deferred answer for one. Files without an
expiry stay at xAI, but clients cannot reach them after this time."""

PRUNE_S = 3600.0
PRUNED = 200
"""Interval at which each process deletes expired rows, and how many at a time."""

MAX_REMEMBERED = 10_000
"""Owners cached by a process. An owner never changes."""


class Ownership:
    """Which key made which id. Safe from any thread.

    Methods wait for the database within its time limits, and raise StoreUnavailableError while it is
    unreachable.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()  # never held during a query
        self._known: dict[tuple[Kind, str], tuple[str, float]] = {}
        self._prune_at = clock() + PRUNE_S

    def claim(self, kind: Kind, id: str, key: ApiKey) -> None:
        """Records that `id`, which upstream has just issued, belongs to `key`. The first claim counts.

        An id that cannot be part of a path is ignored: no request could name it.
        """
        if not is_plain_segment(id):
            return
        now = self._clock()
        expires_at = now + KEPT_S[kind]
        names = {"kind": kind, "id": id, "owner": key.owner, "key": key.name}
        row = {**names, "made_at": now, "expires_at": expires_at}
        is_due = self._is_due(now)

        def change(connection: Connection) -> None:
            if is_due:
                _prune(connection, now)
            connection.execute(insert(table).values(row))

        mine = (key.owner, expires_at)
        self._remember(kind, id, mine)  # it may be used before it is stored
        try:
            self._database.write(change)
        except (IntegrityError, StoreUnavailableError) as error:
            with self._lock:
                if self._known.get((kind, id)) is mine:
                    del self._known[kind, id]
            if isinstance(error, StoreUnavailableError):
                raise
            # Else it was claimed before.
        else:
            with self._lock:
                self._known[kind, id] = mine  # not what was known of a row that is gone

    def check(self, kind: Kind, id: str, key: ApiKey) -> None:
        """Raises RouteNotFoundError unless `id` belongs to this key; unknown ids look the same."""
        if not is_plain_segment(id):
            raise RouteNotFoundError
        now = self._clock()
        known = self._known.get((kind, id))
        if known is None:
            query = select(table.c.owner, table.c.expires_at).where(table.c.kind == kind, table.c.id == id)
            row = self._database.read(lambda connection: connection.execute(query).first())
            if row is None:
                raise RouteNotFoundError
            known = self._remember(kind, id, (row.owner, row.expires_at))
        owner, expires_at = known
        if owner != key.owner or expires_at <= now:
            raise RouteNotFoundError

    def select(self, kind: Kind, ids: Collection[str], key: ApiKey) -> set[str]:
        """Those of `ids` (at most some hundred) that belong to this key."""
        mine = (table.c.kind == kind) & (table.c.owner == key.owner) & (table.c.expires_at > self._clock())
        candidates = [id for id in ids if is_plain_segment(id)]
        query = select(table.c.id).where(mine, table.c.id.in_(candidates))
        return set(self._database.read(lambda connection: connection.execute(query).scalars().all()))

    def note_billed(self, kind: Kind, id: str) -> bool:
        """Marks its cost as booked. True the first time, over all keys. Raises StoreUnavailableError."""
        now = self._clock()
        open_row = (table.c.kind == kind) & (table.c.id == id) & table.c.billed_at.is_(None)
        note = update(table).where(open_row).values(billed_at=now)
        return self._database.write(lambda connection: connection.execute(note).rowcount) > 0

    def forget(self, kind: Kind, id: str) -> None:
        """Removes an id that upstream has deleted. Ignores unknown ids."""
        if not is_plain_segment(id):
            return
        with self._lock:
            self._known.pop((kind, id), None)
        gone = delete(table).where(table.c.kind == kind, table.c.id == id)
        self._database.write(lambda connection: connection.execute(gone))

    def _remember(self, kind: Kind, id: str, owned: tuple[str, float]) -> tuple[str, float]:
        """What is known of an id: `owned`, its owner and its end, unless another owner is known already."""
        with self._lock:
            known = self._known.setdefault((kind, id), owned)
            while len(self._known) > MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
        return known

    def _is_due(self, now: float) -> bool:
        with self._lock:
            if now < self._prune_at:
                return False
            self._prune_at = now + PRUNE_S
            return True


def _prune(connection: Connection, now: float) -> None:
    """Deletes some of the expired rows; the rest waits for the next time."""
    over = select(table.c.kind, table.c.id).where(table.c.expires_at <= now).limit(PRUNED)
    for row in connection.execute(over).all():
        connection.execute(delete(table).where(table.c.kind == row.kind, table.c.id == row.id))
