"""Settlements on their way to the counters: each is delivered once, in order, also after an outage.

They are numbered for this process, and the store skips a number that it has had: a delivery whose answer was
lost may be repeated. Whoever delivers takes along what others have queued meanwhile, so that many streams
that end at once share a round trip.
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
"""Above this the settlements of one key and day are added up: an outage may be long, memory is not."""


class Settlements:
    """The queue to one store. Its methods may be called from any thread.

    Args:
        worker: this process's name, asked for at each delivery.
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
        """Queues what became of `ask`; `deliver` brings it to the store."""
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
        """Returns when all that was queued before the call is delivered, or leaves it when `unless` holds.

        Raises StoreUnavailableError.
        """
        with self._delivering:
            # Whoever has waited here while the store went away need not find that out once more.
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
        """Nothing is delivered inside: a lease must not be renewed while its settlement is on the way."""
        with self._delivering:
            yield

    def _merge(self) -> None:
        """One settlement for each key and day. Leases that it does not name lapse by themselves.

        The first BATCH stay as they are: they may have been delivered, and only the answer lost.
        """
        waiting = list(self._waiting)
        sums: dict[tuple[str, str], Settled] = {}
        for each in waiting[BATCH:]:
            old = sums.pop((each.key, each.day), None)
            if old is not None:
                each = replace(each, tokens=old.tokens + each.tokens, ticks=old.ticks + each.ticks)
            sums[each.key, each.day] = each
        self._waiting = deque([*waiting[:BATCH], *sums.values()])
