"""The protocol of a place where several workers keep their recordings: `redis_recordings` is one. No IO.

An attempt's worker holds its name by a lease, and renews it with what it publishes; when that worker dies,
the name is free a few seconds later. An entry's id says where in the answer it belongs, so publishing twice
does no harm. What is in there are answers, never requests: of these there is only a digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

LEASE_S = 6.0
"""How long a worker that does not renew what it holds counts as alive."""

State = Literal["running", "ended", "failed", "unkept"]
Entry = tuple[str, str, bytes]
"""Its id, its field, its value."""


class Claimed(NamedTuple):
    """What there is under a name.

    Attributes:
        kind: "new" belongs to who asked; "found" is there and may be read; "gone", there is nothing;
            "reused", it is another request's; "in use", it runs and is not kept.
        id: of the attempt that was found.
        request_id: of its request.
    """

    kind: str
    id: str = ""
    request_id: str = ""


class RecordingStore(Protocol):
    """Every method raises StoreUnavailableError, and waits no longer than a stated time. Times are epoch."""

    def claim(
        self, name: str, fingerprint: str, id: str, request_id: str, worker: str, now: float
    ) -> Claimed:
        """Takes the name for a new attempt, or finds the one that has it. Without an id only finds."""

    def publish(self, name: str, id: str, state: State, ttl_s: float, entries: Sequence[Entry]) -> bool:
        """Adds to an attempt and keeps it for `ttl_s`; False when it has lost its name."""

    def abandon(self, name: str, id: str, now: float) -> bool:
        """Frees the name, unless another worker has readers of it; then False."""

    def count_readers(self, name: str, now: float) -> int:
        """How many other workers have readers of it."""

    def attend(self, name: str, worker: str, until: float) -> None:
        """The worker counts as having readers of it so long, for LEASE_S at the most."""

    def is_alive(self, name: str, id: str) -> bool:
        """The name is still this attempt's."""

    def read(self, positions: Mapping[str, str], *, wait: bool = True) -> dict[str, list[Entry]]:
        """What attempts have behind these entries, by their ids; waits a moment where none has anything."""

    def delete(self, name: str, id: str) -> None:
        """Forgets an attempt that has ended."""
