"""The body of a chat request, checked as xAI checks it: 422 for wrong types, 400 for wrong values.

Requests to Responses and Messages are converted to it. Unknown fields are ignored: xAI does not document what
it does with them.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from grokflask.sandbox.models import ChatModel
from grokflask.sandbox.refusals import refuse
from grokflask.sandbox.request import ModelRequest

NO_CONTENT = "Each message must have at least one content element."
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "max_tokens": (1, 2**31),
    "max_completion_tokens": (1, 2**31),
    "top_logprobs": (0, 8),
    "n": (1, 1),
}
_MAX_TOOLS = 128


class _Part(msgspec.Struct):
    type: Literal["text", "image_url", "file", "text_file"]
    text: str | None = None
    image_url: dict[str, str | None] | str | None = None


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the message's words; parts are separated by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [] if part.text)

    def image_urls(self) -> list[str]:
        """Return the addresses of the message's pictures."""
        if isinstance(self.content, str):  # to look at each character would take long
            return []
        found = [part.image_url for part in self.content or []]
        return [(each.get("url") or "") if isinstance(each, dict) else each for each in found if each]


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any]


class _Tool(msgspec.Struct):
    type: Literal["function"]
    function: _Function


class _ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class TextRequest(ModelRequest, kw_only=True):
    """The fields that chat, Responses and Messages have in common."""

    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def shared_fields(self) -> dict[str, Any]:
        """Return these fields by name."""
        return {name: getattr(self, name) for name in TextRequest.__struct_fields__}


class ChatRequest(TextRequest, kw_only=True):
    """The body of a chat request."""

    messages: list[Message]
    stream_options: dict[str, bool | None] | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = None
    deferred: bool | None = None

    def stops(self) -> list[str]:
        """Return the texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def chosen_tool(self) -> str | None:
        """Return the function that `tool_choice` names."""
        function = self.tool_choice.get("function") if isinstance(self.tool_choice, dict) else None
        return str(function.get("name")) if isinstance(function, dict) else None


def read_content(content: Any) -> Any:
    """Return the content of a message or tool result of Responses or Messages as chat has it."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts: list[dict[str, Any]] = []
    for part in content:
        if part.get("type") in ("input_image", "image"):
            url = _read_source(part["source"]) if "source" in part else part.get("image_url") or ""
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
    return parts


def _read_source(source: dict[str, Any]) -> str:
    """Return the address or data URI of a picture of Messages."""
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return str(source.get("url"))
    raise refuse(422, "An image's source must have the type base64 or url.")


def check_request(asked: ChatRequest, model: ChatModel) -> None:
    """Raise RefusalError (400) for values that xAI refuses."""
    for is_wrong, text in (*_check_values(asked), *_check_arguments(asked, model), *_check_tools(asked)):
        if is_wrong:
            raise refuse(400, text)


def _check_values(asked: ChatRequest) -> Iterator[tuple[bool, str]]:
    yield not asked.messages, "messages must not be empty."
    empty = [each for each in asked.messages if each.content is None and each.role != "assistant"]
    yield bool(empty), NO_CONTENT
    for field, (low, high) in _RANGES.items():
        value = getattr(asked, field)
        yield value is not None and not low <= value <= high, f"{field} must be between {low} and {high}."


def _check_arguments(asked: ChatRequest, model: ChatModel) -> Iterator[tuple[bool, str]]:
    """Check what the model does not support; the penalties even when they are 0."""
    unsupported = f"Model {asked.model} does not support parameter"
    yield asked.presence_penalty is not None, f"{unsupported} presencePenalty."
    yield asked.frequency_penalty is not None, f"{unsupported} frequencyPenalty."
    yield asked.stop is not None and not model.takes_stop, f"{unsupported} stop."
    yield len(asked.stops()) > 4, "stop takes up to 4 sequences."
    effort = asked.reasoning_effort
    value = f" with the value {effort}" if model.efforts else ""
    yield effort is not None and effort not in model.efforts, f"{unsupported} reasoningEffort{value}."


def _check_tools(asked: ChatRequest) -> Iterator[tuple[bool, str]]:
    if asked.tools is None:
        for field in ("tool_choice", "parallel_tool_calls"):
            is_set = getattr(asked, field) is not None
            yield is_set, f"A {field} was set on the request but no tools were specified."
        return
    yield not 1 <= len(asked.tools) <= _MAX_TOOLS, f"tools must hold between 1 and {_MAX_TOOLS} tools."
    if isinstance(asked.tool_choice, dict):
        known = asked.chosen_tool() in [tool.function.name for tool in asked.tools]
    else:
        known = asked.tool_choice in (None, "none", "auto", "required")
    yield not known, "tool_choice must be none, auto, required or one of the functions."
