"""Admission: a request is checked against all limits of its key in one atomic step, and settled at its end.

Streams, tokens per minute and budgets are reserved by an estimate before anything is sent upstream. The
reservation is a lease: it is renewed while the exchange runs, released once, and expires if the process is
killed. Requests per window are flask-limiter's, not this module's.

When the store is unreachable, or what a key has spent is unknown, each limit follows its setting: `open`
admits, `local` counts in this worker with its part of the limit, `closed` refuses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from grokflask.billing.bill import Bill, Estimate
from grokflask.config import Settings
from grokflask.errors import StoreUnavailableError
from grokflask.keys.limits import KeyLimits
from grokflask.ledger.row import LedgerRow
from grokflask.limits.counters import RENEW_S, Ask, Counters, Grant, Refusal, Standing, Unloaded
from grokflask.limits.healing import Healer
from grokflask.limits.outage import FindSpent, OutageCounters
from grokflask.limits.refusals import explain, make_token_headers
from grokflask.limits.settlements import Settlements
from grokflask.runtime import get_pid, note_failure, start_thread

LOOKUPS = 2
"""How often a request looks up its key's spending in the ledger before it continues without the figure."""

PROBE_S = 1.0
"""Interval at which the thread tries an unreachable store again, and polls a reachable one for streams to
end."""

_log = logging.getLogger("grokflask.limits")


