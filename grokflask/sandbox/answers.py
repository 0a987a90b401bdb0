"""Answers: the sandbox's answer to a chat, computed before anything is sent.

The words depend on a hash of the messages alone, so the same conversation always gets the same answer.
"""

import hashlib
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from grokflask.sandbox.chat_request import ChatRequest
from grokflask.sandbox.models import ChatModel, cost_ticks
from grokflask.sandbox.pictures import look_at
from grokflask.sandbox.prose import iterate_tokens, sample, split_tokens, write_answer, write_thought

_TOKENS_PER_MESSAGE = 4
"""A message's tokens beside its words; the sandbox's own figure."""
_HIDDEN_FACTOR = 2
"""Models that hide their reasoning are charged this many times the tokens that another would show."""
_NO_TOKENS = ("audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
TOOL_TICKS = {
    "web_search": 50_000_000,
    "x_search": 50_000_000,
    "code_interpreter": 50_000_000,
    "file_search": 25_000_000,
    "mcp": 0,
}
"""The price of one call of a tool that runs at xAI: 5 USD per thousand, 2.50 USD for collections."""


@dataclass(frozen=True)
class Style:
    """How a fault model changes an answer and its chunks."""

    text: str | None = None
    in_one_piece: bool = False
    tool_calls: int = 1
    split_arguments: bool = False
    finish_with_tools: str = "tool_calls"
    empty_deltas: int = 0
    usage: Literal["last", "every", "none", "zero"] = "last"
    documented_nulls: bool = False

    def show_usage(self, usage: dict[str, Any]) -> dict[str, Any] | None:
        """Return a usage as the model states it: None, or with 0 for every figure, if that is the fault."""
        if self.usage == "zero":
            return _zero(usage)
        return None if self.usage == "none" else usage


PLAIN_STYLE = Style()


@dataclass
class Answer:
    """One answer, its words in pieces of one token. `silent_tokens` are reasoning that is never sent."""

    model: str
    prompt_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    reasoning: list[str] = field(default_factory=list)
    empty_deltas: int = 0
    silent_tokens: int = 0
    content: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    server_tools: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning, shown or not."""
        return len(self.reasoning) + self.empty_deltas + self.silent_tokens

    @property
    def output_tokens(self) -> int:
        """All charged tokens of output: words, tool calls and reasoning."""
        return len(self.content) + sum(map(call_tokens, self.tool_calls)) + self.reasoning_tokens

    def usage(self) -> dict[str, Any]:
        """Return `usage` as xAI's chat has it: the total includes reasoning, completion_tokens does not."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens - self.reasoning_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {
                "text_tokens": self.prompt_tokens - self.image_tokens,
                "audio_tokens": 0,
                "image_tokens": self.image_tokens,
                "cached_tokens": self.cached_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}
            | dict.fromkeys(_NO_TOKENS, 0),
            "num_sources_used": 0,
            "cost_in_usd_ticks": self.cost_ticks(self.output_tokens),
        }

    def cost_ticks(self, output_tokens: int) -> int:
        """Return the cost of the prompt, of the calls of xAI's tools and of some tokens of output."""
        tools = sum(TOOL_TICKS[tool] for tool in self.server_tools)
        return tools + cost_ticks(self.model, self.prompt_tokens, output_tokens, self.cached_tokens)

    def limit_output(self, most: int) -> None:
        """Cut the answer at a number of tokens, reasoning included."""
        self.reasoning = self.reasoning[:most]
        self.silent_tokens = min(self.silent_tokens, most - len(self.reasoning))
        self.limit_content(most - self.reasoning_tokens)

    def limit_content(self, most: int | None) -> None:
        """Cut the words at a number of tokens; None for no limit."""
        if most is not None and len(self.content) > most:
            self.content = self.content[:most]
            self.finish_reason = "length"


def _zero(usage: dict[str, Any]) -> dict[str, Any]:
    return {key: _zero(value) if isinstance(value, dict) else 0 for key, value in usage.items()}


