"""Who may call: a bearer token becomes an ApiKey, or an AuthenticationError.

Three modes. `keys`: the bearer must be a key of this gateway, and the server's xAI key goes upstream.
`passthrough`: the bearer is the client's own xAI key and goes upstream. `open`: anybody may call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from grokflask.config import Settings
from grokflask.errors import AuthenticationError

_BEARER = re.compile(r"(?i:bearer) +([\x21-\x7e]{1,512}) *")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who calls.

    Attributes:
        name: what logs say; never a secret.
        limit_id: what this caller's requests are counted under, None to count by address.
        upstream_key: sent to xAI as bearer, None to send none.
    """

    name: str
    limit_id: str | None
    upstream_key: str | None = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be cut out of upstream's messages."""
        return (self.upstream_key,) if self.upstream_key else ()


class KeyRing:
    """The keys that this gateway knows. Only their SHA-256 is held."""

    def __init__(self, settings: Settings) -> None:
        self._mode = settings.auth_mode
        self._upstream_key = settings.xai_api_key
        self._names = {_digest(secret): name for name, secret in settings.keys}

    def authenticate(self, authorization: str | None) -> ApiKey:
        """The holder of an `Authorization` header. Raises AuthenticationError."""
        if self._mode == "open":
            return ApiKey("open", None, self._upstream_key)
        match = _BEARER.fullmatch(authorization or "")
        if match is None:
            raise AuthenticationError(
                "No API key: send one as 'Authorization: Bearer <key>'." if not authorization else None
            )
        secret = match[1]
        if self._mode == "passthrough":
            # The hash keeps callers apart in limits and logs without telling the key.
            name = f"xai-{_digest(secret).hex()[:12]}"
            return ApiKey(name, name, secret)
        name = self._find(secret)
        return ApiKey(name, f"key:{name}", self._upstream_key)

    def _find(self, secret: str) -> str:
        """The name of the key with this secret.

        Secrets are compared by their SHA-256 and in constant time, over all keys: how long it takes says
        nothing about any of them.
        """
        asked = _digest(secret)
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, asked):
                found = name
        if found is None:
            raise AuthenticationError
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
