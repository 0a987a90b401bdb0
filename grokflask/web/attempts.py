"""Wrong tokens and API keys: how many were sent, by address and in total.

The right one is never counted and always accepted, whatever was sent before it. After too many wrong ones, a
wrong one gets a 429 with its wait instead of a 401. The counts are in Redis, which all workers share, or else
in this worker's memory, which also takes over during an outage of Redis.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from typing import Any, Literal

from flask import current_app, g, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from grokflask.config import Settings
from grokflask.errors import RateLimitError
from grokflask.limits.request_storage import RequestStorage
from grokflask.web.addresses import group_address

Kind = Literal["admin token", "metrics token", "API key"]

LIMITS: dict[Kind, tuple[RateLimitItem, RateLimitItem]] = {
    "admin token": (RateLimitItemPerMinute(10, 15), RateLimitItemPerMinute(200, 15)),
    "metrics token": (RateLimitItemPerMinute(10, 15), RateLimitItemPerMinute(200, 15)),
    "API key": (RateLimitItemPerMinute(60), RateLimitItemPerMinute(1200)),
}
"""How many wrong ones an address may send, and all addresses together: an attacker may have many. The total
also bounds how many addresses are remembered."""

RETRY_S = 1.0
"""How long Redis is not used after an error, which may have taken 200 ms."""


class Attempts:
    """Counts wrong secrets of one kind, in the storage that counts requests."""

    def __init__(self, kind: Kind, storage: Storage) -> None:
        self._kind = kind
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(RequestStorage())
        self._retry_at = 0.0

    def find_refusal(self, address: str) -> RateLimitError | None:
        """The error for another wrong one from `address`, if there were too many."""
        for limit, scope in self._list_limits(address):
            if not self._ask("test", limit, scope):
                return self._explain(limit, scope)
        return None

    def count(self, address: str) -> None:
        """Counts a wrong one that was not refused."""
        for limit, scope in self._list_limits(address):
            self._ask("hit", limit, scope)

    def _list_limits(self, address: str) -> tuple[tuple[RateLimitItem, str], ...]:
        by_address, in_total = LIMITS[self._kind]
        return (by_address, f"{self._kind}:{address}"), (in_total, self._kind)

    def _ask(self, method: str, limit: RateLimitItem, scope: str) -> Any:
        if time.monotonic() >= self._retry_at:
            try:
                return getattr(self._shared, method)(limit, "grokflask-wrong", scope)
            except Exception:  # any store's error: then this worker counts for itself
                self._retry_at = time.monotonic() + RETRY_S
        return getattr(self._own, method)(limit, "grokflask-wrong", scope)

    def _explain(self, limit: RateLimitItem, scope: str) -> RateLimitError:
        reset_at = self._ask("get_window_stats", limit, scope).reset_time
        wait_s = max(1, math.ceil(reset_at - time.time()))
        wait = f"{wait_s} s" if wait_s < 120 else f"{math.ceil(wait_s / 60)} minutes"
        return RateLimitError(
            f"This {self._kind} is wrong, and so were too many before it. Try again in {wait}; the right one "
            "is accepted at any time.",
            headers={"Retry-After": str(wait_s)},
        )


def compare_tokens(token: str, other: str) -> bool:
    """Whether both are equal, compared in constant time."""
    digests = [hashlib.sha256(each.encode(errors="replace")).digest() for each in (token, other)]
    return hmac.compare_digest(*digests)


def is_admin_token(token: str | None) -> bool:
    """Whether `token` is the admin token."""
    settings: Settings = current_app.extensions["settings"]
    return bool(token and settings.admin_token) and compare_tokens(token or "", settings.admin_token or "")


def refuse_token(kind: Kind, token: str | None, log: logging.Logger, **more: str) -> None:
    """Counts and logs that the current request has a wrong token, or none. Raises RateLimitError."""
    if token is not None:  # a missing token is no guess
        attempts: Attempts = current_app.extensions["attempts"][kind]
        address = group_address(request.remote_addr or "")
        refusal = attempts.find_refusal(address)
        if refusal is not None:
            raise refusal
        attempts.count(address)
    fields = {"request_id": g.get("request_id"), "who": request.remote_addr, **more}
    log.warning("refused", extra={"fields": fields})
