"""Wrong admin tokens, counted by all workers together."""

from __future__ import annotations

import pytest
from limits.storage import storage_from_string
from support.processes import RedisServer

from grokflask.errors import RateLimitError
from grokflask.limits.request_storage import RequestStorage
from grokflask.web.attempts import BY_ADDRESS, Attempts

TOKEN = "admin-token-0123456789"


def test_workers_count_together(redis_server: RedisServer) -> None:
    """What one of them has seen, the other knows; while Redis is away each counts for itself."""
    one, two = (Attempts(TOKEN, storage_from_string(redis_server.url)) for _ in range(2))  # type: ignore[arg-type]
    for number in range(BY_ADDRESS.amount):
        assert not (one, two)[number % 2].check("wrong", "10.0.0.1")
    for each in (one, two):
        with pytest.raises(RateLimitError, match="Try again in"):
            each.check(TOKEN, "10.0.0.1")
        assert each.check(TOKEN, "10.0.0.2")
    redis_server.kill()
    for _ in range(BY_ADDRESS.amount):
        assert not two.check("wrong", "10.0.0.3")
    with pytest.raises(RateLimitError):
        two.check("wrong", "10.0.0.3")


def test_the_wait_ends() -> None:
    """After the window has passed the address may try again."""
    now = 1_000_000.0
    storage = RequestStorage(clock=lambda: now)
    attempts = Attempts(TOKEN, storage)
    for _ in range(BY_ADDRESS.amount):
        attempts.check("wrong", "10.0.0.1")
    with pytest.raises(RateLimitError) as refused:
        attempts.check(TOKEN, "10.0.0.1")
    assert int(refused.value.headers["Retry-After"]) >= 1
    now += 2 * BY_ADDRESS.get_expiry()
    assert attempts.check(TOKEN, "10.0.0.1")
