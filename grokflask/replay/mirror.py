"""Recordings shared between workers: each publishes its own to Redis and copies those that it reads along.

Every client reads from its own worker's memory, so Redis never delays a stream. A worker holds the name of an
attempt by a lease, which it renews whenever it publishes; if the worker dies, the name is free after LEASE_S.
Readers in other workers keep an exchange running by leases of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from grokflask.errors import RecordingLostError, StoreUnavailableError
from grokflask.replay.loop import RETRY_S, Loop
from grokflask.replay.recording import DATA, HEAD, LAST, LEASE_S, Ending, Entry, Head, Recording, fail

if TYPE_CHECKING:
    from grokflask.replay.redis import RedisRecordings

RENEW_S = LEASE_S / 4  #: how often leases are renewed
POLL_S = 0.1  #: how often a worker checks whether the readers of other workers have left
LAST_S = 10.0  #: how long a failed attempt stays readable
BATCH_BYTES = 1024 * 1024  #: approximate upper bound of what is published of one recording at once


_LOST = fail(RecordingLostError())

_log = logging.getLogger("grokflask.replay")


@dataclass(slots=True)
class _Progress:
    """How far a recording has been published or copied: the position and kind of its last entry."""

    name: str
    renew_at: float  #: when the lease has to be renewed
    position: int = 0
    kind: int = 0
    read_until: float = 0.0  #: when the last known leases of readers elsewhere end


class Mirror:
    """Publishes and copies in its `loops`. `keep_s` is for recordings that have ended; `end` ends a copy."""

    def __init__(
        self, store: RedisRecordings, *, keep_s: float, end: Callable[[Recording, Ending], None]
    ) -> None:
        self._store = store
        self._keep_s = keep_s
        self._end = end
        self._own: dict[Recording, _Progress] = {}
        self._copies: dict[Recording, _Progress] = {}
        self._deleted: deque[tuple[str, str]] = deque(maxlen=10_000)  # what is lost here expires in Redis
        self._lock = threading.Lock()  # held while one recording is published
        self._unavailable = False
        self._publishing, self._copying = self.loops = (Loop(self.publish), Loop(self.copy))
        self.wake = self._publishing.wake  #: there is something to publish

    def claim(self, own: Recording, *, begin: bool) -> tuple[Recording | None, bool]:
        """As `RedisRecordings.claim`; None if Redis is unreachable (it may have run all the same)."""
        try:
            found = self._store.claim(own, begin=begin)
        except StoreUnavailableError as error:
            self._note_outage(error)
            return None, not own.ending
        self._unavailable = False
        return found

    def add(self, recording: Recording, name: str) -> None:
        """Publishes a recording that has taken `name`, or fills a copy of the attempt that has it."""
        # A copy's lease is due at once, or that of an earlier copy which ends now would shorten it.
        progress = _Progress(name, time.monotonic() + (0.0 if recording.is_copy else RENEW_S))
        if recording.is_copy:
            self._copies[recording] = progress
            recording.bind(self._copying.wake)
            self._copying.wake()
        else:
            self._own.setdefault(recording, progress)
            self._publishing.wake()

    def abandon(self, recording: Recording) -> float:
        """Frees the name and returns 0; if another worker has a reader, the seconds until to ask again."""
        progress = self._own.get(recording)
        if progress is None or recording.given_up:
            return 0.0
        try:
            if self._store.abandon(recording.name, recording.id):
                return 0.0
            progress.read_until = time.monotonic() + LEASE_S
        except StoreUnavailableError as error:
            self._note_outage(error)
        return POLL_S if time.monotonic() < progress.read_until else 0.0

    def delete(self, recording: Recording) -> None:
        """Removes a recording that has ended from Redis, in the background."""
        self._own.pop(recording, None)
        self._deleted.append((recording.name, recording.id))

    def publish_failure(self, recording: Recording, ending: Ending) -> None:
        """Publishes how a recording is about to end, which frees its name, if Redis is reachable."""
        try:
            while self._publish(recording, ending):
                pass
        except StoreUnavailableError as error:
            self._note_outage(error)

    def publish(self) -> float | None:
        """Publishes everything new; seconds until the next lease has to be renewed, None if there is none."""
        try:
            more = [*self._own]
            while more:
                more = [recording for recording in more if self._publish(recording)]
            while self._deleted:
                self._store.abandon(*self._deleted.popleft(), force=True)
        except StoreUnavailableError as error:
            self._note_outage(error)
            for recording in self._find_expired(self._own):
                self._own.pop(recording, None)
            return RETRY_S
        return RENEW_S if self._own else None

    def _publish(self, recording: Recording, ending: Ending | None = None) -> bool:
        """Publishes about BATCH_BYTES of a recording, and its ending; True if there is more."""
        with self._lock:
            progress = self._own.get(recording)
            if progress is None:
                return False
            # Read before the bytes: whatever is appended from here on is published in the next round.
            given_up, ending = recording.given_up, ending or recording.ending
            entries, more = ([], False) if given_up else _list_entries(recording, progress)
            over = ending is not None and not more
            if (over or given_up) and progress.kind != LAST:
                position = entries[-1][0] if entries else progress.position
                entries.append((position, LAST, msgspec.json.encode(_LOST if given_up else ending)))
            now = time.monotonic()
            if not (entries or over or now >= progress.renew_at):
                return False
            state, ttl_s = "unkept" if given_up else "running", LEASE_S
            if over:
                kept = ending and ending.complete and not given_up and self._keep_s
                state, ttl_s = ("ended", self._keep_s) if kept else ("failed", LAST_S)
            published = self._store.publish(recording, state, ttl_s, entries)
            self._unavailable = False
            if over or not published:
                self._own.pop(recording, None)  # or it lost its name in an outage
                return False
            if entries:
                progress.position, progress.kind, _ = entries[-1]
            progress.renew_at = now + RENEW_S
            return more

    def copy(self) -> float | None:
        """Copies what is new, waiting a moment for it; 0 while there are copies, None if there are none."""
        try:
            for recording, progress in list(self._copies.items()):
                self._renew(recording, progress)
            # Of two copies of one attempt (the older one is about to be dropped) the newer comes last.
            copies = {each.id: (each, progress) for each, progress in list(self._copies.items())}
            places = {id: (progress.position, progress.kind) for id, (_, progress) in copies.items()}
            entries = self._store.read(places, wait=True) if places else {}
            for id, (recording, progress) in copies.items():
                self._take(recording, progress, entries.get(id, []))
        except StoreUnavailableError as error:
            self._note_outage(error)
            for recording in self._find_expired(self._copies):
                self._copies.pop(recording)
                self._end(recording, _LOST)
            return RETRY_S
        return 0.0 if self._copies else None

    def _renew(self, recording: Recording, progress: _Progress) -> None:
        """Renews the lease of a copy's readers, or drops the copy if it has none."""
        if recording.ending or recording.left_at is not None:
            if recording.left_at is not None:
                self._store.attend(progress.name, recording.id, recording.left_at + recording.grace_s)
            del self._copies[recording]
            self._end(recording, _LOST)
        elif time.monotonic() >= progress.renew_at:
            if self._store.attend(progress.name, recording.id, time.time() + LEASE_S):
                progress.renew_at = time.monotonic() + RENEW_S
                return
            # The attempt is over or its worker is dead. A worker publishes the end before it frees the name.
            entries = self._store.read({recording.id: (progress.position, progress.kind)}, wait=False)
            self._take(recording, progress, entries.get(recording.id, []))
            if not entries:
                self._end(recording, _LOST)

    def _take(self, recording: Recording, progress: _Progress, entries: list[Entry]) -> None:
        for progress.position, progress.kind, value in entries:
            if progress.kind == HEAD:
                recording.put_head(msgspec.json.decode(value, type=Head))
            elif progress.kind == DATA:
                # A batch whose confirmation was lost comes again, and may overlap with what is there.
                recording.append(value[recording.end - (progress.position - len(value)) :])
            else:
                self._end(recording, msgspec.json.decode(value, type=Ending))

    def _find_expired(self, recordings: dict[Recording, _Progress]) -> list[Recording]:
        """Those whose lease was not renewed in time, because Redis was unreachable."""
        expired = time.monotonic() - LEASE_S
        return [each for each, progress in list(recordings.items()) if progress.renew_at <= expired]

    def _note_outage(self, error: StoreUnavailableError) -> None:
        if not self._unavailable:
            self._unavailable = True
            fields = {"detail": str(error.__cause__ or error)[:200]}
            _log.warning("recordings are not shared while Redis is unreachable", extra={"fields": fields})


def _list_entries(recording: Recording, progress: _Progress) -> tuple[list[Entry], bool]:
    """What is new, up to about BATCH_BYTES, and whether there is more."""
    entries: list[Entry] = []
    if recording.head is not None and not progress.kind:
        entries.append((0, HEAD, msgspec.json.encode(recording.head)))
    position = progress.position
    while data := recording.copy_from(position):
        if position - progress.position >= BATCH_BYTES:
            return entries, True
        position += len(data)
        entries.append((position, DATA, data))
    return entries, False
