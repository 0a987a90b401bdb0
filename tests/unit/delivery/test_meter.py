"""What is counted of an answer, against answers whose tokens are known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.delivery.meter import SILENCE_S, Meter
from grokflask.delivery.texts import measure_text
from grokflask.errors import BudgetUsedUpError, GrokflaskError
from grokflask.protocol.chat_events import EventFilter
from grokflask.protocol.sse import EventDecoder
from grokflask.protocol.typed_events import MessagesFilter, ResponsesFilter


def chat(text: str, key: str = "content", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {key: text}, **fields}
    return {"id": "b1f3", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def respond(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "item_id": "msg_1", "output_index": 0, **fields}


def pass_on(kind: type[EventFilter], pieces: list[bytes], meter: Meter | None = None) -> Meter:
    """A stream that comes in `pieces`, counted as the relay does."""
    meter = meter or Meter()
    filter, decoder, size = kind(wants_usage=False), EventDecoder(), 0
    meter.begin(filter, 0.0)
    for piece in pieces:
        out = filter.take(decoder.feed(piece))
        size += len(out)
        if size >= meter.count_at:
            meter.count(size, out)
    meter.count(size)
    return meter


def frame(*events: dict[str, Any]) -> bytes:
    names = (f"event: {event['type']}\n" if event.get("named") else "" for event in events)
    return b"".join(
        f"{name}data: {json.dumps(event)}\n\n".encode() for name, event in zip(names, events, strict=True)
    )


LOGPROBS = {"content": [{"token": " word", "bytes": [32] * 5, "top_logprobs": [{"token": "x" * 9}] * 20}]}
CALL = {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "abcd"}}]}}]}
SHAPES: list[tuple[str, list[dict[str, Any]], int]] = [
    ("a token each", [chat(" word")] * 300, 300),
    ("reasoning, then text", [chat(" hmm", "reasoning_content")] * 100 + [chat(" so")] * 300, 400),
    ("eight tokens each", [chat(" and so on it goes, on and on...")] * 100, 800),
    ("all in one", [chat("word" * 2500)], 2500),
    ("with log probabilities", [chat(" word", logprobs=LOGPROBS)] * 100, 100),
    (
        "arguments of a tool",
        [CALL] * 50,
        50,
    ),
]


@pytest.mark.parametrize("together", [1, 7, 1000])
@pytest.mark.parametrize(("events", "tokens"), [row[1:] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_text_of_any_shape(events: list[dict[str, Any]], tokens: int, together: int) -> None:
    """However it is cut into events and reads, the count is about right."""
    pieces = [frame(*events[at : at + together]) for at in range(0, len(events), together)]
    assert 0.7 * tokens <= pass_on(EventFilter, pieces).tokens <= 1.5 * tokens


@pytest.mark.parametrize("together", [1, 1000])
def test_what_is_no_text_in_responses_and_messages(together: int) -> None:
    """Events that begin, end and repeat do not count, and nor does the frame of the others."""
    whole = {"id": "resp_1", "object": "response", "instructions": "x" * 8000, "model": "m"}
    deltas = [respond("output_text.delta", delta="word")] * 200
    ends = [
        respond("output_text.done", text="word" * 200),
        respond("output_item.done", item={"text": "word" * 200}),
    ]
    events = [respond("created", response=whole), respond("in_progress", response=whole), *deltas, *ends]
    pieces = [frame(*events[at : at + together]) for at in range(0, len(events), together)]
    assert 200 <= pass_on(ResponsesFilter, pieces).tokens <= 220
    parts = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word"}}
    ] * 200
    begin = [
        {"type": "message_start", "message": {"id": "m", "content": [], "model": "m" * 2000}},
        {"type": "ping"},
    ]
    messages = [{**event, "named": True} for event in (*begin, *parts, {"type": "content_block_stop"})]
    pieces = [frame(*messages[at : at + together]) for at in range(0, len(messages), together)]
    assert 200 <= pass_on(MessagesFilter, pieces).tokens <= 220


def test_upstreams_own_count_goes_before() -> None:
    """Where upstream counts along, its figure replaces the guess, and silence with it."""
    meter = Meter(pace=60)
    meter.silent_tokens = 500
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 47}
    pass_on(EventFilter, [frame(chat("a")), frame({**chat("b"), "usage": usage}), frame(chat("c"))], meter)
    assert 42 <= meter.tokens <= 43
    assert meter.silent_tokens == 0


def test_silence() -> None:
    """It counts by the pace, but for the time that upstream takes to begin."""
    assert Meter(pace=60).measure_silence(10 + SILENCE_S) == 600
    assert Meter(pace=60).measure_silence(SILENCE_S) == 0
    assert Meter().measure_silence(1000) == 0


def test_a_limit_on_silence() -> None:
    """A check is due when the silence may have used up what is allowed."""

    class Allowance:
        due = 600.0

        def check(self, used_tokens: int) -> GrokflaskError | None:
            return BudgetUsedUpError() if used_tokens >= self.due else None

    meter = Meter(60, Allowance())
    meter.begin(EventFilter(wants_usage=False), 100.0)
    assert meter.check_at == pytest.approx(110 + SILENCE_S)
    assert meter.check(105.0, 5.0) is None
    assert meter.check_at == pytest.approx(110 + SILENCE_S)
    assert meter.check(meter.check_at, 10 + SILENCE_S)
    assert meter.count_at == 0


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b'{"choices":[{"message":{"content":"abc","refusal":null}}]}', 3),
        (b'{"content": "a\\"b\\\\"}', 6),
        (b'{"type":"message","content":[{"type":"text","text":"abcd"}]}', 4),
        (b'{"content":"not closed', 0),
        (b'{"content":"say \\"text\\": \\"x\\""}', 19),
    ],
)
def test_measuring_text(data: bytes, size: int) -> None:
    """The strings that a model has written, with escapes as they stand."""
    assert measure_text(data) == size
