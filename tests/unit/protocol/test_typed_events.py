"""Streams of Responses and Messages: what a client gets of their events, and what is read off them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from grokflask.errors import Outcome
from grokflask.protocol import upstream_errors
from grokflask.protocol.chat_events import EventFilter
from grokflask.protocol.sse import EventDecoder
from grokflask.protocol.typed_events import MessagesFilter, ResponsesFilter
from grokflask.protocol.upstream_errors import MAX_PARSED_BYTES
from grokflask.protocol.usage import Usage

DONE = b"data: [DONE]\n\n"
USAGE = {
    "input_tokens": 5467,
    "input_tokens_details": {"cached_tokens": 1152},
    "output_tokens": 593,
    "output_tokens_details": {"reasoning_tokens": 500},
    "total_tokens": 6060,
    "num_server_side_tools_used": 1,
    "cost_in_usd_ticks": 177640000,
}
READ = Usage(5467, 1152, 93, 500, 6060, 177640000, 1)


def response(kind: str, **fields: Any) -> dict[str, Any]:
    """An event that embeds the answer."""
    whole = {"id": "resp-1", "object": "response", "model": "grok-4.6", "error": None, "output": []}
    return {"sequence_number": 0, "type": f"response.{kind}", "response": {**whole, **fields}}


def delta(text: str = "hi") -> dict[str, Any]:
    return {"type": "response.output_text.delta", "item_id": "msg_1", "delta": text, "logprobs": []}


def frame(*events: dict[str, Any] | bytes, named: bool = False) -> bytes:
    """Events as upstream sends them."""
    framed = b""
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        if named and isinstance(event, dict):
            framed += f"event: {event['type']}\n".encode()
        framed += b"data: " + data + b"\n\n"
    return framed


def feed(events: EventFilter, data: bytes, cut: int | None = None) -> bytes:
    """What a client gets of `data`, which comes in two pieces if it is cut."""
    decoder = EventDecoder()
    out = b""
    for piece in (data,) if cut is None else (data[:cut], data[cut:]):
        read = decoder.feed(piece) if piece else []
        if read and not events.done and not events.error:
            out += events.take(read)
    return out


def make_responses() -> ResponsesFilter:
    return ResponsesFilter(wants_usage=False, secrets=("plain-old-secret",))


def make_messages() -> MessagesFilter:
    return MessagesFilter(wants_usage=False, secrets=("plain-old-secret",))


STORY = (response("created"), response("in_progress"), delta("Once"), delta(" upon"))


@pytest.mark.parametrize("kind", ["completed", "incomplete", "cancelled"])
@pytest.mark.parametrize("behind", [b"", DONE, frame(delta("late"))])
def test_a_response_ends_with_its_last_event(kind: str, behind: bytes) -> None:
    """The event with the whole is the end, usage and model are read off it, and [DONE] is behind it."""
    events = make_responses()
    data = frame(*STORY, response(kind, usage=USAGE))
    assert feed(events, data + behind) == data + DONE
    assert events.done
    assert events.usage_final
    assert (events.usage, events.model_served, events.events) == (READ, "grok-4.6", 5)
    assert events.failure is None


def test_wherever_a_response_is_cut() -> None:
    """The client's bytes do not depend on how the stream came, plain or with names."""
    data = frame(*STORY, response("completed", usage=USAGE))
    for cut in range(len(data)):
        events = make_responses()
        assert feed(events, data, cut) == data + DONE
        assert (events.usage, events.events) == (READ, 5)
    named = frame(*STORY, response("completed", usage=USAGE), named=True)
    for cut in range(0, len(named), 7):
        assert feed(make_responses(), named, cut) == data + DONE


def test_done_alone_ends_a_response() -> None:
    """[DONE] counts, whatever came before it."""
    events = make_responses()
    assert feed(events, frame(*STORY) + DONE) == frame(*STORY) + DONE
    assert events.done


@pytest.mark.parametrize(
    "event",
    [
        b'{"type":"response.output_text.delta","delta":"the \\"response\\" and the \\"error\\"" }',
        b'{"type":"response.function_call_arguments.delta","delta":"{\\"error\\":1,\\"response\\":2}"}',
        b'{"type":"response.output_item.done","item":{"type":"mcp_call","error":"it failed"}}',
        b'{"type":"response.in_progress","response":null}',
        b'{"type":"response.in_progress","response":7,"error":null}',
        b'{"type":7,"response":{}}',
        b'not json with "response" and "error"',
        b'["response","error"]',
        b'{"type" : "response.created","response":{"id":"\\ud83d\\ude00","model":"grok-4.6","usage":[]}}',
    ],
)
def test_events_of_a_response_are_relayed_byte_for_byte(event: bytes) -> None:
    """What an event holds is the client's, down to its spaces, and no text in it is taken for an end."""
    events = make_responses()
    assert feed(events, frame(event)) == frame(event)
    assert not events.done
    assert events.error is None
    assert events.events == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "unavailable", "message": "It fell over.", "param": None},
        {"type": "error", "error": {"code": "unavailable", "message": "It fell over."}},
        {"code": "unavailable", "error": "It fell over."},
    ],
)
@pytest.mark.parametrize("make", [make_responses, make_messages])
def test_errors_end_a_stream(make: Any, event: dict[str, Any]) -> None:
    """An error in any of the shapes that were seen is not passed on but reported, with upstream's words."""
    events = make()
    assert feed(events, frame(delta(), event, delta())) == feed(make(), frame(delta()))
    assert events.error is not None
    assert (events.error.message, events.error.code) == ("It fell over.", "unavailable")
    assert not events.done


