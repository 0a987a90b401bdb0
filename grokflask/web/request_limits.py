"""CORS and Flask-Limiter, which counts each key's requests before anything else is done for them.

The counts are in memory, or in Redis if there is one. If Redis fails, Flask-Limiter counts in this worker's
memory, tries Redis again after 1, 2, 4 … 32 s, and returns to it. This module logs and counts these outages.
"""

from __future__ import annotations

import logging
import math
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flask import Flask, Response
from flask_cors import CORS
from limits import RateLimitItem, parse_many
from limits.storage.base import SlidingWindowCounterSupport

from grokflask.config import Settings
from grokflask.errors import GrokflaskError, RateLimitError, StoreUnavailableError
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey
from grokflask.limits.request_storage import RequestStorage
from grokflask.protocol.routes import Route
from grokflask.web.current import Notes, get_notes
from grokflask.web.shortcuts import DirectLimiter

if TYPE_CHECKING:
    from redis import ConnectionPool

EXPOSED_HEADERS = """
    X-Request-ID X-Upstream-Request-ID Retry-After X-Stream-Fallback X-Params-Dropped X-RateLimit-Limit
    X-RateLimit-Remaining X-RateLimit-Reset X-Grokflask-Upstream X-RateLimit-Limit-Tokens
    X-RateLimit-Remaining-Tokens Idempotent-Replayed X-Model-Served X-Output-Cap
""".split()
"""Response headers that scripts of other origins may read."""

KEY_PREFIX = "grokflask"
HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

_log = logging.getLogger("grokflask.limits")


class _Window(NamedTuple):
    """One limit of one key, and the name under which the storage counts it."""

    limit: RateLimitItem
    scope: tuple[str, ...]
    name: str


