"""Writes the ledger to the database: one writer per process, with a thread of its own.

`open` and `settle` queue a row and return; a moment later it is in the database, together with others in one
transaction. A SIGKILL loses the rows queued within the last FLUSH_S. Other processes, or the next one, find
the rows that were open then and settle them as `lost`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Literal

from grokflask.errors import StoreUnavailableError
from grokflask.ledger import statements
from grokflask.ledger.row import LedgerRow
from grokflask.ledger.statements import Fields, Worker, find_self, read_fields
from grokflask.runtime import get_pid, note_failure, start_thread
from grokflask.storage.database import Database
from grokflask.times import to_day

FLUSH_S = 0.25
FLUSH_TIMEOUT_S = 0.5  # how long a request waits until the rows of its worker are in the database
BEAT_S = 5.0
STALE_S = 15.0
MAX_QUEUED = 20_000
BATCH_ROWS = 2_000
PRUNE_ROWS = 5_000
PRUNE_EVERY_S = 3600.0
LONGEST_PAUSE_S = 2.0
WARN_EVERY_S = 60.0

_log = logging.getLogger("grokflask.ledger")


class LedgerWriter:
    """Writes the rows of this process. `open` and `settle` never block or raise, from any thread.

    The thread starts with the first row or with `start`, and again after a fork. Rows that the parent has
    queued are written by the parent.

    Args:
        worker: unique to this process; entered in rows that name none.
        retention_days: older rows are deleted, but their daily sums stay; 0 keeps all.
        clock: UTC epoch seconds; gives the day for retention. Stale workers are found by the database's
            clock, because hosts may differ.
        flush_s: the pause between two batches, and so the most that a SIGKILL can lose.
        max_queued: rows that wait while the database is unreachable; further ones are dropped and counted.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker: str,
        retention_days: int,
        clock: Callable[[], float] = time.time,
        flush_s: float = FLUSH_S,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        #: Called in the writer's thread with rows of processes that died, once each, after they were stored
        #: as `lost`. A crash in between skips the call.
        self.on_lost: Callable[[list[LedgerRow]], None] | None = None
        self.dropped = 0  # rows for which there was no room
        self.refused = 0  # rows that the database rejected because of their content
        self.lost = 0  # rows of dead processes that this one has settled
        self._database = database
        self._worker = worker
        self._made_in = get_pid()
        self._me = Worker(worker, "", 0)  # set when the thread starts
        self._retention_days = retention_days
        self._clock = clock
        self._flush_s = flush_s
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._max_queued = max_queued
        # Single dict operations are atomic, so queueing a row needs no lock: a finalizer may call `settle` at
        # any point.
        self._pending: dict[str, Fields] = {}
        self._batch: dict[str, Fields] = {}
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._flushes: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closing = self._away = self._on_time = self._sweep_due = False
        self._close_by = self._beat_at = self._prune_at = self._warn_at = 0.0  # monotonic
        self._dropped_logged = 0

    @property
    def worker(self) -> str:
        """The process's name in the ledger; forks have names of their own."""
        return self._worker if get_pid() == self._made_in else f"{self._worker}-{get_pid()}"

    @property
    def queued(self) -> int:
        """Rows that are not in the database yet."""
        return len(self._pending) + len(self._batch)

    @property
    def is_full(self) -> bool:
        """There is no room for further rows: the database has been unreachable for long."""
        return self.queued >= self._max_queued

    @property
    def state(self) -> Literal["idle", "up", "away"]:
        """`away` while rows cannot be delivered, `idle` while no thread runs."""
        if self._away:
            return "away"
        return "up" if self._pid == get_pid() else "idle"

    def open(self, row: LedgerRow) -> None:
        """Queues a copy of the row of an exchange that has begun, with outcome None."""
        self.start()
        if self.queued < self._max_queued:
            self._pending.setdefault(row.id, self._copy(row))
        else:
            self.dropped += 1
        self.start()

    def settle(self, row: LedgerRow) -> None:
        """Queues a copy of the row of an exchange that has ended."""
        self.start()
        if self.queued < self._max_queued or row.id in self._pending or row.id in self._batch:
            self._pending[row.id] = self._copy(row)
        else:
            self.dropped += 1
        self.start()  # again: the thread may have ended in between, at a close

    def flush(self, timeout_s: float | None = None) -> bool:
        """Waits until all rows queued before this call are in the database, or rejected by it.

        False if that takes longer than `timeout_s` (default: FLUSH_TIMEOUT_S).
        """
        done = threading.Event()
        self._flushes.append(done)
        self.start()
        self._wake.set()
        return done.wait(timeout_s or FLUSH_TIMEOUT_S)

    def close(self, timeout_s: float) -> bool:
        """Writes the queue and ends the thread; False if rows are left after `timeout_s`.

        Idempotent. A later row starts the thread again.
        """
        with self._lock:
            thread = self._thread if self._pid == get_pid() else None
            self._close_by = time.monotonic() + timeout_s
            self._closing = True
            self._wake.set()
        if thread is not None:
            thread.join(timeout_s)
        return not self.queued

    def _copy(self, row: LedgerRow) -> Fields:
        if not row.worker:
            row.worker = self.worker
        return read_fields(row)

    def start(self) -> None:
        """Starts the thread, which reports that this process is alive and looks for dead ones. Idempotent."""
        if self._pid == get_pid():
            return
        with self._lock:
            if self._pid == get_pid():
                return
            if self._pid:  # a fork: the parent writes what it has queued
                self._pending, self._batch, self._flushes = {}, {}, []
                self._away = False
            self._closing = False
            self._wake = threading.Event()
            self._me = find_self(self.worker)
            self._beat_at = self._prune_at = 0.0
            try:
                self._thread = start_thread("ledger-writer", self._run)
            except RuntimeError as error:  # no more threads; the next row tries again
                _log.error("the ledger's writer cannot start", extra={"fields": {"detail": str(error)}})
                return
            self._pid = get_pid()

    def _run(self) -> None:
        self._loop()
        self._pid = 0  # the next row starts another thread
        if self._pending and not self._away:
            self.start()

    def _loop(self) -> None:
        pause_s = 0.0
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            closing = self._closing
            is_done = self._turn()
            pause_s = self._flush_s if is_done else min(max(2 * pause_s, FLUSH_S), LONGEST_PAUSE_S)
            if closing:
                if is_done or time.monotonic() >= self._close_by:
                    break
                pause_s = min(pause_s, FLUSH_S, max(0.0, self._close_by - time.monotonic()))
        if self._away:
            _log.error("ledger rows were not written", extra={"fields": {"rows": self.queued}})
        else:
            self._attempt(lambda: self._database.write(lambda c: statements.leave(c, self._me)))

    def _turn(self) -> bool:
        """Delivers the rows queued so far and does what is due; False if that fails."""
        try:
            flushes = len(self._flushes)
            ids = list(self._pending)
            self._beat()
            delivered = self._deliver(ids)
            if self._away:
                self._away = False
                _log.warning("the ledger can be written again", extra={"fields": {"rows": delivered}})
            for done in self._flushes[:flushes]:
                done.set()
            del self._flushes[:flushes]
            self._sweep()
            self._prune()
        except StoreUnavailableError:
            if not self._away:
                self._away = True
                _log.error("the ledger cannot be written", extra={"fields": {"queued": self.queued}})
            return False
        except Exception:
            note_failure("ledger-writer")
            return False
        finally:
            self._warn_of_dropped()
        return True

    def _deliver(self, ids: list[str]) -> int:
        delivered = 0
        rest = iter(ids)
        while True:
            if not self._batch:
                for id_ in islice(rest, BATCH_ROWS):
                    fields = self._pending.pop(id_, None)
                    if fields is not None:
                        self._batch[id_] = fields
            if not self._batch:
                return delivered
            delivered += len(self._batch)
            self._store(list(self._batch.values()))
            self._batch = {}
            self._beat()

    def _store(self, rows: list[Fields]) -> None:
        """Stores the rows, except those that the database rejects."""
        try:
            self._database.write(lambda connection: statements.store(connection, rows))
        except (StoreUnavailableError, MemoryError, RuntimeError):
            raise  # not because of the rows: they are tried again
        except Exception as error:
            if len(rows) > 1:
                half = len(rows) // 2
                self._store(rows[:half])
                self._store(rows[half:])
                return
            self.refused += 1
            self._batch.pop(rows[0][0], None)
            fields = {"request_id": rows[0][1], "detail": f"{type(error).__name__}: {error}"[:300]}
            _log.error("the database rejected a ledger row", extra={"fields": fields})

    def _beat(self) -> None:
        if time.monotonic() < self._beat_at:
            return
        self._on_time = self._database.write(lambda c: statements.beat(c, self._me, self._stale_s))
        self._beat_at = time.monotonic() + self._beat_s
        self._sweep_due = True

    def _sweep(self) -> None:
        while self._sweep_due:
            rows = self._database.write(
                lambda c: statements.sweep(c, self._me, self._stale_s, self._on_time, BATCH_ROWS)
            )
            self._sweep_due = len(rows) == BATCH_ROWS
            if not rows:
                return
            self.lost += len(rows)
            _log.warning(
                "exchanges of processes that died were settled as lost", extra={"fields": {"rows": len(rows)}}
            )
            if self.on_lost is not None:
                self._attempt(partial(self.on_lost, rows))

    def _prune(self) -> None:
        """Deletes one batch of expired rows, so that the queue never waits for long."""
        if not self._retention_days or time.monotonic() < self._prune_at:
            return
        first_day = to_day(self._clock() - self._retention_days * 86400)
        deleted = self._database.write(lambda c: statements.prune(c, first_day, PRUNE_ROWS))
        if deleted < PRUNE_ROWS:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StoreUnavailableError:
            pass
        except Exception:
            note_failure("ledger-writer")

    def _warn_of_dropped(self) -> None:
        new = self.dropped - self._dropped_logged
        if not new or time.monotonic() < self._warn_at:
            return
        self._dropped_logged += new
        self._warn_at = time.monotonic() + WARN_EVERY_S
        fields = {"rows": new, "dropped": self.dropped, "queued": self.queued}
        _log.error("ledger rows are dropped: the queue is full", extra={"fields": fields})
