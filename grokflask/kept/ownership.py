"""Whose is what upstream keeps: ids of stored responses, deferred answers, files, batches and videos.

Upstream knows one key, the gateway's; that its clients see nothing of each other is decided here. An id
belongs to the key that made it. For all others, and once its time is over, it does not exist.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from sqlalchemy import Connection, Select, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from grokflask.errors import RouteNotFoundError
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
"""For how long an id is known. xAI keeps a response for 30 days, a deferred answer for one; files that are
not given an end stay there, but are out of reach for its clients after this."""

PRUNE_S = 3600.0
PRUNED = 200
"""How often each process takes out what is over, and how many rows at a time."""

MAX_REMEMBERED = 10_000
"""Owners that a process knows without asking: of ids that it has seen lately. An owner never changes."""


class Ownership:
    """Which key made which id. Its methods may be called from any thread; they wait for the database.

    That is for half a second (`check`, `select`) or five (`claim`, `forget`) at the longest; other
    requests go on meanwhile, on SQLite too, where the server gives the database its `offload`. Each raises
    StoreUnavailableError while the database is away: an owner that cannot be looked up is nobody.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()  # never held while the database is asked
        self._known: dict[tuple[Kind, str], tuple[str, float]] = {}
        self._prune_at = clock() + PRUNE_S

    def claim(self, kind: Kind, id: str, key: ApiKey) -> None:
        """`id`, which upstream has just given out, belongs to `key`. The first claim counts, and repeats.

        An id that could not stand in a path is nobody's: nobody could ask for it.
        """
        if not is_plain_segment(id):
            return
        now = self._clock()
        row = {
            "kind": kind,
            "id": id,
            "owner": key.owner,
            "key": key.name,
            "made_at": now,
            "expires_at": now + KEPT_S[kind],
        }
        is_due = self._is_due(now)

        def change(connection: Connection) -> None:
            if is_due:
                _prune(connection, now)
            if connection.execute(_select_owner(kind, id)).first() is None:
                connection.execute(insert(table).values(row))

        with suppress(IntegrityError):
            self._database.write(
                change
            )  # unless another one was faster: whose it is will be read when asked for

    def check(self, kind: Kind, id: str, key: ApiKey) -> None:
        """Raises RouteNotFoundError unless `id` is of this key: an unknown one and another's look alike."""
        if not is_plain_segment(id):
            raise RouteNotFoundError
        now = self._clock()
        known = self._known.get((kind, id))
        if known is None:
            row = self._database.read(lambda connection: connection.execute(_select_owner(kind, id)).first())
            if row is None:
                raise RouteNotFoundError
            known = (row.owner, row.expires_at)
            self._remember(kind, id, known)
        owner, expires_at = known
        if owner != key.owner or expires_at <= now:
            raise RouteNotFoundError

    def select(self, kind: Kind, ids: Collection[str], key: ApiKey) -> set[str]:
        """Those of `ids` (some hundreds at the most) that are of this key."""
        mine = (table.c.kind == kind) & (table.c.owner == key.owner) & (table.c.expires_at > self._clock())
        asked = [id for id in ids if is_plain_segment(id)]
        query = select(table.c.id).where(mine, table.c.id.in_(asked))
        return set(self._database.read(lambda connection: connection.execute(query).scalars().all()))

    def note_billed(self, kind: Kind, id: str) -> bool:
        """Its cost is being booked. True the first time, whoever asks; raises StoreUnavailableError."""
        now = self._clock()
        open_row = (table.c.kind == kind) & (table.c.id == id) & table.c.billed_at.is_(None)
        note = update(table).where(open_row).values(billed_at=now)
        return self._database.write(lambda connection: connection.execute(note).rowcount) > 0

    def forget(self, kind: Kind, id: str) -> None:
        """The id is gone upstream. One that is not known is no error."""
        if not is_plain_segment(id):
            return
        with self._lock:
            self._known.pop((kind, id), None)
        gone = delete(table).where(table.c.kind == kind, table.c.id == id)
        self._database.write(lambda connection: connection.execute(gone))

    def _remember(self, kind: Kind, id: str, known: tuple[str, float]) -> None:
        with self._lock:
            self._known[kind, id] = known
            while len(self._known) > MAX_REMEMBERED:
                del self._known[next(iter(self._known))]

    def _is_due(self, now: float) -> bool:
        with self._lock:
            if now < self._prune_at:
                return False
            self._prune_at = now + PRUNE_S
            return True


def _select_owner(kind: Kind, id: str) -> Select[tuple[str, float]]:
    query = select(table.c.owner, table.c.expires_at)
    return query.where(table.c.kind == kind, table.c.id == id)


def _prune(connection: Connection, now: float) -> None:
    """Takes out some of what is over; the rest waits for the next time."""
    over = select(table.c.kind, table.c.id).where(table.c.expires_at <= now).limit(PRUNED)
    for row in connection.execute(over).all():
        connection.execute(delete(table).where(table.c.kind == row.kind, table.c.id == row.id))