def call_tokens(call: dict[str, Any]) -> int:
    """Return the tokens of one tool call."""
    return len(split_tokens(call["function"]["name"] + call["function"]["arguments"]))


def split_arguments(call: dict[str, Any], style: Style) -> Iterator[tuple[str, int]]:
    """Yield a tool call's arguments in the pieces that a stream sends; the first has the call's tokens."""
    arguments = call["function"]["arguments"]
    step = 8 if style.split_arguments else len(arguments)
    for at in range(0, len(arguments), step):
        yield arguments[at : at + step], 0 if at else call_tokens(call)


def list_tokens(asked: ChatRequest) -> Iterator[str]:
    """Yield a prompt's tokens in the model's order; raises RefusalError (400) for a picture that is none."""
    for message in asked.messages:
        yield from (message.role,) * _TOKENS_PER_MESSAGE
        yield from iterate_tokens(message.text())
        for url in message.image_urls():
            yield from (url,) * look_at(url).tokens


def make_answer(asked: ChatRequest, model: ChatModel, style: Style, prompt_tokens: int) -> Answer:
    """Return the answer to a checked request."""
    rng = random.Random(hashlib.blake2b(msgspec.json.encode(asked.messages), digest_size=16).digest())
    last = asked.messages[-1]
    image_tokens = sum(look_at(url).tokens for message in asked.messages for url in message.image_urls())
    answer = Answer(model.served, prompt_tokens, image_tokens)
    prompt = next((message.text() for message in reversed(asked.messages) if message.role == "user"), "")
    if asked.reasoning_effort != "none":
        _think(answer, model, style, split_tokens(write_thought(prompt, rng)))
    if asked.tools and asked.tool_choice != "none" and last.role in ("user", "system", "developer"):
        answer.tool_calls = [_call_tool(asked, prompt, number, rng) for number in range(style.tool_calls)]
        answer.finish_reason = style.finish_with_tools
        return answer
    text = style.text if style.text is not None else _write(asked, prompt, rng)
    ends = [text.index(stop) for stop in asked.stops() if stop and stop in text]
    answer.content = split_tokens(text[: min(ends)] if ends else text)
    answer.limit_content(asked.max_completion_tokens or asked.max_tokens)
    if style.in_one_piece:
        answer.content = ["".join(answer.content)]
    return answer


def _think(answer: Answer, model: ChatModel, style: Style, thought: list[str]) -> None:
    """Add reasoning that is shown, sent as empty deltas, or only counted."""
    if style.empty_deltas:
        answer.reasoning, answer.empty_deltas = thought[:12], style.empty_deltas
    elif model.thinking == "shown":
        answer.reasoning = thought
    elif model.thinking == "hidden":
        answer.silent_tokens = _HIDDEN_FACTOR * len(thought)


def _write(asked: ChatRequest, prompt: str, rng: random.Random) -> str:
    last, form = asked.messages[-1], asked.response_format
    if form and form.type == "json_object":
        return msgspec.json.encode({"answer": write_answer(prompt, rng)}).decode()
    if form and form.type == "json_schema":
        return msgspec.json.encode(sample((form.json_schema or {}).get("schema"), prompt, rng)).decode()
    seen = [look_at(url).description for url in last.image_urls()]
    if last.role in ("tool", "function"):
        result = last.text().strip()
        quoted = result if len(result) <= 400 else result[:400] + " …"
        seen = [f"I asked the tool, and it answered: “{quoted}”."]
    return " ".join([*seen, write_answer(prompt, rng)])


def _call_tool(asked: ChatRequest, prompt: str, number: int, rng: random.Random) -> dict[str, Any]:
    """Return a call of the function that `tool_choice` names; without one, of the first, then the second."""
    assert asked.tools
    functions = {tool.function.name: tool.function for tool in asked.tools}
    function = functions.get(asked.chosen_tool() or "") or asked.tools[number % len(asked.tools)].function
    arguments = sample(function.parameters, prompt, rng) or {}
    return {
        "id": f"call_{rng.randrange(10**8):08}",
        "function": {"name": function.name, "arguments": msgspec.json.encode(arguments).decode()},
        "type": "function",
    }
