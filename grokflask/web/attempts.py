"""The admin token: who has it, and how many wrong ones were tried, by address and in total.

The counts are where requests are counted: in Redis, which all workers share, or else in this worker's memory,
which also takes over during an outage of Redis.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import threading
import time
from collections import OrderedDict
from typing import Any

from flask import current_app, g, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from grokflask.errors import RateLimitError
from grokflask.limits.request_storage import RequestStorage

BY_ADDRESS = RateLimitItemPerMinute(10, 15, namespace="grokflask-logins")
IN_TOTAL = RateLimitItemPerMinute(200, 15, namespace="grokflask-logins")
"""Because an attacker may have many addresses; with IPv6, any number."""

MAX_TRUSTED = 1000
"""Addresses that have sent the right token are exempt from the total, so that guesses from elsewhere cannot
lock the operator out."""


class Attempts:
    """Counts tokens that are not `token`, in the storage that counts requests."""

    def __init__(self, token: str, storage: Storage) -> None:
        self._token = token
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(RequestStorage())
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, token: str, address: str) -> bool:
        """Whether `token`, sent from `address`, is the right one.

        Raises RateLimitError after too many wrong ones, whatever the token is.
        """
        limits: list[tuple[RateLimitItem, str]] = [(BY_ADDRESS, f"address:{address}")]
        if address not in self._trusted:
            limits.append((IN_TOTAL, "all"))
        for limit, scope in limits:
            if not self._ask("test", limit, scope):
                raise self._explain(limit, scope)
        if compare_tokens(token, self._token):
            with self._lock:
                self._trusted[address] = None
                self._trusted.move_to_end(address)
                if len(self._trusted) > MAX_TRUSTED:
                    self._trusted.popitem(last=False)
            return True
        for limit, scope in limits:
            self._ask("hit", limit, scope)
        return False

    def _ask(self, method: str, limit: RateLimitItem, scope: str) -> Any:
        try:
            return getattr(self._shared, method)(limit, scope)
        except Exception:  # any store's error: then this worker counts for itself
            return getattr(self._own, method)(limit, scope)

    def _explain(self, limit: RateLimitItem, scope: str) -> RateLimitError:
        reset_at = self._ask("get_window_stats", limit, scope).reset_time
        wait_s = max(1, math.ceil(reset_at - time.time()))
        wait = f"{wait_s} s" if wait_s < 120 else f"{math.ceil(wait_s / 60)} minutes"
        return RateLimitError(
            f"Too many wrong admin tokens. Try again in {wait}.", headers={"Retry-After": str(wait_s)}
        )


def compare_tokens(token: str, other: str) -> bool:
    """Whether both are equal, compared in constant time."""
    digests = [hashlib.sha256(each.encode(errors="replace")).digest() for each in (token, other)]
    return hmac.compare_digest(*digests)


def is_admin_token(token: str | None) -> bool:
    """Whether the current request's `token` is the admin token. Raises RateLimitError."""
    attempts: Attempts | None = current_app.extensions.get("attempts")
    if token is None or attempts is None:
        return False
    return attempts.check(token, request.remote_addr or "unknown")


def log_refusal(log: logging.Logger, **more: str) -> None:
    """Logs that the current request had a wrong token, or none."""
    fields = {"request_id": g.get("request_id"), "who": request.remote_addr, **more}
    log.warning("refused", extra={"fields": fields})
