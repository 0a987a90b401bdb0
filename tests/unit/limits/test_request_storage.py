"""Requests counted in memory: as the library's own strategy counts them, exactly, and in bounded memory."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.strategies import SlidingWindowCounterRateLimiter

from grokflask.limits import request_storage
from grokflask.limits.request_storage import SWEEP_S, RequestStorage


class Clock:
    def __init__(self, now: float = 1_200_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make() -> tuple[SlidingWindowCounterRateLimiter, RequestStorage, Clock]:
    clock = Clock()
    storage = RequestStorage(clock=clock)
    return SlidingWindowCounterRateLimiter(storage), storage, clock


def test_a_limit_holds_within_its_window() -> None:
    """So many and not one more; another key and another limit have windows of their own."""
    limiter, _, _ = make()
    limit = RateLimitItemPerMinute(3)
    assert [limiter.hit(limit, "a") for _ in range(5)] == [True, True, True, False, False]
    assert limiter.hit(limit, "b")
    assert limiter.hit(RateLimitItemPerSecond(1), "a")


def test_what_was_used_before_counts_by_what_is_left_of_it() -> None:
    """A quarter into the next window three quarters of the last one's hits still count."""
    limiter, _, clock = make()
    limit = RateLimitItemPerMinute(8)
    assert all(limiter.hit(limit, "a") for _ in range(8))
    clock.now += 60 + 15
    assert [limiter.hit(limit, "a") for _ in range(4)] == [True, True, False, False]
    assert limiter.get_window_stats(limit, "a").remaining == 0
    clock.now += 120
    assert limiter.get_window_stats(limit, "a").remaining == 8


def test_a_refused_hit_is_not_counted() -> None:
    """Whoever is refused and comes back later is no worse off for having tried."""
    limiter, storage, clock = make()
    limit = RateLimitItemPerMinute(2)
    for _ in range(50):
        limiter.hit(limit, "a")
    assert storage.get_sliding_window(limit.key_for("a"), 60)[2] == 2
    clock.now += 120
    assert limiter.hit(limit, "a")


@given(st.lists(st.floats(0, 40), max_size=60))
def test_no_window_ever_holds_more_than_its_limit(pauses: list[float]) -> None:
    """In any stretch that begins with a window no more than the limit are let through."""
    limiter, _, clock = make()
    limit = RateLimitItemPerMinute(5)
    passed: list[int] = []
    for pause in pauses:
        clock.now += pause
        if limiter.hit(limit, "a"):
            passed.append(int(clock.now // 60))
    assert all(passed.count(window) <= 5 for window in set(passed))


def test_parallel_hits_are_counted_exactly() -> None:
    """200 threads that find room for 5."""
    limiter, _, _ = make()
    limit = RateLimitItemPerMinute(5)
    begin = threading.Barrier(200)
    passed: list[bool] = []

    def hit() -> None:
        begin.wait()
        passed.append(limiter.hit(limit, "a"))

    threads = [threading.Thread(target=hit) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(True) == 5


def test_keys_that_nothing_counts_for_go() -> None:
    """Memory is for the callers of the last windows, not for all that ever were."""
    limiter, storage, clock = make()
    limit = RateLimitItemPerMinute(5)
    for number in range(1000):
        limiter.hit(limit, str(number))
    clock.now += 120 + SWEEP_S
    limiter.hit(limit, "last")
    assert len(storage._windows) == 1


def test_so_many_keys_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where any number of addresses may call, the counts that began first go first."""
    monkeypatch.setattr(request_storage, "MAX_WINDOWS", 100)
    limiter, storage, clock = make()
    limit = RateLimitItemPerMinute(2)
    for number in range(100):
        assert limiter.hit(limit, str(number))
    clock.now += 60
    assert limiter.hit(limit, "0")  # its count begins anew, so it is the last to go
    for number in range(1000, 1099):
        assert limiter.hit(limit, str(number))
    assert len(storage._windows) == 100
    assert limiter.hit(limit, "0") is False


def test_it_forgets_on_demand() -> None:
    """One key, or all of them."""
    limiter, storage, _ = make()
    limit = RateLimitItemPerMinute(1)
    for key in ("a", "b", "c"):
        limiter.hit(limit, key)
    limiter.clear(limit, "a")
    assert limiter.hit(limit, "a")
    assert storage.reset() == 3
    assert limiter.hit(limit, "b")
    assert storage.check()
    with pytest.raises(NotImplementedError):
        storage.incr("a", 60)