class RequestLimiter(DirectLimiter):
    """Counts each request against the limit of its key.

    Args:
        pool: connections to Redis; None counts in memory.
    """

    def __init__(self, app: Flask, settings: Settings, pool: ConnectionPool | None) -> None:
        self._outage_policy = settings.requests_outage
        self._default_rate = settings.rate_limit
        self._redis_pool = pool
        self._was_local = False
        self.outages = 0  # of Redis, since the start
        options: dict[str, Any] = {"connection_pool": pool} if pool else {}
        super().__init__(
            key_func=lambda: get_notes().api_key.limit_id,  # never empty, which would skip the limit
            app=app,
            application_limits=[self._find_current_limit],
            application_limits_exempt_when=self._is_exempt,
            storage_uri=settings.redis_url or f"{RequestStorage.STORAGE_SCHEME[0]}://",
            storage_options=options,
            # Constant memory for any limit, and no double allowance where two windows meet.
            strategy="sliding-window-counter",
            in_memory_fallback_enabled=pool is not None,
            key_prefix=KEY_PREFIX,
            # Its own headers would cost a second look-up and put Retry-After on every answer.
            headers_enabled=False,
        )
        logging.getLogger("flask-limiter").setLevel(logging.ERROR)  # `watch` logs outages, once each

    @property
    def store(self) -> str:
        """Where requests are counted now: "memory", "redis", or "local" during an outage of Redis."""
        if self._redis_pool is None:
            return "memory"
        return "redis" if self.limiter.storage is self.storage else "local"

    def count_request(self) -> None:
        """Counts the current request. Raises RateLimitError if a limit has no room for it."""
        notes = get_notes()
        if not _is_counted(notes):
            return
        key: ApiKey = notes.api_key
        windows = _find_windows(self.find_limit(key.limits), key.limit_id)
        # As the library's strategy does, but without building the window's name for each request.
        hit = cast(SlidingWindowCounterSupport, self.storage).acquire_sliding_window_entry
        for window in windows:
            if not hit(window.name, window.limit.amount, window.limit.get_expiry()):
                notes.window = window
                raise self.explain()
        notes.window = windows[0]

    def check_outage(self) -> None:
        """Raises StoreUnavailableError if requests must not pass while each worker counts for itself."""
        if self._must_refuse() and self._find_current_window(get_notes()) is not None:
            raise StoreUnavailableError

    def _must_refuse(self) -> bool:
        return self._outage_policy == "closed" and self.store == "local"

    def _is_exempt(self) -> bool:
        return not _is_counted(get_notes()) or (self._outage_policy == "open" and self.store == "local")

    def _find_current_limit(self) -> str:
        # The library also asks for requests that are exempt; they may have no key.
        key: ApiKey | None = get_notes().get("api_key")
        return self.find_limit(key.limits) if key else self._default_rate

    def find_limit(self, limits: KeyLimits) -> str:
        """A key's requests per window: its own limit, or the default."""
        return limits.requests or self._default_rate

    def count_left(self, key: ApiKey) -> int | None:
        """How many requests `key` may make now; None if the storage has just failed."""
        windows = _find_windows(self.find_limit(key.limits), key.limit_id)
        try:
            return min(self.limiter.get_window_stats(each.limit, *each.scope).remaining for each in windows)
        except Exception:  # any store's error
            return None

    def watch(self) -> None:
        """Logs and counts a change between Redis and the worker's memory."""
        is_local = self.store == "local"
        if is_local == self._was_local:
            return
        self._was_local = is_local
        if is_local:
            self.outages += 1
            fields = {"requests": self._outage_policy, "outages": self.outages, "detail": self._ping()}
            _log.error("Redis is unreachable: requests follow their outage setting", extra={"fields": fields})
        else:
            _log.warning(
                "Redis is reachable again: requests are counted there", extra={"fields": {"store": "redis"}}
            )

    def _ping(self) -> str | None:
        """The error of Redis or of the connection, which Flask-Limiter does not report; None if it works."""
        from redis import Redis, RedisError

        try:
            Redis(connection_pool=self._redis_pool).ping()
        except RedisError as error:
            return f"{type(error).__name__}: {error}"[:200]
        return None

    def explain(self) -> GrokflaskError:
        """The error for the current request, which is over a limit."""
        if self._must_refuse():
            return StoreUnavailableError()
        window = self._find_current_window(get_notes())
        if window is None:
            return RateLimitError()
        reset_at, _ = self._read_window(window)
        wait_s = max(1, math.ceil(reset_at - time.time()))
        return RateLimitError(
            f"Too many requests: the limit is {window.limit}. Try again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )

    def add_headers(self, response: Response, notes: Notes) -> None:
        """Adds the key's limit, what is left of it, and when it resets (UTC, epoch seconds).

        An error from upstream keeps upstream's own values.
        """
        window = self._find_current_window(notes)
        if window is None or (response.status_code >= 400 and HEADERS[0] in response.headers):
            return
        reset_at, remaining = self._read_window(window)
        values = (window.limit.amount, remaining, math.ceil(reset_at))
        for name, value in zip(HEADERS, values, strict=True):
            response.headers[name] = str(value)

    def _find_current_window(self, notes: Notes) -> _Window | None:
        """The window that refused the current request, or else the shortest of those that counted it."""
        window: _Window | None = notes.get("window")
        if window is None and (limit := self.current_limit) is not None:  # counted by the library's code
            window = _Window(limit.limit, tuple(limit.request_args), limit.key)
        return window

    def _read_window(self, window: _Window) -> tuple[float, int]:
        """When the limit resets, and how many requests are left; a guess if the storage has just failed."""
        try:
            stats = self.limiter.get_window_stats(window.limit, *window.scope)
            return stats.reset_time, stats.remaining
        except Exception as error:  # any store's error: a header is not worth a failed request
            _log.warning("the rate limit's state cannot be read", extra={"fields": {"error": repr(error)}})
            return time.time() + window.limit.get_expiry(), 0


def _is_counted(notes: Notes) -> bool:
    """Requests that go upstream count against the limit of their key."""
    route: Route | None = notes.get("route")
    return route is not None and bool(route.upstream_path)


@lru_cache(maxsize=20_000)
def _find_windows(text: str, key: str) -> tuple[_Window, ...]:
    """The windows of a key for limits such as "5/second;100/hour", the shortest first."""
    scope = (KEY_PREFIX, key, "global")  # as the library names the limits of a whole application
    return tuple(_Window(limit, scope, limit.key_for(*scope)) for limit in sorted(parse_many(text)))


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Lets pages of these origins call the API. Keys are sent in a header, never in cookies."""
    # Patterns with an end, because flask-cors reads the dots of a plain string as "any character".
    patterns = [re.compile(re.escape(origin) + r"\Z") for origin in origins]
    CORS(
        app,
        resources={r"/(api/)?v1/.*": {"origins": "*" if origins == ("*",) else patterns}},
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )
