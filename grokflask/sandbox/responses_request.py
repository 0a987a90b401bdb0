"""The body of a Responses request, and the chat that asks for the same.

Unknown fields are ignored. What xAI documents as refused is refused: options of tools that other vendors'
clients send, and `instructions` together with `previous_response_id`.
"""

import base64
from typing import Any

import msgspec

from grokflask.sandbox.answers import TOOL_TICKS
from grokflask.sandbox.chat_request import ChatRequest, TextRequest, read_content
from grokflask.sandbox.refusals import refuse

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
    tool_choice: str | dict[str, Any] | None = None
    include: list[str] | None = None
    prompt_cache_key: str | None = None

    def server_tools(self) -> list[str]:
        """Return the types of the tools that run at xAI."""
        if self.tool_choice == "none":
            return []
        return [tool["type"] for tool in self.tools or [] if tool.get("type") in TOOL_TICKS]


def to_chat(asked: ResponsesRequest, before: list[Any]) -> ChatRequest:
    """Return the chat that asks for the same; `before` are the messages of `previous_response_id`."""
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


def seal(text: str) -> str:
    """Return a text as the content of an opaque item."""
    return base64.b64encode(text.encode()).decode()


def _open(sealed: Any) -> str:
    try:
        return base64.b64decode(str(sealed), validate=True).decode()
    except ValueError:
        raise refuse(400, "encrypted_content was not made by this sandbox.") from None
