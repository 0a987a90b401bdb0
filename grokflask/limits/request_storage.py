"""Where flask-limiter counts requests when there is no Redis: this process's memory.

The library's own store starts a timer thread a hundred times a second under load, and each thread iterates
over all keys. With thousands of keys that takes most of a worker's time. Here each key has two counts, and
expired keys are removed once a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from limits.storage import Storage
from limits.storage.base import SlidingWindowCounterSupport

SWEEP_S = 60.0

MAX_WINDOWS = 200_000
"""Counts that are kept. Where callers are told apart by address, there may be any number of them: the oldest
counts are dropped first. 200,000 take about 73 MB."""


class RequestStorage(Storage, SlidingWindowCounterSupport):
    """A store of the `limits` library, for its sliding-window counter. Safe in threads; a hit is atomic.

    Windows begin at multiples of their length, as in the library's Redis store. Hits of the previous window
    count in proportion to its overlap with the last `expiry` seconds.
    """

    STORAGE_SCHEME = ["grokflask-memory"]  # noqa: RUF012 - as the library wants it
    base_exceptions = ValueError

    def __init__(self, uri: str | None = None, clock: Callable[[], float] = time.time, **_: Any) -> None:
        super().__init__(uri)
        self._clock = clock
        self._windows: dict[
            tuple[str, int], list[int]
        ] = {}  # [its number, its hits, those of the one before]
        self._sweep_at = 0.0
        self._lock = threading.Lock()

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Counts `amount` hits if the limit has room for them."""
        now = self._clock()
        with self._lock:
            window = self._turn(key, expiry, now)
            before = window[2] * (1 - now / expiry % 1)
            if int(before + window[1]) + amount > limit:
                return False
            window[1] += amount
            if self._windows.get((key, expiry)) is not window:
                self._windows.pop((key, expiry), None)  # a new window goes to the end
                self._windows[key, expiry] = window
                if len(self._windows) > MAX_WINDOWS:
                    del self._windows[next(iter(self._windows))]
            if now >= self._sweep_at:
                self._sweep(now)
        return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Hits of the previous window and the seconds that they still count, then those of this window."""
        now = self._clock()
        with self._lock:
            _, hits, before = self._turn(key, expiry, now)
        left_s = (1 - now / expiry % 1) * expiry
        return before, left_s if before else 0.0, hits, left_s + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Removes the key's counts."""
        with self._lock:
            self._windows.pop((key, expiry), None)

    def check(self) -> bool:
        """Always True: memory is never unavailable."""
        return True

    def reset(self) -> int:
        """Removes all counts, and returns how many there were."""
        with self._lock:
            number = len(self._windows)
            self._windows.clear()
        return number

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Not supported: only the sliding-window counter is used."""
        raise NotImplementedError

    get = get_expiry = clear = incr  # type: ignore[assignment]

    def _turn(self, key: str, expiry: int, now: float) -> list[int]:
        """The window at `now`, with the hits of the previous one. The caller holds the lock."""
        number = int(now / expiry)
        window = self._windows.get((key, expiry))
        if window is None or window[0] < number - 1:
            return [number, 0, 0]
        if window[0] == number - 1:
            return [number, 0, window[1]]
        return window

    def _sweep(self, now: float) -> None:
        """Removes keys without hits that still count."""
        self._sweep_at = now + SWEEP_S
        over = [each for each, window in self._windows.items() if window[0] < int(now / each[1]) - 1]
        for each in over:
            del self._windows[each]
