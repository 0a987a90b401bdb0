"""Responses: an answer as the object of `/v1/responses`, and as the events of its stream.

The order of events and the fields of the object follow recordings of api.x.ai. Calls of tools that run at xAI
are stubs; they follow the schemas of xAI's clients.
"""

from collections.abc import Iterator
from typing import Any

from grokflask.sandbox.answers import Answer, Style, call_tokens, split_arguments
from grokflask.sandbox.chunks import Chunk
from grokflask.sandbox.request import Clock
from grokflask.sandbox.responses_request import ResponsesRequest, seal

Item = dict[str, Any]

_COUNTED_TOOLS = "web_search x_search code_interpreter file_search mcp document_search image_generation"


def _make_usage(answer: Answer) -> dict[str, Any]:
    """Return `usage`: output_tokens includes reasoning."""
    tools = answer.server_tools
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
        "num_sources_used": 0,
        "num_server_side_tools_used": len(tools),
        "cost_in_usd_ticks": answer.cost_ticks(answer.output_tokens),
        "server_side_tool_usage_details": {
            f"{tool}_calls": tools.count(tool) for tool in _COUNTED_TOOLS.split()
        },
    }


def _list_output(asked: ResponsesRequest, answer: Answer, status: str) -> list[Item]:
    """Return the items of an answer that has ended; `status` is that of its words."""
    items: list[Item] = [
        {"id": f"{tool}_{answer.id}_{number}", "type": f"{tool}_call", "status": "completed", "name": tool}
        | {"arguments": "{}", "call_id": f"{tool}_{number}"}
        for number, tool in enumerate(answer.server_tools)
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
        text = "".join(answer.content)
        part = {"type": "output_text", "text": text, "logprobs": [], "annotations": []}
        item = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "content": [part]}
        items.append(item | {"status": status})
    return items


def make_response(asked: ResponsesRequest, answer: Answer, style: Style, clock: Clock) -> dict[str, Any]:
    """Return the whole object."""
    same = ("instructions", "max_output_tokens", "previous_response_id", "prompt_cache_key", "temperature")
    usage = style.show_usage(_make_usage(answer))
    is_cut = answer.finish_reason == "length"
    response = {
        "id": answer.id,
        "object": "response",
        "created_at": int(clock()),
        "model": answer.model,
        "status": "incomplete" if is_cut else "completed",
        "output": _list_output(asked, answer, "incomplete" if is_cut else "completed"),
        **{name: getattr(asked, name) for name in (*same, "top_p", "user")},
        "parallel_tool_calls": True,
        "reasoning": {"effort": (asked.reasoning or {}).get("effort"), "summary": "detailed"},
        "text": {"format": (asked.text or {}).get("format") or {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "store": asked.store is not False,
        "top_logprobs": asked.top_logprobs or 0,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "metadata": {},
        "background": False,
        "service_tier": "default",
        "truncation": "disabled",
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    return response | ({"usage": usage} if usage else {})


_Told = tuple[str, dict[str, Any], int]
"""An event's type, its other fields, and its tokens of output."""


def make_events(answer: Answer, style: Style, response: dict[str, Any]) -> Iterator[Chunk]:
    """Yield the numbered events of the stream that ends with `response`."""
    for number, (kind, fields, tokens) in enumerate(_list_events(answer, style, response)):
        done = kind in ("response.completed", "response.incomplete")
        yield Chunk({"sequence_number": number, "type": kind, **fields}, tokens, done=done)


def _list_events(answer: Answer, style: Style, response: dict[str, Any]) -> Iterator[_Told]:
    begun = response | {"output": [], "status": "in_progress", "incomplete_details": None}
    begun.pop("usage", None)
    yield "response.created", {"response": begun}, 0
    yield "response.in_progress", {"response": begun}, 0
    calls = iter(answer.tool_calls)
    for index, item in enumerate(response["output"]):
        at = {"item_id": item["id"], "output_index": index}
        yield "response.output_item.added", {"item": _begin(item), "output_index": index}, 0
        if item["type"] == "reasoning":
            part = item["summary"][0]
            yield from _send_text("reasoning_summary", part, answer.reasoning, {**at, "summary_index": 0})
        elif item["type"] == "message":
            part = item["content"][0]
            yield from _send_text("output", part, answer.content, {**at, "content_index": 0})
        elif item["type"] == "function_call":
            tokens = call_tokens(next(calls))
            for piece in split_arguments(item["arguments"], style):
                yield "response.function_call_arguments.delta", {**at, "delta": piece}, tokens
                tokens = 0  # all of them are sent with the first piece
            yield "response.function_call_arguments.done", {**at, "arguments": item["arguments"]}, 0
        else:
            for phase in ("in_progress", "searching", "completed"):
                yield f"response.{item['type']}.{phase}", at, 0
        yield "response.output_item.done", {"item": item, "output_index": index}, 0
    yield f"response.{response['status']}", {"response": response}, 0


def _send_text(kind: str, part: Item, pieces: list[str], at: dict[str, Any]) -> Iterator[_Told]:
    """Yield the events of one part: reasoning, or words."""
    logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    of_part = "content_part" if kind == "output" else f"{kind}_part"
    yield f"response.{of_part}.added", {**at, "part": {**part, "text": ""}}, 0
    for piece in pieces:
        yield f"response.{kind}_text.delta", {**at, "delta": piece, **logprobs}, 1
    yield f"response.{kind}_text.done", {**at, "text": part["text"], **logprobs}, 0
    yield f"response.{of_part}.done", {**at, "part": part}, 0


def _begin(item: Item) -> Item:
    """Return an item as it is before its deltas."""
    empty: Item = {"summary": [], "content": []}
    if item["type"] == "function_call":
        empty["arguments"] = ""
    return item | {name: value for name, value in empty.items() if name in item} | {"status": "in_progress"}


def make_compaction(answer: Answer, clock: Clock) -> dict[str, Any]:
    """Return the reply of `/v1/responses/compact`: one opaque item instead of the conversation."""
    sealed = seal("".join(answer.content))
    return {
        "id": answer.id,
        "object": "response.compaction",
        "created_at": int(clock()),
        "model": answer.model,
        "output": [{"id": f"cmp_{answer.id}", "type": "compaction", "encrypted_content": sealed}],
        "usage": _make_usage(answer),
    }
