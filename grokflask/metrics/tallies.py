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
from grokflask.runtime import STALL_S, step_aside

T = TypeVar("T")

PROMPT_S = families.DELAY_BOUNDS_S[0]
"""A write within this time is prompt: it falls into the first bucket of the delays."""
TURN_NOTES = 100
"""After adding up this many notes, other greenlets get a turn."""
BATCH_WRITES = 256
"""This many prompt writes of one stream are one note."""

MAX_STALLS = 1000
MAX_MODELS = 20
MAX_KEYS = 100
OTHER = "other"

_TICKS_PER_USD = 10**10
_FAILED = frozenset((Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value, Outcome.TIMEOUT.value))
_ANSWERED = frozenset((Outcome.COMPLETE.value, Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value))
_UNREACHED = frozenset((UpstreamConnectError.code, ConnectTimeoutError.code))


class Tallies:
    """The notes of one process, and their sums. Any thread may append notes; one at a time drains them."""

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
        #: Seconds that events had to wait for the event loop, in samples.
        self.loop_delays: deque[float] = deque()
        self._stalls: deque[tuple[float, float]] | None = None  # when (monotonic), and seconds
        self._by_key = by_key  # also count by key name
        self._models: set[str] = set()
        self._keys: set[str] = set()
        #: What to add to each value, which is an index of what `Series.find` returns.
        self._sums: defaultdict[tuple[Family, Labels, int], float] = defaultdict(float)
        self._ticks: Counter[tuple[Family, Labels]] = Counter()
        self._upstream: tuple[float, bool] | None = None

    def note_heartbeat(self) -> None:
        """A comment is sent to keep a stream alive."""
        self.heartbeats.append(None)

    def note_loop_delay(self, seconds: float) -> None:
        """An event had to wait for so long until the event loop turned to it."""
        self.loop_delays.append(seconds)
        if self._stalls is None:
            self._stalls = deque(maxlen=MAX_STALLS)
        if seconds > STALL_S:
            self._stalls.append((time.monotonic(), seconds))

    def sum_up_stalls(self) -> dict[str, int] | None:
        """The number of stalls in the last hour, and the longest; None if no event loop is watched."""
        if self._stalls is None:
            return None
        since = time.monotonic() - 3600
        lengths_s = [seconds for at, seconds in list(self._stalls) if at > since]
        return {"stalls": len(lengths_s), "worst_ms": round(1000 * max(lengths_s, default=0.0))}

    def drain(self, series: Series) -> None:
        """Moves everything noted since the last call into `series`."""
        for (route, status, code), number in Counter(_take(self.answered)).items():
            self._add(number, families.REQUESTS, route, str(status))
            if code is not None:
                self._add(number, families.REFUSED, code if code in CODES else OTHER)
        for row in _take(self.settled):
            self._add_row(row)
        for delay_s in _take(self.late):
            self._observe(families.EVENT_DELAY, delay_s)
        for delay_s in _take(self.loop_delays):
            self._observe(families.LOOP_DELAY, delay_s)
        for number, delays_s in _take(self.prompt):
            self._sums[families.EVENT_DELAY, (), 0] += delays_s
            self._sums[families.EVENT_DELAY, (), 1] += number
        self._add(sum(1 for _ in _take(self.heartbeats)), families.HEARTBEATS)
        for value, amount in list(self._sums.items()):
            series.add(*value, amount)  # may fail, if there is no descriptor for a new file
            del self._sums[value]
        for (family, labels), ticks in self._ticks.items():  # totals: sums of floats would drift
            series.set(family, labels, ticks / _TICKS_PER_USD)
        if self._upstream is not None:
            at, reached = self._upstream
            series.set(families.UPSTREAM_UP, (), reached, at)

    def _add_row(self, row: LedgerRow) -> None:
        outcome = row.outcome or OTHER
        self._add(1, families.EXCHANGES, row.route, outcome)
        if outcome in _FAILED:
            self._add(1, families.UPSTREAM_ERRORS, _name_failure(row))
        self._note_upstream(row, outcome)
        model = _bound(row.model_served, self._models, MAX_MODELS)
        for kind in ("prompt", "cached", "completion", "reasoning"):
            if tokens := getattr(row, f"{kind}_tokens"):
                self._add(tokens, families.TOKENS, model, kind)
        self._ticks[families.COST, (model,)] += row.cost_ticks or 0
        if row.ttft_ms is not None:
            self._observe(families.FIRST_EVENT, row.ttft_ms / 1000)
        if row.duration_ms is not None:
            self._observe(families.DURATION, row.duration_ms / 1000, "true" if row.stream else "false")
        if self._by_key:
            key = _bound(row.key, self._keys, MAX_KEYS)
            self._add(1, families.KEY_EXCHANGES, key, outcome)
            self._add(row.total_tokens or 0, families.KEY_TOKENS, key)
            self._ticks[families.KEY_COST, (key,)] += row.cost_ticks or 0

    def _note_upstream(self, row: LedgerRow, outcome: str) -> None:
        """Keeps the latest exchange that shows whether upstream can be reached; many do not."""
        reached = outcome in _ANSWERED and row.code not in _UNREACHED
        if reached or row.code in _UNREACHED:
            at = row.started_at + (row.duration_ms or 0) / 1000
            if self._upstream is None or at >= self._upstream[0]:
                self._upstream = at, reached

    def _add(self, amount: int, family: Family, *labels: str) -> None:
        self._sums[family, labels, 0] += amount

    def _observe(self, family: Family, seconds: float, *labels: str) -> None:
        self._sums[family, labels, 0] += seconds
        self._sums[family, labels, 1 + bisect_left(family.bounds, seconds)] += 1


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


def _bound(name: str | None, known: set[str], most: int) -> str:
    """Lets the first `most` names through; all later ones become `other`, and an empty one `none`."""
    if not name:
        return "none"
    if len(known) < most:
        known.add(name)
    return name if name in known else OTHER


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
            step_aside()
        yield notes.popleft()
