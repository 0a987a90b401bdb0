"""The recordings of this worker, found by name and bounded in bytes and time.

A name has one running attempt at a time. An attempt that fails is forgotten at once, so the next request with
its key begins a new one; an attempt that ends well is kept for a while. An exchange without readers continues
for its grace and is then cancelled. With Redis, a `Mirror` shares the recordings with other workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from grokflask.errors import (
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    StoreUnavailableError,
    StreamGoneError,
    TooManyStreamsError,
)
from grokflask.replay.loop import Loop
from grokflask.replay.mirror import Mirror
from grokflask.replay.reader import Reader
from grokflask.replay.recording import Cursor, Ending, Recording

if TYPE_CHECKING:
    from grokflask.replay.redis import RedisRecordings

OVERHEAD_BYTES = 2048  #: memory that a recording takes besides its bytes


class Recordings:
    """The register. Its methods may be called from any thread.

    Args:
        max_bytes: upper bound of one recording.
        total_bytes: upper bound of all of them; the ones that ended longest ago are dropped first.
        keep_s: how long a recording is kept after it has ended.
        store: shares the recordings with other workers.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        total_bytes: int,
        keep_s: float,
        store: RedisRecordings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes, self._total_bytes = max_bytes, total_bytes
        self._keep_s, self._clock = keep_s, clock
        self._by_name: dict[str, Recording] = {}
        self.running: set[Recording] = set()  #: have not ended
        self._due: dict[Recording, float] = {}  # without readers -> when to abandon it
        self._kept: dict[Recording, float] = {}  # ended well -> until when it is kept; the oldest first
        self._sizes: dict[Recording, int] = {}
        self.size = 0  #: bytes that all of them take
        self._lock = threading.Lock()
        self._mirror = Mirror(store, keep_s=keep_s, end=self.end) if store else None
        self._loop = Loop(self.tick)
        self._loops = (self._loop, *(self._mirror.loops if self._mirror else ()))

    def claim(self, reader: Reader, *, begin: bool) -> bool:
        """Attaches a reader to the recording that has the name of its own, new one, or else to that one.

        Returns True for the new one, which the caller then has to fill. `begin` allows that.

        Raises:
            IdempotencyKeyReusedError: the name belongs to another request.
            IdempotencyKeyInUseError: the recording is running and was given up.
            StreamGoneError: not to `begin`, and there is no recording.
            StoreUnavailableError: not to `begin`, and Redis, which might have it, is unreachable.
        """
        new = reader.recording
        with self._lock:
            self._expire()
            local = self._by_name.get(new.name)
            if local and local.fingerprint != new.fingerprint:
                raise IdempotencyKeyReusedError
            if self._mirror is None or (local and not local.ending):
                if not (local or begin):
                    raise StreamGoneError
                return self._attach(reader, local or new)
        own = local or new
        found, taken = self._mirror.claim(own, begin=begin or own is local)
        with self._lock:
            local = self._by_name.get(new.name)
            if found is not None and found is not own:
                recording = self._by_name.get(found.id, found)
            elif local or begin:
                recording = local or new
            else:
                raise StoreUnavailableError
            first = self._attach(reader, recording)
        if taken or (first and recording.is_copy):
            self._mirror.add(recording, new.name)
        return first and not recording.is_copy

    def _attach(self, reader: Reader, recording: Recording) -> bool:
        """Attaches a reader; True if the recording was not registered before. The caller has the lock."""
        first = recording.name not in self._by_name
        if first:
            self._by_name[recording.name] = recording
            self.running.add(recording)
        elif recording.fingerprint != reader.recording.fingerprint:
            raise IdempotencyKeyReusedError
        elif recording.given_up:
            raise IdempotencyKeyInUseError
        reader.recording = recording
        recording.readers += (reader,)
        self._due.pop(recording, None)
        return first

    def replace_oldest(self, recording: Recording) -> None:
        """Ends the oldest reader, to make room for a newer one."""
        if len(recording.readers) < 2:  # the others have left meanwhile
            return
        oldest = recording.readers[0]
        text = "A newer connection reads this answer, and the key has no room for both."
        oldest.cancel(TooManyStreamsError(text, headers={"x-should-retry": "false"}))
        self.leave(oldest)

    def leave(self, reader: Cursor) -> None:
        """The reader has left. Idempotent."""
        recording, hold = reader.recording, None
        with self._lock:
            if reader not in recording.readers:
                return
            recording.readers = tuple(each for each in recording.readers if each is not reader)
            if recording.holds and len(recording.holds) >= len(recording.readers):
                hold = recording.holds.pop()
            recording.notify()
            self._note_unread(recording)
        self._loop.wake()
        if hold is not None:
            hold()

    def keep(self, recording: Recording, data: bytes) -> None:
        """Appends to a running recording. If it was given up, waits for its foremost reader."""
        recording.append(data)
        if self._mirror is not None:
            self._mirror.wake()
        with self._lock:
            if recording in self.running:
                size = recording.size + OVERHEAD_BYTES
                self.size += size - self._sizes.get(recording, 0)
                self._sizes[recording] = size
            while self.size > self._total_bytes and self._kept:
                oldest = next(iter(self._kept))
                self._forget(oldest)
                if self._mirror is not None:
                    self._mirror.delete(oldest)
            too_large = recording.size > self._max_bytes or self.size > self._total_bytes
            if too_large and not recording.given_up:
                recording.given_up = True
                self._note_unread(recording)
                self._loop.wake()

    def end(self, recording: Recording, ending: Ending) -> None:
        """The exchange is over. Idempotent.

        Only a complete recording is kept. A failed one frees its name, in Redis as well, before its readers
        learn of the failure and can try again.
        """
        if self._mirror is not None and not ending.complete:
            self._mirror.publish_failure(recording, ending)
        with self._lock:
            if recording not in self.running:
                return
            self.running.remove(recording)
            recording.finish(ending)
            lost = recording.given_up or recording.is_copy or recording.left_at
            if ending.complete and self._keep_s and not lost:
                self._due.pop(recording, None)
                self._kept[recording] = self._clock() + self._keep_s
            else:
                self._forget(recording)
        for loop in self._loops:
            loop.wake()

    def tick(self) -> float | None:
        """Drops what has expired and abandons what is due; seconds until it has to be called again."""
        with self._lock:
            self._expire()
            now = self._clock()
            unread = [recording for recording, due in self._due.items() if due <= now]
        for recording in unread:
            wait_s = self._mirror.abandon(recording) if self._mirror else 0.0
            with self._lock:
                if recording not in self._due:
                    continue  # a reader has come meanwhile, or it has ended
                if wait_s:
                    self._due[recording] = now + wait_s
                    continue
                self._forget(recording)
            recording.leave()
        with self._lock:
            times = [*self._due.values(), *list(self._kept.values())[:1]]
        return max(0.0, min(times) - self._clock()) if times else None

    def start(self) -> None:
        """Starts the background threads, once in each process."""
        for loop in self._loops:
            loop.start()

    def close(self, timeout_s: float) -> None:
        """Publishes how everything ended, and ends the threads. Idempotent."""
        for loop in self._loops:
            loop.close(timeout_s)

    def _note_unread(self, recording: Recording) -> None:
        """Sets when to abandon it. A copy costs nothing, and one that was given up cannot be joined again."""
        if not recording.readers and not recording.ending:
            grace_s = 0.0 if recording.given_up or recording.is_copy else recording.grace_s
            self._due[recording] = self._clock() + grace_s

    def _expire(self) -> None:
        now = self._clock()
        while self._kept and next(iter(self._kept.values())) <= now:
            self._forget(next(iter(self._kept)))

    def _forget(self, recording: Recording) -> None:
        """Frees the name. Those who read it continue."""
        if self._by_name.get(recording.name) is recording:
            del self._by_name[recording.name]
        self._due.pop(recording, None)
        self._kept.pop(recording, None)
        if recording.ending:
            self.size -= self._sizes.pop(recording, 0)
