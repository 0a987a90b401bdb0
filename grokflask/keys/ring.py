"""Authentication: a bearer token becomes an ApiKey, or an error.

There are three modes. `keys`: the token must be a key of this gateway, and the server's xAI key goes
upstream. `passthrough`: the token is the client's own xAI key and goes upstream. `open`: every caller is
accepted.

Keys of GROKFLASK_KEYS are in memory; others are in the database, behind a cache. Wrong keys are counted by
address. After too many, an unknown key from there is looked up only if the cache says that it exists.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from grokflask.config import Settings
from grokflask.errors import (
    AuthenticationError,
    KeyExpiredError,
    KeyRevokedError,
    RateLimitError,
)
from grokflask.keys.cache import KeyCache
from grokflask.keys.limits import KeyLimits
from grokflask.keys.store import KeyStore, hash_secret

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
        upstream_key: sent upstream instead of the settings' xAI key, unless None.
    """

    def __init__(
        self,
        settings: Settings,
        store: KeyStore | None = None,
        clock: Callable[[], float] = time.time,
        upstream_key: str | None = None,
    ) -> None:
        self._mode = settings.auth_mode
        self._upstream_key = upstream_key or settings.xai_api_key
        self._names = {hash_secret(secret): name for name, secret in settings.keys}
        self._cache = KeyCache(store, settings, clock) if store else None
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
        cache, guesses = self._cache, self.guesses
        if guesses and not (cache and cache.has_seen(sha256)):
            refusal = guesses.find_refusal(address)
            if refusal and not (cache and cache.exists(sha256)):
                raise refusal
        found = cache.find(sha256) if cache else None
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
