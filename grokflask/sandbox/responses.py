"""Responses: an answer as the object of `/v1/responses`, and as the events of its stream.

The order of events and the fields of the object follow recordings of api.x.ai; those of tools that run at
xAI's, of which a stub is made here, follow its clients' schemas.
"""

from collections.abc import Iterator
from typing import Any

from grokflask.sandbox.answers import Answer, Style, call_tokens
from grokflask.sandbox.chunks import Chunk, Clock
from grokflask.sandbox.responses_request import SERVER_TOOL_TICKS, ResponsesRequest, seal

Item = dict[str, Any]

_DETAILS = (
    *("web_search_calls", "x_search_calls", "code_interpreter_calls", "file_search_calls", "mcp_calls"),
    *("document_search_calls", "image_generation_calls"),
)


def limit_output(answer: Answer, most: int | None) -> None:
    """Cut an answer at so many tokens, reasoning included."""
    if most is None:
        return
    answer.reasoning = answer.reasoning[:most]
    answer.silent_tokens = min(answer.silent_tokens, most - len(answer.reasoning))
    left = most - answer.reasoning_tokens()
    if len(answer.content) > left:
        answer.content = answer.content[:left]
        answer.finish_reason = "length"


def count_ticks(answer: Answer, tools: list[str], output_tokens: int) -> int:
    """Return what so many tokens of output cost, with the prompt and the calls of xAI's tools."""
    return answer.cost_ticks(output_tokens) + sum(SERVER_TOOL_TICKS[tool] for tool in tools)


def make_usage(answer: Answer, tools: list[str], style: Style) -> dict[str, Any] | None:
    """Return `usage` as Responses has it: reasoning inside of output_tokens."""
    if style.usage == "none":
        return None
    thought = answer.reasoning_tokens()
    output = answer.completion_tokens() + thought
    zero = style.usage == "zero"
    return {
        "input_tokens": 0 if zero else answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0 if zero else answer.cached_tokens},
        "output_tokens": 0 if zero else output,
        "output_tokens_details": {"reasoning_tokens": 0 if zero else thought},
        "total_tokens": 0 if zero else answer.prompt_tokens + output,
        "num_sources_used": 0,
        "num_server_side_tools_used": len(tools),
        "cost_in_usd_ticks": 0 if zero else count_ticks(answer, tools, output),
        "server_side_tool_usage_details": {
            name: sum(f"{tool}_calls" == name for tool in tools) for name in _DETAILS
        },
    }


def list_output(asked: ResponsesRequest, answer: Answer) -> list[Item]:
    """Return the items of an answer, as they are when it is complete."""
    items: list[Item] = [
        {"id": f"{tool}_{answer.id}_{number}", "type": f"{tool}_call", "status": "completed", "name": tool}
        | {"arguments": "{}", "call_id": f"{tool}_{number}"}
        for number, tool in enumerate(asked.server_tools())
    ]
    if answer.reasoning:
        thought = "".join(answer.reasoning)
        summary = [{"type": "summary_text", "text": thought}]
        item: Item = {"id": f"rs_{answer.id}", "type": "reasoning", "summary": summary, "status": "completed"}
        if "reasoning.encrypted_content" in (asked.include or ()):
            item["encrypted_content"] = seal(thought)
        items.append(item)
    for number, call in enumerate(answer.tool_calls):
        item = {"id": f"fc_{answer.id}_{number}", "type": "function_call", "call_id": call["id"]}
        items.append(item | call["function"] | {"status": "completed"})
    if answer.content:
        part = _make_part("".join(answer.content))
        item = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "content": [part]}
        items.append(item | {"status": "incomplete" if _is_cut(answer) else "completed"})
    return items


def make_response(asked: ResponsesRequest, answer: Answer, style: Style, clock: Clock) -> dict[str, Any]:
    """Return the whole object."""
    usage = make_usage(answer, asked.server_tools(), style)
    response = _make_object(asked, answer, int(clock()))
    response["output"] = list_output(asked, answer)
    response["status"] = "incomplete" if _is_cut(answer) else "completed"
    if _is_cut(answer):
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    return response | ({"usage": usage} if usage else {})


def make_events(
    asked: ResponsesRequest, answer: Answer, style: Style, response: dict[str, Any]
) -> Iterator[Chunk]:
    """Yield the events of the stream that tells `response`, each numbered."""
    for number, (kind, fields, tokens) in enumerate(_tell(asked, answer, style, response)):
        ends = kind in ("response.completed", "response.incomplete")
        body = {"sequence_number": number, "type": kind, **fields}
        yield Chunk(body, "done" if ends else "event", tokens)


