"""Exchanges: one POST from its body to the last byte of its answer, noted in the journal whatever happens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from grokflask.sandbox.chunks import Clock
from grokflask.sandbox.journal import Exchange, Journal, Outcome
from grokflask.sandbox.messages import Metadata
from grokflask.sandbox.plans import Call, Charge, Plan, make_plan
from grokflask.sandbox.refusals import RefusalError
from grokflask.sandbox.steps import ClientLeftError, Progress, Wire
from grokflask.sandbox.stored import StoredResponses


@dataclass
class ServedPost:
    """One POST being answered.

    `pause_s` lies between events, `may_chunk` is False for an HTTP/1.0 client, `request_id` is the answer's,
    `stored` are the responses that are kept.
    """

    call: Call
    wire: Wire
    clock: Clock
    pause_s: float
    may_chunk: bool
    request_id: str
    stored: StoredResponses
    plan: Plan | None = None
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome = "complete"
    status: int = 0

    def serve(self, journal: Journal) -> None:
        """Answer and take the note; raises ClientLeftError."""
        client_left = False
        try:
            self.plan = make_plan(self.call, self.clock, self.stored)
            self._tell(self.plan)
        except RefusalError as refusal:
            self.outcome, self.status = "fault" if refusal.deliberate else "refused", refusal.status
            client_left = not _send_refusal(self.wire, refusal)
        except ClientLeftError:
            client_left = True
            self.outcome = "complete" if self.progress.done else "client_left"
        finally:
            journal.add(self._note(client_left))
        if client_left:
            raise ClientLeftError

    def _tell(self, plan: Plan) -> None:
        """Send what was planned."""
        delay = plan.fault.before_headers
        if delay == "cut":
            self.outcome = "fault"
            self.wire.cut(reset=False)
            return
        for pause in delay(plan.seconds) if delay else ():
            self.wire.pause(pause.seconds)
        self.wire.chunked = plan.stream and self.may_chunk
        headers = {**plan.headers, "Transfer-Encoding": "chunked"} if self.wire.chunked else plan.headers
        self.wire.send_head(200, headers)
        self.status = 200
        self.wire.play(plan.steps, self.pause_s, self.progress)
        if self.progress.cut or (plan.stream and not self.progress.done):
            self.outcome = "fault"
        elif not plan.stream:
            self.progress.usage = plan.usage

    def _note(self, client_left: bool) -> Exchange:
        progress, outline = self.progress, _outline(self.call.body)
        # A plan means that the prompt was read, so it is charged, whether or not the client waited for more.
        charge = self.plan.charge(progress.tokens) if self.plan else Charge()
        return Exchange(
            model=outline.model,
            path=self.call.path,
            outcome=self.outcome,
            status=self.status,
            stream=outline.stream,
            events_sent=progress.events,
            usage=progress.usage,
            prompt_tokens=charge.prompt_tokens,
            output_tokens=charge.output_tokens,
            cost_ticks=charge.cost_ticks,
            cached_tokens=charge.cached_tokens,
            client_left=client_left,
            fields=outline.fields,
            user=outline.user,
            request_id=self.request_id,
            conv_id=self.call.conv_id or outline.conv_id,
        )


def send_json(wire: Wire, body: bytes, status: int = 200) -> None:
    """Send a whole answer of JSON; raises ClientLeftError."""
    send_whole(wire, status, {"Content-Type": "application/json"}, body)


def send_whole(wire: Wire, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send an answer with its length stated; raises ClientLeftError."""
    wire.chunked = False
    wire.send_head(status, {**headers, "Content-Length": str(len(body))})
    wire.send_part(body)


class _Outline(NamedTuple):
    """What the journal wants of any body."""

    model: str = ""
    stream: bool = False
    fields: tuple[str, ...] = ()
    user: str | None = None
    conv_id: str | None = None


def _outline(body: bytes) -> _Outline:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(fields.get("model", b'""'), type=str)
        user = msgspec.json.decode(fields.get("user", b"null"), type=str | None)
        conv_id = msgspec.json.decode(fields.get("prompt_cache_key", b"null"), type=str | None)
        if "metadata" in fields and user is None:  # where the messages route has it
            metadata = msgspec.json.decode(fields["metadata"], type=Metadata | None)
            user = metadata.user_id if metadata else None
    except (msgspec.DecodeError, RecursionError):
        return _Outline()
    return _Outline(model, bytes(fields.get("stream", b"")) == b"true", tuple(fields), user, conv_id)


def _send_refusal(wire: Wire, refusal: RefusalError) -> bool:
    """Send a refusal; False if the client had left."""
    try:
        send_whole(wire, refusal.status, refusal.headers, refusal.body)
    except ClientLeftError:
        return False
    return True
