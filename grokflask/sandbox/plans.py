"""Plans: what a POST is answered with, decided as a whole before anything is sent, and what that costs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from grokflask.sandbox import messages, responses, responses_request
from grokflask.sandbox.answers import Answer, Style, list_tokens, make_answer
from grokflask.sandbox.chat_request import ChatRequest, Message, check_request
from grokflask.sandbox.chunks import Chunk, Clock, make_chunks, make_reply
from grokflask.sandbox.faults import NO_FAULT, Fault, find_fault
from grokflask.sandbox.framing import frame_chunks
from grokflask.sandbox.kept import Kept
from grokflask.sandbox.messages import MessagesRequest
from grokflask.sandbox.models import CHAT_MODELS, IMAGE_TICKS, ChatModel
from grokflask.sandbox.pictures import EditRequest, ImageRequest, check_image_request, make_images
from grokflask.sandbox.prompt_cache import PromptCache
from grokflask.sandbox.prose import split_tokens
from grokflask.sandbox.refusals import refuse, refuse_model
from grokflask.sandbox.responses_request import ResponsesRequest
from grokflask.sandbox.steps import Data, Step
from grokflask.sandbox.stored import StoredResponses
from grokflask.sandbox.videos import VideoRequest, make_video

T = TypeVar("T")
CHAT_PATH = "/v1/chat/completions"
IMAGES_PATH = "/v1/images/generations"
RESPONSES_PATH = "/v1/responses"
COMPACT_PATH = "/v1/responses/compact"
MESSAGES_PATH = "/v1/messages"
EDITS_PATH = "/v1/images/edits"
TOKENIZE_PATH = "/v1/tokenize-text"
VIDEO_PATHS = "/v1/videos/(generations|edits|extensions)"


class Call(NamedTuple):
    """A POST as it came in.

    `origin` is the scheme and host it was sent to, `bearer` the key it brought, `kept` where is put what
    will be fetched later, `cache` what was read of prompts before, `conv_id` the conversation's id.
    """

    path: str
    body: bytes
    bearer: str | None
    origin: str
    kept: Kept | None = None
    cache: PromptCache | None = None
    conv_id: str | None = None


class TokenizeRequest(msgspec.Struct):
    """The body of a request for a text's tokens."""

    model: str
    text: str


