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
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flask import Flask, Response
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter._extension import LimiterContext
from limits import RateLimitItem, parse_many
from limits.storage import Storage
from limits.storage.base import SlidingWindowCounterSupport

from grokflask.config import Settings
from grokflask.errors import GrokflaskError, RateLimitError, StoreUnavailableError
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey
from grokflask.limits.request_storage import RequestStorage
from grokflask.web.current import get_notes

if TYPE_CHECKING:
    from redis import ConnectionPool

EXPOSED_HEADERS = [
    *("X-Request-ID", "X-Upstream-Request-ID", "Retry-After", "X-Stream-Fallback", "X-Params-Dropped"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Grokflask-Upstream"),
    *("X-RateLimit-Limit-Tokens", "X-RateLimit-Remaining-Tokens", "Idempotent-Replayed"),
    *("X-Model-Served",),
]
"""What a page's script may read of a response."""

PREFIX = "grokflask"
HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

_log = logging.getLogger("grokflask.limits")


class _Window(NamedTuple):
    """One limit of one key, and the name that its hits are stored under."""

    limit: RateLimitItem
    scope: tuple[str, ...]
    name: str


class _Limiter(Limiter):
    """flask-limiter's, for an app whose every request has the limits of its key and no other.

    To find out which limits of views, blueprints and scopes there might be besides costs more than the rest
    of an admission. So while the store works it is asked at once; anything else, as an outage and what comes
    of it, goes the library's own way.
    """

    find_windows: Callable[[], tuple[_Window, ...]]
    """Those of the current request, () when it is not counted."""

    explain: Callable[[], GrokflaskError]
    """Why it is refused."""

    def _check_request_limit(self, callable_name: str | None = None, in_middleware: bool = True) -> None:
        if self.limiter.storage is self.storage:
            try:
                breached = self._hit()
            except Exception:  # noqa: S110 - the store's: it comes again below, where it is dealt with
                pass
            else:
                if breached:
                    raise self.explain()
                return
        try:
            super()._check_request_limit(callable_name, in_middleware)
        except self.storage.base_exceptions:
            # Of several requests that find Redis gone at the same moment the first has all switched to
            # memory, and the others would raise.
            self.context.seen_limits.clear()  # as it does itself: nothing has been counted yet
            super()._check_request_limit(callable_name, in_middleware)

    def _hit(self) -> bool:
        """Counts the request; True where one limit has no room for it."""
        windows = self.find_windows()
        if not windows:
            return False
        notes = get_notes()
        # What the library's strategy does, without making the window's name anew for each request.
        hit = cast(SlidingWindowCounterSupport, self.storage).acquire_sliding_window_entry
        for window in windows:
            if not hit(window.name, window.limit.amount, window.limit.get_expiry()):
                notes.window = window
                return True
        notes.window = windows[0]
        return False

    @property
    def context(self) -> LimiterContext:
        """The library's notes about the current request, found without four looks through Flask's proxy."""
        notes = get_notes()
        if "limiter_context" not in notes:
            notes.limiter_context = LimiterContext()
        context: LimiterContext = notes.limiter_context
        return context


class RequestLimiter:
    """Counts requests for one app.

    Args:
        pool: the connections to Redis, None to count in memory.
        is_counted: whether the current request counts.

    Attributes:
        outages: how often Redis has gone away since the start.
    """

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        pool: ConnectionPool | None,
        is_counted: Callable[[], bool],
    ) -> None:
        self._in_redis = pool is not None
        self._policy = settings.requests_outage
        self._default = settings.rate_limit
        self._was_away = False
        self.outages = 0
        self._pool = pool
        options: dict[str, Any] = {"connection_pool": pool} if pool else {}
        self._is_counted = is_counted
        self._limiter = _Limiter(
            key_func=lambda: get_notes().api_key.limit_id,  # never empty, which would skip the limit
            app=app,
            application_limits=[self._find_current_limit],
            application_limits_exempt_when=lambda: (
                not is_counted() or (self._policy == "open" and self.store == "local")
            ),
            storage_uri=settings.redis_url or f"{RequestStorage.STORAGE_SCHEME[0]}://",
            storage_options=options,
            # Constant memory for any limit, and no double allowance where two windows meet.
            strategy="sliding-window-counter",
            in_memory_fallback_enabled=self._in_redis,
            key_prefix=PREFIX,
            # Its own headers would cost a second look-up and put Retry-After on every answer.
            headers_enabled=False,
        )
        self._limiter.find_windows = self._find_windows
        self._limiter.explain = self.explain
        logging.getLogger("flask-limiter").setLevel(logging.ERROR)  # `watch` says the same, once

    @property
    def storage(self) -> Storage:
        """Where requests are counted while it is there; what else is counted takes another prefix."""
        return self._limiter.storage

    @property
    def store(self) -> str:
        """Where requests are counted right now: "memory", "redis", or "local" while Redis is away."""
        if not self._in_redis:
            return "memory"
        return "local" if self._limiter.limiter.storage is not self._limiter.storage else "redis"

    def _find_current_limit(self) -> str:
        # flask-limiter asks for requests that are not counted, too; nobody may have called there.
        key: ApiKey | None = get_notes().get("api_key")
        return self.find_limit(key.limits) if key else self._default

    def _find_windows(self) -> tuple[_Window, ...]:
        if not self._is_counted():
            return ()
        key: ApiKey = get_notes().api_key
        return _find_windows(self.find_limit(key.limits), key.limit_id)

    def find_limit(self, limits: KeyLimits) -> str:
        """A key's requests per window: its own limit, or the default."""
        return limits.requests or self._default

    def count_left(self, key: ApiKey) -> int | None:
        """How many requests `key` may make now; None when the store has just gone."""
        limiter = self._limiter.limiter
        try:
            stats = [
                limiter.get_window_stats(window.limit, *window.scope)
                for window in _find_windows(self.find_limit(key.limits), key.limit_id)
            ]
        except Exception:  # any store's error
            return None
        return min(each.remaining for each in stats)

    def watch(self) -> None:
        """Logs and counts a change between Redis and the worker's memory."""
        away = self.store == "local"
        if away == self._was_away:
            return
        self._was_away = away
        if away:
            self.outages += 1
            fields = {"requests": self._policy, "outages": self.outages, "detail": self._ask_why()}
            _log.error("Redis is away: requests are limited as the settings say", extra={"fields": fields})
        else:
            _log.warning(
                "Redis is back: requests are counted there again", extra={"fields": {"store": "redis"}}
            )

    def _ask_why(self) -> str | None:
        """What Redis, or the way there, says now; flask-limiter does not tell. Once for each outage."""
        from redis import Redis, RedisError

        try:
            Redis(connection_pool=self._pool).ping()
        except RedisError as error:
            return f"{type(error).__name__}: {error}"[:200]
        return None

    def check_outage(self) -> None:
        """Raises StoreUnavailableError when requests may not pass uncounted by all workers together."""
        if self._must_refuse() and self._find_current() is not None:
            raise StoreUnavailableError

    def _must_refuse(self) -> bool:
        return self._policy == "closed" and self.store == "local"

    def explain(self) -> GrokflaskError:
        """The error for a request that has just been turned away."""
        if self._must_refuse():
            return StoreUnavailableError()
        window = self._find_current()
        if window is None:
            return RateLimitError()
        reset_at, _ = self._read_window(window)
        wait_s = max(1, math.ceil(reset_at - time.time()))
        return RateLimitError(
            f"Too many requests: the limit is {window.limit}. Try again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )

    def add_headers(self, response: Response) -> None:
        """The caller's limit, what is left of it, and when (UTC epoch seconds) more is to be had.

        An error that came from upstream keeps upstream's own figures.
        """
        window = self._find_current()
        if window is None or (response.status_code >= 400 and HEADERS[0] in response.headers):
            return
        reset_at, remaining = self._read_window(window)
        figures = (window.limit.amount, remaining, math.ceil(reset_at))
        for name, figure in zip(HEADERS, figures, strict=True):
            response.headers[name] = str(figure)

    def _find_current(self) -> _Window | None:
        """The window that stands against the current request, or the shortest that it was counted in."""
        window: _Window | None = get_notes().get("window")
        if window is None and (found := self._limiter.current_limit) is not None:  # the library's own way
            window = _Window(found.limit, tuple(found.request_args), found.key)
        return window

    def _read_window(self, window: _Window) -> tuple[float, int]:
        """When the limit gives way, and how many requests are left; a guess when the store has just gone."""
        try:
            stats = self._limiter.limiter.get_window_stats(window.limit, *window.scope)
            return stats.reset_time, stats.remaining
        except Exception as error:  # any store's error: a header is not worth a failed request
            _log.warning("the rate limit's state cannot be read", extra={"fields": {"error": repr(error)}})
            return time.time() + window.limit.get_expiry(), 0


@lru_cache(maxsize=20_000)
def _find_windows(text: str, key: str) -> tuple[_Window, ...]:
    """What a key's requests are counted in: the limits in `text`, as "5/second;100/hour", shortest first."""
    scope = (PREFIX, key, "global")  # as the library names the limits of a whole application
    return tuple(_Window(limit, scope, limit.key_for(*scope)) for limit in sorted(parse_many(text)))


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
