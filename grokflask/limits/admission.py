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
from typing import Literal

from msgspec.structs import replace

from grokflask.billing.bill import Estimate
from grokflask.config import Settings
from grokflask.errors import StoreUnavailableError
from grokflask.keys.limits import KeyLimits
from grokflask.ledger.row import LedgerRow
from grokflask.limits.counters import RENEW_S, Ask, Counters, Grant, Refusal, Standing, Unloaded
from grokflask.limits.healing import Healer
from grokflask.limits.holds import Hold, make_ask
from grokflask.limits.learning import Learning
from grokflask.limits.outage import AwayError, FindSpent, OutageCounters, SpendingUnknownError, StoreState
from grokflask.limits.refusals import explain, make_token_headers
from grokflask.limits.settlements import Settlements
from grokflask.runtime import get_pid, note_failure, start_thread

LOOKUPS = 2
"""How often a request looks up its key's spending in the ledger before it continues without the figure."""

PROBE_S = 1.0
"""Interval at which the thread tries an unreachable store again, and polls a reachable one for streams to
end."""

_log = logging.getLogger("grokflask.limits")


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
        self.learning = Learning()
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
        estimate = self.learning.expect(estimate)
        ids = {"key": key, "id": id, "request_id": request_id, "day": day}
        ask = make_ask(estimate, limits, self._settings.max_streams, stream=stream, **ids)
        if limits.budget_day_ticks is not None or limits.budget_month_ticks is not None:
            self._healer.note(key)
        hold = self._holds[ask.id] = self._hold(ask, estimate)
        return hold

    def _hold(self, ask: Ask, estimate: Estimate) -> Hold:
        local = self._away
        try:
            answer = self._outage_counters.admit(ask) if local else self._ask(ask)
        except SpendingUnknownError:
            local = True
            answer = self._ask_without_spending(ask)
        except AwayError:
            local = True
            answer = self._outage_counters.admit(ask)
        if isinstance(answer, Refusal):
            raise explain(answer, ask)
        if answer.held is not None:
            ask = replace(ask, tokens=answer.held[0], ticks=answer.held[1])
        return Hold(self, ask, estimate, local=local, headers=make_token_headers(ask, answer))

    def extend(self, hold: Hold, ticks: int) -> int:
        """Reserves `ticks` for the exchange instead of what it has, or what the budgets allow.

        Waits for the store. Returns what is reserved now, if the exchange is still open. Raises
        StoreUnavailableError if budgets are `closed` in an outage.
        """
        ask = hold.ask
        if ask.id not in self._holds:
            return ask.ticks  # it ended meanwhile
        try:
            if self._away:
                raise AwayError
            held = self._ask_more(ask, ticks)
        except (AwayError, SpendingUnknownError):
            hold.local = True
            held = self._outage_counters.extend(ask, ticks)
        held = max(held, ask.ticks)
        hold.ask = replace(ask, ticks=held)
        return held

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
        """Asks the store. Raises AwayError if it is unreachable."""
        try:
            answer = self._counters.admit(ask, self._clock())
            if isinstance(answer, Unloaded):
                answer = self._load_and_ask(ask)
        except StoreUnavailableError as error:
            self._note_away(error)
            raise AwayError from None
        return answer

    def _ask_more(self, ask: Ask, ticks: int) -> int:
        try:
            for _ in range(LOOKUPS):
                held = self._counters.extend(ask, ticks, self._clock())
                if not isinstance(held, Unloaded):
                    return held
                asked_at = self._clock()
                self._counters.load(ask.key, ask.day, *self._look_up(ask), asked_at)
        except StoreUnavailableError as error:
            self._note_away(error)
            raise AwayError from None
        raise SpendingUnknownError

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
                with suppress(SpendingUnknownError):
                    self._counters.load(ask.key, ask.day, *self._look_up(ask), asked_at)
                    self._outage_counters.forget(ask.key, ask.day)
                answer = self._counters.admit(ask, self._clock())
        self._loading.pop(period, None)
        if isinstance(answer, Unloaded):
            raise SpendingUnknownError
        return answer

    def _look_up(self, ask: Ask) -> tuple[int, int]:
        try:
            return self._find_spent(ask.key, ask.day)
        except StoreUnavailableError:
            raise SpendingUnknownError from None

    def _ask_without_spending(self, ask: Ask) -> Grant | Refusal:
        """Checks the budgets in this worker, and everything else in the store."""
        local = self._outage_counters.admit(replace(ask, max_streams=None, tokens_per_minute=None))
        if isinstance(local, Refusal):
            return local
        try:
            answer = self._ask(replace(ask, budget_day_ticks=None, budget_month_ticks=None))
        except AwayError:
            self._outage_counters.settle(ask, 0, 0)
            return self._outage_counters.admit(ask)
        if isinstance(answer, Refusal):
            self._outage_counters.settle(ask, 0, 0)
            return answer
        return answer if local.held is None else replace(answer, held=local.held)

    def _book(self, ask: Ask, tokens: int, ticks: int, *, local: bool) -> None:
        if local:
            self._outage_counters.settle(ask, tokens, ticks)
        self._settlements.add(ask, tokens, ticks)
        if self._away:
            return
        if self._shared and not ask.is_limited:
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
