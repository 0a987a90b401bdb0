"""What is counted while requests are served: notes first, sums of them about once a second. No IO.

A note is one append to a deque, which is atomic: no lock is taken in a request's way, and a stream that a
finalizer closes, in the midst of anything, can be counted as well.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from typing import TypeVar

from grokflask.errors import ConnectTimeoutError, GrokflaskError, Outcome, UpstreamConnectError, UpstreamError
from grokflask.ledger.row import LedgerRow
from grokflask.metrics import families
from grokflask.metrics.families import Dated, Distribution, Family, Figures

T = TypeVar("T")

PROMPT_S = families.DELAY_BOUNDS_S[0]
TURN_NOTES = 100
"""After so many, whoever sums them up lets the streams run."""
BATCH_WRITES = 256
"""So many prompt writes of one stream are noted together."""

MAX_MODELS = 20
MAX_KEYS = 100
OTHER = "other"

_TICKS = 10**10
_FAILED = frozenset((Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value, Outcome.TIMEOUT.value))
_ANSWERED = frozenset((Outcome.COMPLETE.value, Outcome.UPSTREAM_ERROR.value, Outcome.TRUNCATED.value))
_UNREACHED = frozenset((UpstreamConnectError.code, ConnectTimeoutError.code))


def _list_codes(root: type[GrokflaskError]) -> Iterator[str]:
    yield root.code
    for error in root.__subclasses__():
        yield from _list_codes(error)


UPSTREAM_KINDS = frozenset(_list_codes(UpstreamError)) - {UpstreamError.code}
CODES = frozenset(_list_codes(GrokflaskError)) - UPSTREAM_KINDS - {UpstreamError.code}
"""Of the gateway's own errors."""

LIMIT_CODES = (
    *("rate_limit_exceeded", "token_limit_exceeded", "too_many_streams", "fair_share_exceeded"),
    *("insufficient_quota", "gateway_full"),
)


