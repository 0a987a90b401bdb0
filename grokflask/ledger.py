"""What was used: each exchange becomes one entry, and each entry one line in the log.

An entry is opened when a request has been shaped and settled once, with all that is known by then.
Prompts, answers and secrets have no field here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from grokflask.errors import GrokflaskError, Outcome
from grokflask.usage import Settlement, Usage

_log = logging.getLogger("grokflask.exchange")


@dataclass(slots=True)
class LedgerEntry:
    """One exchange.

    Attributes:
        started_at: monotonic seconds, when the request came.
        status: of the response that the client got, 0 while it is open.
        code: the error's, when it ended in one; `detail` is what the log says beyond it.
        usage: of a whole reply, as soon as it is known: an error behind it does not undo what was paid.
    """

    request_id: str
    key: str
    route: str
    started_at: float
    model: str = ""
    stream: bool = False
    status: int = 0
    code: str | None = None
    detail: str | None = None
    settlement: Settlement | None = None
    duration_s: float = 0.0
    upstream_request_id: str | None = None
    retried: bool = False
    usage: Usage | None = None
    model_served: str | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def note_head(self, headers: Mapping[str, str], *, retried: bool) -> None:
        """Upstream's answer has begun."""
        self.upstream_request_id = headers.get("x-upstream-request-id")
        self.retried = retried

    def note_reply(
        self, headers: Mapping[str, str], usage: Usage | None, model_served: str | None, *, retried: bool
    ) -> None:
        """A whole reply has come: what it used is known, whatever becomes of it."""
        self.note_head(headers, retried=retried)
        self.usage, self.model_served = usage, model_served

    def settle_reply(self, bytes_out: int, status: int) -> None:
        """A whole reply goes to the client."""
        self.settle(
            Settlement(
                Outcome.COMPLETE, usage=self.usage, model_served=self.model_served, bytes_out=bytes_out
            ),
            status,
        )

    def settle(self, settlement: Settlement, status: int) -> None:
        """Closes the entry and writes its line. Later calls change nothing."""
        if self.settlement is not None:
            return
        self.settlement = settlement
        self.status = status
        if settlement.error:
            self.code, self.detail = settlement.error.code, settlement.error.detail
        self.duration_s = self.clock() - self.started_at
        _log.info("exchange", extra={"fields": self._list_fields()})

    def refuse(self, error: GrokflaskError) -> None:
        """Settles an exchange that ended in `error` before a byte of its answer."""
        if self.settlement is None:
            self.code, self.detail = error.code, error.detail
        settled = Settlement(outcome=error.outcome, usage=self.usage, model_served=self.model_served)
        self.settle(settled, error.status)

    def _list_fields(self) -> dict[str, object]:
        assert self.settlement is not None
        settled = self.settlement
        usage = settled.usage
        return {
            "request_id": self.request_id,
            "key": self.key,
            "route": self.route,
            "model": self.model,
            "model_served": settled.model_served,
            "stream": self.stream,
            "status": self.status,
            "outcome": settled.outcome.value,
            "code": self.code,
            "detail": self.detail,
            "events": settled.events if self.stream else None,
            "bytes_out": settled.bytes_out,
            "ttft_ms": None if settled.ttft_s is None else round(settled.ttft_s * 1000),
            "duration_ms": round(self.duration_s * 1000),
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "reasoning_tokens": usage.reasoning_tokens if usage else None,
            "total_tokens": usage.total_tokens if usage else None,
            "cost_ticks": usage.cost_ticks if usage else None,
            "upstream_request_id": self.upstream_request_id,
            "retries": 1 if self.retried else None,
        }
