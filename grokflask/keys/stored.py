"""A stored key and how it is shown. Of its secrets it has only hints. No IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from grokflask.keys.limits import KeyLimits
from grokflask.times import to_iso

Status = Literal["active", "expired", "revoked"]


class StoredSecret(NamedTuple):
    """A secret. Times are epoch seconds; without `expires_at` it lasts as long as its key."""

    hint: str
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is stored. Times are epoch seconds."""

    name: str
    limits: KeyLimits
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    secrets: tuple[StoredSecret, ...]
    """The newest first; expired ones stay for a while."""

    def find_status(self, now: float) -> Status:
        """Its status at `now`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def to_fields(self, now: float) -> dict[str, Any]:
        """The key as people and the admin API see it: times as ISO 8601, budgets in USD."""
        return {
            "name": self.name,
            "status": self.find_status(now),
            "hint": self.secrets[0].hint if self.secrets else None,
            "created_at": to_iso(self.created_at),
            "expires_at": to_iso(self.expires_at),
            "revoked_at": to_iso(self.revoked_at),
            **self.limits.to_fields(),
            "secrets": [
                {"hint": hint, "created_at": to_iso(made), "expires_at": to_iso(end)}
                for hint, made, end in self.secrets
            ],
        }


class FoundKey(NamedTuple):
    """The key that a secret belongs to."""

    key: StoredKey
    """Has only this secret in its `secrets`."""
    sha256: str
    """Hash of the secret in hex, as it is stored."""
    expires_at: float | None
    """The secret's own end, epoch seconds; None if it lasts as long as its key."""
    changes: int
    """The number of changes to any key by then."""
