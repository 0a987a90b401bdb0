"""Chunks: a chat's answer as the JSON of a stream or of a reply, and chunks as the bytes of SSE events.

Order and absent keys follow recordings of api.x.ai, not its schema: no priming chunk, no null keys, `created`
moves with the clock, `finish_reason` is only on the last choice.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from grokflask.sandbox.answers import Answer, Style, call_tokens, split_arguments
from grokflask.sandbox.models import fingerprint
from grokflask.sandbox.request import Clock
from grokflask.sandbox.steps import Event

_USAGE_SO_FAR = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")


class Chunk(NamedTuple):
    """An event's JSON, its tokens of output and its name; `done` if it ends the stream."""

    body: dict[str, Any]
    tokens: int = 0
    name: str = ""
    done: bool = False

    def usage(self) -> dict[str, Any] | None:
        """Return the usage in the chunk, in whichever place its API has it."""
        usage: dict[str, Any] | None = self.body.get("usage") or self.body.get("response", {}).get("usage")
        return usage


def make_reply(answer: Answer, clock: Clock) -> dict[str, Any]:
    """Return the `chat.completion` object of a request that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.content), "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = "".join(answer.reasoning)
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    return _make_object(answer, "chat.completion", [choice], clock) | {"usage": answer.usage()}


def make_chunks(answer: Answer, style: Style, with_usage: bool, clock: Clock) -> Iterator[Chunk]:
    """Yield the chunks of a stream, each made on demand."""
    spent, usage = answer.silent_tokens, answer.usage()
    for number, (delta, tokens) in enumerate(_list_deltas(answer, style)):
        ends = not delta and tokens == 0
        choice: dict[str, Any] = {"index": 0, "delta": delta}
        if number == 0 or style.documented_nulls:
            choice["delta"] = {"role": "assistant", **delta}
        if ends or style.documented_nulls:
            choice["finish_reason"] = answer.finish_reason if ends else None
        body = _make_object(answer, "chat.completion.chunk", [choice], clock)
        spent += tokens
        if style.usage == "every":
            # As xAI's streaming guide shows it: growing, and without the cost.
            counts = {"completion_tokens": max(0, spent - answer.reasoning_tokens)}
            counts["total_tokens"] = answer.prompt_tokens + spent
            body["usage"] = {name: counts.get(name, usage[name]) for name in _USAGE_SO_FAR}
        elif style.documented_nulls:
            body["usage"] = None
        yield Chunk(body, tokens)
    if style.usage == "zero" or (with_usage and style.usage == "last"):
        told = style.show_usage(usage)
        yield Chunk(_make_object(answer, "chat.completion.chunk", [], clock) | {"usage": told})


def _make_object(answer: Answer, kind: str, choices: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": kind,
        "created": int(clock()),
        "model": answer.model,
        "choices": choices,
        "system_fingerprint": fingerprint(answer.model),
    }


def _list_deltas(answer: Answer, style: Style) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each delta and its tokens; the last is empty and has none."""
    for piece in answer.reasoning:
        yield {"reasoning_content": piece}, 1
    for _ in range(answer.empty_deltas):
        yield {}, 1
    for piece in answer.content:
        yield {"content": piece}, 1
    for index, call in enumerate(answer.tool_calls):
        if not style.split_arguments:
            yield {"tool_calls": [{**call, "index": index}]}, call_tokens(call)
            continue
        function = {**call["function"], "arguments": ""}  # as OpenAI does: the name first, then the pieces
        yield {"tool_calls": [{**call, "index": index, "function": function}]}, 0
        for piece, tokens in split_arguments(call, style):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, tokens
    yield {}, 0


Frame = Callable[[bytes], bytes]
"""Makes an event of its data."""


def frame_with(before: bytes = b"data: ", after: bytes = b"\n\n") -> Frame:
    """Return a framing that puts bytes before and after the data."""
    return lambda data: before + data + after


frame_plainly = frame_with()


def frame_in_lines(data: bytes) -> bytes:
    """Return an event whose JSON is laid out over several data lines (the reader joins them with LF)."""
    if not data.startswith(b"{"):
        return frame_plainly(data)
    lines = msgspec.json.format(data, indent=1).split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


def frame_chunks(chunks: Iterable[Chunk], frame: Frame, done: bool) -> Iterator[Event]:
    """Yield the events of a stream; `done` adds `[DONE]`."""
    for chunk in chunks:
        name = f"event: {chunk.name}\n".encode() if chunk.name else b""
        data = name + frame(msgspec.json.encode(chunk.body))
        yield Event(data, chunk.tokens, chunk.usage(), done=chunk.done)
    if done:
        yield Event(frame(b"[DONE]"), done=True)
