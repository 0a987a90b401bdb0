"""The recordings in Redis: a stream for each attempt, and a record of which attempt has which name.

It holds answers, never requests: of a request there is only a digest. All keys share one hash tag, so that a
cluster keeps them together. Publishing twice is harmless: an entry's id is its position in the answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from grokflask.errors import (
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    StoreUnavailableError,
    StreamGoneError,
)
from grokflask.replay.recording import LEASE_S, Entry, Recording
from grokflask.storage.redis import prepare

PREFIX = "{grokflask}:recording:2:"  #: 2 is the version of the format
BLOCK_MS = 100  #: how long `read` waits for new entries; less than the client's timeout
MAX_ENTRIES = 64  #: upper bound of what `read` returns of one stream

_SCRIPTS = Path(__file__).parent / "lua"
_REFUSALS = {
    b"reused": IdempotencyKeyReusedError,
    b"in use": IdempotencyKeyInUseError,
    b"gone": StreamGoneError,
}


class RedisRecordings:
    """The recordings in one Redis. Its methods raise StoreUnavailableError as soon as its client gives up."""

    def __init__(self, client: Redis, worker: Callable[[], str]) -> None:
        self._client = client
        self._worker = worker  # returns this process's name
        self._run_claim = prepare(client, _SCRIPTS, "claim")
        self._run_publish = prepare(client, _SCRIPTS, "publish")
        self._run_abandon = prepare(client, _SCRIPTS, "abandon")

    def claim(self, own: Recording, *, begin: bool) -> tuple[Recording, bool]:
        """`own`, if it has its name, else an empty copy of the attempt that does; True if `own` just took it.

        Raises IdempotencyKeyReusedError and IdempotencyKeyInUseError, and StreamGoneError if not to `begin`.
        """
        attempt = (own.id if begin else "", own.request_id, repr(own.grace_s))
        lease = (repr(time.time() + LEASE_S), _ms(LEASE_S))
        reply = self._run_claim(_keys(own.name), (self._worker(), *lease, own.fingerprint, *attempt))
        if reply[0] in _REFUSALS:
            raise _REFUSALS[reply[0]]
        id, request_id, grace_s, kind = (part.decode() for part in reply)
        if id == own.id:
            return own, kind == "taken"
        return Recording(id, id, own.fingerprint, request_id, float(grace_s), is_copy=True), False

    def publish(self, recording: Recording, state: str, ttl_s: float, entries: Sequence[Entry]) -> bool:
        """Appends to an attempt and keeps it for `ttl_s`; False if it has lost its name."""
        words = [word for position, kind, value in entries for word in (f"{position}-{kind}", value)]
        keys = _keys(recording.name, recording.id)
        return bool(self._run_publish(keys, (recording.id, state, _ms(ttl_s), *words)))

    def abandon(self, name: str, id: str, *, force: bool = False) -> bool:
        """Frees the name and deletes the attempt; False if another worker has a reader, unless `force`."""
        return bool(self._run_abandon(_keys(name, id), (id, repr(math.inf if force else time.time()))))

    def attend(self, name: str, id: str, until: float) -> bool:
        """Registers a reader until `until` (epoch seconds); False if the attempt has lost its name."""
        record, readers = _keys(name)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.zadd(readers, {self._worker(): until})
                pipeline.pexpire(readers, _ms(max(LEASE_S, until - time.time())))
                pipeline.hget(record, "id")
                *_, found = pipeline.execute()
        except RedisError as error:
            raise StoreUnavailableError from error
        return bool(found == id.encode())

    def read(self, places: Mapping[str, tuple[int, int]], *, wait: bool) -> dict[str, list[Entry]]:
        """The entries of these attempts behind a position and kind; may wait up to BLOCK_MS for the first."""
        streams = {_stream(id): f"{position}-{kind}" for id, (position, kind) in places.items()}
        try:
            reply: Any = self._client.xread(streams, MAX_ENTRIES, BLOCK_MS if wait else None)  # type: ignore[arg-type]
        except RedisError as error:
            raise StoreUnavailableError from error
        found: dict[str, list[Entry]] = {}
        for stream, entries in reply or ():
            attempt = found[stream.decode().rpartition(":")[2]] = []
            for id, fields in entries:
                position, kind = map(int, id.split(b"-"))
                attempt.append((position, kind, fields[b"v"]))
        return found


def _keys(name: str, id: str | None = None) -> tuple[str, ...]:
    """The keys of a name's record and of its readers; with an id, of the attempt's stream as well."""
    keys = (f"{PREFIX}name:{name}", f"{PREFIX}readers:{name}")
    return keys if id is None else (*keys, _stream(id))


def _stream(id: str) -> str:
    return f"{PREFIX}stream:{id}"


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
