"""Messages: requests and answers in Anthropic's shape, as far as xAI's reference describes it.

Each event's type is its name as well. `usage` has the four documented figures and no cost.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from grokflask.sandbox.answers import Answer, Style, split_arguments
from grokflask.sandbox.chat_request import ChatRequest, TextRequest, read_content
from grokflask.sandbox.chunks import Chunk

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
"""By chat's `finish_reason`; any other one is a tool call."""
_CHOICES = {"any": "required", "none": "none"}
_Block = tuple[dict[str, Any], dict[str, Any], list[tuple[dict[str, Any], int]]]
"""A block, its fields as they are before its deltas, and the deltas with their tokens."""


class MessagesRequest(TextRequest, kw_only=True):
    """The body of a request to `/v1/messages`."""

    max_tokens: int
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, str | None] | None = None


def to_chat(asked: MessagesRequest) -> ChatRequest:
    """Return the equivalent chat request."""
    messages = [{"role": "system", "content": read_content(asked.system)}] if asked.system else []
    for turn in asked.messages:
        messages += _read_turn(turn)
    choice: Any = asked.tool_choice
    if choice is not None:
        named = {"type": "function", "function": {"name": str(choice.get("name"))}}
        choice = named if choice.get("type") == "tool" else _CHOICES.get(str(choice.get("type")), "auto")
    functions = [{**tool, "parameters": tool.get("input_schema")} for tool in asked.tools or []]
    tools = [{"type": "function", "function": function} for function in functions]
    fields = {
        **asked.shared_fields(),
        "max_tokens": asked.max_tokens,
        "messages": messages,
        "user": (asked.metadata or {}).get("user_id"),
        "stop": asked.stop_sequences,
        "tools": tools if asked.tools is not None else None,
        "tool_choice": choice,
    }
    return msgspec.convert(fields, ChatRequest)


def _read_turn(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a turn's messages: one for each tool result, then one for everything else."""
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(content, list):
        yield {"role": role, "content": content}
        return
    for block in content:
        if block.get("type") == "tool_result":
            yield {"role": "tool", "content": read_content(block.get("content") or "")}
    parts = read_content([block for block in content if block.get("type") != "tool_result"])
    calls = [block for block in content if block.get("type") == "tool_use"]
    if parts or calls:
        yield {"role": role, "content": parts, "tool_calls": calls or None}


def make_message(answer: Answer, style: Style) -> dict[str, Any]:
    """Return the whole reply."""
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [block for block, _, _ in _list_blocks(answer, style)],
        "stop_sequence": None,
        "stop_reason": _STOP_REASONS.get(answer.finish_reason, "tool_use"),
        "usage": _make_usage(answer, style, answer.output_tokens),
    }


def _make_usage(answer: Answer, style: Style, output_tokens: int) -> dict[str, Any]:
    """Return `usage`: the output includes reasoning, the input does not include what was cached."""
    usage = {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": output_tokens,
    }
    return style.show_usage(usage) or usage


def make_events(answer: Answer, style: Style) -> Iterator[Chunk]:
    """Yield the events of a stream."""
    whole = make_message(answer, style)
    begun: dict[str, Any] = {"content": [], "stop_reason": None, "usage": _make_usage(answer, style, 0)}
    yield _event("message_start", message=whole | begun)
    yield _event("ping")
    for index, (block, empty, deltas) in enumerate(_list_blocks(answer, style)):
        yield _event("content_block_start", index=index, content_block=block | empty)
        for delta, tokens in deltas:
            yield _event("content_block_delta", tokens, index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=stop, usage=None if style.usage == "none" else whole["usage"])
    yield _event("message_stop")._replace(done=True)


def _event(name: str, tokens: int = 0, **fields: Any) -> Chunk:
    return Chunk({"type": name, **fields}, tokens, name)


def _list_blocks(answer: Answer, style: Style) -> Iterator[_Block]:
    if answer.reasoning:
        deltas = [({"type": "thinking_delta", "thinking": piece}, 1) for piece in answer.reasoning]
        deltas.append(({"type": "signature_delta", "signature": "sandbox"}, 0))
        block = {"type": "thinking", "thinking": "".join(answer.reasoning), "signature": "sandbox"}
        yield block, {"thinking": "", "signature": ""}, deltas
    if answer.content:
        deltas = [({"type": "text_delta", "text": piece}, 1) for piece in answer.content]
        yield {"type": "text", "text": "".join(answer.content)}, {"text": ""}, deltas
    for call in answer.tool_calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        pieces = split_arguments(call, style)
        deltas = [({"type": "input_json_delta", "partial_json": piece}, tokens) for piece, tokens in pieces]
        block = {"type": "tool_use", "id": call["id"], "name": name, "input": msgspec.json.decode(arguments)}
        yield block, {"input": {}}, deltas
