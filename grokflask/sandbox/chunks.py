"""Chunks: an answer as the JSON objects of a stream, or as the one object of a reply that is not streamed.

Order and absent keys follow recordings of api.x.ai, not its schema: no priming chunk, no null keys, `created`
moving with the clock, `finish_reason` only on the last choice.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from grokflask.sandbox.answers import Answer, Style, call_tokens

Clock = Callable[[], float]


class Chunk(NamedTuple):
    """One chunk: its JSON, what it carries, how many tokens of output it stands for, its event's name."""

    body: dict[str, Any]
    kind: str
    tokens: int = 0
    name: str = ""

    def usage(self) -> dict[str, Any] | None:
        """Return the usage it tells, wherever this API has it; of a message, once its end is told."""
        usage: dict[str, Any] | None = self.body.get("usage") or self.body.get("response", {}).get("usage")
        return usage


def make_reply(answer: Answer, clock: Clock) -> dict[str, Any]:
    """Return the `chat.completion` object of a request that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.content), "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = "".join(answer.reasoning)
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    return {
        "id": answer.id,
        "object": "chat.completion",
        "created": int(clock()),
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": answer.usage(),
        "system_fingerprint": answer.fingerprint,
    }


def make_chunks(answer: Answer, style: Style, with_usage: bool, clock: Clock) -> Iterator[Chunk]:
    """Yield the chunks of a stream, each made in the second it is asked for."""

    def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": answer.id,
            "object": "chat.completion.chunk",
            "created": int(clock()),
            "model": answer.model,
            "choices": choices,
            "system_fingerprint": answer.fingerprint,
        }

    spent = answer.silent_tokens
    for number, (delta, kind, tokens) in enumerate(_deltas(answer, style)):
        if number == 0 or style.documented_nulls:
            delta = {"role": "assistant", **delta}
        choice: dict[str, Any] = {"index": 0, "delta": delta}
        if kind == "finish" or style.documented_nulls:
            choice["finish_reason"] = answer.finish_reason if kind == "finish" else None
        body = chunk([choice])
        spent += tokens
        if style.usage == "every":
            body["usage"] = _usage_so_far(answer, spent)
        elif style.documented_nulls:
            body["usage"] = None
        yield Chunk(body, kind, tokens)
    if style.usage == "zero" or (with_usage and style.usage == "last"):
        usage = answer.usage()
        yield Chunk({**chunk([]), "usage": _zeroed(usage) if style.usage == "zero" else usage}, "usage")


def _deltas(answer: Answer, style: Style) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Yield each delta with its kind and its tokens."""
    for piece in answer.reasoning:
        yield {"reasoning_content": piece}, "reasoning", 1
    for _ in range(answer.empty_deltas):
        yield {}, "empty", 1
    for piece in answer.content:
        yield {"content": piece}, "content", 1
    for index, call in enumerate(answer.tool_calls):
        parts = _split_call(call, index) if style.split_arguments else [{**call, "index": index}]
        for number, part in enumerate(parts):
            yield {"tool_calls": [part]}, "tool", 0 if number else call_tokens(call)
    yield {}, "finish", 0


def _split_call(call: dict[str, Any], index: int) -> list[dict[str, Any]]:
    """Return one call in several deltas, as OpenAI sends it: the name, then pieces of the arguments."""
    arguments = call["function"]["arguments"]
    first = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
    cuts = range(0, len(arguments), 8)
    return [first, *({"index": index, "function": {"arguments": arguments[cut : cut + 8]}} for cut in cuts)]


def _usage_so_far(answer: Answer, spent: int) -> dict[str, Any]:
    """Return the short usage that xAI's streaming page shows on every chunk; `spent` includes reasoning."""
    visible = max(0, spent - answer.reasoning_tokens())
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": visible,
        "total_tokens": answer.prompt_tokens + spent,
        "prompt_tokens_details": answer.prompt_details(),
    }


def _zeroed(usage: dict[str, Any]) -> dict[str, Any]:
    return {key: _zeroed(value) if isinstance(value, dict) else 0 for key, value in usage.items()}