Told = tuple[str, dict[str, Any], int]
"""An event's type, its other fields, and how many tokens of output it stands for."""


def _tell(asked: ResponsesRequest, answer: Answer, style: Style, response: dict[str, Any]) -> Iterator[Told]:
    begun = _make_object(asked, answer, response["created_at"])
    yield "response.created", {"response": begun}, 0
    yield "response.in_progress", {"response": begun}, 0
    calls = iter(answer.tool_calls)
    for index, item in enumerate(response["output"]):
        at = {"item_id": item["id"], "output_index": index}
        yield "response.output_item.added", {"item": _begin(item), "output_index": index}, 0
        if item["type"] == "reasoning":
            yield from _tell_reasoning(item, answer, at)
        elif item["type"] == "function_call":
            yield from _tell_call(item, call_tokens(next(calls)), style, at)
        elif item["type"] == "message":
            yield from _tell_message(item, answer, at)
        else:
            for phase in ("in_progress", "searching", "completed"):
                yield f"response.{item['type']}.{phase}", at, 0
        yield "response.output_item.done", {"item": item, "output_index": index}, 0
    yield f"response.{response['status']}", {"response": response}, 0


def _tell_reasoning(item: Item, answer: Answer, at: dict[str, Any]) -> Iterator[Told]:
    at = {**at, "summary_index": 0}
    (part,) = item["summary"]
    yield "response.reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}, 0
    for piece in answer.reasoning:
        yield "response.reasoning_summary_text.delta", {**at, "delta": piece}, 1
    yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}, 0
    yield "response.reasoning_summary_part.done", {**at, "part": part}, 0


def _tell_call(item: Item, tokens: int, style: Style, at: dict[str, Any]) -> Iterator[Told]:
    arguments = item["arguments"]
    step = 8 if style.split_arguments else len(arguments)
    for cut in range(0, len(arguments), step):
        piece = {**at, "delta": arguments[cut : cut + step]}
        yield "response.function_call_arguments.delta", piece, 0 if cut else tokens
    yield "response.function_call_arguments.done", {**at, "arguments": arguments}, 0


def _tell_message(item: Item, answer: Answer, at: dict[str, Any]) -> Iterator[Told]:
    at = {**at, "content_index": 0}
    (part,) = item["content"]
    yield "response.content_part.added", {**at, "part": _make_part("")}, 0
    for piece in answer.content:
        yield "response.output_text.delta", {**at, "delta": piece, "logprobs": []}, 1
    yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}, 0
    yield "response.content_part.done", {**at, "part": part}, 0


def _begin(item: Item) -> Item:
    """Return an item as it is when nothing of it has been told yet."""
    empty: Item = {"summary": [], "content": []}
    if item["type"] == "function_call":
        empty["arguments"] = ""
    return item | {name: value for name, value in empty.items() if name in item} | {"status": "in_progress"}


def _make_part(text: str) -> Item:
    return {"type": "output_text", "text": text, "logprobs": [], "annotations": []}


def _is_cut(answer: Answer) -> bool:
    return answer.finish_reason == "length"


def _make_object(asked: ResponsesRequest, answer: Answer, created_at: int) -> dict[str, Any]:
    """Return the object as it is at the beginning."""
    return {
        "id": answer.id,
        "object": "response",
        "created_at": created_at,
        "model": answer.model,
        "status": "in_progress",
        "output": [],
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "parallel_tool_calls": True,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": "detailed"},
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "user": asked.user,
        "error": None,
        "incomplete_details": None,
        "store": asked.store is not False,
        "metadata": {},
        "background": False,
        "service_tier": "default",
        "truncation": "disabled",
        "top_logprobs": asked.top_logprobs or 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def make_compaction(answer: Answer, clock: Clock) -> dict[str, Any]:
    """Return the reply of `/v1/responses/compact`: one opaque item that stands for the conversation."""
    item = {
        "id": f"cmp_{answer.id}",
        "type": "compaction",
        "encrypted_content": seal("".join(answer.content)),
    }
    return {
        "id": answer.id,
        "object": "response.compaction",
        "created_at": int(clock()),
        "model": answer.model,
        "output": [item],
        "usage": make_usage(answer, [], Style()),
    }
