"""Authentication: a bearer token becomes an ApiKey, or an error.

There are three modes. `keys`: the token must be a key of this gateway, and the server's xAI key goes
upstream. `passthrough`: the token is the client's own xAI key and goes upstream. `open`: every caller is
accepted.

Keys of GROKFLASK_KEYS are in memory; others are looked up in the database and cached for a moment. While the
database is unreachable, cached keys keep working (unless a setting forbids it) and unknown ones get a 503,
never a 401: a key that could not be looked up may be valid.

Wrong keys are counted by address. After too many, an unknown key from there is looked up only if it is among
the hashes of all keys, which the worker then holds: one query a second at most tells whether they have
changed. So guesses cost no look-ups, and a right key always passes; a new one within that second.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from grokflask.config import Settings
from grokflask.errors import (
    AuthenticationError,
    KeyExpiredError,
    KeyRevokedError,
    RateLimitError,
    StoreUnavailableError,
)
from grokflask.keys.limits import KeyLimits
from grokflask.keys.store import KeyStore, hash_secret
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

_BEARER = re.compile(r"(?i:bearer) +([\x21-\x7e]{1,512}) *")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller."""

    name: str
    """For logs and the ledger; never a secret."""
    limit_id: str
    """The id under which requests, tokens and streams are counted. Never empty."""
    upstream_key: str | None = field(repr=False)
    """Sent to xAI as bearer token; None sends none."""
    limits: KeyLimits = field(default_factory=KeyLimits)
    version: str = field(default="", repr=False)
    """Distinguishes keys that had the same name at different times."""

    @property
    def owner(self) -> str:
        """A stable, non-secret id that records which key owns an upstream object.

        It survives a rotation. A new key under an old name gets another one.
        """
        return hashlib.sha256(f"{self.limit_id}\n{self.version}".encode()).hexdigest()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts to cut out of upstream's messages."""
        return (self.upstream_key,) if self.upstream_key else ()


class _Lookup(NamedTuple):
    """A look-up's result, and when the database was queried (epoch seconds)."""

    found: FoundKey | None
    asked_at: float


class Guesses(Protocol):
    """Counts wrong keys by the address that sent them."""

    def find_refusal(self, address: str) -> RateLimitError | None:
        """The error for another wrong key from `address`, if there were too many."""

    def count(self, address: str) -> None:
        """Counts a wrong key from `address`."""


class KeyRing:
    """The keys that this gateway accepts. Only their SHA-256 is held.

    Args:
        store: the keys in the database; None accepts those of the settings only.
        clock: epoch seconds.
    """

    def __init__(
        self, settings: Settings, store: KeyStore | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._mode = settings.auth_mode
        self._upstream_key = settings.xai_api_key
        self._names = {hash_secret(secret): name for name, secret in settings.keys}
        self._memory = _Memory(store, settings, clock) if store else None
        self._clock = clock
        #: Every caller is accepted.
        self.is_open = settings.auth_mode == "open"
        #: None counts no wrong keys.
        self.guesses: Guesses | None = None

    def authenticate(self, authorization: str | None, address: str) -> ApiKey:
        """The caller who sent this `Authorization` header from `address`.

        Raises AuthenticationError, KeyRevokedError, KeyExpiredError, RateLimitError after too many wrong keys
        from this address, or StoreUnavailableError if the key cannot be looked up.
        """
        if self.is_open:
            return ApiKey("open", f"address:{address}", self._upstream_key)
        secret = read_bearer(authorization)
        if secret is None:
            raise AuthenticationError(
                "No API key: send one as 'Authorization: Bearer <key>'." if not authorization else None
            )
        sha256 = hash_secret(secret)
        if self._mode == "passthrough":
            # The hash separates callers in limits and logs without revealing the key.
            name = f"xai-{sha256[:12]}"
            return ApiKey(name, name, secret, version=sha256)
        name = self._find_name(sha256)
        if not name:
            return self._find_stored(sha256, address)
        return ApiKey(name, f"key:{name}", self._upstream_key, version=sha256)

    def _find_name(self, sha256: str) -> str:
        """The name of the key of GROKFLASK_KEYS whose secret has this SHA-256, or "".

        Compares with every key in constant time, so that the duration reveals nothing.
        """
        match = ""
        for known, name in self._names.items():
            if hmac.compare_digest(known, sha256):
                match = name
        return match

    def _find_stored(self, sha256: str, address: str) -> ApiKey:
        """The key in the database with this secret, if it is valid now."""
        memory, guesses = self._memory, self.guesses
        if guesses and not (memory and memory.has_seen(sha256)):
            refusal = guesses.find_refusal(address)
            if refusal and not (memory and memory.exists(sha256)):
                raise refusal
        found = memory.find(sha256) if memory else None
        if found is None or not hmac.compare_digest(found.sha256, sha256):
            if guesses:
                guesses.count(address)
            raise AuthenticationError
        key, now = found.key, self._clock()
        if key.revoked_at is not None:
            raise KeyRevokedError
        if any(end is not None and end <= now for end in (key.expires_at, found.expires_at)):
            raise KeyExpiredError
        return ApiKey(key.name, f"key:{key.name}", self._upstream_key, key.limits, str(key.created_at))


def read_bearer(authorization: str | None) -> str | None:
    """The token in an `Authorization` header, or None."""
    match = _BEARER.fullmatch(authorization or "")
    return match[1] if match else None


class _Memory:
    """Caches look-ups by the secret's SHA-256. Safe from any thread."""

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
