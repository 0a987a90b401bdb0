"""Counts kept while requests are served: notes first, added up about once a second. No IO.

A note is one append to a deque, which is atomic. No lock is taken while a request is served, and a stream
that a finalizer closes at any moment can be counted too.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import TypeVar

from grokflask.errors import ConnectTimeoutError, Outcome, UpstreamConnectError
from grokflask.ledger.row import LedgerRow
from grokflask.metrics import families
from grokflask.metrics.families import CODES, UPSTREAM_KINDS, Family, Labels
from grokflask.metrics.series import Series

T = TypeVar("T")

PROMPT_S = families.DELAY_BOUNDS_S[0]
"""A write within this time is prompt: it falls into the first bucket of the delays."""
TURN_NOTES = 100
"""After adding up this many notes, other greenlets get a turn."""
BATCH_WRITES = 256
"""This many prompt writes of one stream are one note."""

MAX_MODELS = 20
MAX_KEYS = 100
OTHER = "other"

_TICKS_PER_USD = 10**10
_FAILED = frozenset((Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value, Outcome.TIMEOUT.value))
_ANSWERED = frozenset((Outcome.COMPLETE.value, Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value))
_UNREACHED = frozenset((UpstreamConnectError.code, ConnectTimeoutError.code))


class Tallies:
    """The notes of one process, and their sums. Any thread may append notes; one at a time drains them.

    Args:
        by_key: also count by key name.
    """

    def __init__(self, *, by_key: bool = False) -> None:
        #: Route, status and the code of the gateway's own error, if any, of each answer.
        self.answered: deque[tuple[str, int, str | None]] = deque()
        #: Rows of finished exchanges.
        self.settled: deque[LedgerRow] = deque()
        #: Numbers of writes within PROMPT_S, and their seconds together.
        self.prompt: deque[tuple[int, float]] = deque()
        #: Seconds of each slower write.
        self.late: deque[float] = deque()
        #: One item for each heartbeat.
        self.heartbeats: deque[None] = deque()
        self._by_key = by_key
        self._models, self._keys = _BoundedNames(MAX_MODELS), _BoundedNames(MAX_KEYS)
        self._counts: Counter[tuple[Family, Labels]] = Counter()
        self._ticks: Counter[tuple[Family, Labels]] = Counter()
        self._observed: defaultdict[tuple[Family, Labels], _Observations] = defaultdict(_Observations)
        self._upstream: tuple[float, bool] | None = None

    def note_heartbeat(self) -> None:
        """A comment is sent to keep a stream alive."""
        self.heartbeats.append(None)

    def drain(self, series: Series) -> None:
        """Moves everything noted since the last call into `series`."""
        for (route, status, code), number in Counter(_take(self.answered)).items():
            self._counts[families.REQUESTS, (route, str(status))] += number
            if code is not None:
                self._counts[families.REFUSED, (code if code in CODES else OTHER,)] += number
        for row in _take(self.settled):
            self._add_row(row)
        self._add_deliveries()
        self._counts[families.HEARTBEATS, ()] += sum(1 for _ in _take(self.heartbeats))
        for family, labels in list(self._counts):
            series.add(family, labels, self._counts.pop((family, labels)))
        for (family, labels), ticks in self._ticks.items():  # totals: sums of floats would drift
            series.set(family, labels, ticks / _TICKS_PER_USD)
        for family, labels in list(self._observed):
            observed = self._observed.pop((family, labels))
            series.add_observations(family, labels, observed.counts, observed.seconds)
        if self._upstream is not None:
            at, reached = self._upstream
            series.set(families.UPSTREAM_UP, (), reached, at)

    def _add_row(self, row: LedgerRow) -> None:
        counts, outcome = self._counts, row.outcome or OTHER
        counts[families.EXCHANGES, (row.route, outcome)] += 1
        if outcome in _FAILED:
            counts[families.UPSTREAM_ERRORS, (_name_failure(row),)] += 1
        self._note_upstream(row, outcome)
        model = self._models.bound(row.model_served)
        for kind in ("prompt", "cached", "completion", "reasoning"):
            tokens: int | None = getattr(row, f"{kind}_tokens")
            if tokens:
                counts[families.TOKENS, (model, kind)] += tokens
        self._ticks[families.COST, (model,)] += row.cost_ticks or 0
        if row.ttft_ms is not None:
            self._observe(families.FIRST_EVENT, row.ttft_ms / 1000)
        if row.duration_ms is not None:
            self._observe(families.DURATION, row.duration_ms / 1000, "true" if row.stream else "false")
        if self._by_key:
            key = self._keys.bound(row.key)
            counts[families.KEY_EXCHANGES, (key, outcome)] += 1
            counts[families.KEY_TOKENS, (key,)] += row.total_tokens or 0
            self._ticks[families.KEY_COST, (key,)] += row.cost_ticks or 0

    def _note_upstream(self, row: LedgerRow, outcome: str) -> None:
        """Keeps the latest exchange that shows whether upstream can be reached; many do not."""
        reached = outcome in _ANSWERED and row.code not in _UNREACHED
        if reached or row.code in _UNREACHED:
            at = row.started_at + (row.duration_ms or 0) / 1000
            if self._upstream is None or at >= self._upstream[0]:
                self._upstream = at, reached

    def _observe(self, family: Family, seconds: float, *labels: str) -> None:
        self._observed[family, labels].add(bisect_left(family.bounds, seconds), 1, seconds)

    def _add_deliveries(self) -> None:
        for seconds in _take(self.late):
            self._observe(families.EVENT_DELAY, seconds)
        for number, seconds in _take(self.prompt):
            self._observed[families.EVENT_DELAY, ()].add(0, number, seconds)


class Deliveries:
    """How promptly the bytes of one stream are written to its client."""

    __slots__ = ("_prompt", "_prompt_s", "_tallies")

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self._prompt = 0
        self._prompt_s = 0.0

    def note(self, delay_s: float) -> None:
        """Bytes were written `delay_s` after they were read. Called for each write, so it must be cheap."""
        if delay_s > PROMPT_S:
            self._tallies.late.append(delay_s)
            return
        self._prompt += 1
        self._prompt_s += delay_s
        if self._prompt == BATCH_WRITES:
            self.report()

    def note_heartbeat(self) -> None:
        """A comment is sent."""
        self._tallies.note_heartbeat()

    def report(self) -> None:
        """Hands over the writes that are not in the tallies yet."""
        if self._prompt:
            self._tallies.prompt.append((self._prompt, self._prompt_s))
            self._prompt, self._prompt_s = 0, 0.0


class _Observations:
    """Observations of a histogram: their number by the index of the bucket, and their sum."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.seconds = 0.0

    def add(self, bucket: int, number: int, seconds: float) -> None:
        self.counts[bucket] += number
        self.seconds += seconds


class _BoundedNames:
    """Lets the first `most` names through; all later ones become `other`, and an empty one `none`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def bound(self, name: str | None) -> str:
        if not name:
            return "none"
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


def _name_failure(row: LedgerRow) -> str:
    """The gateway's name for upstream's failure, or the status: upstream's own codes can be any text."""
    if row.code in UPSTREAM_KINDS:
        return str(row.code)
    status = row.status or 0
    return f"status_{status}" if 400 <= status < 600 else "in_stream"


def _take(notes: deque[T]) -> Iterator[T]:
    """Removes and yields the notes present at the start."""
    for number in range(1, len(notes) + 1):
        if not number % TURN_NOTES:
            time.sleep(0)
        yield notes.popleft()
