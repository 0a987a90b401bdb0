"""How much: a request is admitted against all limits of its key in one atomic step, and settled at its end.

Open streams, tokens per minute and budgets are reserved by an estimate before anything is sent upstream.
What an exchange holds is a lease: it is renewed while the exchange runs, given back once, and lapses by
itself when the process is killed. Requests per window are flask-limiter's, not this module's.

When the store is away, or what a key has spent cannot be learnt, each limit does what its setting says:
`open` lets pass, `local` counts in this worker alone, with its part of the limit, `closed` refuses.
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
from grokflask.limits.refusals import explain, tell_tokens
from grokflask.limits.settlements import Settlements
from grokflask.limits.stand_in import FindSpent, StandIn
from grokflask.runtime import get_pid

LOOKUPS = 2
"""How often a request asks the ledger what its key has spent, before it goes on without knowing."""

PROBE_S = 1.0
"""How often a store that is away is tried again, which no request waits for; and how often one that is there
is asked which streams are to be ended."""

_log = logging.getLogger("grokflask.limits")


class Hold:
    """What one exchange holds. `settle` gives it back, whatever happens, once.

    Attributes:
        headers: what the client is told of its limits.
    """

    def __init__(self, limits: Limits, ask: Ask, *, local: bool, headers: dict[str, str]) -> None:
        self.ask = ask
        self.local = local
        self.headers = headers
        self._limits = limits
        self._lock = threading.Lock()
        self._settled = False

    def settle(self, bill: Bill | None = None) -> None:
        """Gives back what is held and books what was used; nothing when upstream was never asked."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
        self._limits.settle(self, bill.tokens if bill else 0, bill.ticks if bill else 0)


@dataclass(slots=True)
class StoreState:
    """How the shared store is, for /ready: `store` is where limits are counted now."""

    store: Literal["memory", "redis", "local"]
    outages: int = 0
    waiting: int = 0


