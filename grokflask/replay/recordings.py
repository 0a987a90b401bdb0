"""The recordings of this process: found by name, bounded in bytes and age, let go when nobody is left.

Under a name there is one running attempt at a time. One that fails is forgotten at once, so that the next
request with its key is a new attempt; one that ends well is kept for a while. One that no client reads goes
on for its grace, and is then ended, by a thread that only looks what is due.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from grokflask.errors import KeyInUseError, KeyReusedError, StreamGoneError, TooManyStreamsError
from grokflask.replay.recording import Failure, Place, Recording
from grokflask.runtime import get_pid

MAX_READERS = 32
"""As many clients of one process read one recording at once."""

LINGER_S = 0.55
"""How long an exchange that nobody reads goes on for one that comes back at once: SDKs that retry begin with
half a second at the most. With the watcher's interval it ends within a second."""

OVERHEAD_BYTES = 2048
"""What a recording takes besides its bytes: many small ones are not for free."""

RETRY_S = 1.0

_log = logging.getLogger("grokflask.replay")

P = TypeVar("P", bound=Place)


class Recordings:
    """The register. Its methods may be called from any thread.

    Args:
        max_bytes: of one recording.
        total_bytes: of all of them; then those that ended longest ago go first.
        keep_s: how long one is kept after it has ended.
        clock: monotonic seconds.

    Attributes:
        let_go: asked before an unread one is ended; 0 to do it, else how long it has at least.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        total_bytes: int,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._clock = clock
        self.let_go: Callable[[Recording], float] = lambda _: 0.0
        self._by_name: dict[str, Recording] = {}
        self._running: set[Recording] = set()
        self._due: dict[Recording, float] = {}  # unread: when they are let go
        self._kept: dict[Recording, float] = {}  # ended well: until when, the oldest first
        self._sizes: dict[Recording, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def running(self) -> list[Recording]:
        """Those whose exchange is under way here."""
        with self._lock:
            return list(self._running)

    @property
    def size(self) -> int:
        """Bytes that all of them take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._by_name)

    def claim(
        self,
        name: str,
        fingerprint: str,
        make: Callable[[], Recording] | None,
        enter: Callable[[Recording], P],
    ) -> tuple[P, bool]:
        """A reader of the recording of that name, and whether it was made for it, and is to be filled.

        `make` makes a new one, and is None where only an old one will do; `enter` makes its reader.

        Raises:
            KeyReusedError: the name is another request's.
            KeyInUseError: the recording runs, and has been given up.
            StreamGoneError: there is none and none is to be made.
            TooManyStreamsError: it has as many readers as it may.
        """
        with self._lock:
            self._expire()
            recording = self._by_name.get(name)
            found = recording is not None
            if recording is None:
                if make is None:
                    raise StreamGoneError
                recording = self._by_name[name] = make()
                self._running.add(recording)
            elif recording.fingerprint != fingerprint:
                raise KeyReusedError
            elif recording.given_up:
                raise KeyInUseError
            elif len(recording.readers) >= MAX_READERS:
                raise TooManyStreamsError("Too many clients read this answer.", headers={"Retry-After": "1"})
            reader = enter(recording)
            recording.add(reader)
            self._due.pop(recording, None)
            return reader, not found

    def leave(self, recording: Recording, reader: Place) -> None:
        """The reader has gone. Idempotent."""
        with self._lock:
            if reader not in recording.readers:
                return
            recording.remove(reader)
            self._note_unread(recording)
        self._wake.set()

    def keep(self, recording: Recording, data: bytes) -> None:
        """More of a running one. Waits for its foremost reader if it was given up."""
        recording.append(data)
        with self._lock:
            self._weigh(recording)
            while self._bytes > self._total_bytes and self._kept:
                self._forget(next(iter(self._kept)))
            if not recording.given_up and (
                recording.size > self._max_bytes or self._bytes > self._total_bytes
            ):
                recording.give_up()
                self._note_unread(recording)
                self._wake.set()

    def end(self, recording: Recording, *, complete: bool, failure: Failure | None = None) -> None:
        """Its exchange is over. Only a complete one is kept. Idempotent."""
        with self._lock:
            if recording not in self._running:
                return
            self._running.remove(recording)
            recording.finish(complete=complete, failure=failure)
            if complete and not recording.given_up and self._keep_s:
                self._due.pop(recording, None)
                self._kept[recording] = self._clock() + self._keep_s
            else:
                self._forget(recording)
        self._wake.set()

    def tick(self) -> float | None:
        """Lets go of what is due; seconds until the next is, None when nothing waits."""
        with self._lock:
            self._expire()
            now = self._clock()
            unread = [recording for recording, due in self._due.items() if due <= now]
        for recording in unread:
            more_s = self.let_go(recording)
            with self._lock:
                if recording not in self._due:
                    continue  # somebody has come meanwhile, or it has ended
                if more_s:
                    self._due[recording] = now + more_s
                    continue
                self._forget(recording)
            recording.leave()
        with self._lock:
            times = [*self._due.values(), *list(self._kept.values())[:1]]
        return max(0.0, min(times) - self._clock()) if times else None

    def start(self) -> None:
        """Starts the thread that calls `tick`. Once for each process."""
        if self._thread is None or self._pid != get_pid():
            self._closed = False
            self._pid = get_pid()
            self._thread = threading.Thread(target=self._run, name="recordings", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Ends the thread. Idempotent."""
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                wait_s = self.tick()
            except Exception:
                _log.exception("recordings cannot be let go")
                wait_s = RETRY_S
            self._wake.wait(wait_s)

    def _note_unread(self, recording: Recording) -> None:
        """Nobody who comes back would find anything of one that was given up."""
        if not recording.readers and not recording.ended:
            self._due[recording] = self._clock() + (0.0 if recording.given_up else recording.grace_s)

    def _expire(self) -> None:
        now = self._clock()
        while self._kept:
            recording, until = next(iter(self._kept.items()))
            if until > now:
                return
            self._forget(recording)

    def _forget(self, recording: Recording) -> None:
        """The name is free. Those who read it go on."""
        if self._by_name.get(recording.name) is recording:
            del self._by_name[recording.name]
        self._due.pop(recording, None)
        self._kept.pop(recording, None)
        if recording.ended:
            self._bytes -= self._sizes.pop(recording, 0)

    def _weigh(self, recording: Recording) -> None:
        if recording in self._running:
            size = recording.size + OVERHEAD_BYTES
            self._bytes += size - self._sizes.get(recording, 0)
            self._sizes[recording] = size
