"""Responses: a request as a chat, an answer as the object of `/v1/responses` and as its stream's events.

Options of tools that other vendors' clients send are refused, and `instructions` together with
`previous_response_id`, as xAI documents. Events and fields follow recordings of api.x.ai. Calls of tools that
run at xAI are stubs; they follow the schemas of xAI's clients.
"""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from grokflask.sandbox.answers import TOOL_TICKS, Answer, Style, split_arguments
from grokflask.sandbox.chat_request import ChatRequest, TextRequest, read_content
from grokflask.sandbox.chunks import Chunk
from grokflask.sandbox.refusals import refuse
from grokflask.sandbox.request import Clock

Item = dict[str, Any]

_COUNTED_TOOLS = (*TOOL_TICKS, "document_search", "image_generation")
_REFUSED_OPTIONS = {
    "web_search": ("search_context_size", "user_location", "external_web_access"),
    "file_search": ("filters", "ranking_options"),
    "code_interpreter": ("container",),
}


class ResponsesRequest(TextRequest, kw_only=True):
    """The body of a request to `/v1/responses` or `/v1/responses/compact`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    include: list[str] | None = None
    prompt_cache_key: str | None = None

    def server_tools(self) -> list[str]:
        """Return the types of the tools that run at xAI."""
        if self.tool_choice == "none":
            return []
        return [tool["type"] for tool in self.tools or [] if tool.get("type") in TOOL_TICKS]


def to_chat(asked: ResponsesRequest, before: list[Any]) -> ChatRequest:
    """Return the equivalent chat request; `before` are the messages of `previous_response_id`."""
    if asked.instructions is not None and asked.previous_response_id is not None:
        raise refuse(400, "instructions cannot be used alongside previous_response_id.")
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise refuse(400, "max_output_tokens must be at least 1.")
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions is not None else []
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    messages = [message for message in map(_read_item, items) if message]
    tools, choice, form = _read_tools(asked), asked.tool_choice, (asked.text or {}).get("format")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": str(choice.get("name"))}}
    fields = {
        **asked.shared_fields(),
        "messages": [*system, *before, *messages],
        "reasoning_effort": (asked.reasoning or {}).get("effort"),
        "response_format": {"type": form.get("type"), "json_schema": form} if form else None,
        "tools": tools,
        "tool_choice": choice if tools or not asked.tools else None,
        "parallel_tool_calls": asked.parallel_tool_calls if tools else None,
    }
    return msgspec.convert(fields, ChatRequest)


def _read_item(item: dict[str, Any]) -> dict[str, Any] | None:
    """Return an item of the input as a message; None for one without words, such as past reasoning."""
    kind = item.get("type", "message")
    if kind == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [item]}
    if kind == "function_call_output":
        return {"role": "tool", "content": read_content(item.get("output"))}
    if kind == "compaction":
        return {"role": "system", "content": _open(item.get("encrypted_content"))}
    if kind == "message":
        return {"role": item.get("role"), "content": read_content(item.get("content"))}
    return None


def _read_tools(asked: ResponsesRequest) -> list[dict[str, Any]] | None:
    """Return the functions among the tools; refuses options that xAI does not accept."""
    if not asked.tools:
        return asked.tools
    for tool in asked.tools:
        for name in _REFUSED_OPTIONS.get(str(tool.get("type")), ()):
            if name in tool:
                raise refuse(400, f"Argument not supported: {name}.")
    functions = [tool for tool in asked.tools if tool.get("type") == "function"]
    return [{"type": "function", "function": tool} for tool in functions] or None


def _seal(text: str) -> str:
    """Return a text as the content of an opaque item."""
    return base64.b64encode(text.encode()).decode()


def _open(sealed: Any) -> str:
    try:
        return base64.b64decode(str(sealed), validate=True).decode()
    except ValueError:
        raise refuse(400, "encrypted_content was not made by this sandbox.") from None


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
        "server_side_tool_usage_details": {f"{tool}_calls": tools.count(tool) for tool in _COUNTED_TOOLS},
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
            item["encrypted_content"] = _seal(thought)
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
        parts = ("arguments",) if item["type"] == "function_call" else ("summary", "content")
        empty = {name: type(item[name])() for name in parts if name in item}
        begun = {**item, **empty, "status": "in_progress"}
        yield "response.output_item.added", {"item": begun, "output_index": index}, 0
        if item["type"] == "reasoning":
            at["summary_index"] = 0
            yield from _send_text("reasoning_summary", item["summary"][0], answer.reasoning, at)
        elif item["type"] == "message":
            at["content_index"] = 0
            yield from _send_text("output", item["content"][0], answer.content, at)
        elif item["type"] == "function_call":
            for piece, tokens in split_arguments(next(calls), style):
                yield "response.function_call_arguments.delta", {**at, "delta": piece}, tokens
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


def make_compaction(answer: Answer, clock: Clock) -> dict[str, Any]:
    """Return the reply of `/v1/responses/compact`: one opaque item instead of the conversation."""
    sealed = _seal("".join(answer.content))
    return {
        "id": answer.id,
        "object": "response.compaction",
        "created_at": int(clock()),
        "model": answer.model,
        "output": [{"id": f"cmp_{answer.id}", "type": "compaction", "encrypted_content": sealed}],
        "usage": _make_usage(answer),
    }
