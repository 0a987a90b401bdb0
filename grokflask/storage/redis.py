"""Connections to Redis that give up soon and never retry: a limit must not make a request hang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redis import BlockingConnectionPool, Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from grokflask.errors import StoreUnavailableError

TIMEOUT_S = 0.2
CONNECTIONS = 32

WAIT_S = 2.0
"""How long a request waits for one of the connections. A burst of a thousand has them all in use for longer
than a step may take, and is no outage: if Redis is away, those that have a connection will find out."""


def open_pool(url: str) -> BlockingConnectionPool:
    """A pool for `url` that connects when it is first used. No step of it takes longer than TIMEOUT_S."""
    return BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=WAIT_S,
        socket_connect_timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def prepare(client: Redis, folder: Path, *files: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
    """A function that runs the Lua script made of these files of `folder`, joined in this order.

    The function raises StoreUnavailableError.
    """
    text = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in files)
    script = client.register_script(text)

    def run(keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return script(keys, args)
        except RedisError as error:
            raise StoreUnavailableError from error

    return run