@pytest.mark.parametrize("make", [make_responses, make_messages])
def test_an_event_named_error_is_one(make: Any) -> None:
    """The name alone makes an event an error."""
    events = make()
    assert feed(events, b"event: error\ndata: overloaded\n\n") == b""
    assert events.error is not None
    assert events.error.message == "overloaded"


def test_a_response_that_failed_is_an_end() -> None:
    """It is passed on, counts as upstream's failure, has its usage, and is not followed by [DONE]."""
    events = make_responses()
    failed = response("failed", error={"code": "server_error", "message": "No."}, usage=USAGE)
    data = frame(*STORY, failed)
    assert feed(events, data + DONE) == data
    assert events.done
    assert events.usage == READ
    assert events.failure is not None
    assert (events.failure.message, events.failure.code) == ("No.", "server_error")
    assert events.failure.outcome is Outcome.UPSTREAM_ERROR


def test_a_failed_response_does_not_tell_secrets() -> None:
    """The operator's ids and key are cut out of an error that is embedded, too."""
    text = "Key plain-old-secret of team 7d0c3f6e-52b1-4a8e-9c44-1b6f0e2a9d35."
    out = feed(make_responses(), frame(response("failed", error={"code": "x", "message": text})))
    (line,) = out.strip().split(b"\n")
    error = json.loads(line[6:])["response"]["error"]
    assert error == {"code": "x", "message": "Key [redacted] of team [redacted]."}


@pytest.mark.parametrize("size", [1, MAX_PARSED_BYTES])
def test_a_failed_response_of_megabytes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Only its error becomes objects, and only if that is small. A large one may quote a secret: it goes."""
    decoded: list[int] = []
    decode = msgspec.json.decode

    def count(data: bytes) -> Any:
        decoded.append(len(data))
        return decode(data)

    monkeypatch.setattr(upstream_errors.msgspec.json, "decode", count)
    error = {"message": "No.", "more": ["plain-old-secret"] * size}
    output = [[]] * MAX_PARSED_BYTES
    events = make_responses()
    out = feed(events, frame(response("failed", error=error, output=output)))
    assert max(decoded, default=0) <= MAX_PARSED_BYTES
    assert events.failure is not None
    assert events.failure.message == ("No." if size == 1 else "The upstream API reported an error.")
    answer = decode(out.strip()[6:])["response"]
    assert answer["output"] == output
    assert answer["error"] == (error if size == 1 else {})


def test_the_id_is_told_before_its_event_goes_out() -> None:
    """The callback gets the id before the event is passed on, and once."""
    events = make_responses()
    heard: list[str] = []
    events.on_id = heard.append
    feed(events, frame(*STORY, response("completed")))
    assert heard == ["resp-1"]


def test_a_last_event_of_a_megabyte() -> None:
    """Its length does not matter, wherever it is cut."""
    events = make_responses()
    data = frame(*STORY, response("completed", usage=USAGE, output=["x" * 2**20]))
    assert feed(events, data, len(data) // 2) == data + DONE
    assert events.usage == READ


MESSAGE: tuple[dict[str, Any], ...] = (
    {
        "type": "message_start",
        "message": {
            "id": "m1",
            "type": "message",
            "model": "grok-4.3",
            "usage": {"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1},
        },
    },
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "event: x"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 32}},
    {"type": "message_stop"},
)


@pytest.mark.parametrize("named", [False, True])
def test_a_message_keeps_its_names(named: bool) -> None:
    """Every event has its type as its name, whether upstream named it or not; message_stop is the end."""
    data = frame(*MESSAGE, named=named)
    for cut in range(len(data)):
        events = make_messages()
        assert feed(events, data, cut) == frame(*MESSAGE, named=True)
        assert events.done
        assert events.events == 5
        assert events.usage == Usage(13, 4, 32, None, 45)
        assert events.model_served == "grok-4.3"


def test_what_follows_the_end_of_a_message_is_nobodys() -> None:
    """Nothing behind message_stop goes out."""
    assert feed(make_messages(), frame(*MESSAGE) + DONE) == frame(*MESSAGE, named=True)


def test_done_is_no_end_of_a_message() -> None:
    """[DONE] without message_stop leaves a stream that its clients take for cut: so does the gateway."""
    events = make_messages()
    assert feed(events, frame(*MESSAGE[:-1]) + DONE) == frame(*MESSAGE[:-1], named=True)
    assert not events.done


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": {"output_tokens": 0}}])
def test_a_message_that_does_not_tell_its_output(usage: dict[str, Any]) -> None:
    """Only the prompt is known, and that is not taken away."""
    events = make_messages()
    feed(events, frame(*MESSAGE[:3], {"type": "message_delta", **usage}, MESSAGE[-1]))
    assert events.done
    assert events.usage == Usage(13, 4)


def test_usage_of_a_message_that_was_cut() -> None:
    """The prompt is known from the beginning; of the output nothing is said yet."""
    events = make_messages()
    feed(events, frame(*MESSAGE[:3]))
    assert not events.usage_final
    assert events.usage == Usage(13, 4)


@pytest.mark.parametrize(
    "kind", ["a\nevent: message_stop", "a b", "", "x" * 65, "message_stop\r", "é", "a: b"]
)
def test_a_name_forges_nothing(kind: str) -> None:
    """A type that could not be a name is left inside its JSON."""
    out = feed(make_messages(), frame({"type": kind}))
    assert out == frame({"type": kind})


def test_events_that_are_no_json_pass() -> None:
    """They are upstream's, and go out as they came, under the name that they came with."""
    assert feed(make_messages(), b"event: odd\ndata: odd\n\n") == b"event: odd\ndata: odd\n\n"
    assert feed(make_messages(), b"data: odd\n\n") == b"data: odd\n\n"
