"""A worker's own recordings on their way to the shared store, in the background and in good order.

The store holds up no stream: what it has not taken yet is still in the recording. What has ended there is
kept for its time, and within a sum of bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from grokflask.errors import RecordingLostError
from grokflask.replay.recording import READ_BYTES, Failure, Recording, describe
from grokflask.replay.recordings import LINGER_S, OVERHEAD_BYTES
from grokflask.replay.store import LEASE_S, Entry, RecordingStore, State

RENEW_S = LEASE_S / 4
"""How often what is held is renewed where nothing else is published."""

POLL_S = 0.1
"""How often it is looked whether the readers of other workers have left."""

BATCH_BYTES = 1024 * 1024
"""About as much of one recording is published in one go."""

LAST_S = 10.0
"""How long those who follow a failed one have to read how it ended."""


class End(msgspec.Struct, frozen=True):
    """The last entry of an attempt."""

    complete: bool
    failure: Failure | None = None


@dataclass(slots=True)
class _Progress:
    """How far one has been published."""

    position: int = 0
    headed: bool = False
    unkept: bool = False
    renew_at: float = 0.0


class RecordingPublisher:
    """Publishes what it is given.

    Args:
        total_bytes: of what this worker has in the store.
        keep_s: how long it is kept there after it has ended.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: RecordingStore,
        *,
        total_bytes: int,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()  # of `publish`
        self._progress: dict[Recording, _Progress] = {}
        self._attended: set[Recording] = set()
        self._stored: dict[str, tuple[str, int, float]] = {}  # id -> name, bytes, until when; oldest first
        self._stored_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """What has ended and is kept there."""
        return self._stored_bytes

    def add(self, recording: Recording) -> None:
        """It has taken its name in the store."""
        self._progress[recording] = _Progress()

    def let_go(self, recording: Recording) -> float:
        """0 when no other worker has a reader of it either, and its name is free; else how long to wait.

        Raises StoreUnavailableError.
        """
        if recording not in self._progress or recording.given_up:
            return 0.0
        if recording in self._attended:
            if self._store.count_readers(recording.name, time.time()):
                return POLL_S
            self._attended.discard(recording)
            if recording.grace_s > LINGER_S:  # which others' readers have had already
                return recording.grace_s - LINGER_S
        if self._store.abandon(recording.name, recording.id, time.time()):
            return 0.0
        self._attended.add(recording)
        return POLL_S

    def publish(self) -> float | None:
        """One round: all that is new. Seconds until the next is due by itself, None when none is.

        Raises StoreUnavailableError; then nothing is lost.
        """
        more = False
        with self._lock:
            for recording, progress in list(self._progress.items()):
                more |= self._publish(recording, progress)
            self._make_room()
        if more:
            return 0.0
        return RENEW_S if self._progress or self._stored else None

    def publish_failure(self, recording: Recording, failure: Failure | None) -> None:
        """How one is about to end, and that its name is free: before any client knows, and tries again.

        Raises StoreUnavailableError.
        """
        with self._lock:
            progress = self._progress.get(recording)
            while progress and self._publish(recording, progress, End(complete=False, failure=failure)):
                pass

    def _publish(self, recording: Recording, progress: _Progress, end: End | None = None) -> bool:
        """Publishes what is new of one, and how it will `end`; whether there is more of it already."""
        # Looked at once, and first: what comes meanwhile is for the next round.
        end, unkept, head = end or _find_end(recording), recording.given_up, recording.head
        entries: list[Entry] = []
        position, more = progress.position, False
        if head and not progress.headed:
            entries.append(("0-1", "head", msgspec.json.encode(head)))
        if not unkept:
            data, position, more = _list_data(recording, position)
            entries += data
        over = end is not None and not more
        if (over or unkept) and not progress.unkept:
            lost = End(complete=False, failure=describe(RecordingLostError()))
            entries.append((f"{position}-9", "end", msgspec.json.encode(lost if unkept else end)))
        now = self._clock()
        if not entries and not over and now < progress.renew_at:
            return False
        state, ttl_s = self._tell_state(recording, over=over, unkept=unkept)
        if not self._store.publish(recording.name, recording.id, state, ttl_s, entries):
            over, more = True, False  # the store was away for too long, or nobody was left
        elif state == "ended":
            size = position + OVERHEAD_BYTES
            self._stored[recording.id] = (recording.name, size, now + ttl_s)
            self._stored_bytes += size
        progress.headed, progress.unkept = head is not None, unkept
        progress.position, progress.renew_at = position, now + RENEW_S
        if over:
            self._progress.pop(recording, None)
            self._attended.discard(recording)
        return more

    def _tell_state(self, recording: Recording, *, over: bool, unkept: bool) -> tuple[State, float]:
        """What its name is to say, and for how long."""
        if not over:
            return "unkept" if unkept else "running", LEASE_S
        kept = recording.complete and not unkept and self._keep_s > 0
        return ("ended", self._keep_s) if kept else ("failed", LAST_S)

    def _make_room(self) -> None:
        """Forgets what has expired there, and beyond the sum of bytes what ended longest ago."""
        now = self._clock()
        while self._stored:
            id, (name, size, until) = next(iter(self._stored.items()))
            if until > now:
                if self._stored_bytes <= self._total_bytes:
                    return
                self._store.delete(name, id)
            del self._stored[id]
            self._stored_bytes -= size


def _find_end(recording: Recording) -> End | None:
    """How it has ended; None while it has not."""
    return End(recording.complete, recording.failure) if recording.ended else None


def _list_data(recording: Recording, position: int) -> tuple[list[Entry], int, bool]:
    """What it has from there on, as entries; where these end; whether there may be more behind them."""
    entries: list[Entry] = []
    size = 0
    while data := recording.copy_from(position, READ_BYTES):
        size += len(data)
        position += len(data)
        entries.append((f"{position}-2", "data", data))
        if size >= BATCH_BYTES:
            return entries, position, True
    return entries, position, False
