"""Exchanges: one POST from its body to the last byte of its answer, noted in the journal whatever happens."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from grokflask.sandbox.answers import Answer, make_answer
from grokflask.sandbox.chat_request import ChatRequest, check_request
from grokflask.sandbox.chunks import Clock, make_chunks, make_reply
from grokflask.sandbox.faults import NO_FAULT, Fault, find_fault
from grokflask.sandbox.framing import frame_chunks
from grokflask.sandbox.journal import Exchange, Journal, Outcome
from grokflask.sandbox.models import CHAT_MODELS, IMAGE_TICKS
from grokflask.sandbox.pictures import ImageRequest, check_image_request, make_images
from grokflask.sandbox.refusals import RefusalError, refuse, refuse_model
from grokflask.sandbox.steps import ClientLeftError, Data, Progress, Step, Wire

T = TypeVar("T")
CHAT_PATH = "/v1/chat/completions"
IMAGES_PATH = "/v1/images/generations"


class Call(NamedTuple):
    """A POST as it came in: `origin` is the scheme and host it was sent to, `bearer` the key it brought."""

    path: str
    body: bytes
    bearer: str | None
    origin: str


class Charge(NamedTuple):
    """What xAI would charge: tokens, and their cost (1 USD = 10^10 ticks)."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_ticks: int = 0


class Plan(NamedTuple):
    """An answer ready to be told.

    `charge` gives what is charged once so many tokens of output were sent; `usage` is what a reply that is
    not streamed tells.
    """

    headers: Mapping[str, str]
    steps: Iterable[Step]
    stream: bool
    fault: Fault
    seconds: float
    charge: Callable[[int], Charge]
    usage: dict[str, Any] | None = None


@dataclass
class ServedPost:
    """One POST being answered.

    `pause_s` lies between events, `may_chunk` is False for an HTTP/1.0 client, `request_id` is the answer's.
    """

    call: Call
    wire: Wire
    clock: Clock
    pause_s: float
    may_chunk: bool
    request_id: str
    plan: Plan | None = None
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome = "complete"
    status: int = 0

    def serve(self, journal: Journal) -> None:
        """Answer and take the note; raises ClientLeftError."""
        client_left = False
        try:
            self.plan = make_plan(self.call, self.clock)
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
            client_left=client_left,
            fields=outline.fields,
            user=outline.user,
            request_id=self.request_id,
        )


def make_plan(call: Call, clock: Clock) -> Plan:
    """Return the answer to a call; raises RefusalError."""
    if not call.body.strip():
        raise refuse(415, "The request has no body.")
    return _plan_chat(call, clock) if call.path == CHAT_PATH else _plan_images(call)


def send_json(wire: Wire, body: bytes, status: int = 200) -> None:
    """Send a whole answer of JSON; raises ClientLeftError."""
    send_whole(wire, status, {"Content-Type": "application/json"}, body)


def send_whole(wire: Wire, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send an answer with its length stated; raises ClientLeftError."""
    wire.chunked = False
    wire.send_head(status, {**headers, "Content-Length": str(len(body))})
    wire.send_part(body)


def _plan_chat(call: Call, clock: Clock) -> Plan:
    asked = _decode(call.body, ChatRequest)
    fault, seconds, named = _choose_fault(asked, call, bool(asked.stream))
    model = CHAT_MODELS.get("grok-4.3" if named else asked.model)
    if model is None:
        raise refuse_model(asked.model)
    check_request(asked, model)
    if fault.strict_content and any(message.content is None for message in asked.messages):
        raise refuse(400, "Each message must have at least one content element.")
    answer = make_answer(asked, model, fault.style)
    if not asked.stream:
        charge = _charge(answer, answer.completion_tokens() + answer.reasoning_tokens())
        return _plan_json(make_reply(answer, clock), charge, answer.usage(), fault, seconds)
    events = frame_chunks(make_chunks(answer, fault.style, asked.wants_usage(), clock), fault.frame)
    steps = fault.alter(events, seconds) if fault.alter else events
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **fault.headers}
    return Plan(
        headers, steps, True, fault, seconds, lambda sent: _charge(answer, answer.silent_tokens + sent)
    )


def _charge(answer: Answer, output_tokens: int) -> Charge:
    return Charge(answer.prompt_tokens, output_tokens, answer.cost_ticks(output_tokens))


def _plan_images(call: Call) -> Plan:
    asked = _decode(call.body, ImageRequest)
    fault, seconds, named = _choose_fault(asked, call, stream=False)
    ticks = IMAGE_TICKS.get("grok-imagine-image" if named else asked.model)
    if ticks is None:
        raise refuse_model(asked.model)
    check_image_request(asked)
    reply = make_images(asked, call.origin, ticks)
    usage = reply["usage"]
    return _plan_json(reply, Charge(cost_ticks=usage["cost_in_usd_ticks"]), usage, fault, seconds)


def _plan_json(
    reply: dict[str, Any], charge: Charge, usage: dict[str, Any], fault: Fault, seconds: float
) -> Plan:
    """Plan an answer that is made whole before it is sent, and so is charged whole."""
    body = msgspec.json.encode(reply)
    steps = fault.spoil(body, seconds) if fault.spoil else [Data(body)]
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Plan(headers, steps, False, fault, seconds, lambda _: charge, usage)


def _choose_fault(asked: ChatRequest | ImageRequest, call: Call, stream: bool) -> tuple[Fault, float, bool]:
    """Return the fault that is asked for, or NO_FAULT, its seconds, and whether the model's name asks for it.

    Else the first word of `user` may name it, for any model. Raises the fault's refusal where it has one.
    """
    by_model = find_fault(asked.model)
    found = by_model or find_fault((asked.user or "").partition(" ")[0])
    if not found:
        return NO_FAULT, 0.0, False
    fault, seconds = found
    if fault.refuse and fault.refuse_on in ("all", "stream" if stream else "plain"):
        refusal = fault.refuse(call.bearer)
        refusal.deliberate = True
        raise refusal
    return fault, seconds, by_model is not None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise refuse(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(400, f"Failed to parse the request body as JSON: {error}") from None


class _Outline(NamedTuple):
    """What the journal wants of any body."""

    model: str = ""
    stream: bool = False
    fields: tuple[str, ...] = ()
    user: str | None = None


def _outline(body: bytes) -> _Outline:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(fields.get("model", b'""'), type=str)
        user = msgspec.json.decode(fields.get("user", b"null"), type=str | None)
    except (msgspec.DecodeError, RecursionError):
        return _Outline()
    return _Outline(model, bytes(fields.get("stream", b"")) == b"true", tuple(fields), user)


def _send_refusal(wire: Wire, refusal: RefusalError) -> bool:
    """Send a refusal; False if the client had left."""
    try:
        send_whole(wire, refusal.status, refusal.headers, refusal.body)
    except ClientLeftError:
        return False
    return True