class Charge(NamedTuple):
    """What xAI would charge: tokens, and their cost (1 USD = 10^10 ticks)."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_ticks: int = 0
    cached_tokens: int = 0


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


def make_plan(call: Call, clock: Clock, stored: StoredResponses) -> Plan:
    """Return the answer to a call; raises RefusalError."""
    if not call.body.strip():
        raise refuse(415, "The request has no body.")
    if call.path == CHAT_PATH:
        return _plan_chat(call, clock)
    if call.path in (RESPONSES_PATH, COMPACT_PATH):
        return _plan_response(call, clock, stored)
    if call.path == TOKENIZE_PATH:
        return _plan_tokens(call)
    if call.path.startswith("/v1/videos/"):
        return _plan_video(call)
    return _plan_message(call) if call.path == MESSAGES_PATH else _plan_images(call)


def answer_chat(call: Call, clock: Clock) -> dict[str, Any]:
    """Return the whole answer to a chat in a batch; raises RefusalError."""
    asked = _decode(call.body, ChatRequest)
    fault, _, model = _check(asked, call)
    return make_reply(make_answer(asked, model, fault.style), clock)


def _plan_chat(call: Call, clock: Clock) -> Plan:
    asked = _decode(call.body, ChatRequest)
    fault, seconds, model = _check(asked, call)
    answer = _answer(asked, model, fault.style, call)
    if not asked.stream:
        charge = _charge(answer, answer.completion_tokens() + answer.reasoning_tokens())
        reply = make_reply(answer, clock)
        if asked.deferred and call.kept:
            return _plan_json(call.kept.begin(call.kept.deferred, reply), charge, None, fault, seconds)
        return _plan_json(reply, charge, answer.usage(), fault, seconds)
    chunks = make_chunks(answer, fault.style, asked.wants_usage(), clock)
    return _plan_stream(chunks, fault, seconds, lambda sent: _charge(answer, answer.silent_tokens + sent))


def _plan_response(call: Call, clock: Clock, stored: StoredResponses) -> Plan:
    asked = _decode(call.body, ResponsesRequest)
    before = stored.find(asked.previous_response_id).messages if asked.previous_response_id else []
    chat = _convert(lambda: responses_request.to_chat(asked, before))
    fault, seconds, model = _check(chat, call)
    answer = _answer(chat, model, fault.style, call, asked.prompt_cache_key)
    responses.limit_output(answer, asked.max_output_tokens)
    tools = asked.server_tools()

    def charge(output_tokens: int) -> Charge:
        ticks = responses.count_ticks(answer, tools, output_tokens)
        return Charge(answer.prompt_tokens, output_tokens, ticks, answer.cached_tokens)

    output_tokens = answer.completion_tokens() + answer.reasoning_tokens()
    if call.path == COMPACT_PATH:
        reply = responses.make_compaction(answer, clock)
        return _plan_json(reply, _charge(answer, output_tokens), reply["usage"], fault, seconds)
    reply = responses.make_response(asked, answer, fault.style, clock)
    if asked.store is not False:
        said = Message("assistant", "".join(answer.content), answer.tool_calls or None)
        stored.add(reply, [*chat.messages, said])
    if not asked.stream:
        return _plan_json(reply, charge(output_tokens), reply.get("usage"), fault, seconds)
    events = responses.make_events(asked, answer, fault.style, reply)
    return _plan_stream(events, fault, seconds, lambda sent: charge(answer.silent_tokens + sent))


def _plan_message(call: Call) -> Plan:
    asked = _decode(call.body, MessagesRequest)
    chat = _convert(lambda: messages.to_chat(asked))
    fault, seconds, model = _check(chat, call)
    answer = _answer(chat, model, fault.style, call)
    if not asked.stream:
        charge = _charge(answer, answer.completion_tokens() + answer.reasoning_tokens())
        reply = messages.make_message(answer, fault.style)
        return _plan_json(reply, charge, reply["usage"], fault, seconds)
    events = messages.make_events(answer, fault.style)
    return _plan_stream(
        events, fault, seconds, lambda sent: _charge(answer, answer.silent_tokens + sent), done=False
    )


def _check(asked: ChatRequest, call: Call) -> tuple[Fault, float, ChatModel]:
    """Return the fault that is asked for, its seconds, and the model; refuses what xAI refuses."""
    fault, seconds, named = _choose_fault(asked, call, bool(asked.stream))
    model = CHAT_MODELS.get("grok-4.3" if named else asked.model)
    if model is None:
        raise refuse_model(asked.model)
    check_request(asked, model)
    if fault.strict_content and any(message.content is None for message in asked.messages):
        raise refuse(400, "Each message must have at least one content element.")
    return fault, seconds, model


def _answer(
    asked: ChatRequest, model: ChatModel, style: Style, call: Call, conv_id: str | None = None
) -> Answer:
    """Return the answer to a request that has been checked; what was read of it before is charged less."""
    answer = make_answer(asked, model, style)
    conv_id = call.conv_id or conv_id
    if call.cache and conv_id:
        before = model.served.encode() + msgspec.json.encode(asked.tools)  # these are read first
        answer.cached_tokens = call.cache.read(conv_id, before, list_tokens(asked))
    return answer


def _plan_stream(
    chunks: Iterable[Chunk],
    fault: Fault,
    seconds: float,
    charge: Callable[[int], Charge],
    *,
    done: bool = True,
) -> Plan:
    events = frame_chunks(chunks, fault.frame, done)
    steps = fault.alter(events, seconds) if fault.alter else events
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **fault.headers}
    return Plan(headers, steps, True, fault, seconds, charge)


def _charge(answer: Answer, output_tokens: int) -> Charge:
    ticks = answer.cost_ticks(output_tokens)
    return Charge(answer.prompt_tokens, output_tokens, ticks, answer.cached_tokens)


def _plan_images(call: Call) -> Plan:
    asked = _decode(call.body, EditRequest if call.path == EDITS_PATH else ImageRequest)
    fault, seconds, named = _choose_fault(asked, call, stream=False)
    ticks = IMAGE_TICKS.get("grok-imagine-image" if named else asked.model)
    if ticks is None:
        raise refuse_model(asked.model)
    check_image_request(asked)
    reply = make_images(asked, call.origin, ticks)
    usage = reply["usage"]
    return _plan_json(reply, Charge(cost_ticks=usage["cost_in_usd_ticks"]), usage, fault, seconds)


def _plan_tokens(call: Call) -> Plan:
    asked = _decode(call.body, TokenizeRequest)
    if asked.model not in CHAT_MODELS:
        raise refuse_model(asked.model)
    tokens = [
        {"token_id": number, "string_token": token, "token_bytes": list(token.encode())}
        for number, token in enumerate(split_tokens(asked.text))
    ]
    return _plan_json({"token_ids": tokens}, Charge(), None, NO_FAULT, 0.0)


def _plan_video(call: Call) -> Plan:
    asked = _decode(call.body, VideoRequest)
    fault, seconds, named = _choose_fault(asked, call, stream=False)
    if call.kept is None:
        raise refuse_model(asked.model)
    done, ticks = make_video(asked, "grok-imagine-video" if named else asked.model, call.origin)
    return _plan_json(call.kept.begin(call.kept.videos, done), Charge(cost_ticks=ticks), None, fault, seconds)


def _plan_json(
    reply: dict[str, Any], charge: Charge, usage: dict[str, Any] | None, fault: Fault, seconds: float
) -> Plan:
    """Plan an answer that is made whole before it is sent, and so is charged whole."""
    body = msgspec.json.encode(reply)
    steps = fault.spoil(body, seconds) if fault.spoil else [Data(body)]
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Plan(headers, steps, False, fault, seconds, lambda _: charge, usage)


def _choose_fault(
    asked: ChatRequest | ImageRequest | VideoRequest, call: Call, stream: bool
) -> tuple[Fault, float, bool]:
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


def _convert(convert: Callable[[], ChatRequest]) -> ChatRequest:
    try:
        return convert()
    except (msgspec.ValidationError, AttributeError) as error:
        raise refuse(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
