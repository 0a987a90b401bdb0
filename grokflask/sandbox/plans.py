"""Plans: the whole answer to a POST, decided before anything is sent, and what it costs."""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, count
from typing import Any, NamedTuple

import msgspec

from grokflask.sandbox import messages, responses
from grokflask.sandbox.answers import Answer, list_tokens, make_answer
from grokflask.sandbox.chat_request import NO_CONTENT, ChatRequest, check_request
from grokflask.sandbox.chunks import Chunk, frame_chunks, make_chunks, make_reply
from grokflask.sandbox.faults import BROKEN_AFTER_EVENTS, NO_FAULT, Fault, find_fault
from grokflask.sandbox.kept import StoredResponse
from grokflask.sandbox.models import CHAT_MODELS
from grokflask.sandbox.pictures import (
    EditRequest,
    ImageRequest,
    VideoRequest,
    make_images,
    make_video,
)
from grokflask.sandbox.prose import iterate_tokens, take_turns
from grokflask.sandbox.refusals import refuse, refuse_model
from grokflask.sandbox.request import ModelRequest, Request, decode
from grokflask.sandbox.steps import Event, Head, Step

_SPOILT_PIECES = 2 * BROKEN_AFTER_EVENTS
"""How many pieces a fault gets of a body that is not a stream."""

_MAX_CHARS = 200_000
"""Of a text whose tokens are listed; a list takes 50 times as much memory."""


class _TokenizeRequest(ModelRequest, kw_only=True):
    text: str


class Plan(NamedTuple):
    """An answer to send. A chat costs what its `answer` does, anything else `cost_ticks`."""

    steps: Iterable[Step]
    answer: Answer | None = None
    cost_ticks: int = 0
    stream: bool = False

    def charge(self, tokens_sent: int) -> dict[str, Any]:
        """Return the charged tokens and their cost in ticks, by the names of an Exchange.

        The prompt is charged even if the client did not wait for the answer. A stream is charged for the
        tokens sent and for silent reasoning; a reply for all of it.
        """
        answer = self.answer
        if answer is None:
            return {"cost_ticks": self.cost_ticks}
        output = answer.silent_tokens + tokens_sent if self.stream else answer.output_tokens
        return {
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "output_tokens": output,
            "cost_ticks": answer.cost_ticks(output),
        }


def answer_chat(request: Request, body: bytes) -> dict[str, Any]:
    """Return the whole answer to a chat in a batch; raises RefusalError."""
    asked = decode(body, ChatRequest)
    _, answer = _answer(asked, request)
    return make_reply(answer, request.state.clock)


def _plan_chat(request: Request) -> Plan:
    asked = decode(request.body, ChatRequest)
    fault, answer = _answer(asked, request)
    clock, kept = request.state.clock, request.state.kept
    if asked.stream:
        with_usage = bool((asked.stream_options or {}).get("include_usage"))
        return _plan_stream(make_chunks(answer, fault.style, with_usage, clock), fault, answer)
    reply = make_reply(answer, clock)
    return _plan_json(kept.begin(kept.deferred, reply) if asked.deferred else reply, fault, answer)


def _plan_response(request: Request) -> Plan:
    asked = decode(request.body, responses.ResponsesRequest)
    shelf = request.state.kept.responses
    before = shelf.find(asked.previous_response_id).messages if asked.previous_response_id else []
    chat = _convert(lambda: responses.to_chat(asked, before))
    fault, answer = _answer(chat, request, asked.prompt_cache_key)
    if asked.max_output_tokens is not None:
        answer.limit_output(asked.max_output_tokens)
    if request.path == COMPACT_PATH:
        return _plan_json(responses.make_compaction(answer, request.state.clock), fault, answer)
    answer.server_tools = asked.server_tools()
    reply = responses.make_response(asked, answer, fault.style, request.state.clock)
    if asked.store is not False:
        text = "".join(answer.content)
        said = {"role": "assistant", "content": text, "tool_calls": answer.tool_calls or None}
        shelf.add(reply["id"], StoredResponse(reply, [*msgspec.to_builtins(chat.messages), said]))
    if asked.stream:
        return _plan_stream(responses.make_events(answer, fault.style, reply), fault, answer)
    return _plan_json(reply, fault, answer)


def _plan_message(request: Request) -> Plan:
    asked = decode(request.body, messages.MessagesRequest)
    fault, answer = _answer(_convert(lambda: messages.to_chat(asked)), request)
    if asked.stream:
        return _plan_stream(messages.make_events(answer, fault.style), fault, answer, done=False)
    return _plan_json(messages.make_message(answer, fault.style), fault, answer)


def _plan_images(request: Request) -> Plan:
    asked = decode(request.body, EditRequest if request.path == EDITS_PATH else ImageRequest)
    fault, model = _choose_fault(asked, request, "grok-imagine-image")
    reply = make_images(asked, model, request.origin)
    return _plan_json(reply, fault, cost_ticks=reply["usage"]["cost_in_usd_ticks"])


