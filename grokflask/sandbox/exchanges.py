"""Exchanges: one POST to a model, from its body to the last byte of the answer, and its journal entry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from grokflask.sandbox.journal import Exchange, Outcome
from grokflask.sandbox.messages import Metadata
from grokflask.sandbox.plans import Plan
from grokflask.sandbox.refusals import RefusalError
from grokflask.sandbox.request import Request
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
        if self.progress.cut or (plan.stream and not self.progress.done):
            self.outcome = "fault"
        elif not plan.stream:
            self.progress.usage = plan.usage

    def _make_note(self, client_left: bool) -> Exchange:
        request, progress, outline = self.request, self.progress, _read_outline(self.request.body)
        # A planned request is charged for its prompt, even if the client did not wait for the answer.
        prompt_tokens, cached_tokens, output_tokens, cost_ticks = (
            self.plan.charge(progress.tokens) if self.plan else (0, 0, 0, 0)
        )
        return Exchange(
            model=outline.model,
            path=request.path,
            outcome=self.outcome,
            status=self.status,
            stream=outline.stream,
            events_sent=progress.events,
            usage=progress.usage,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cost_ticks=cost_ticks,
            cached_tokens=cached_tokens,
            client_left=client_left,
            fields=outline.fields,
            user=outline.user,
            request_id=request.id,
            conv_id=request.headers.get("x-grok-conv-id") or outline.conv_id,
        )


class _Outline(NamedTuple):
    """The part of any body that the journal notes."""

    model: str = ""
    stream: bool = False
    fields: tuple[str, ...] = ()
    user: str | None = None
    conv_id: str | None = None


def _read_outline(body: bytes) -> _Outline:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(fields.get("model", b'""'), type=str)
        user = msgspec.json.decode(fields.get("user", b"null"), type=str | None)
        conv_id = msgspec.json.decode(fields.get("prompt_cache_key", b"null"), type=str | None)
        if "metadata" in fields and user is None:  # on the messages route the user is here
            metadata = msgspec.json.decode(fields["metadata"], type=Metadata | None)
            user = metadata.user_id if metadata else None
    except (msgspec.DecodeError, RecursionError):
        return _Outline()
    return _Outline(model, bytes(fields.get("stream", b"")) == b"true", tuple(fields), user, conv_id)
