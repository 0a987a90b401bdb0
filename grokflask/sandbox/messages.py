"""Messages: the route in Anthropic's shape, as far as xAI's reference describes it.

The body becomes a chat; the answer is told as Anthropic's API tells one, with the type of each event as its
name as well. `usage` has the four documented figures, and no cost.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from grokflask.sandbox.answers import Answer, Style, call_tokens
from grokflask.sandbox.chat_request import (
    ChatRequest,
    Function,
    ImageUrl,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    Tool,
)
from grokflask.sandbox.chunks import Chunk
from grokflask.sandbox.refusals import refuse

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
"""What ended an answer, by chat's name for it; anything else is a tool call."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Turn(msgspec.Struct):
    """One message: a text, or blocks."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class ClientTool(msgspec.Struct):
    """A function that the model may ask for."""

    name: str
    input_schema: dict[str, Any]


class Metadata(msgspec.Struct):
    """About the request."""

    user_id: str | None = None


class MessagesRequest(msgspec.Struct):
    """The body of a request to `/v1/messages`."""

    model: str
    max_tokens: int
    messages: list[Turn]
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: Metadata | None = None


def to_chat(asked: MessagesRequest) -> ChatRequest:
    """Return the chat that asks for the same."""
    messages = [Message("system", _read_text(asked.system))] if asked.system else []
    for turn in asked.messages:
        messages += _read_turn(turn)
    tools = None
    if asked.tools is not None:
        tools = [Tool("function", Function(tool.name, tool.input_schema)) for tool in asked.tools]
    return ChatRequest(
        model=asked.model,
        messages=messages,
        stream=asked.stream,
        temperature=asked.temperature,
        top_p=asked.top_p,
        user=asked.metadata.user_id if asked.metadata else None,
        max_tokens=asked.max_tokens,
        stop=asked.stop_sequences,
        tools=tools,
        tool_choice=_read_choice(asked.tool_choice),
    )


def _read_choice(choice: dict[str, Any] | None) -> str | NamedTool | None:
    if choice is None:
        return None
    if choice.get("type") == "tool":
        return NamedTool("function", NamedFunction(str(choice.get("name"))))
    return _CHOICES.get(str(choice.get("type")), "auto")


def _read_turn(turn: Turn) -> Iterator[Message]:
    """Yield a turn's messages: each result of a tool is one by itself."""
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    parts = []
    calls = []
    for block in turn.content:
        kind = block.get("type")
        if kind == "tool_result":
            yield Message("tool", _read_text(block.get("content")))
        elif kind == "tool_use":
            calls.append(block)
        elif kind == "image":
            parts.append(Part("image_url", image_url=ImageUrl(_read_image(block.get("source") or {}))))
        elif kind == "text":
            parts.append(Part("text", str(block.get("text"))))
    if parts or calls:
        yield Message(turn.role, parts, calls or None)


def _read_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(block["text"]) for block in content or [] if "text" in block)


def _read_image(source: dict[str, Any]) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return str(source.get("url"))
    raise refuse(422, "An image's source is of type base64 or url.")


def make_message(answer: Answer, style: Style) -> dict[str, Any]:
    """Return the whole reply."""
    return _make_object(answer) | {
        "content": list(_list_blocks(answer)),
        "stop_reason": STOP_REASONS.get(answer.finish_reason, "tool_use"),
        "usage": make_usage(answer, style),
    }


def make_usage(answer: Answer, style: Style = Style(), output_tokens: int | None = None) -> dict[str, int]:  # noqa: B008 - frozen
    """Return `usage`: reasoning is inside of the output, what was cached outside of the input."""
    if output_tokens is None:
        output_tokens = answer.completion_tokens() + answer.reasoning_tokens()
    zero = style.usage == "zero"
    return {
        "input_tokens": 0 if zero else answer.prompt_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0 if zero else answer.cached_tokens,
        "output_tokens": 0 if zero else output_tokens,
    }


def make_events(answer: Answer, style: Style) -> Iterator[Chunk]:
    """Yield the events of a stream."""
    begun = _make_object(answer) | {"content": [], "stop_reason": None}
    yield _event("message_start", message=begun | {"usage": make_usage(answer, style, 0)})
    yield _event("ping")
    calls = iter(answer.tool_calls)
    for index, block in enumerate(_list_blocks(answer)):
        yield _event("content_block_start", index=index, content_block=_begin(block))
        tokens = call_tokens(next(calls)) if block["type"] == "tool_use" else 1
        for number, delta in enumerate(_list_deltas(block, answer, style)):
            spent = tokens if block["type"] != "tool_use" or number == 0 else 0
            yield _event(
                "content_block_delta",
                index=index,
                delta=delta,
                tokens=0 if delta["type"] == "signature_delta" else spent,
            )
        yield _event("content_block_stop", index=index)
    stop = {"stop_reason": STOP_REASONS.get(answer.finish_reason, "tool_use"), "stop_sequence": None}
    usage = None if style.usage == "none" else make_usage(answer, style)
    yield _event("message_delta", delta=stop, usage=usage)
    yield _event("message_stop", kind="done")


def _event(name: str, *, kind: str = "event", tokens: int = 0, **fields: Any) -> Chunk:
    return Chunk({"type": name, **fields}, kind, tokens, name)


def _make_object(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "stop_sequence": None,
    }


def _list_blocks(answer: Answer) -> Iterator[dict[str, Any]]:
    if answer.reasoning:
        yield {"type": "thinking", "thinking": "".join(answer.reasoning), "signature": "sandbox"}
    if answer.content:
        yield {"type": "text", "text": "".join(answer.content)}
    for call in answer.tool_calls:
        function = call["function"]
        arguments = msgspec.json.decode(function["arguments"])
        yield {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _begin(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block as it is when nothing of it has been told yet."""
    empty = {"thinking": "", "signature": "", "text": "", "input": {}}
    return block | {name: value for name, value in empty.items() if name in block}


def _list_deltas(block: dict[str, Any], answer: Answer, style: Style) -> Iterator[dict[str, Any]]:
    if block["type"] == "thinking":
        for piece in answer.reasoning:
            yield {"type": "thinking_delta", "thinking": piece}
        yield {"type": "signature_delta", "signature": block["signature"]}
    elif block["type"] == "text":
        for piece in answer.content:
            yield {"type": "text_delta", "text": piece}
    else:
        arguments = msgspec.json.encode(block["input"]).decode()
        step = 8 if style.split_arguments else len(arguments)
        for cut in range(0, len(arguments), step):
            yield {"type": "input_json_delta", "partial_json": arguments[cut : cut + step]}