class Limits:
    """Admits and settles. One for each process.

    Args:
        counters: where it is counted: shared with other workers (Redis), or this process's memory.
        shared: `counters` may go away, and then a local stand-in takes over.
        worker: gives this process's name.
        find_spent: looks a key's spending up where the counters do not know it yet.
        stop: ends the streams among exchanges of these ids.
        catch_up: sets `counters` right by the ledger. Called once, when a process that drains beside this one
            after a reload has ended: counters in memory know nothing of what it has booked meanwhile.
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
        catch_up: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._shared = shared
        self._stop = stop
        self._catch_up = catch_up
        self._catch_up_at = 0.0  # monotonic
        self._worker = worker
        self._find_spent = find_spent
        self._clock = clock
        self._stand_in = StandIn(settings, worker=worker, find_spent=find_spent, clock=clock)
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
        """Where limits are counted, how often the store went away, how many settlements wait for it."""
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

        Raises TooManyStreamsError, TokenLimitError, BudgetSpentError and FairShareError, and
        StoreUnavailableError where a limit is `closed` and cannot be looked at.
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
        local = self._away
        try:
            answer = self._stand_in.admit(ask) if local else self._ask(ask)
        except _SpendingUnknownError:
            local = True
            answer = self._ask_without_spending(ask)
        except _AwayError:
            local = True
            answer = self._stand_in.admit(ask)
        if isinstance(answer, Refusal):
            raise explain(answer, ask)
        hold = Hold(self, ask, local=local, headers=tell_tokens(ask, answer))
        self._holds[ask.id] = hold
        return hold

    def settle(self, hold: Hold, tokens: int, ticks: int) -> None:
        """As `Hold.settle`, which sees to it that this comes once. Never raises."""
        ask = hold.ask
        self._holds.pop(ask.id, None)
        self._book(ask, tokens, ticks, local=hold.local or self._away)

    def charge(self, rows: list[LedgerRow]) -> None:
        """Books rows that another process did not live to settle. Never raises."""
        for row in rows:
            ask = Ask(row.id, f"key:{row.key}", row.request_id, False, 0, 0, row.day, None, None, None, None)
            self._book(ask, 0, row.cost_ticks or 0, local=False)

    def find_standing(self, key: str, day: str) -> Standing:
        """What a key has open and has used. Raises StoreUnavailableError."""
        now = self._clock()
        if self._away:
            standing = self._stand_in.find_standing(key, day)
        else:
            standing = self._counters.standing(key, day, now)
        if standing.day_ticks is None:
            day_ticks, month_ticks = self._find_spent(key, day)
            standing = replace(standing, day_ticks=day_ticks, month_ticks=month_ticks)
        return standing

    def stop_elsewhere(self, ids: Sequence[str]) -> bool:
        """Asks the other workers to end the streams with these ids; False where they cannot be reached.

        They notice within PROBE_S. Raises StoreUnavailableError.
        """
        if self._shared:
            self._counters.mark(ids, self._clock())
        return self._shared

    def start(self) -> None:
        """Starts the thread that renews leases and delivers what waits. Once for each process."""
        if self._thread is None or self._pid != get_pid():
            self._closed = False
            self._pid = get_pid()
            self._catch_up_at = time.monotonic() + self._settings.grace_s
            self._thread = threading.Thread(target=self._run, name="limits", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Delivers what waits, for at most about `timeout_s`. Idempotent."""
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def _ask(self, ask: Ask) -> Grant | Refusal:
        """Asks the store. Raises _AwayError when this worker has to do without it."""
        try:
            answer = self._counters.admit(ask, self._clock())
            if isinstance(answer, Unloaded):
                answer = self._load_and_ask(ask)
        except StoreUnavailableError as error:
            self._note_away(error)
            raise _AwayError from None
        return answer

    def _load_and_ask(self, ask: Ask) -> Grant | Refusal:
        """Looks up what the key has spent: once, however many of its requests come at the same time."""
        period = (ask.key, ask.day)
        with self._lock:
            lock = self._loading.setdefault(period, threading.Lock())
        with lock:
            answer = self._counters.admit(ask, self._clock())
            for _ in range(LOOKUPS):
                if not isinstance(answer, Unloaded):
                    break
                asked_at = self._clock()
                # A look-up may fail because the machine is busy, and another worker's have come through.
                with suppress(_SpendingUnknownError):
                    self._counters.load(ask.key, ask.day, *self._look_up(ask), asked_at)
                    self._stand_in.forget(ask.key, ask.day)
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
        """Asks the stand-in about the budgets, and the store about all else."""
        local = self._stand_in.admit(replace(ask, max_streams=None, tokens_per_minute=None))
        if isinstance(local, Refusal):
            return local
        try:
            answer = self._ask(replace(ask, budget_day_ticks=None, budget_month_ticks=None))
        except _AwayError:
            self._stand_in.settle(ask, 0, 0)
            return self._stand_in.admit(ask)
        if isinstance(answer, Refusal):
            self._stand_in.settle(ask, 0, 0)
        return answer

    def _book(self, ask: Ask, tokens: int, ticks: int, *, local: bool) -> None:
        if local:
            self._stand_in.settle(ask, tokens, ticks)
        self._settlements.add(ask, tokens, ticks)
        if self._away:
            return
        if self._shared and not _is_limited(ask):
            self._wake.set()  # nobody's next request depends on it
            return
        try:
            self._settlements.deliver(unless=lambda: self._away)
        except StoreUnavailableError as error:
            self._note_away(error)

    def keep_up(self) -> None:
        """One round of the thread: renews what is held, delivers what waits, finds out how the store is."""
        try:
            now = time.monotonic()
            if self._away or now >= self._renew_at:
                self._renew()
                self._renew_at = now + RENEW_S
            self._settlements.deliver()
            if self._catch_up and now >= self._catch_up_at:
                self._catch_up()
                self._catch_up = None
            if self._shared and self._holds:
                self._stop(self._counters.list_marked(self._clock()))
        except StoreUnavailableError as error:
            self._note_away(error)
        except Exception:
            _log.exception("limits cannot be kept up to date")
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
        self._stand_in.renew(lambda: [hold.ask for hold in list(self._holds.values()) if hold.local])
        with self._settlements.pause():
            # Also those that were granted while it was away, and those that it has forgotten.
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
            "Redis is away: streams, tokens and budgets are limited as the settings say",
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
            self._stand_in.clear()
            _log.warning("Redis is back: streams, tokens and budgets are counted there again")


class _AwayError(Exception):
    """The store cannot be asked."""


class _SpendingUnknownError(Exception):
    """The store does not know what the key has spent, and the ledger cannot be asked."""


def _is_limited(ask: Ask) -> bool:
    limits = (ask.max_streams, ask.tokens_per_minute, ask.budget_day_ticks, ask.budget_month_ticks)
    return any(limit is not None for limit in limits)
