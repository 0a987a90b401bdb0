"""The body of a Responses request: what it asks for, said in the terms of a chat.

Unknown fields are ignored. What xAI documents as refused is refused: options of tools that other vendors'
clients send, and instructions beside `previous_response_id`.
"""

import base64
from typing import Any

import msgspec

from grokflask.sandbox.chat_request import (
    ChatRequest,
    Function,
    ImageUrl,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    ResponseFormat,
    Tool,
)
from grokflask.sandbox.refusals import refuse

SERVER_TOOL_TICKS = {
    "web_search": 50_000_000,
    "x_search": 50_000_000,
    "code_interpreter": 50_000_000,
    "file_search": 25_000_000,
    "mcp": 0,
}
"""What one call of a tool costs that runs at xAI's: 5 USD a thousand, 2.50 USD for collections."""
_REFUSED_OPTIONS = {
    "web_search": ("search_context_size", "user_location", "external_web_access"),
    "file_search": ("filters", "ranking_options"),
    "code_interpreter": ("container",),
}


class Reasoning(msgspec.Struct):
    """How hard to think."""

    effort: str | None = None


class Text(msgspec.Struct):
    """The form of the answer."""

    format: dict[str, Any] | None = None


class ResponsesRequest(msgspec.Struct):
    """The body of a request to `/v1/responses`, and to `/v1/responses/compact`."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    user: str | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    prompt_cache_key: str | None = None

    def server_tools(self) -> list[str]:
        """Return the tools that run at xAI's, by their types."""
        if self.tool_choice == "none":
            return []
        return [tool["type"] for tool in self.tools or [] if tool.get("type") in SERVER_TOOL_TICKS]


def to_chat(asked: ResponsesRequest, before: list[Message]) -> ChatRequest:
    """Return the chat that asks for the same, `before` being what `previous_response_id` stands for."""
    if asked.instructions is not None and asked.previous_response_id is not None:
        raise refuse(400, "instructions cannot be used alongside previous_response_id.")
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise refuse(400, "max_output_tokens must be at least 1.")
    system = [Message("system", asked.instructions)] if asked.instructions is not None else []
    given = asked.input
    items = [Message("user", given)] if isinstance(given, str) else [_read_item(item) for item in given]
    return ChatRequest(
        model=asked.model,
        messages=[*system, *before, *(item for item in items if item)],
        stream=asked.stream,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_logprobs=asked.top_logprobs,
        user=asked.user,
        reasoning_effort=asked.reasoning.effort if asked.reasoning else None,
        response_format=_read_format(asked.text),
        tools=_read_tools(asked),
        tool_choice=_read_choice(asked),
        parallel_tool_calls=asked.parallel_tool_calls if _read_tools(asked) else None,
    )


def _read_item(item: dict[str, Any]) -> Message | None:
    """Return an item of the input as a message; None for one that says nothing, such as past reasoning."""
    kind = item.get("type", "message")
    if kind == "function_call":
        return Message("assistant", "", [item])
    if kind == "function_call_output":
        return Message("tool", _read_content(item.get("output")))
    if kind == "compaction":
        return Message("system", _open(item.get("encrypted_content")))
    if kind == "message":
        return msgspec.convert(
            {"role": item.get("role"), "content": _read_content(item.get("content"))}, Message
        )
    return None


def _read_content(content: Any) -> str | list[Part] | None:
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = []
    for part in content:
        if part.get("type") == "input_image":
            parts.append(Part("image_url", image_url=ImageUrl(part.get("image_url") or "")))
        elif isinstance(part.get("text"), str):
            parts.append(Part("text", part["text"]))
    return parts


def _read_format(text: Text | None) -> ResponseFormat | None:
    wanted = text.format if text else None
    if not wanted:
        return None
    return msgspec.convert(
        {"type": wanted.get("type"), "json_schema": JsonSchema(wanted.get("schema"))}, ResponseFormat
    )


def _read_tools(asked: ResponsesRequest) -> list[Tool] | None:
    """Return the functions among the tools; refuses options that xAI does not take."""
    if asked.tools is None:
        return None
    if not asked.tools:
        return []
    for tool in asked.tools:
        for name in _REFUSED_OPTIONS.get(str(tool.get("type")), ()):
            if name in tool:
                raise refuse(400, f"Argument not supported: {name}.")
    functions = [tool for tool in asked.tools if tool.get("type") == "function"]
    return [Tool("function", msgspec.convert(tool, Function)) for tool in functions] or None


def _read_choice(asked: ResponsesRequest) -> str | NamedTool | None:
    choice = asked.tool_choice
    if isinstance(choice, dict):
        return NamedTool("function", NamedFunction(str(choice.get("name"))))
    return choice if _read_tools(asked) or not asked.tools else None


def seal(text: str) -> str:
    """Return a text as an opaque item carries it."""
    return base64.b64encode(text.encode()).decode()


def _open(sealed: Any) -> str:
    try:
        return base64.b64decode(str(sealed), validate=True).decode()
    except ValueError:
        raise refuse(400, "encrypted_content is none of ours.") from None
