"""Copies of other workers' recordings, filled from the shared store as long as somebody here reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from grokflask.errors import RecordingLostError, StoreUnavailableError
from grokflask.replay.publisher import RENEW_S, End
from grokflask.replay.recording import Head, Place, Recording, describe
from grokflask.replay.recordings import LINGER_S, Recordings
from grokflask.replay.store import LEASE_S, Claimed, Entry, RecordingStore

P = TypeVar("P", bound=Place)

_NO_BOUND = 2**62  # what bounds copies are the originals


@dataclass(slots=True)
class _Progress:
    """How far one has been read, and what its carrier knows of our readers.

    Attributes:
        name: in the store.
        look_at: when to see whether its carrier is alive, if nothing comes of it.
        entry: the last that was read.
        told: the carrier knows that it has readers here, until `renew_at` at least.
        left_at: epoch seconds, of the last reader that left.
    """

    name: str
    look_at: float
    entry: str = "0-0"
    told: bool = False
    renew_at: float = 0.0
    left_at: float = 0.0


class RecordingFollower:
    """Follows what is read here. `follow` is for one thread.

    Args:
        worker: gives this process's name.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: RecordingStore,
        *,
        worker: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._copies = Recordings(max_bytes=_NO_BOUND, total_bytes=_NO_BOUND, keep_s=0, clock=clock)
        self._progress: dict[Recording, _Progress] = {}

    def __len__(self) -> int:
        return len(self._progress)

    def read(self, name: str, found: Claimed, fingerprint: str, enter: Callable[[Recording], P]) -> P:
        """A reader of what was found under a name. Raises TooManyStreamsError."""

        def make() -> Recording:
            copy = Recording(found.id, found.id, fingerprint, found.request_id, 0.0)
            self._progress[copy] = _Progress(name, look_at=self._clock() + RENEW_S)
            return copy

        reader, _ = self._copies.claim(found.id, fingerprint, make, enter)
        return reader

    def leave(self, recording: Recording, reader: Place) -> bool:
        """The reader has gone; False for one that is not followed (any more)."""
        progress = self._progress.get(recording)
        if progress is None:
            return False
        progress.left_at = time.time()
        self._copies.leave(recording, reader)
        return True

    def follow(self) -> float | None:
        """One round: what is new, and who reads it. Waits a moment for news; None when there is no work.

        Raises StoreUnavailableError.
        """
        self._copies.tick()
        try:
            self._tell_readers()
            return self._read_news() if self._progress else None
        except StoreUnavailableError:
            now = self._clock()
            for recording, progress in list(self._progress.items()):
                if now >= progress.look_at + LEASE_S:  # not heard of for so long
                    self._copies.end(recording, complete=False, failure=describe(RecordingLostError()))
            raise

    def _read_news(self) -> float:
        # Of two copies of one attempt (the older has just been let go) the newer is last.
        followed = {recording.id: recording for recording in list(self._progress)}
        positions = {id: self._progress[recording].entry for id, recording in followed.items()}
        entries = self._store.read(positions)
        for id, recording in followed.items():
            self._take(recording, self._progress[recording], entries.get(id, []))
        return 0.0

    def _tell_readers(self) -> None:
        """Tells the carriers which of theirs are read here, and lets go of the others."""
        now = self._clock()
        for recording, progress in list(self._progress.items()):
            if recording.ended or recording.left:
                until = 0.0 if recording.ended else progress.left_at + LINGER_S
                self._store.attend(progress.name, self._worker(), until)
                del self._progress[recording]
                self._copies.end(recording, complete=False)
            elif not progress.told or now >= progress.renew_at:
                self._store.attend(progress.name, self._worker(), time.time() + LEASE_S)
                progress.told, progress.renew_at = True, now + RENEW_S

    def _take(self, recording: Recording, progress: _Progress, entries: list[Entry]) -> None:
        now = self._clock()
        if not entries and now >= progress.look_at:
            # Asked in this order: a carrier that ends publishes first, and then frees the name.
            alive = self._store.is_alive(progress.name, recording.id)
            entries = self._store.read({recording.id: progress.entry}, wait=False).get(recording.id, [])
            if not alive and not entries:
                self._copies.end(recording, complete=False, failure=describe(RecordingLostError()))
                return
            progress.look_at = now + RENEW_S
        if entries:
            progress.entry, progress.look_at = entries[-1][0], now + RENEW_S
        for _, field, value in entries:
            if field == "head":
                recording.put_head(msgspec.json.decode(value, type=Head))
            elif field == "data":
                self._copies.keep(recording, value)
            elif field == "end":
                end = msgspec.json.decode(value, type=End)
                self._copies.end(recording, complete=end.complete, failure=end.failure)