class Tallies:
    """All that is counted in one process. Notes may be made in any thread; one at a time reads them.

    Args:
        by_key: also by the names of keys.

    Attributes:
        answered: route, status, and the code of the gateway's own error, of each answer.
        settled: rows of exchanges that have ended.
        prompt: numbers of writes within PROMPT_S, and their seconds together.
        late: seconds of each other write.
        heartbeats: one item each.
    """

    def __init__(self, *, by_key: bool = False) -> None:
        self.answered: deque[tuple[str, int, str | None]] = deque()
        self.settled: deque[LedgerRow] = deque()
        self.prompt: deque[tuple[int, float]] = deque()
        self.late: deque[float] = deque()
        self.heartbeats: deque[None] = deque()
        self._by_key = by_key
        self._models, self._keys = _Names(MAX_MODELS), _Names(MAX_KEYS)
        self._counts: dict[Family, Counter[tuple[str, ...]]] = {}
        self._ticks: dict[Family, Counter[tuple[str, ...]]] = {}
        self._distributions: dict[Family, dict[tuple[str, ...], Distribution]] = {}
        self._upstream: Dated | None = None
        self._seed()

    def note_heartbeat(self) -> None:
        """A comment goes out to keep a stream alive."""
        self.heartbeats.append(None)

    def read(self) -> Figures:
        """All figures, with what has been noted by now."""
        self._sum_answered()
        for row in _take(self.settled):
            self._sum_row(row)
        self._sum_deliveries()
        self._counts[families.HEARTBEATS][()] += sum(1 for _ in _take(self.heartbeats))
        figures: Figures = {family: dict(counts) for family, counts in self._counts.items()}
        for family, ticks in self._ticks.items():
            figures[family] = {labels: figure / _TICKS for labels, figure in ticks.items()}
        for family, distributions in self._distributions.items():
            figures[family] = dict(distributions)
        if self._upstream:
            figures[families.UPSTREAM_UP] = {(): self._upstream}
        return figures

    def _seed(self) -> None:
        """What is looked for in alerts begins at 0: of a counter that appears, the first step is not seen."""
        for family in families.FAMILIES:
            if family.kind == "counter":
                kept = self._ticks if family in (families.COST, families.KEY_COST) else self._counts
                kept[family] = Counter()
            elif family.kind == "histogram":
                self._distributions[family] = {}
        counts = self._counts
        counts[families.REFUSED].update({(code,): 0 for code in (*LIMIT_CODES, "invalid_api_key")})
        counts[families.EXCHANGES].update(
            {
                ("chat", outcome.value): 0
                for outcome in Outcome
                if outcome not in (Outcome.LOST, Outcome.REFUSED)
            }
        )
        counts[families.UPSTREAM_ERRORS].update({(kind,): 0 for kind in UPSTREAM_KINDS})
        for stream in ("true", "false"):
            self._find(families.DURATION, stream)
        self._find(families.FIRST_EVENT)
        self._find(families.EVENT_DELAY)

    def _find(self, family: Family, *labels: str) -> Distribution:
        found = self._distributions[family].get(labels)
        if found is None:
            found = self._distributions[family][labels] = Distribution([0] * (len(family.bounds) + 1))
        return found

    def _observe(self, family: Family, seconds: float, *labels: str) -> None:
        distribution = self._find(family, *labels)
        distribution.counts[bisect_left(family.bounds, seconds)] += 1
        distribution.sum += seconds

    def _sum_answered(self) -> None:
        requests, refused = self._counts[families.REQUESTS], self._counts[families.REFUSED]
        for (route, status, code), number in Counter(_take(self.answered)).items():
            requests[route, str(status)] += number
            if code is not None:
                refused[(code if code in CODES else OTHER,)] += number

    def _sum_row(self, row: LedgerRow) -> None:
        counts, outcome = self._counts, row.outcome or OTHER
        counts[families.EXCHANGES][row.route, outcome] += 1
        if outcome in _FAILED:
            counts[families.UPSTREAM_ERRORS][(_name_kind(row),)] += 1
        self._note_upstream(row, outcome)
        model = self._models.find(row.model_served)
        for kind in ("prompt", "cached", "completion", "reasoning"):
            tokens: int | None = getattr(row, f"{kind}_tokens")
            if tokens:
                counts[families.TOKENS][model, kind] += tokens
        self._ticks[families.COST][(model,)] += row.cost_ticks or 0
        if row.ttft_ms is not None:
            self._observe(families.FIRST_EVENT, row.ttft_ms / 1000)
        if row.duration_ms is not None:
            self._observe(families.DURATION, row.duration_ms / 1000, "true" if row.stream else "false")
        if self._by_key:
            key = self._keys.find(row.key)
            counts[families.KEY_EXCHANGES][key, outcome] += 1
            counts[families.KEY_TOKENS][(key,)] += row.total_tokens or 0
            self._ticks[families.KEY_COST][(key,)] += row.cost_ticks or 0

    def _note_upstream(self, row: LedgerRow, outcome: str) -> None:
        """What the exchange has shown of whether upstream can be reached; many show nothing."""
        up = outcome in _ANSWERED and row.code not in _UNREACHED
        if up or row.code in _UNREACHED:
            at = row.started_at + (row.duration_ms or 0) / 1000
            if self._upstream is None or at >= self._upstream.at:
                self._upstream = Dated(float(up), at)

    def _sum_deliveries(self) -> None:
        for seconds in _take(self.late):
            self._observe(families.EVENT_DELAY, seconds)
        delays = self._find(families.EVENT_DELAY)
        for number, seconds in _take(self.prompt):
            delays.counts[0] += number
            delays.sum += seconds


class Deliveries:
    """How promptly one stream's bytes are handed on, on the way to the process's tallies."""

    __slots__ = ("_prompt", "_prompt_s", "_tallies")

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self._prompt = 0
        self._prompt_s = 0.0

    def note(self, delay_s: float) -> None:
        """Bytes have been written, so long after they were read. Called for each write: nothing dear here."""
        if delay_s > PROMPT_S:
            self._tallies.late.append(delay_s)
            return
        self._prompt += 1
        self._prompt_s += delay_s
        if self._prompt == BATCH_WRITES:
            self.report()

    def note_heartbeat(self) -> None:
        """A comment goes out."""
        self._tallies.note_heartbeat()

    def report(self) -> None:
        """Hands over what has not been handed over yet."""
        if self._prompt:
            self._tallies.prompt.append((self._prompt, self._prompt_s))
            self._prompt, self._prompt_s = 0, 0.0


class _Names:
    """The first so many names that come; all others are `other`, and none at all is `none`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def find(self, name: str | None) -> str:
        if not name:
            return "none"
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


def _name_kind(row: LedgerRow) -> str:
    """How upstream has failed: a case of ours, or the status that it sent, for its own codes are any text."""
    if row.code in UPSTREAM_KINDS:
        return str(row.code)
    status = row.status or 0
    return f"status_{status}" if 400 <= status < 600 else "in_stream"


def _take(notes: deque[T]) -> Iterator[T]:
    """Those that are there now, which are then no more."""
    for number in range(1, len(notes) + 1):
        if not number % TURN_NOTES:
            time.sleep(0)
        yield notes.popleft()
