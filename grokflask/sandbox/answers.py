"""Answers: what the sandbox says to a chat request, decided as a whole before anything is sent.

The words come from a hash of the messages alone, so the same conversation always gets the same answer.
"""

import hashlib
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from grokflask.sandbox.chat_request import ChatRequest, Message
from grokflask.sandbox.models import ChatModel, cost_ticks, fingerprint
from grokflask.sandbox.prose import split_tokens, write_answer, write_thought
from grokflask.sandbox.samples import sample
from grokflask.sandbox.vision import look_at

_TOKENS_A_MESSAGE = 4
"""What a message costs beside its words; our own figure."""
HIDDEN_SHARE = 2
"""Models that think without showing it spend this many times the tokens of what they thought."""


@dataclass(frozen=True)
class Style:
    """What a fault model changes about an answer and the chunks it is told in."""

    text: str | None = None
    in_one_piece: bool = False
    tool_calls: int = 1
    split_arguments: bool = False
    finish_with_tools: str = "tool_calls"
    empty_deltas: int = 0
    usage: Literal["last", "every", "none", "zero"] = "last"
    documented_nulls: bool = False


PLAIN_STYLE = Style()


@dataclass
class Answer:
    """One answer, its words in token-sized pieces; `silent_tokens` are reasoning that is never sent."""

    model: str
    prompt_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    reasoning: list[str] = field(default_factory=list)
    empty_deltas: int = 0
    silent_tokens: int = 0
    content: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of the model that serves."""
        return fingerprint(self.model)

    def completion_tokens(self) -> int:
        """Return the visible tokens: words and the arguments of tool calls."""
        return len(self.content) + sum(call_tokens(call) for call in self.tool_calls)

    def reasoning_tokens(self) -> int:
        """Return the tokens of reasoning, shown or not."""
        return len(self.reasoning) + self.empty_deltas + self.silent_tokens

    def usage(self) -> dict[str, Any]:
        """Return `usage` as xAI's chat has it, reasoning outside completion_tokens, all in the total."""
        visible, thought = self.completion_tokens(), self.reasoning_tokens()
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": visible,
            "total_tokens": self.prompt_tokens + visible + thought,
            "prompt_tokens_details": self.prompt_details(),
            "completion_tokens_details": {
                "reasoning_tokens": thought,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            "num_sources_used": 0,
            "cost_in_usd_ticks": self.cost_ticks(visible + thought),
        }

    def prompt_details(self) -> dict[str, int]:
        """Return `prompt_tokens_details`."""
        text_tokens = self.prompt_tokens - self.image_tokens
        return {
            "text_tokens": text_tokens,
            "audio_tokens": 0,
            "image_tokens": self.image_tokens,
            "cached_tokens": self.cached_tokens,
        }

    def cost_ticks(self, output_tokens: int) -> int:
        """Return the cost of the prompt and so many tokens of output."""
        return cost_ticks(self.model, self.prompt_tokens, output_tokens, self.cached_tokens)


def call_tokens(call: dict[str, Any]) -> int:
    """Return the tokens of one tool call."""
    return len(split_tokens(call["function"]["name"] + call["function"]["arguments"]))


def list_tokens(asked: ChatRequest) -> Iterator[str]:
    """Yield a prompt's tokens in the order in which they are read."""
    for message in asked.messages:
        yield from (message.role,) * _TOKENS_A_MESSAGE
        yield from split_tokens(message.text())
        for url in message.image_urls():
            yield from (url,) * look_at(url).tokens


def make_answer(asked: ChatRequest, model: ChatModel, style: Style = PLAIN_STYLE) -> Answer:
    """Return the answer to a request that has been checked; refuses with 400 a picture that is none."""
    rng = random.Random(hashlib.blake2b(msgspec.json.encode(asked.messages), digest_size=16).digest())
    last = asked.messages[-1]
    urls = [url for message in asked.messages for url in message.image_urls()]
    pictures = {url: look_at(url) for url in urls}
    image_tokens = sum(pictures[url].tokens for url in urls)
    words = sum(len(split_tokens(message.text())) + _TOKENS_A_MESSAGE for message in asked.messages)
    answer = Answer(model.served, words + image_tokens, image_tokens)
    prompt = _last_words(asked.messages)
    _think(answer, model, asked, style, prompt, rng)
    if asked.tools and asked.tool_choice != "none" and last.role in ("user", "system", "developer"):
        answer.tool_calls = [_call_tool(asked, prompt, number, rng) for number in range(style.tool_calls)]
        answer.finish_reason = style.finish_with_tools
        return answer
    seen = [pictures[url].description for url in last.image_urls()]
    text = _write(asked, style, prompt, seen, rng)
    _limit(answer, text, asked)
    if style.in_one_piece:
        answer.content = ["".join(answer.content)]
    return answer


def _last_words(messages: list[Message]) -> str:
    """Return the text of the last message from the user."""
    return next((message.text() for message in reversed(messages) if message.role == "user"), "")


def _think(
    answer: Answer, model: ChatModel, asked: ChatRequest, style: Style, prompt: str, rng: random.Random
) -> None:
    """Put in the reasoning: shown, as empty deltas, or only counted."""
    if asked.reasoning_effort == "none":
        return
    thought = split_tokens(write_thought(prompt, rng))
    if style.empty_deltas:
        answer.reasoning, answer.empty_deltas = thought[:12], style.empty_deltas
    elif model.thinking == "shown":
        answer.reasoning = thought
    elif model.thinking == "hidden":
        answer.silent_tokens = HIDDEN_SHARE * len(thought)


def _write(asked: ChatRequest, style: Style, prompt: str, seen: list[str], rng: random.Random) -> str:
    last = asked.messages[-1]
    if style.text is not None:
        return style.text
    wanted = asked.response_format
    if wanted and wanted.type == "json_object":
        return msgspec.json.encode({"answer": write_answer(prompt, rng)}).decode()
    if wanted and wanted.type == "json_schema":
        schema = wanted.json_schema.schema if wanted.json_schema else None
        return msgspec.json.encode(sample(schema, prompt, rng)).decode()
    if last.role in ("tool", "function"):
        result = last.text().strip()
        quoted = result if len(result) <= 400 else result[:400] + " …"
        return f"I asked the tool, and it answered: “{quoted}”. {write_answer(prompt, rng)}"
    if seen:
        return " ".join(seen) + " " + write_answer(prompt, rng)
    return write_answer(prompt, rng)


def _limit(answer: Answer, text: str, asked: ChatRequest) -> None:
    """Put in the text, cut at a stop sequence and at the cap on visible tokens."""
    ends = [text.index(stop) for stop in asked.stops() if stop and stop in text]
    answer.content = split_tokens(text[: min(ends)] if ends else text)
    most = asked.max_visible_tokens()
    if most is not None and len(answer.content) > most:
        answer.content = answer.content[:most]
        answer.finish_reason = "length"


def _call_tool(asked: ChatRequest, prompt: str, number: int, rng: random.Random) -> dict[str, Any]:
    """Return a call of the function that was named, else of the first, or for a second call of the second."""
    assert asked.tools
    functions = {tool.function.name: tool.function for tool in asked.tools}
    function = functions.get(asked.chosen_tool() or "") or asked.tools[number % len(asked.tools)].function
    arguments = sample(function.parameters, prompt, rng) or {}
    return {
        "id": f"call_{rng.randrange(10**8):08}",
        "function": {"name": function.name, "arguments": msgspec.json.encode(arguments).decode()},
        "type": "function",
    }
