"""Flask extensions, set up: flask-cors, and flask-limiter, which counts a caller's requests at admission.

The count lives in memory, or in Redis when there is one. When Redis goes away, flask-limiter counts in
this worker's memory instead, tries Redis again after 1, 2, 4 … 32 s, and goes back to it. This module
watches that, logs each change and counts the outages.
"""

from __future__ import annotations

import logging
import math
import re
import time
from typing import Any

from flask import Flask, Response, g, request
from flask_cors import CORS
from flask_limiter import Limiter, RequestLimit
from redis import BlockingConnectionPool, Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from grokflask.config import Settings
from grokflask.errors import RateLimitError

STORE_TIMEOUT_S = 0.2
STORE_CONNECTIONS = 32
EXPOSED_HEADERS = [
    *("X-Request-ID", "X-Upstream-Request-ID", "Retry-After", "X-Stream-Fallback", "X-Params-Dropped"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Grokflask-Upstream"),
]
"""What a page's script may read of a response."""

HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

_log = logging.getLogger("grokflask.limits")


class RequestLimiter:
    """Counts requests for one app. `blueprints` are the names of those it counts.

    Attributes:
        outages: how often Redis has gone away since the start.
    """

    def __init__(self, app: Flask, settings: Settings, blueprints: frozenset[str]) -> None:
        self._in_redis = settings.redis_url is not None
        self._was_away = False
        self.outages = 0
        self._pool = _open_pool(settings.redis_url) if settings.redis_url else None
        options: dict[str, Any] = {"connection_pool": self._pool} if self._pool else {}
        self._limiter = Limiter(
            key_func=lambda: g.limit_id,
            app=app,
            application_limits=[settings.rate_limit],
            application_limits_exempt_when=lambda: (
                request.blueprint not in blueprints or request.method == "OPTIONS"
            ),
            storage_uri=settings.redis_url or "memory://",
            storage_options=options,
            # Constant memory for any limit, and no double allowance where two windows meet.
            strategy="sliding-window-counter",
            in_memory_fallback_enabled=self._in_redis,
            key_prefix="grokflask",
            # Its own headers would cost a second look-up and put Retry-After on every answer.
            headers_enabled=False,
        )
        logging.getLogger("flask-limiter").setLevel(logging.ERROR)  # `watch` says the same, once

    @property
    def store(self) -> str:
        """Where requests are counted right now: "memory", "redis", or "local" while Redis is away."""
        if not self._in_redis:
            return "memory"
        return "local" if self._limiter.limiter.storage is not self._limiter.storage else "redis"

    def watch(self) -> None:
        """Logs and counts a change between Redis and the worker's memory."""
        away = self.store == "local"
        if away == self._was_away:
            return
        self._was_away = away
        if away:
            self.outages += 1
            _log.error(
                "Redis is away: each worker counts requests by itself",
                extra={"fields": {"store": "local", "outages": self.outages, "detail": self._ask_why()}},
            )
        else:
            _log.warning(
                "Redis is back: requests are counted there again", extra={"fields": {"store": "redis"}}
            )

    def _ask_why(self) -> str | None:
        """What Redis, or the way there, says now; flask-limiter does not tell. Once for each outage."""
        try:
            Redis(connection_pool=self._pool).ping()
        except RedisError as error:
            return f"{type(error).__name__}: {error}"[:200]
        return None

    def explain(self) -> RateLimitError:
        """The error for a request that has just been turned away."""
        limit = self._limiter.current_limit
        if limit is None:
            return RateLimitError()
        reset_at, _ = self._read_window(limit)
        wait_s = max(1, math.ceil(reset_at - time.time()))
        return RateLimitError(
            f"Too many requests: the limit is {limit.limit}. Try again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )

    def add_headers(self, response: Response) -> None:
        """The caller's limit, what is left of it, and when (UTC epoch seconds) more is to be had.

        An error that came from upstream keeps upstream's own figures.
        """
        limit = self._limiter.current_limit
        if limit is None or (response.status_code >= 400 and HEADERS[0] in response.headers):
            return
        reset_at, remaining = self._read_window(limit)
        figures = (limit.limit.amount, remaining, math.ceil(reset_at))
        for name, figure in zip(HEADERS, figures, strict=True):
            response.headers[name] = str(figure)

    def _read_window(self, limit: RequestLimit) -> tuple[float, int]:
        """When the limit gives way, and how many requests are left; a guess when the store has just gone."""
        try:
            return limit.window.reset_time, limit.remaining
        except Exception as error:  # any store's error: a header is not worth a failed request
            _log.warning("the rate limit's state cannot be read", extra={"fields": {"error": repr(error)}})
            return time.time() + limit.limit.get_expiry(), 0


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Lets pages of these origins call the API from a browser. Keys come in a header, never in cookies."""
    # As patterns with an end: flask-cors would read the dots of a plain string as "any character".
    patterns = [re.compile(re.escape(origin) + r"\Z") for origin in origins]
    CORS(
        app,
        resources={r"/(api/)?v1/.*": {"origins": "*" if origins == ("*",) else patterns}},
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )


def _open_pool(url: str) -> BlockingConnectionPool:
    """Connections that give up soon and never retry: a limit must not make a request hang."""
    return BlockingConnectionPool.from_url(
        url,
        max_connections=STORE_CONNECTIONS,
        timeout=1,
        socket_connect_timeout=STORE_TIMEOUT_S,
        socket_timeout=STORE_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
