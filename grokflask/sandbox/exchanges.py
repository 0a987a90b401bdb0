"""Exchanges: one POST to a model, from its body to the last byte of the answer, and its journal entry."""

from collections.abc import Callable
from typing import Any, Literal

from grokflask.sandbox.faults import NO_FAULT
from grokflask.sandbox.journal import Exchange, Outcome
from grokflask.sandbox.plans import Plan
from grokflask.sandbox.refusals import RefusalError
from grokflask.sandbox.request import Request, decode
from grokflask.sandbox.steps import ClientLeftError, Event, Progress, Wire


def serve_model(request: Request, make_plan: Callable[[Request], Plan], wire: Wire) -> None:
    """Answer as planned or with the plan's refusal, and note the exchange; raises ClientLeftError."""
    progress, client_left = Progress(), False
    refused: Literal["fault", "refused"] | None = None
    try:
        plan = make_plan(request)
    except RefusalError as refusal:
        refused = "fault" if refusal.deliberate else "refused"
        steps = [Event(refusal.body, events=0, done=True)]
        plan = Plan(NO_FAULT, steps, refusal.headers, length=len(refusal.body), status=refusal.status)
    try:
        _send(plan, request.state.events_per_s, wire, progress)
    except ClientLeftError:
        client_left = True
        raise
    finally:
        ended: Outcome = "complete" if progress.done else "client_left" if client_left else "fault"
        request.state.journal.add(_make_note(request, plan, progress, refused or ended, client_left))


def _send(plan: Plan, events_per_s: float, wire: Wire, progress: Progress) -> None:
    wire.play(plan.fault.before_headers(plan.fault.seconds), 0, progress)
    if wire.open:
        wire.send_head(plan.status, plan.headers, plan.length)
        progress.status = plan.status
        wire.play(plan.steps, 1 / events_per_s if events_per_s > 0 else 0.0, progress)
        wire.end_body()


def _make_note(
    request: Request, plan: Plan, progress: Progress, outcome: Outcome, client_left: bool
) -> Exchange:
    try:
        fields = decode(request.body, dict[str, Any])
    except RefusalError:
        fields = {}
    metadata = fields.get("metadata")  # on the messages route the user is in it
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return Exchange(
        model=str(fields.get("model", "")),
        path=request.path,
        outcome=outcome,
        status=progress.status,
        stream=fields.get("stream") is True,
        events_sent=progress.events,
        usage=progress.usage,
        client_left=client_left,
        fields=tuple(fields),
        user=fields.get("user") or user,
        request_id=request.id,
        conv_id=request.headers.get("x-grok-conv-id") or fields.get("prompt_cache_key"),
        **plan.charge(progress.tokens),
    )
