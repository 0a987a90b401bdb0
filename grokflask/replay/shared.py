"""Recordings that all workers share: each carries its own, publishes them, and follows those of others.

A client reads from its own worker's memory in every case. While the store is away each worker has its own
recordings alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from grokflask.errors import KeyInUseError, KeyReusedError, StoreUnavailableError, StreamGoneError
from grokflask.replay.follower import RecordingFollower
from grokflask.replay.publisher import RecordingPublisher
from grokflask.replay.recording import Failure, Place, Recording
from grokflask.replay.recordings import Recordings
from grokflask.replay.store import RecordingStore
from grokflask.runtime import get_pid

RETRY_S = 0.5
"""How long after the store was found away it is tried again, which no request waits for."""

_log = logging.getLogger("grokflask.replay")

P = TypeVar("P", bound=Place)


class SharedRecordings:
    """As `Recordings`, over several workers.

    Args:
        own: those that this worker carries; it is to keep none that has ended.
        total_bytes: of what this worker has in the store.
        keep_s: how long it is kept there after it has ended.
        worker: gives this process's name.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        own: Recordings,
        store: RecordingStore,
        *,
        total_bytes: int,
        keep_s: float,
        worker: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._store = store
        self._worker = worker
        self._publisher = RecordingPublisher(store, total_bytes=total_bytes, keep_s=keep_s, clock=clock)
        self._follower = RecordingFollower(store, worker=worker, clock=clock)
        own.let_go = self._let_go
        self._to_publish = threading.Event()
        self._to_follow = threading.Event()
        self._away = False
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._pid = 0

    @property
    def running(self) -> list[Recording]:
        """Those whose exchange is under way here."""
        return self._own.running

    def claim(
        self,
        name: str,
        fingerprint: str,
        make: Callable[[], Recording] | None,
        enter: Callable[[Recording], P],
    ) -> tuple[P, bool]:
        """As `Recordings.claim`; of this worker's own alone while the store is away.

        Raises StoreUnavailableError when it is and only an old one will do.
        """
        try:
            return self._own.claim(name, fingerprint, None, enter)
        except StreamGoneError:
            pass  # it is not one of those that run here
        new = make() if make else None
        ids = (new.id, new.request_id) if new else ("", "")
        try:
            found = self._store.claim(name, fingerprint, *ids, self._worker(), time.time())
        except StoreUnavailableError as error:
            self._note_away(error)
            if new is None:
                raise
            return self._own.claim(name, fingerprint, lambda: new, enter)
        if found.kind == "new" and new is not None:
            reader, first = self._own.claim(name, fingerprint, lambda: new, enter)
            if first:
                self._publisher.add(new)
                self._to_publish.set()
            return reader, first
        if found.kind == "reused":
            raise KeyReusedError
        if found.kind == "in use":
            raise KeyInUseError
        if found.kind == "gone":
            raise StreamGoneError
        reader = self._follower.read(name, found, fingerprint, enter)
        self._to_follow.set()
        return reader, False

    def leave(self, recording: Recording, reader: Place) -> None:
        """As `Recordings.leave`."""
        if self._follower.leave(recording, reader):
            self._to_follow.set()
        else:
            self._own.leave(recording, reader)

    def keep(self, recording: Recording, data: bytes) -> None:
        """As `Recordings.keep`."""
        self._own.keep(recording, data)
        self._to_publish.set()

    def end(self, recording: Recording, *, complete: bool, failure: Failure | None = None) -> None:
        """As `Recordings.end`. A failure's name is free in the store before anybody is told of it."""
        if not complete:
            try:
                self._publisher.publish_failure(recording, failure)
            except StoreUnavailableError as error:
                self._note_away(error)
        self._own.end(recording, complete=complete, failure=failure)
        self._to_publish.set()

    def start(self) -> None:
        """Starts its threads, which wait for work. Once for each process."""
        self._own.start()
        if self._threads and self._pid == get_pid():
            return
        self._closed = False
        self._pid = get_pid()
        self._threads = [
            threading.Thread(target=self._run, args=work, name="recordings", daemon=True)
            for work in (
                (self._publisher.publish, self._to_publish),
                (self._follower.follow, self._to_follow),
            )
        ]
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> None:
        """Publishes how all has ended, and ends the threads. Idempotent."""
        self._own.close(timeout_s)
        self._closed = True
        self._to_publish.set()
        self._to_follow.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(timeout_s)

    def _run(self, work: Callable[[], float | None], wake: threading.Event) -> None:
        while True:
            closing = self._closed
            wake.clear()
            try:
                wait_s = work()
                self._away = False
            except StoreUnavailableError as error:
                self._note_away(error)
                wait_s = RETRY_S
            except Exception:
                _log.exception("recordings cannot be shared")
                wait_s = RETRY_S
            if closing and (wait_s != 0 or work == self._follower.follow):
                return
            if wait_s != 0:
                wake.wait(wait_s)

    def _let_go(self, recording: Recording) -> float:
        """0 when nobody anywhere reads it, else how long it has at least."""
        try:
            return self._publisher.let_go(recording)
        except StoreUnavailableError as error:
            self._note_away(error)
            return 0.0  # nobody else can read it either

    def _note_away(self, error: StoreUnavailableError) -> None:
        if not self._away:
            self._away = True
            detail = str(error.__cause__ or error)[:200]
            _log.warning(
                "recordings are not shared while Redis is away", extra={"fields": {"detail": detail}}
            )