class Hold:
    """What one exchange has reserved. `settle` releases it once.

    Attributes:
        headers: response headers with what is left of the limits.
    """

    def __init__(self, limits: Limits, ask: Ask, *, local: bool, headers: dict[str, str]) -> None:
        self.ask = ask
        self.local = local
        self.headers = headers
        self._limits = limits
        self._lock = threading.Lock()
        self._settled = False

    def settle(self, bill: Bill | None = None) -> None:
        """Releases the reservation and books `bill`, or nothing if the request was not sent upstream."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
        self._limits.settle(self, bill.tokens if bill else 0, bill.ticks if bill else 0)


@dataclass(slots=True)
class StoreState:
    """State of the store for /ready: `store` is where limits are counted now."""

    store: Literal["memory", "redis", "local"]
    outages: int = 0
    waiting: int = 0


class Limits:
    """Admits and settles. One for each process.

    Args:
        counters: shared with other workers (Redis), or in this process's memory.
        shared: `counters` may become unreachable; OutageCounters take over then.
        worker: returns this process's name.
        find_spent: reads a key's spending from the ledger where the counters do not know it.
        stop: ends the open streams with these row ids.
        healer: is told which keys are in use, and when the store is back after an outage.
    """

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        *,
        shared: bool,
        worker: Callable[[], str],
        find_spent: FindSpent,
        stop: Callable[[Container[str]], int] = lambda _: 0,
        healer: Healer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._shared = shared
        self._stop = stop
        self._healer = healer or Healer(lambda _: None, 0.0)
        self._worker = worker
        self._find_spent = find_spent
        self._clock = clock
        self._outage_counters = OutageCounters(settings, worker=worker, find_spent=find_spent, clock=clock)
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()
        self._loading: dict[tuple[str, str], threading.Lock] = {}
        self._settlements = Settlements(counters, worker, clock)
        self._away = False
        self._outages = 0
        self._renew_at = 0.0  # monotonic
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def state(self) -> StoreState:
        """Where limits are counted, outages so far, and settlements that wait."""
        store: Literal["memory", "redis", "local"] = "redis" if self._shared else "memory"
        return StoreState("local" if self._away else store, self._outages, len(self._settlements))

    def admit(
        self,
        key: str,
        limits: KeyLimits,
        estimate: Estimate,
        *,
        id: str,
        request_id: str,
        day: str,
        stream: bool,
    ) -> Hold:
        """Reserves what the request may use.

        Raises TooManyStreamsError, TokenLimitError, BudgetSpentError or FairShareError, and
        StoreUnavailableError if a limit is `closed` in an outage.
        """
        ask = Ask(
            id=id,
            key=key,
            request_id=request_id,
            stream=stream,
            tokens=estimate.tokens,
            ticks=estimate.ticks,
            day=day,
            max_streams=self._settings.max_streams if limits.streams is None else limits.streams,
            tokens_per_minute=limits.tokens_per_minute,
            budget_day_ticks=limits.budget_day_ticks,
            budget_month_ticks=limits.budget_month_ticks,
        )
        if limits.budget_day_ticks is not None or limits.budget_month_ticks is not None:
            self._healer.note(key)
        local = self._away
        try:
            answer = self._outage_counters.admit(ask) if local else self._ask(ask)
        except _SpendingUnknownError:
            local = True
            answer = self._ask_without_spending(ask)
        except _AwayError:
            local = True
            answer = self._outage_counters.admit(ask)
        if isinstance(answer, Refusal):
            raise explain(answer, ask)
        hold = Hold(self, ask, local=local, headers=make_token_headers(ask, answer))
        self._holds[ask.id] = hold
        return hold

    def settle(self, hold: Hold, tokens: int, ticks: int) -> None:
        """Called once by `Hold.settle`. Never raises."""
        ask = hold.ask
        self._holds.pop(ask.id, None)
        self._book(ask, tokens, ticks, local=hold.local or self._away)

    def charge(self, rows: list[LedgerRow]) -> None:
        """Books rows of processes that died before they settled them. Never raises."""
        for row in rows:
            ask = Ask(row.id, f"key:{row.key}", row.request_id, False, 0, 0, row.day, None, None, None, None)
            self._book(ask, 0, row.cost_ticks or 0, local=False)

    def find_standing(self, key: str, day: str) -> Standing:
        """What a key has open and has used. Raises StoreUnavailableError."""
        now = self._clock()
        if self._away:
            standing = self._outage_counters.find_standing(key, day)
        else:
            standing = self._counters.standing(key, day, now)
        if standing.day_ticks is None:
            day_ticks, month_ticks = self._find_spent(key, day)
            standing = replace(standing, day_ticks=day_ticks, month_ticks=month_ticks)
        return standing

    def stop_elsewhere(self, ids: Sequence[str]) -> bool:
        """Asks the other workers to end the streams with these ids. False if there is no way to reach them.

        They act within PROBE_S. Raises StoreUnavailableError.
        """
        if self._shared:
            self._counters.mark(ids, self._clock())
        return self._shared

    def start(self) -> None:
        """Starts the thread that renews leases and delivers settlements. Once in each process."""
        if self._thread is None or self._pid != get_pid():
            self._closed = False
            self._thread = start_thread("limits", self._run)
            self._pid = get_pid()

    def close(self, timeout_s: float = 2.0) -> None:
        """Delivers the settlements that wait, within about `timeout_s`. Idempotent."""
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def _ask(self, ask: Ask) -> Grant | Refusal:
        """Asks the store. Raises _AwayError if it is unreachable."""
        try:
            answer = self._counters.admit(ask, self._clock())
            if isinstance(answer, Unloaded):
                answer = self._load_and_ask(ask)
        except StoreUnavailableError as error:
            self._note_away(error)
            raise _AwayError from None
        return answer

    def _load_and_ask(self, ask: Ask) -> Grant | Refusal:
        """Looks up what the key has spent: once for all of its requests that arrive together."""
        period = (ask.key, ask.day)
        with self._lock:
            lock = self._loading.setdefault(period, threading.Lock())
        with lock:
            answer = self._counters.admit(ask, self._clock())
            for _ in range(LOOKUPS):
                if not isinstance(answer, Unloaded):
                    break
                asked_at = self._clock()
                # A look-up may fail on a busy machine, while another worker's succeeded.
                with suppress(_SpendingUnknownError):
                    self._counters.load(ask.key, ask.day, *self._look_up(ask), asked_at)
                    self._outage_counters.forget(ask.key, ask.day)
                answer = self._counters.admit(ask, self._clock())
        self._loading.pop(period, None)
        if isinstance(answer, Unloaded):
            raise _SpendingUnknownError
        return answer

    def _look_up(self, ask: Ask) -> tuple[int, int]:
        try:
            return self._find_spent(ask.key, ask.day)
        except StoreUnavailableError:
            raise _SpendingUnknownError from None

    def _ask_without_spending(self, ask: Ask) -> Grant | Refusal:
        """Checks the budgets in this worker, and everything else in the store."""
        local = self._outage_counters.admit(replace(ask, max_streams=None, tokens_per_minute=None))
        if isinstance(local, Refusal):
            return local
        try:
            answer = self._ask(replace(ask, budget_day_ticks=None, budget_month_ticks=None))
        except _AwayError:
            self._outage_counters.settle(ask, 0, 0)
            return self._outage_counters.admit(ask)
        if isinstance(answer, Refusal):
            self._outage_counters.settle(ask, 0, 0)
        return answer

    def _book(self, ask: Ask, tokens: int, ticks: int, *, local: bool) -> None:
        if local:
            self._outage_counters.settle(ask, tokens, ticks)
        self._settlements.add(ask, tokens, ticks)
        if self._away:
            return
        if self._shared and not _is_limited(ask):
            self._wake.set()  # no later request depends on it
            return
        try:
            self._settlements.deliver(unless=lambda: self._away)
        except StoreUnavailableError as error:
            self._note_away(error)

    def keep_up(self) -> None:
        """One round of the thread: renews leases, delivers settlements, probes the store."""
        try:
            now = time.monotonic()
            if self._away or now >= self._renew_at:
                self._renew()
                self._renew_at = now + RENEW_S
            self._settlements.deliver()
            if self._shared and self._holds:
                self._stop(self._counters.list_marked(self._clock()))
        except StoreUnavailableError as error:
            self._note_away(error)
        except Exception:
            note_failure("limits")
        else:
            self._note_back()

    def _run(self) -> None:
        while not self._closed:
            self.keep_up()
            self._wake.wait(PROBE_S)
            self._wake.clear()
        self.keep_up()

    def _renew(self) -> None:
        capacity = self._settings.max_exchanges
        self._outage_counters.renew(lambda: [hold.ask for hold in list(self._holds.values()) if hold.local])
        with self._settlements.pause():
            # Also those granted during an outage, and those that the store has lost.
            held = [hold.ask for hold in list(self._holds.values())]
            self._counters.renew(self._worker(), capacity, held, self._clock())

    def _note_away(self, error: StoreUnavailableError) -> None:
        if self._away or not self._shared:
            return
        self._away = True
        self._outages += 1
        self._wake.set()
        settings = self._settings
        _log.error(
            "Redis is unreachable: streams, tokens and budgets follow their outage settings",
            extra={
                "fields": {
                    "streams": settings.streams_outage,
                    "tokens": settings.tokens_outage,
                    "budgets": settings.budgets_outage,
                    "outages": self._outages,
                    "detail": str(error.__cause__ or error)[:200],
                }
            },
        )

    def _note_back(self) -> None:
        if self._away:
            self._away = False
            self._healer.expect_older()
            self._outage_counters.clear()
            _log.warning("Redis is reachable again: streams, tokens and budgets are counted there")


class _AwayError(Exception):
    """The store is unreachable."""


class _SpendingUnknownError(Exception):
    """The key's spending is neither in the store nor available from the ledger."""


def _is_limited(ask: Ask) -> bool:
    limits = (ask.max_streams, ask.tokens_per_minute, ask.budget_day_ticks, ask.budget_month_ticks)
    return any(limit is not None for limit in limits)
