"""Connections to Redis that give up soon and never retry, so that a limit cannot make a request hang."""

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
"""How long a request waits for a connection. A burst of a thousand requests keeps all of them busy for longer
than TIMEOUT_S, and that is not an outage: if Redis is unavailable, the requests with a connection notice."""


def open_pool(url: str) -> BlockingConnectionPool:
    """A pool for `url` that connects on first use. Connecting and each answer are limited to TIMEOUT_S."""
    return BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=WAIT_S,
        socket_connect_timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def prepare(client: Redis, folder: Path, *files: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
    """Returns a function that runs the Lua script made of these files of `folder`, joined in this order.

    That function raises StoreUnavailableError.
    """
    text = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in files)
    script = client.register_script(text)

    def run(keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return script(keys, args)
        except RedisError as error:
            raise StoreUnavailableError from error

    return run
