"""Recordings in Redis, where any worker finds them: a stream for each attempt, and who has which name.

All keys share one hash tag, so that a cluster keeps them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from grokflask.errors import StoreUnavailableError
from grokflask.replay.store import LEASE_S, Claimed, Entry, State
from grokflask.storage.redis import prepare

_SCRIPTS = Path(__file__).parent / "lua"

PREFIX = "{grokflask}:recording:"

BLOCK_MS = 100
"""How long a look for new entries waits for one; less than any step may take."""

ENTRIES = 64
"""As many of one stream are read at once."""


class RedisRecordings:
    """The recordings in one Redis. Every method waits no longer than its client does."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._run_claim = prepare(client, _SCRIPTS, "claim")
        self._run_publish = prepare(client, _SCRIPTS, "publish")
        self._run_abandon = prepare(client, _SCRIPTS, "abandon")

    def claim(
        self, name: str, fingerprint: str, id: str, request_id: str, worker: str, now: float
    ) -> Claimed:
        """As the protocol says."""
        reply = self._run_claim(
            (_name(name), _readers(name)),
            (repr(now), repr(now + LEASE_S), worker, fingerprint, id, request_id, _ms(LEASE_S)),
        )
        return Claimed(*(part.decode() for part in reply))

    def publish(self, name: str, id: str, state: State, ttl_s: float, entries: Sequence[Entry]) -> bool:
        """As the protocol says."""
        words = [word for entry in entries for word in entry]
        return bool(self._run_publish((_name(name), _stream(id)), (id, state, _ms(ttl_s), *words)))

    def abandon(self, name: str, id: str, now: float) -> bool:
        """As the protocol says."""
        return bool(self._run_abandon((_name(name), _readers(name)), (id, repr(now))))

    def count_readers(self, name: str, now: float) -> int:
        """As the protocol says."""
        try:
            count: Any = self._client.zcount(_readers(name), repr(now), "+inf")
        except RedisError as error:
            raise StoreUnavailableError from error
        return int(count)

    def attend(self, name: str, worker: str, until: float) -> None:
        """As the protocol says."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.zadd(_readers(name), {worker: until})
                pipeline.pexpire(_readers(name), _ms(LEASE_S))
                pipeline.execute()
        except RedisError as error:
            raise StoreUnavailableError from error

    def is_alive(self, name: str, id: str) -> bool:
        """As the protocol says."""
        try:
            found: Any = self._client.hget(_name(name), "id")
        except RedisError as error:
            raise StoreUnavailableError from error
        return found is not None and bytes(found).decode() == id

    def read(self, positions: Mapping[str, str], *, wait: bool = True) -> dict[str, list[Entry]]:
        """As the protocol says."""
        try:
            reply: Any = self._client.xread(
                {_stream(id): position for id, position in positions.items()},
                count=ENTRIES,
                block=BLOCK_MS if wait else None,
            )
        except RedisError as error:
            raise StoreUnavailableError from error
        found: dict[str, list[Entry]] = {}
        for stream, entries in reply or ():
            id = bytes(stream).decode().rpartition(":")[2]
            found[id] = [
                (bytes(entry).decode(), bytes(field).decode(), value)
                for entry, fields in entries
                for field, value in fields.items()
            ]
        return found

    def delete(self, name: str, id: str) -> None:
        """As the protocol says."""
        self._run_abandon((_name(name), _readers(name)), (id, "+inf"))
        try:
            self._client.delete(_stream(id))
        except RedisError as error:
            raise StoreUnavailableError from error


def _name(name: str) -> str:
    return f"{PREFIX}name:{name}"


def _readers(name: str) -> str:
    return f"{PREFIX}readers:{name}"


def _stream(id: str) -> str:
    return f"{PREFIX}stream:{id}"


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