def _plan_video(request: Request) -> Plan:
    asked = decode(request.body, VideoRequest)
    fault, model = _choose_fault(asked, request, "grok-imagine-video")
    video, ticks = make_video(asked, model, request.origin)
    kept = request.state.kept
    return _plan_json(kept.begin(kept.videos, video), fault, cost_ticks=ticks)


def _plan_tokens(request: Request) -> Plan:
    asked = decode(request.body, _TokenizeRequest)
    if asked.model not in CHAT_MODELS:
        raise refuse_model(asked.model)
    if len(asked.text) > _MAX_CHARS:
        raise refuse(
            400, f"The text is too long: it has {len(asked.text)} characters, of at most {_MAX_CHARS}."
        )
    tokens = [
        {"token_id": number, "string_token": token, "token_bytes": list(token.encode())}
        for number, token in enumerate(take_turns(iterate_tokens(asked.text)))
    ]
    return _plan_json({"token_ids": tokens}, NO_FAULT)


COMPACT_PATH = "/v1/responses/compact"
EDITS_PATH = "/v1/images/edits"
PLANNERS = {
    "/v1/chat/completions": _plan_chat,
    "/v1/responses": _plan_response,
    COMPACT_PATH: _plan_response,
    "/v1/messages": _plan_message,
    "/v1/images/generations": _plan_images,
    EDITS_PATH: _plan_images,
    **{f"/v1/videos/{what}": _plan_video for what in ("generations", "edits", "extensions")},
    "/v1/tokenize-text": _plan_tokens,
}
"""By path: what makes the plan for a POST of JSON; it raises RefusalError."""


def _answer(asked: ChatRequest, request: Request, conv_id: str | None = None) -> tuple[Fault, Answer]:
    """Return the fault and the answer; raises RefusalError for what xAI refuses."""
    fault, model_id = _choose_fault(asked, request, "grok-4.3", bool(asked.stream))
    model = CHAT_MODELS.get(model_id)
    if model is None:
        raise refuse_model(model_id)
    check_request(asked, model)
    if fault.strict_content and any(message.content is None for message in asked.messages):
        raise refuse(400, NO_CONTENT)
    number = count()
    tokens = (
        token for token, _ in zip(take_turns(list_tokens(asked)), number, strict=False)
    )  # counted as they are read
    conv_id = request.headers.get("x-grok-conv-id") or conv_id
    before = model.served.encode() + msgspec.json.encode(asked.tools)  # the model reads these first
    cached = request.state.kept.prompts.read(conv_id, before, tokens) if conv_id else 0
    deque(tokens, maxlen=0)
    answer = make_answer(asked, model, fault.style, next(number))
    answer.cached_tokens = cached
    return fault, answer


def _choose_fault(
    asked: ModelRequest, request: Request, default: str, stream: bool = False
) -> tuple[Fault, str]:
    """Return the fault and the model that serves; raises the fault's refusal if it has one.

    Either the model's name is that of a fault, and `default` serves, or the first word of `user` may be.
    """
    by_model = find_fault(asked.model)
    fault = by_model or find_fault((asked.user or "").partition(" ")[0]) or NO_FAULT
    if fault.refuse and not (stream and fault.alter):
        refusal = fault.refuse(request.bearer)
        refusal.deliberate = True
        raise refusal
    return fault, default if by_model else asked.model


def _plan_stream(chunks: Iterable[Chunk], fault: Fault, answer: Answer, *, done: bool = True) -> Plan:
    events = frame_chunks(chunks, fault.frame, done)
    steps = fault.alter(events, fault.seconds) if fault.alter else events
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **fault.headers}
    return Plan(chain(fault.before_headers(fault.seconds), [Head(200, headers)], steps), answer, stream=True)


def _plan_json(reply: Any, fault: Fault, answer: Answer | None = None, cost_ticks: int = 0) -> Plan:
    body = msgspec.json.encode(reply)
    size = -(-len(body) // _SPOILT_PIECES) if fault.alters_replies else len(body)
    pieces = [Event(body[at : at + size], events=0) for at in range(0, len(body), size)]
    pieces[-1] = pieces[-1]._replace(usage=reply.get("usage"), done=True)
    steps = fault.alter(iter(pieces), fault.seconds) if fault.alter and fault.alters_replies else pieces
    head = Head(200, {"Content-Type": "application/json"}, len(body))
    return Plan(chain(fault.before_headers(fault.seconds), [head], steps), answer, cost_ticks)


def _convert(convert: Callable[[], ChatRequest]) -> ChatRequest:
    try:
        return convert()
    except (msgspec.ValidationError, AttributeError) as error:
        raise refuse(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
