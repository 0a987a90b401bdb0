"""The queue of settlements for the counters: each is delivered once, in order, also after an outage.

This process numbers them, and the store skips numbers that it knows, so a delivery whose answer was lost can
be repeated. One delivery sends everything that is queued, so streams that end together share a round trip.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from msgspec.structs import replace

from grokflask.limits.counters import Ask, Counters, Settled

BATCH = 200
MAX_WAITING = 20_000
"""Above this number, settlements of one key and day are added up, to bound memory in a long outage."""


class Settlements:
    """The queue for one store. Safe from any thread.

    Args:
        worker: returns this process's name; called for each delivery.
    """

    def __init__(self, counters: Counters, worker: Callable[[], str], clock: Callable[[], float]) -> None:
        self._counters = counters
        self._worker = worker
        self._clock = clock
        self._seq = 0
        self._waiting: deque[Settled] = deque()
        self._lock = threading.Lock()
        self._delivering = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ask: Ask, tokens: int, ticks: int) -> None:
        """Queues what `ask` really used."""
        counts_tokens = ask.tokens_per_minute is not None
        with self._lock:
            self._seq += 1
            if len(self._waiting) >= MAX_WAITING and self._delivering.acquire(blocking=False):
                try:
                    self._merge()
                finally:
                    self._delivering.release()
            self._waiting.append(
                Settled(self._seq, ask.id, ask.key, ask.day, tokens, ticks, self._clock(), counts_tokens)
            )

    def deliver(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Delivers everything that is queued; stops early once `unless` returns True.

        Raises StoreUnavailableError.
        """
        with self._delivering:
            # If the store failed while a caller waited here, the caller does not try it again.
            while self._waiting and not unless():
                with self._lock:
                    batch = list(islice(self._waiting, BATCH))
                self._counters.settle(batch, self._worker(), self._clock())
                with self._lock:
                    done = batch[-1].seq
                    while self._waiting and self._waiting[0].seq <= done:
                        self._waiting.popleft()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context without deliveries: a lease must not be renewed while its settlement is being delivered."""
        with self._delivering:
            yield

    def _merge(self) -> None:
        """Merges into one settlement for each key and day. Leases that are no longer named expire.

        The first BATCH stay: they may have been delivered already, with only the answer lost.
        """
        waiting = list(self._waiting)
        sums: dict[tuple[str, str], Settled] = {}
        for each in waiting[BATCH:]:
            old = sums.pop((each.key, each.day), None)
            if old is not None:
                each = replace(each, tokens=old.tokens + each.tokens, ticks=old.ticks + each.ticks)
            sums[each.key, each.day] = each
        self._waiting = deque([*waiting[:BATCH], *sums.values()])
