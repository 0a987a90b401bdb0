"""Exchanges: one POST to a model, from its body to the last byte of the answer, and its journal entry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grokflask.sandbox.journal import Exchange, Outcome
from grokflask.sandbox.plans import Plan
from grokflask.sandbox.refusals import RefusalError
from grokflask.sandbox.request import Request, decode
from grokflask.sandbox.steps import ClientLeftError, Progress, Wire


@dataclass
class ModelExchange:
    """A POST to a model. `make_plan` decides the answer, or raises RefusalError."""

    request: Request
    make_plan: Callable[[Request], Plan]
    wire: Wire
    plan: Plan | None = None
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome = "complete"
    status: int = 0

    def serve(self) -> None:
        """Answer, and note the exchange; raises ClientLeftError."""
        client_left = False
        try:
            self._answer()
        except ClientLeftError:
            client_left = True
            if self.plan:
                self.outcome = "complete" if self.progress.done else "client_left"
            raise
        finally:
            self.request.state.journal.add(self._make_note(client_left))

    def _answer(self) -> None:
        try:
            self.plan = self.make_plan(self.request)
        except RefusalError as refusal:
            self.outcome, self.status = "fault" if refusal.deliberate else "refused", refusal.status
            self.wire.send_whole(refusal.status, refusal.headers, refusal.body)
        else:
            self._send(self.plan)

    def _send(self, plan: Plan) -> None:
        pace = self.request.state.events_per_s
        pause_s = 1 / pace if pace > 0 else 0.0
        fault = plan.fault
        self.wire.play(fault.before_headers(fault.seconds), 0, self.progress)
        if not self.progress.cut:
            self.wire.send_head(200, plan.headers, plan.length)
            self.status = 200
            self.wire.play(plan.steps, pause_s, self.progress)
            self.wire.end_body()
        if self.progress.cut or not self.progress.done:
            self.outcome = "fault"

    def _make_note(self, client_left: bool) -> Exchange:
        request, progress, fields = self.request, self.progress, _read_fields(self.request.body)
        metadata = fields.get("metadata")  # on the messages route the user is in it
        user = metadata.get("user_id") if isinstance(metadata, dict) else None
        # A planned request is charged for its prompt, even if the client did not wait for the answer.
        prompt_tokens, cached_tokens, output_tokens, cost_ticks = (
            self.plan.charge(progress.tokens) if self.plan else (0, 0, 0, 0)
        )
        return Exchange(
            model=str(fields.get("model", "")),
            path=request.path,
            outcome=self.outcome,
            status=self.status,
            stream=fields.get("stream") is True,
            events_sent=progress.events,
            usage=progress.usage,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cost_ticks=cost_ticks,
            cached_tokens=cached_tokens,
            client_left=client_left,
            fields=tuple(fields),
            user=fields.get("user") or user,
            request_id=request.id,
            conv_id=request.headers.get("x-grok-conv-id") or fields.get("prompt_cache_key"),
        )


def _read_fields(body: bytes) -> dict[str, Any]:
    try:
        return decode(body, dict[str, Any])
    except RefusalError:
        return {}
