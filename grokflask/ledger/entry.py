"""Each exchange has one entry, which becomes one row of the ledger and one line in the log.

The entry is made when a request arrives. Its row is opened when upstream is called. Both are settled once.
Prompts, answers and secrets have no field here.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from grokflask.billing.bill import Bill, Estimate
from grokflask.errors import GrokflaskError, Outcome
from grokflask.ledger.row import LedgerRow, clean
from grokflask.protocol.usage import Settlement, Usage

_log = logging.getLogger("grokflask.exchange")

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens")
_BEFORE = ("request_id", "key", "route", "model", "model_served", "stream", "status", "outcome", "code")
_AFTER = ("bytes_out", "ttft_ms", "duration_ms", *_TOKENS, "cost_ticks")
_read_before = operator.attrgetter(*_BEFORE)  # one call for all of them
_read_after = operator.attrgetter(*_AFTER)


@dataclass(slots=True)
class LedgerEntry:
    """One exchange."""

    row: LedgerRow
    """Its `outcome` is None until `settle`."""
    started_at: float
    """Monotonic seconds at which the request arrived."""
    detail: str | None = None
    """The error's details, for the log only."""
    events: int = 0
    retried: bool = False
    usage: Usage | None = None
    """The usage of a whole reply, once known: it is charged even if an error follows."""
    model_served: str | None = None
    text_tokens: int = 0
    """Of a whole reply without usage."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @property
    def settled(self) -> bool:
        """The entry is closed."""
        return self.row.outcome is not None

    def expect(self, estimate: Estimate) -> LedgerRow:
        """The row of an open exchange, which will cost at least its prompt."""
        row = self.row
        row.prompt_tokens = estimate.prompt_tokens
        row.cost_ticks = estimate.prompt_ticks
        row.estimated = estimate.billing != "free"
        return self.row

    def note_head(self, headers: Mapping[str, str], retried: bool) -> None:
        """Records upstream's request id from the headers of its answer."""
        upstream_id = headers.get("x-upstream-request-id")
        self.row.upstream_request_id = upstream_id and clean(upstream_id)
        self.retried = retried

    def sum_up(
        self,
        outcome: Outcome,
        *,
        error: GrokflaskError | None = None,
        bytes_out: int = 0,
        status: int = 200,
    ) -> Settlement:
        """The settlement of an exchange with a whole reply. An `error` sets the status."""
        return Settlement(
            outcome,
            error,
            usage=self.usage,
            usage_final=True,
            model_served=self.model_served,
            text_tokens=self.text_tokens,
            bytes_out=bytes_out,
            status=error.status if error else status,
        )

    def note_reply(self, usage: Usage | None, model_served: str | None, text_tokens: int) -> None:
        """Records the usage and model of a whole reply, and how many tokens its text has about."""
        self.usage, self.model_served, self.text_tokens = usage, model_served, text_tokens

    def settle(self, settlement: Settlement, bill: Bill | None = None) -> LedgerRow:
        """Closes the entry, logs its line and returns its row. Later calls change nothing."""
        if self.settled:
            return self.row
        usage = bill.usage if bill else settlement.usage or Usage()
        row, error = self.row, settlement.error
        row.outcome, row.status = settlement.outcome.value, settlement.status
        row.code = error.code if error else None
        row.model_served = None if settlement.model_served is None else clean(settlement.model_served)
        row.ttft_ms = None if settlement.ttft_s is None else round(settlement.ttft_s * 1000)
        row.duration_ms = round((self.clock() - self.started_at) * 1000)
        row.prompt_tokens, row.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        row.completion_tokens, row.reasoning_tokens = usage.completion_tokens, usage.reasoning_tokens
        row.total_tokens, row.cost_ticks = usage.total_tokens, usage.cost_ticks
        row.server_tools = usage.server_tools
        row.estimated = bill.estimated if bill else False
        row.bytes_out = settlement.bytes_out
        self.events = settlement.events
        self.detail = error.detail if error else None
        _log.info("exchange", extra={"fields": self._list_fields()})
        return row

    def refuse(self, error: GrokflaskError) -> None:
        """Settles a request that the gateway refused. Upstream has not seen it."""
        self.settle(Settlement(outcome=error.outcome, error=error, status=error.status))

    def _list_fields(self) -> dict[str, object]:
        row = self.row
        fields: dict[str, object] = dict(zip(_BEFORE, _read_before(row), strict=True))
        fields["detail"] = self.detail
        fields["events"] = self.events if row.stream else None
        fields.update(zip(_AFTER, _read_after(row), strict=True))
        fields["server_tools"] = row.server_tools or None
        fields["estimated"] = True if row.estimated else None
        fields["upstream_request_id"] = row.upstream_request_id
        fields["retries"] = 1 if self.retried else None
        fields["reached"] = None if row.reached == "answered" else row.reached
        return fields
