"""An exchange: what a request holds while upstream works on it, and how that is booked and released."""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from grokflask.billing.bill import Bill, make_bill
from grokflask.errors import GrokflaskError, Outcome
from grokflask.keys.ring import ApiKey
from grokflask.ledger.entry import LedgerEntry
from grokflask.ledger.row import LedgerRow
from grokflask.limits.holds import Hold
from grokflask.metrics.tallies import Tallies
from grokflask.protocol.usage import Settlement
from grokflask.register import OpenExchanges
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.client import UpstreamCall


class Rows(Protocol):
    """Takes the ledger's rows. Its methods neither block nor raise."""

    @property
    def worker(self) -> str:
        """The name of this process in the rows."""

    @property
    def is_full(self) -> bool:
        """There is no room for further rows."""

    def open(self, row: LedgerRow) -> None:
        """An exchange has begun."""

    def settle(self, row: LedgerRow) -> None:
        """An exchange is over."""


class Exchange:
    """What a request holds while upstream works on it: a place, a reservation, an open row. Released once."""

    def __init__(
        self,
        call: UpstreamCall,
        upstream_request: UpstreamRequest,
        key: ApiKey,
        entry: LedgerEntry,
        hold: Hold,
        exchanges: OpenExchanges,
        rows: Rows,
        tallies: Tallies,
    ) -> None:
        self.call = call
        self.path, self.model = upstream_request.path, upstream_request.model
        self.makes = upstream_request.makes
        self.key = key
        self.entry = entry
        self._hold = hold
        self._exchanges = exchanges
        self._rows = rows
        self._tallies = tallies
        self._bill: Bill | None = None

    def finish(self, settlement: Settlement) -> Bill:
        """Upstream is done, but the last bytes are not out yet: books the bill and frees the limits."""
        if self._bill is None:
            reached = self.entry.row.reached = self.call.reached
            self._bill = make_bill(self._hold.estimate, settlement, reached=reached != "no")
            complete = settlement.outcome is Outcome.COMPLETE
            self._hold.settle(self._bill, self.entry.clock() - self.entry.started_at if complete else 0.0)
        return self._bill

    def settle(self, settlement: Settlement) -> None:
        """The exchange is over. Idempotent. An exchange ended by a bug was cut short, not refused."""
        if settlement.outcome is Outcome.REFUSED:
            settlement = replace(settlement, outcome=Outcome.TRUNCATED)
        self._exchanges.end(self.call)
        bill = self.finish(settlement)
        if not self.entry.settled:
            row = self.entry.settle(settlement, bill)
            self._rows.settle(row)
            self._tallies.settled.append(row)

    def fail(self, error: GrokflaskError) -> None:
        """Ends the call and settles, before a byte of the answer."""
        self.call.cancel(error)
        settlement = self.entry.sum_up(error.outcome, error=error)
        if error.outcome in (Outcome.CLIENT_ABORT, Outcome.SHUTDOWN) and not settlement.text_tokens:
            written = self._hold.guess_output(self.entry.clock() - self.entry.started_at)
            settlement = replace(settlement, text_tokens=0 if self.entry.row.stream else written)
        self.settle(settlement)
