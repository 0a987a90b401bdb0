"""Wrong admin tokens, counted: guessing is slowed down by address and over all, in all workers together.

The counts are where requests are counted: in Redis when there is one, else in this worker's memory, which
also stands in while Redis is away.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from grokflask.errors import RateLimitError
from grokflask.limits.request_storage import RequestStorage

BY_ADDRESS = RateLimitItemPerMinute(10, 15, namespace="grokflask-logins")
OVER_ALL = RateLimitItemPerMinute(200, 15, namespace="grokflask-logins")
"""An attacker has many addresses, and one of IPv6 as many as it likes."""

MAX_KNOWN = 1000
"""Addresses that have had the right token, to which the limit over all does not apply: guesses from elsewhere
are no way to lock the operator out."""

T = TypeVar("T")


class Attempts:
    """The wrong tokens that were tried.

    Args:
        token: the right one.
        storage: where requests are counted.
    """

    def __init__(self, token: str, storage: Storage) -> None:
        self._right = _digest(token)
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(RequestStorage())
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, token: str, address: str) -> bool:
        """`token`, sent from `address`, is the right one; it is compared in constant time.

        Raises RateLimitError, whatever the token, when too many were wrong.
        """
        limits = self._find_limits(address)
        for limit, scope in limits:
            if not self._ask(partial(_test, limit, scope)):
                raise self._explain(limit, scope)
        if hmac.compare_digest(_digest(token), self._right):
            self._remember(address)
            return True
        for limit, scope in limits:
            self._ask(partial(_hit, limit, scope))
        return False

    def _find_limits(self, address: str) -> list[tuple[RateLimitItem, str]]:
        own: tuple[RateLimitItem, str] = (BY_ADDRESS, f"address:{address}")
        return [own] if address in self._known else [own, (OVER_ALL, "all")]

    def _ask(self, step: Callable[[SlidingWindowCounterRateLimiter], T]) -> T:
        try:
            return step(self._shared)
        except Exception:  # any store's error: then this worker counts for itself
            return step(self._own)

    def _explain(self, limit: RateLimitItem, scope: str) -> RateLimitError:
        reset_at = self._ask(lambda limiter: limiter.get_window_stats(limit, scope)).reset_time
        wait_s = max(1, math.ceil(reset_at - time.time()))
        wait = f"{wait_s} s" if wait_s < 120 else f"{math.ceil(wait_s / 60)} minutes"
        return RateLimitError(
            f"Too many wrong admin tokens. Try again in {wait}.", headers={"Retry-After": str(wait_s)}
        )

    def _remember(self, address: str) -> None:
        with self._lock:
            self._known[address] = None
            self._known.move_to_end(address)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)


def _test(limit: RateLimitItem, scope: str, limiter: SlidingWindowCounterRateLimiter) -> bool:
    return limiter.test(limit, scope)


def _hit(limit: RateLimitItem, scope: str, limiter: SlidingWindowCounterRateLimiter) -> bool:
    return limiter.hit(limit, scope)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
