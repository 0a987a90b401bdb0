"""Wrong tokens, counted by all workers together."""

from __future__ import annotations

from typing import Any

import pytest
from limits.storage import storage_from_string
from support.processes import RedisServer

from grokflask.limits.request_storage import RequestStorage
from grokflask.web.attempts import LIMITS, RETRY_S, Attempts

pytestmark = pytest.mark.usefixtures("standing_windows")

BY_ADDRESS = LIMITS["admin token"][0]


def guess(attempts: Attempts, address: str) -> bool:
    """Whether a wrong one from `address` is counted and not refused."""
    if attempts.find_refusal(address):
        return False
    attempts.count(address)
    return True


def test_workers_count_together(redis_server: RedisServer) -> None:
    """What one of them has seen, the other knows; while Redis is away each counts for itself."""
    one, two = (Attempts("admin token", storage_from_string(redis_server.url)) for _ in range(2))  # type: ignore[arg-type]
    for number in range(BY_ADDRESS.amount):
        assert guess((one, two)[number % 2], "10.0.0.1")
    for each in (one, two):
        refusal = each.find_refusal("10.0.0.1")
        assert refusal is not None
        assert "Try again in" in refusal.message
        assert each.find_refusal("10.0.0.2") is None
    redis_server.kill()
    assert [guess(two, "10.0.0.3") for _ in range(BY_ADDRESS.amount + 1)] == [True] * BY_ADDRESS.amount + [
        False
    ]


def test_an_outage_is_not_met_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the store is left alone for RETRY_S, because each error may take a while."""
    now = 1000.0
    monkeypatch.setattr("grokflask.web.attempts.time.monotonic", lambda: now)
    calls = 0

    class Broken(RequestStorage):
        def get_sliding_window(self, *_: Any) -> Any:
            nonlocal calls
            calls += 1
            raise ConnectionError

    attempts = Attempts("API key", Broken())
    for _ in range(10):
        assert guess(attempts, "10.0.0.1")
    assert calls == 1
    now += RETRY_S
    assert guess(attempts, "10.0.0.1")
    assert calls == 2


def test_the_wait_ends() -> None:
    """After the window has passed the address may try again."""
    now = 1_000_000.0
    attempts = Attempts("admin token", RequestStorage(clock=lambda: now))
    for _ in range(BY_ADDRESS.amount):
        assert guess(attempts, "10.0.0.1")
    refusal = attempts.find_refusal("10.0.0.1")
    assert refusal is not None
    assert int(refusal.headers["Retry-After"]) >= 1
    now += 2 * BY_ADDRESS.get_expiry()
    assert guess(attempts, "10.0.0.1")


@pytest.mark.parametrize("kind", LIMITS)
def test_memory_is_bounded(kind: Any) -> None:
    """However many addresses guess, no more are remembered than the total allows."""
    storage = RequestStorage(clock=lambda: 1_000_000.0)
    attempts = Attempts(kind, storage)
    total = LIMITS[kind][1].amount
    assert sum(guess(attempts, f"2001:db8:{number:x}::/64") for number in range(3 * total)) == total
    assert storage.reset() == total + 1
