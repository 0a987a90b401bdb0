"""Keys that were looked up in the database, cached for a moment by the SHA-256 of their secrets.

While the database is unreachable, cached keys keep working (unless a setting forbids it). An unknown one is
an error then: a key that could not be looked up may be valid.

While guesses are refused, the cache also holds the hashes of all secrets. One query a second at most tells
whether they have changed, so guesses cost no look-ups, and a right key passes; a new one within that second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from grokflask.config import Settings
from grokflask.errors import StoreUnavailableError
from grokflask.keys.store import KeyStore
from grokflask.keys.stored import FoundKey

CACHE_S = 5.0
"""Default of `key_cache_s`: changes and revocations take effect within this time in every worker."""

UNKNOWN_S = 1.0
"""Time for which an unknown secret is not looked up again: a new key works within it."""

MAX_REMEMBERED = 20_000
"""Known secrets, and separately as many unknown ones, so that guesses do not push out keys."""

LOOKUPS = 3
"""Concurrent look-ups. A flood of guesses waits here instead of using up the database's few connections,
which would look like an outage."""

WAIT_S = 2.0
"""Time limit for a look-up to begin, and for waiting on another caller's look-up of the same secret."""


class _Lookup(NamedTuple):
    """A look-up's result, and when the database was queried (epoch seconds)."""

    found: FoundKey | None
    asked_at: float


class KeyCache:
    """Looks keys up and caches them. Safe from any thread.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, store: KeyStore, settings: Settings, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._cache_s = settings.key_cache_s
        self._closed = settings.keys_outage == "closed"
        self._lock = threading.Lock()  # never held during a query
        self._known: dict[str, _Lookup] = {}
        self._unknown: dict[str, _Lookup] = {}
        self._changes = -1
        self._changes_at = 0.0  # when they were queried
        self._changes_lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(LOOKUPS)
        self._pending: dict[str, Future[_Lookup | None]] = {}
        self._hashes: frozenset[str] = frozenset()  # of all secrets, held while guesses are refused
        self._hashes_changes = -1
        self._hashes_at = 0.0  # when it was queried whether they have changed
        self._hashes_lock = threading.Lock()

    def has_seen(self, sha256: str) -> bool:
        """Whether a key with this secret was found before."""
        return sha256 in self._known

    def exists(self, sha256: str) -> bool:
        """Whether the database has this secret, without looking it up. Raises StoreUnavailableError."""
        if not self._hashes_lock.acquire(timeout=WAIT_S):
            raise StoreUnavailableError
        try:
            now = self._clock()
            if not 0 <= now - self._hashes_at < UNKNOWN_S:
                changes = self._store.count_changes()
                if changes != self._hashes_changes:
                    self._hashes = self._store.list_hashes()
                    self._hashes_changes = changes
                self._hashes_at = now
        finally:
            self._hashes_lock.release()
        return sha256 in self._hashes

    def find(self, sha256: str) -> FoundKey | None:
        """The key of this secret, or None. Raises StoreUnavailableError."""
        known = self._known.get(sha256)
        lookup = known or self._unknown.get(sha256)
        if lookup is not None and (self._is_fresh(lookup) or self._is_unchanged(lookup)):
            return lookup.found
        answer = self._ask(sha256)
        if answer is not None:
            return answer.found
        if known is None or self._closed:
            raise StoreUnavailableError
        return known.found

    def _is_fresh(self, lookup: _Lookup) -> bool:
        if self._closed and self._store.is_away:
            return False  # the cache must not be used; the database fails at once
        # A clock that was set back must not keep a revoked key alive.
        return 0 <= self._clock() - lookup.asked_at < (self._cache_s if lookup.found else UNKNOWN_S)

    def _is_unchanged(self, lookup: _Lookup) -> bool:
        """No key has changed since this one was looked up. One query answers that for all keys.

        With thousands of keys in use, nearly every request would look up its key again otherwise.
        """
        if lookup.found is None or not self._cache_s or (self._closed and self._store.is_away):
            return False
        if not self._knows_changes() and self._changes_lock.acquire(timeout=WAIT_S):
            try:
                if not self._knows_changes():  # no other thread has queried it meanwhile
                    asked_at = self._clock()
                    self._changes = self._store.count_changes()
                    self._changes_at = asked_at
            except StoreUnavailableError:
                return False
            finally:
                self._changes_lock.release()
        return self._knows_changes() and lookup.found.changes == self._changes

    def _knows_changes(self) -> bool:
        return 0 <= self._clock() - self._changes_at < self._cache_s

    def _ask(self, sha256: str) -> _Lookup | None:
        """The database's answer, None while it is unreachable. Callers with one secret share a query."""
        with self._lock:
            known = self._known.get(sha256) or self._unknown.get(sha256)
            if known is not None and self._is_fresh(known):
                return known  # it has just arrived
            pending = self._pending.get(sha256)
            if pending is None:
                mine = self._pending[sha256] = Future()
        if pending is not None:
            try:
                return pending.result(WAIT_S)
            except TimeoutError:
                return None
        answer = None
        try:
            answer = self._look_up(sha256)
        finally:
            with self._lock:
                del self._pending[sha256]
            mine.set_result(answer)
        return answer

    def _look_up(self, sha256: str) -> _Lookup | None:
        if not self._turns.acquire(timeout=WAIT_S):
            return None
        try:
            asked_at = self._clock()
            answer = _Lookup(self._store.find(sha256), asked_at)
        except StoreUnavailableError:
            return None
        finally:
            self._turns.release()
        self._remember(sha256, answer)
        return answer

    def _remember(self, sha256: str, lookup: _Lookup) -> None:
        memory = self._known if lookup.found else self._unknown
        with self._lock:
            for each in (self._known, self._unknown):
                each.pop(sha256, None)
            memory[sha256] = lookup
            while len(memory) > MAX_REMEMBERED:
                del memory[next(iter(memory))]
