"""One exchange while it is open: all that it holds, and how that is given back, once."""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from grokflask.billing.bill import Bill, make_bill
from grokflask.errors import GrokflaskError, Outcome
from grokflask.exchanges import OpenExchanges
from grokflask.keys.ring import ApiKey
from grokflask.ledger.entry import LedgerEntry
from grokflask.ledger.row import LedgerRow
from grokflask.limits.admission import Hold
from grokflask.metrics.tallies import Tallies
from grokflask.protocol.usage import Settlement
from grokflask.shaping.bodies import UpstreamRequest
from grokflask.upstream.client import UpstreamCall


class Rows(Protocol):
    """Where the ledger's rows go; neither method blocks or raises."""

    @property
    def worker(self) -> str:
        """The process's name in them."""

    @property
    def is_full(self) -> bool:
        """There is no room for further ones."""

    def open(self, row: LedgerRow) -> None:
        """An exchange has begun."""

    def settle(self, row: LedgerRow) -> None:
        """It is over."""


class Exchange:
    """What a request holds while upstream works on it: a place, its limits, an open row. Given back once."""

    def __init__(
        self,
        call: UpstreamCall,
        asked: UpstreamRequest,
        key: ApiKey,
        entry: LedgerEntry,
        hold: Hold,
        exchanges: OpenExchanges,
        rows: Rows,
        tallies: Tallies,
    ) -> None:
        self.call = call
        self.path, self.model, self.makes = asked.path, asked.model, asked.makes
        self.key = key
        self.entry = entry
        self._estimate = asked.estimate  # not the request: its body may be large, and a stream long
        self._hold = hold
        self._exchanges = exchanges
        self._rows = rows
        self._tallies = tallies
        self._bill: Bill | None = None

    def finish(self, settlement: Settlement) -> Bill:
        """Upstream is done, though its last bytes are not out yet: the limits are free for a next request."""
        if self._bill is None:
            self._bill = make_bill(self._estimate, settlement, reached=self.call.reached)
            self._hold.settle(self._bill)
        return self._bill

    def settle(self, settlement: Settlement, status: int) -> None:
        """All is over. Idempotent. What a fault of our own has ended was not refused, but cut short."""
        if settlement.outcome is Outcome.REFUSED:
            settlement = replace(settlement, outcome=Outcome.TRUNCATED)
        self._exchanges.end(self.call)
        bill = self.finish(settlement)
        if not self.entry.settled:
            row = self.entry.settle(settlement, status, bill)
            self._rows.settle(row)
            self._tallies.settled.append(row)

    def fail(self, error: GrokflaskError) -> None:
        """Ends the call and settles, before a byte of the answer."""
        self.call.cancel(error)
        self.settle(self.entry.sum_up(error.outcome, error=error), error.status)
