"""The body of a chat request: its types (a 422) and what xAI refuses by value or by model (a 400).

Unknown fields are ignored: xAI's own policy on them is not documented.
"""

from typing import Any, Literal

import msgspec

from grokflask.sandbox.models import ChatModel
from grokflask.sandbox.refusals import refuse

_PENALTIES = {"presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty"}
"""Our field, and the name by which xAI's error calls it."""
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "max_tokens": (1, 2**31),
    "max_completion_tokens": (1, 2**31),
    "top_logprobs": (0, 8),
    "n": (1, 1),
}
_MAX_TOOLS = 128


class ImageUrl(msgspec.Struct):
    """Where a picture is: an http(s) address or a data URI."""

    url: str


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: Literal["text", "image_url", "file", "text_file"]
    text: str | None = None
    image_url: ImageUrl | str | None = None


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the message's words, those of several parts on lines of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [] if part.text)

    def image_urls(self) -> list[str]:
        """Return the addresses of the message's pictures."""
        found = [part.image_url for part in self.content or [] if isinstance(part, Part)]
        return [image.url if isinstance(image, ImageUrl) else image for image in found if image]


class Function(msgspec.Struct):
    """A function that the model may ask for."""

    name: str
    parameters: dict[str, Any]


class Tool(msgspec.Struct):
    """A tool; chat knows functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct):
    """The function that must be called."""

    name: str


class NamedTool(msgspec.Struct):
    """A tool choice that names its function."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(msgspec.Struct):
    """What a structured answer must fit."""

    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct):
    """The form of the answer: text, an object, or an object that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    """What a stream should add."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """The body of a chat request."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    n: int | None = None
    seed: int | None = None
    user: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    deferred: bool | None = None

    def wants_usage(self) -> bool:
        """Tell whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def max_visible_tokens(self) -> int | None:
        """Return the cap on visible tokens, the newer of the two fields first."""
        return self.max_completion_tokens or self.max_tokens

    def stops(self) -> list[str]:
        """Return the texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def chosen_tool(self) -> str | None:
        """Return the function that `tool_choice` names, if it names one."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None


def check_request(asked: ChatRequest, model: ChatModel) -> None:
    """Refuse with 400 what xAI refuses of a well-formed body."""
    if not asked.messages:
        raise refuse(400, "messages must not be empty.")
    for message in asked.messages:
        if message.content is None and message.role != "assistant":
            raise refuse(400, "Each message must have at least one content element.")
    for field, (low, high) in _RANGES.items():
        value = getattr(asked, field)
        if value is not None and not low <= value <= high:
            raise refuse(400, f"{field} must be between {low} and {high}.")
    _check_model_arguments(asked, model)
    _check_tools(asked)


def _check_model_arguments(asked: ChatRequest, model: ChatModel) -> None:
    """Refuse what the model does not take; the penalties even when they are 0."""
    for field, spelling in _PENALTIES.items():
        if getattr(asked, field) is not None:
            raise refuse(400, f"Model {asked.model} does not support parameter {spelling}.")
    if asked.stop is not None and not model.takes_stop:
        raise refuse(400, f"Model {asked.model} does not support parameter stop.")
    if len(asked.stops()) > 4:
        raise refuse(400, "stop takes up to 4 sequences.")
    if asked.reasoning_effort is not None and asked.reasoning_effort not in model.efforts:
        wanted = f" with the value {asked.reasoning_effort}" if model.efforts else ""
        raise refuse(400, f"Model {asked.model} does not support parameter reasoningEffort{wanted}.")


def _check_tools(asked: ChatRequest) -> None:
    if asked.tools is None:
        if asked.tool_choice is not None:
            raise refuse(400, "A tool_choice was set on the request but no tools were specified.")
        if asked.parallel_tool_calls is not None:
            raise refuse(400, "parallel_tool_calls was set on the request but no tools were specified.")
        return
    if not 1 <= len(asked.tools) <= _MAX_TOOLS:
        raise refuse(400, f"tools must hold between 1 and {_MAX_TOOLS} tools.")
    if isinstance(asked.tool_choice, str) and asked.tool_choice not in ("none", "auto", "required"):
        raise refuse(400, "tool_choice must be none, auto, required or a function.")
    if isinstance(asked.tool_choice, NamedTool):
        known = [tool.function.name for tool in asked.tools]
        if asked.chosen_tool() not in known:
            raise refuse(400, "tool_choice names a function that is not among the tools.")
