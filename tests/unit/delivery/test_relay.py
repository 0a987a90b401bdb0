"""The relay: upstream's events to the client, usage on the way, and every way in which a stream can end."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.figures import parse_figures

from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.delivery.meter import Meter
from grokflask.delivery.relay import Relay
from grokflask.delivery.terms import HEARTBEAT, Terms
from grokflask.errors import (
    BudgetUsedUpError,
    ClientGoneError,
    GrokflaskError,
    Outcome,
    ShuttingDownError,
    StreamBrokenError,
    StreamTruncatedError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from grokflask.metrics.exposition import Metrics
from grokflask.metrics.tallies import Deliveries, Tallies
from grokflask.protocol.dialects import CHAT, MESSAGES, RESPONSES, Dialect
from grokflask.protocol.usage import Settlement, Usage

DONE = b"data: [DONE]\n\n"
FIRST_S, IDLE_S = 60.0, 20.0


class Clock:
    """Seconds that pass only when a test, or a fake stream that waits, lets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Wait:
    """Upstream says nothing for so long."""

    seconds: float


Step = bytes | Wait | Exception


class FakeStream:
    """Upstream's answer by a script of data, pauses and failures; after the script it has ended."""

    status = 200
    media_type = "text/event-stream"

    retried = False

    def __init__(self, clock: Clock, steps: Iterable[Step]) -> None:
        self.headers = {"x-upstream-request-id": "u1"}
        self.steps = list(steps)
        self.calls: list[str] = []
        self._clock = clock

    def read(self, timeout_s: float) -> bytes | None:
        assert not self.calls, "read after its end"
        assert timeout_s > 0
        while self.steps:
            step = self.steps[0]
            if isinstance(step, Wait) and step.seconds >= timeout_s:
                step.seconds -= timeout_s
                self._clock.now += timeout_s
                return None
            self.steps.pop(0)
            if isinstance(step, Wait):
                self._clock.now += step.seconds
                timeout_s -= step.seconds
            elif isinstance(step, Exception):
                raise step
            else:
                return step
        return b""

    def finish(self) -> None:
        self.calls.append("finish")

    def close(self) -> None:
        self.calls.append("close")


class FakeCall:
    """A call whose answer has come."""

    def __init__(self, stream: FakeStream) -> None:
        self.cancelled: GrokflaskError | None = None
        self._stream = stream

    def wait(self, timeout_s: float) -> FakeStream:
        return self._stream

    def cancel(self, reason: GrokflaskError) -> None:
        self.cancelled = reason


class Exchange:
    """A relay over a fake stream, and what it told when it was over."""

    def __init__(
        self,
        *steps: Step,
        wants_usage: bool = False,
        wants_json: bool = False,
        heartbeat_s: float = 1e6,
        commit_s: float = 1e6,
        total_timeout_s: float = 1e6,
        drain_s: float = 0.0,
        dialect: Dialect = CHAT,
        meter: Meter | None = None,
    ) -> None:
        self.clock = Clock()
        self.stream = FakeStream(self.clock, steps)
        self.call = FakeCall(self.stream)
        self.departure = Departure(
            ClientWatcher(),
            None,
            self.call.cancel,
            total_s=1e6,
            drain_s=drain_s,
            drains=threading.Semaphore(1),
        )
        self.finished: list[Settlement] = []
        self.settlements: list[Settlement] = []
        terms = Terms(
            wants_usage=wants_usage,
            wants_json=wants_json,
            heartbeat_s=heartbeat_s,
            total_timeout_s=total_timeout_s,
            first_event_timeout_s=FIRST_S,
            idle_timeout_s=IDLE_S,
            secrets=("plain-old-secret",),
            dialect=dialect,
        )
        self.tallies = Tallies()
        self.relay = Relay(
            self.call,  # type: ignore[arg-type]
            terms,
            self.departure,
            self.finished.append,
            self.settlements.append,
            started_at=self.clock.now,
            deliveries=Deliveries(self.tallies),
            meter=meter,
            clock=self.clock,
        )
        self.relay.wait_for_answer(commit_s)

    def take(self) -> list[bytes]:
        """All items, as a server takes them; then the response is closed."""
        items = list(self.relay)
        assert self.settlements == []
        self.relay.close()
        return items

    @property
    def settled(self) -> Settlement:
        """The one settlement. The stream was ended exactly once before it."""
        (settlement,) = self.settlements
        assert len(self.stream.calls) == 1
        return settlement


def frame(*events: bytes | dict[str, Any]) -> bytes:
    """Events as upstream sends them."""
    datas = (event if isinstance(event, bytes) else json.dumps(event).encode() for event in events)
    return b"".join(b"data: " + data + b"\n\n" for data in datas)


def chunk(text: str = "hi", **fields: Any) -> bytes:
    delta = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return json.dumps({"id": "1", "model": "grok-4.3", **delta, **fields}).encode()


def usage_only(tokens: int = 3, **fields: Any) -> bytes:
    usage = {"usage": {"completion_tokens": tokens}}
    return json.dumps({"model": "grok-4.3-x", "choices": [], **usage, **fields}).encode()


def read_error(item: bytes, *, as_json: bool) -> str:
    """The message of an error event, which must be of the one shape or the other."""
    assert item.startswith(b"data: ")
    assert item.endswith(b"\n\n")
    assert item.count(b"\n") == 2
    error = json.loads(item[6:])["error"]
    if as_json:
        assert set(error) == {"message", "type", "param", "code"}
        message: str = error["message"]
        return message
    assert isinstance(error, str)
    assert error.startswith("API error: ")
    return error.removeprefix("API error: ")


# Events


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[{"delta":{"content":"Gr\xc3\xbc\xc3\x9fe \\u00e9 \\/ "}}], "x" : 1.50 }',
        b'{"choices":[{"delta":{"content":"the \\"error\\" of \\"usage\\": [DONE]"}}]}',
        b'{"choices":[{"delta":{"content":"[DONE]"}}]}',
        b'{"choices":[{"delta":{"content":"x"},"error":{"message":"nested"}}]}',
        b'{"choices":[],"error":null}',
        b'{"choices":[{"delta":{}}],"error":null,"usage":null}',
        b'{"choices":[]}',
        b'{"choices":[],"usage":null}',
        b'{"choices":[{"delta":{}}],"usage":{"completion_tokens":1}}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{\\"error\\":1}"}}]}}]}',
        b'not json with "usage" and "error" and [DONE]',
        b'["usage","error"]',
        b'{"usage":{"completion_tokens":1},"choices":[{}]',
        b"{}",
    ],
)
def test_event_is_relayed_byte_for_byte(event: bytes) -> None:
    """What an event holds is the client's, down to its spaces, whatever words are in it."""
    exchange = Exchange(frame(event), frame(b"[DONE]"))
    assert exchange.take() == [frame(event), DONE]
    assert exchange.settled.outcome is Outcome.COMPLETE
    assert exchange.settled.events == 1


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_framing_is_made_plain(newline: bytes) -> None:
    """Whatever framing upstream used, the client gets one `data:` line and a blank line."""
    lines = [
        b"\xef\xbb\xbf: hello",
        b"",
        b"id: 1",
        b'data:{"a":',
        b"data: 1}",
        b"",
        b"data: [DONE]",
        b"",
        b"",
    ]
    assert b"".join(Exchange(newline.join(lines)).take()) == b'data: {"a": 1}\n\n' + DONE


def test_events_of_one_read_go_out_as_one_item() -> None:
    """What came together goes out together; what came alone does not wait."""
    first, second, third = (chunk(text) for text in "abc")
    exchange = Exchange(frame(first), frame(second, third), frame(b"[DONE]"))
    assert exchange.take() == [frame(first), frame(second, third), DONE]
    assert exchange.settled.events == 3


def test_event_is_given_out_before_the_next_read() -> None:
    """An event goes out as soon as it is in: upstream is not asked for more first."""
    exchange = Exchange(frame(chunk()) + b"data: {", Wait(5), b"}\n\n" + DONE)
    items = iter(exchange.relay)
    assert next(items) == frame(chunk())
    assert exchange.clock.now == 1000
    assert next(items) == b"data: {}\n\n" + DONE
    assert exchange.clock.now == 1005
    exchange.relay.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_events_cut_anywhere(cut: int) -> None:
    """Where the reads fall changes how events are grouped, never what is sent."""
    whole = frame(chunk("a"), chunk("b")) + DONE
    exchange = Exchange(*[whole[at : at + cut] for at in range(0, len(whole), cut)])
    assert b"".join(exchange.take()) == whole


def test_upstreams_headers_can_be_read() -> None:
    """The response's headers come from the answer that the relay waits for."""
    exchange = Exchange()
    assert exchange.relay.headers == {"x-upstream-request-id": "u1"}
    exchange.relay.close()


# Usage


@pytest.mark.parametrize("wants_usage", [True, False])
def test_usage_only_event(wants_usage: bool) -> None:
    """The usage-only event goes to those who asked; all have it noted."""
    exchange = Exchange(frame(chunk()), frame(usage_only()), DONE, wants_usage=wants_usage)
    expected = [frame(chunk()), frame(usage_only()), DONE] if wants_usage else [frame(chunk()), DONE]
    assert exchange.take() == expected
    settled = exchange.settled
    assert settled.usage == Usage(completion_tokens=3)
    assert settled.model_served == "grok-4.3-x"
    assert settled.events == (2 if wants_usage else 1)
    assert settled.bytes_out == sum(len(item) for item in expected)


@pytest.mark.parametrize("wants_usage", [True, False])
def test_usage_only_event_among_others_in_one_read(wants_usage: bool) -> None:
    """It is taken out of the middle, and nothing else is."""
    exchange = Exchange(frame(chunk("a"), usage_only(), chunk("b"), b"[DONE]"), wants_usage=wants_usage)
    kept = [chunk("a"), usage_only(), chunk("b")] if wants_usage else [chunk("a"), chunk("b")]
    assert exchange.take() == [frame(*kept) + DONE]


@pytest.mark.parametrize(
    ("event", "passes"),
    [
        pytest.param(b'{"usage":{"total_tokens":5}}', False, id="choices-missing"),
        pytest.param(b'{"choices":null,"usage":{"total_tokens":5}}', False, id="choices-null"),
        pytest.param(b'{"choices": [ ] , "usage":{"total_tokens":5}}', False, id="blank-in-choices"),
        pytest.param(b'{"choices":[{}],"usage":{"total_tokens":5}}', True, id="choices"),
    ],
)
def test_what_counts_as_usage_only(event: bytes, passes: bool) -> None:
    """An event is withheld when it has usage and no choice, however that is spelt."""
    exchange = Exchange(frame(event), DONE)
    assert exchange.take() == ([frame(event), DONE] if passes else [DONE])
    assert exchange.settled.usage == Usage(total_tokens=5)


def test_usage_on_every_chunk() -> None:
    """Chunks with choices pass with their usage on; upstream counts up, so the last figures count."""
    chunks = [chunk(str(number), usage={"completion_tokens": number}) for number in (1, 2, 3)]
    exchange = Exchange(frame(chunks[0]), frame(*chunks[1:]), DONE)
    assert exchange.take() == [frame(chunks[0]), frame(*chunks[1:]), DONE]
    assert exchange.settled.usage == Usage(completion_tokens=3)
    assert exchange.settled.model_served == "grok-4.3"


def test_usage_of_zero_is_a_figure() -> None:
    """Nothing paid is known to be nothing."""
    exchange = Exchange(frame(usage_only(0)), DONE)
    exchange.take()
    assert exchange.settled.usage == Usage(completion_tokens=0)


@pytest.mark.parametrize("later", [b'{"choices":[],"usage":null}', b'{"choices":[],"usage":"soon"}'])
def test_later_event_without_figures_takes_none_away(later: bytes) -> None:
    """A null or unreadable usage after a good one leaves it standing."""
    exchange = Exchange(frame(usage_only(7), later), DONE)
    exchange.take()
    assert exchange.settled.usage == Usage(completion_tokens=7)
    assert exchange.settled.model_served == "grok-4.3-x"


def test_no_usage_at_all() -> None:
    """A stream without figures has None, not zero; the model stands in every event."""
    exchange = Exchange(frame(chunk()), DONE)
    exchange.take()
    assert (exchange.settled.usage, exchange.settled.model_served) == (None, "grok-4.3")


# The end


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([DONE, Wait(10_000)], id="lingers"),
        pytest.param([DONE + frame(chunk("more"))], id="more-in-the-same-read"),
        pytest.param([DONE, frame(chunk("more")), DONE], id="more-later"),
        pytest.param([DONE, StreamBrokenError()], id="breaks-later"),
        pytest.param([b"data:[DONE]\r\n\r\n"], id="other-framing"),
        pytest.param([b"data:  [DONE] \n\n"], id="spaces"),
        pytest.param([b"data: [DONE]\n"], id="no-blank-line"),
        pytest.param([b"data: [DONE]"], id="no-newline"),
        pytest.param([b"event: end\ndata: [DONE]\n\n"], id="named"),
    ],
)
def test_done_is_the_end(steps: list[Step]) -> None:
    """`[DONE]` ends the stream, in the plain spelling, whatever upstream's connection does then."""
    exchange = Exchange(frame(chunk()), *steps)
    assert exchange.take() == [frame(chunk()), DONE]
    assert exchange.clock.now == 1000
    assert exchange.stream.calls == ["finish"]
    settled = exchange.settled
    assert (settled.outcome, settled.error, settled.events) == (Outcome.COMPLETE, None, 1)


@pytest.mark.parametrize("wants_json", [True, False])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="nothing"),
        pytest.param([b""], id="end-at-once"),
        pytest.param([frame(chunk())], id="after-an-event"),
        pytest.param([frame(chunk(finish_reason="stop"), usage_only())], id="after-the-usage"),
        pytest.param(
            [frame({"choices": [{"delta": {}, "finish_reason": "stop"}]})], id="after-finish-reason"
        ),
        pytest.param([frame(chunk()) + b'data: {"choi'], id="inside-an-event"),
        pytest.param([frame(chunk()) + b"data: [DON"], id="inside-done"),
        pytest.param([frame(chunk()) + b"data: {}"], id="event-without-newline"),
        pytest.param([b": comment\n\n"], id="after-a-comment"),
    ],
)
def test_end_without_done_is_an_error(steps: list[Step], wants_json: bool) -> None:
    """A stream that ends tidily but too early tells the client so, and has no `[DONE]`."""
    exchange = Exchange(*steps, wants_json=wants_json)
    items = exchange.take()
    assert read_error(items[-1], as_json=wants_json) == StreamTruncatedError.default_message
    assert not [item for item in items[:-1] if b"API error" in item]
    assert b"[DONE]" not in b"".join(items)
    assert exchange.stream.calls == ["close"]
    settled = exchange.settled
    assert settled.outcome is Outcome.TRUNCATED
    assert isinstance(settled.error, StreamTruncatedError)
    assert settled.bytes_out == sum(len(item) for item in items)


def test_last_event_without_its_blank_line_is_not_lost() -> None:
    """An event whose line is complete goes out before the error that follows it."""
    exchange = Exchange(b"data: {}\n")
    items = exchange.take()
    assert items[0] == b"data: {}\n\n"
    assert len(items) == 2
    assert exchange.settled.outcome is Outcome.TRUNCATED


@pytest.mark.parametrize("wants_json", [True, False])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StreamBrokenError(), Outcome.TRUNCATED),
        (UpstreamProtocolError("a chunk longer than it said"), Outcome.UPSTREAM_ERROR),
        (UpstreamStatusError("late", status=503), Outcome.UPSTREAM_ERROR),
    ],
)
def test_failure_in_mid_stream(error: UpstreamError, outcome: Outcome, wants_json: bool) -> None:
    """A connection that breaks ends the stream with an error event, after all that came before."""
    exchange = Exchange(frame(chunk()), error, wants_json=wants_json)
    first, last = exchange.take()
    assert first == frame(chunk())
    assert read_error(last, as_json=wants_json) == error.message
    assert (exchange.settled.outcome, exchange.settled.error) == (outcome, error)
    assert exchange.stream.calls == ["close"]


# Silence


@pytest.mark.parametrize(
    ("steps", "items", "ends_after_s", "message"),
    [
        pytest.param([Wait(999)], 0, FIRST_S, "sent nothing for 60 s", id="first-event"),
        pytest.param(
            [Wait(59), frame(chunk()), Wait(999)], 1, 59 + IDLE_S, "nothing more for 20 s", id="idle"
        ),
        pytest.param(
            [frame(chunk()), Wait(19), frame(chunk()), Wait(19)] * 3 + [Wait(99)], 6, 115, "more", id="rearms"
        ),
        pytest.param([Wait(10), b": ka\n\n"] * 9, 0, FIRST_S, "nothing for 60 s", id="comments-at-first"),
        pytest.param(
            [frame(chunk()), *[Wait(6), b": ka\n\n"] * 9], 1, IDLE_S, "nothing more for 20 s", id="comments"
        ),
        pytest.param(
            [frame(chunk()), *[Wait(6), b"x"] * 9],
            1,
            IDLE_S,
            "nothing more for 20 s",
            id="bytes-of-one-event",
        ),
    ],
)
def test_silence(steps: list[Step], items: int, ends_after_s: float, message: str) -> None:
    """The first event and the gaps have their deadlines, which only events move: comments do not."""
    steps = [Wait(step.seconds) if isinstance(step, Wait) else step for step in steps]
    exchange = Exchange(*steps)
    taken = exchange.take()
    assert len(taken) == items + 1
    assert message in read_error(taken[-1], as_json=False)
    assert exchange.clock.now - 1000 == pytest.approx(ends_after_s)
    assert exchange.settled.outcome is Outcome.TIMEOUT
    assert isinstance(exchange.settled.error, UpstreamTimeoutError)
    assert exchange.stream.calls == ["close"]


def test_pause_just_below_the_deadline() -> None:
    """A model that thinks for nearly as long as it may is not cut off."""
    exchange = Exchange(Wait(FIRST_S - 0.01), frame(chunk()), Wait(IDLE_S - 0.01), DONE)
    assert exchange.take() == [frame(chunk()), DONE]
    assert exchange.settled.outcome is Outcome.COMPLETE


def test_first_deadline_counts_from_the_request() -> None:
    """Time that went by before the relay was made is part of the wait."""
    exchange = Exchange(Wait(40), frame(chunk()), DONE)
    exchange.clock.now += 30
    (item,) = exchange.take()
    assert "sent nothing for 60 s" in read_error(item, as_json=False)


def test_slow_client_is_not_taken_for_a_silent_upstream() -> None:
    """A client that takes its time to read must not cost it the events that have come meanwhile."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b")), DONE)
    items = iter(exchange.relay)
    assert next(items) == frame(chunk("a"))
    exchange.clock.now += IDLE_S + 1  # the server waits for the client to take the first event
    assert next(items) == frame(chunk("b"))
    assert next(items) == DONE
    exchange.relay.close()


# Errors that upstream sends as events


@pytest.mark.parametrize("wants_json", [True, False])
@pytest.mark.parametrize(
    ("event", "code"),
    [
        pytest.param(b'{"code":"unavailable","error":"overloaded"}', "unavailable", id="flat"),
        pytest.param(b'{"error":{"message":"overloaded","code":"unavailable"}}', "unavailable", id="nested"),
        pytest.param(b'{"error":"overloaded"}', "upstream_error", id="text-only"),
        pytest.param(b'{ "error" : "overloaded", "choices": [] }', "upstream_error", id="with-choices"),
    ],
)
def test_error_object(event: bytes, code: str, wants_json: bool) -> None:
    """Both of upstream's shapes become the client's own, after the events before it and before none."""
    exchange = Exchange(frame(chunk("a"), chunk("b"), event, chunk("c")) + DONE, wants_json=wants_json)
    (item,) = exchange.take()
    assert item.startswith(frame(chunk("a"), chunk("b")))
    assert read_error(item.removeprefix(frame(chunk("a"), chunk("b"))), as_json=wants_json) == "overloaded"
    settled = exchange.settled
    assert settled.outcome is Outcome.UPSTREAM_ERROR
    assert settled.error is not None
    assert (settled.error.code, settled.events, settled.bytes_out) == (code, 2, len(item))
    assert exchange.stream.calls == ["close"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'event: error\ndata: {"message":"overloaded"}\n\n', "overloaded"),
        (b'event: error\ndata: {"error":{"message":"overloaded"}}\n\n', "overloaded"),
        (b'data: {"error":"overloaded"}\nevent: error\n\n', "overloaded"),
    ],
)
def test_event_named_error(event: bytes, message: str) -> None:
    """An event of that name is an error, whatever its data look like."""
    exchange = Exchange(frame(chunk()), event, DONE)
    first, last = exchange.take()
    assert first == frame(chunk())
    assert read_error(last, as_json=False) == message
    assert exchange.settled.outcome is Outcome.UPSTREAM_ERROR


def test_event_named_otherwise_is_an_event() -> None:
    """Other names are not errors; they are not relayed, their data are."""
    exchange = Exchange(b"event: ping\ndata: {}\n\n" + DONE)
    assert exchange.take() == [b"data: {}\n\n" + DONE]


def test_error_event_does_not_quote_the_key() -> None:
    """What must not be seen is cut out of a message in mid-stream as well."""
    team = "7d1f4cf0-1111-4222-8333-0123456789ab"
    exchange = Exchange(frame({"error": f"key plain-old-secret of team {team}\n\ndata: forged"}))
    (item,) = exchange.take()
    message = read_error(item, as_json=False)
    assert message == "key [redacted] of team [redacted]\n\ndata: forged"


# Closing


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_client_that_leaves(taken: int) -> None:
    """Closing before the first event, or between two, closes upstream and is the client's doing."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b"), usage_only(2)), frame(chunk("c")), DONE)
    items = iter(exchange.relay)
    sent = [next(items) for _ in range(taken)]
    exchange.relay.close()
    exchange.relay.close()
    assert exchange.stream.calls == ["close"]
    settled = exchange.settled
    assert (settled.outcome, settled.error) == (Outcome.CLIENT_ABORT, None)
    assert (settled.events, settled.bytes_out) == (taken, sum(len(item) for item in sent))
    assert settled.usage == (Usage(completion_tokens=2) if taken == 2 else None)
    assert list(items) == []
    assert len(exchange.settlements) == 1


@pytest.mark.parametrize("end", [[DONE], []], ids=["done", "error"])
def test_client_that_leaves_before_the_last_item_is_written(end: list[Step]) -> None:
    """An end that was given out but not taken up again may never have reached the client."""
    exchange = Exchange(frame(chunk()), *end)
    items = iter(exchange.relay)
    next(items)
    next(items)
    exchange.relay.close()
    assert exchange.settled.outcome is Outcome.CLIENT_ABORT


def test_closing_after_the_end_is_complete() -> None:
    """When all was taken and written, closing several times settles once, as complete."""
    exchange = Exchange(frame(chunk()), DONE)
    exchange.take()
    exchange.relay.close()
    assert exchange.settled.outcome is Outcome.COMPLETE
    assert exchange.stream.calls == ["finish"]


def test_iterator_cannot_close_the_relay() -> None:
    """Whoever iterates has nothing to close: closing is the response's, after the last byte is out."""
    exchange = Exchange(frame(chunk()), DONE)
    items: Iterator[bytes] = iter(exchange.relay)
    assert not hasattr(items, "close")
    assert list(items) == [frame(chunk()), DONE]
    assert exchange.settlements == []
    exchange.relay.close()


def test_settled_even_when_closing_fails() -> None:
    """A stream that cannot be closed does not cost the exchange its settlement."""

    class Unclosable(FakeStream):
        def close(self) -> None:
            super().close()
            raise OSError("gone")

    exchange = Exchange()
    exchange.relay._stream = stream = Unclosable(exchange.clock, [])  # type: ignore[assignment]
    with pytest.raises(OSError, match="gone"):
        exchange.relay.close()
    exchange.relay.close()
    assert stream.calls == ["close"]
    assert len(exchange.settlements) == 1


def test_figures_of_a_stream() -> None:
    """Events, bytes and the time to the first event are what the client saw."""
    exchange = Exchange(
        b": hello\n\n", Wait(2), frame(chunk("a")), Wait(3), frame(chunk("b"), chunk("c"), usage_only()), DONE
    )
    items = exchange.take()
    settled = exchange.settled
    assert settled.ttft_s == 2
    assert settled.events == 3
    assert settled.bytes_out == len(b"".join(items)) == len(frame(chunk("a"), chunk("b"), chunk("c")) + DONE)


def test_no_event_no_time_to_it() -> None:
    """A stream that never began has no time to its first event."""
    exchange = Exchange(Wait(1))
    exchange.take()
    assert exchange.settled.ttft_s is None


# Silence


def test_silence_is_filled_with_comments() -> None:
    """After each `heartbeat_s` of silence one comment line goes out, with one newline, between events."""
    exchange = Exchange(frame(chunk("a")), Wait(7.0), frame(chunk("b")), frame(b"[DONE]"), heartbeat_s=3.0)
    items = exchange.take()
    assert items == [frame(chunk("a")), HEARTBEAT, HEARTBEAT, frame(chunk("b")), DONE]
    assert HEARTBEAT == b": keep-alive\n"
    assert exchange.settled.outcome == Outcome.COMPLETE


def test_delays_and_heartbeats_are_told() -> None:
    """From reading to when the server comes back for more; silence and what is withheld have none."""
    usage = frame(b'{"choices":[],"usage":{"prompt_tokens":1}}')
    steps = [frame(chunk("a")), Wait(7.0), frame(chunk("b")), usage, Wait(4.0), frame(b"[DONE]")]
    exchange = Exchange(*steps, heartbeat_s=3.0)
    for item in exchange.relay:
        exchange.clock.now += 0.2 if item == frame(chunk("b")) else 0.0005
    exchange.relay.close()
    figures = parse_figures(Metrics(exchange.tallies, dict).render().decode())
    assert figures["grokflask_event_delay_seconds_bucket{le=0.001}"] == 2
    assert figures["grokflask_event_delay_seconds_count"] == 3
    assert figures["grokflask_event_delay_seconds_sum"] == pytest.approx(0.2 + 2 * 0.0005)
    assert figures["grokflask_heartbeats_total"] == 3


def test_heartbeats_come_while_upstream_sends_only_comments() -> None:
    """What counts is the client's silence: upstream's own comments are dropped and replaced."""
    steps: list[Step] = [frame(chunk("a"))]
    for _ in range(4):
        steps += [Wait(1.0), b": still here\n\n"]
    exchange = Exchange(*steps, frame(b"[DONE]"), heartbeat_s=1.5)
    assert exchange.take() == [frame(chunk("a")), HEARTBEAT, HEARTBEAT, DONE]


def test_heartbeats_do_not_push_the_idle_deadline_away() -> None:
    """A dead upstream is found out although comments keep the client's connection alive."""
    exchange = Exchange(frame(chunk("a")), Wait(1000.0), heartbeat_s=6.0)
    items = exchange.take()
    assert items[1:4] == [HEARTBEAT] * 3
    assert "nothing more for 20 s" in read_error(items[4], as_json=False)
    assert exchange.settled.outcome == Outcome.TIMEOUT
    assert exchange.clock.now == pytest.approx(1000.0 + IDLE_S)


def test_thirty_minutes_of_heartbeats() -> None:
    """A stream that thinks for half an hour within its deadlines gets its comments, and its answer."""
    steps: list[Step] = [frame(chunk("a"))]
    for _ in range(100):
        steps += [Wait(18.0), frame(chunk("."))]
    exchange = Exchange(*steps, frame(b"[DONE]"), heartbeat_s=1.0)
    items = exchange.take()
    assert exchange.clock.now == pytest.approx(1000.0 + 1800.0)
    assert 1700 <= items.count(HEARTBEAT) <= 1800  # 17 or 18 in each silence of 18 s
    assert items[-1] == DONE


def test_total_deadline() -> None:
    """However busy a stream is, it ends with an error event when its time is over."""
    steps: list[Step] = []
    for _ in range(50):
        steps += [frame(chunk("x")), Wait(1.0)]
    exchange = Exchange(*steps, total_timeout_s=10.5, wants_json=True)
    items = exchange.take()
    assert len(items) == 12
    assert "longer than 10.5 s" in read_error(items[-1], as_json=True)
    assert json.loads(items[-1][6:])["error"]["code"] == "total_timeout"
    assert exchange.settled.outcome == Outcome.TIMEOUT


# Ended from outside


def test_client_that_leaves_is_given_nothing_more() -> None:
    """Once the watcher has seen the client go the iteration ends, and the outcome is an abort."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b")), frame(b"[DONE]"))
    items = iter(exchange.relay)
    next(items)
    exchange.departure.leave()
    assert isinstance(exchange.call.cancelled, ClientGoneError)
    assert list(items) == []
    exchange.relay.close()
    assert (exchange.settled.outcome, exchange.settled.events) == (Outcome.CLIENT_ABORT, 1)
    assert exchange.stream.calls == ["close"]


@pytest.mark.parametrize("drain_s", [0.0, 1e9])
def test_what_comes_just_as_the_client_leaves_is_not_lost(drain_s: float) -> None:
    """A piece that was read while the client left counts, and above all the usage in it."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b"), usage_only(7), b"[DONE]"), drain_s=drain_s)
    items = iter(exchange.relay)
    next(items)
    read = exchange.stream.read

    def leave_meanwhile(timeout_s: float) -> bytes | None:
        exchange.departure.leave()
        return read(timeout_s)

    exchange.stream.read = leave_meanwhile  # type: ignore[method-assign]
    assert list(items) == []
    exchange.relay.close()
    settled = exchange.settled
    assert (settled.outcome, settled.events, settled.events_seen) == (Outcome.CLIENT_ABORT, 1, 2)
    assert settled.usage == Usage(completion_tokens=7)
    assert settled.usage_final


def test_shutdown_is_told_in_the_stream() -> None:
    """A stream ended by a shutdown says so, without [DONE]."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b")), wants_json=True)
    items = iter(exchange.relay)
    next(items)
    exchange.call.cancel(ShuttingDownError())
    (last,) = items
    assert json.loads(last[6:])["error"]["code"] == "shutting_down"
    exchange.relay.close()
    assert exchange.settled.outcome == Outcome.SHUTDOWN


def test_a_broken_connection_is_blamed_on_the_cancellation() -> None:
    """Cancelling breaks the connection: what is told is why it was cancelled."""
    exchange = Exchange(frame(chunk("a")), StreamBrokenError())
    items = iter(exchange.relay)
    next(items)
    exchange.call.cancel(ShuttingDownError("going down"))
    (last,) = items
    assert "going down" in last.decode()
    exchange.relay.close()
    assert exchange.settled.outcome == Outcome.SHUTDOWN


def test_an_answer_that_is_refused_is_no_abort() -> None:
    """What upstream refused before the response began is settled as that, and nobody has left."""
    exchange = Exchange(frame(chunk("a")))
    refused = UpstreamStatusError("no credits", status=403)

    def wait(timeout_s: float) -> FakeStream:
        raise refused

    exchange.call.wait = wait  # type: ignore[method-assign]
    with pytest.raises(UpstreamStatusError):
        exchange.relay.wait_for_answer(1.0)
    exchange.relay.close()
    assert exchange.departure.left_at is None
    (settlement,) = exchange.settlements
    assert (settlement.outcome, settlement.error) == (Outcome.UPSTREAM_ERROR, refused)


def test_an_aborted_stream_goes_without_the_collector() -> None:
    """What it has read, half an event of megabytes perhaps, is freed though its callback knows it."""
    settled: list[bool] = []

    def abort() -> weakref.ref[Relay]:
        relay = Exchange(b'data: {"half":"').relay
        relay._on_settle = lambda _: settled.append(isinstance(relay, Relay))
        relay.close()
        return weakref.ref(relay)

    gc.disable()
    try:
        gone = abort()
        assert gone() is None
    finally:
        gc.enable()
    assert settled == [True]


def test_looking_ahead() -> None:
    """The first event tells the model before the response begins, and is given out as it would have been."""
    steps = (frame(chunk("a")), Wait(3), frame(chunk("b"), usage_only()), DONE)
    exchange, plain = Exchange(*steps), Exchange(*steps)
    assert exchange.relay.look_ahead(1e6) == "grok-4.3"
    assert exchange.take() == plain.take()
    assert exchange.settled == plain.settled


@pytest.mark.parametrize("steps", [(), (frame({"error": "no"}),), (b"data: {}\n\n", DONE), (DONE,)])
def test_looking_ahead_at_what_tells_no_model(steps: tuple[Step, ...]) -> None:
    """Whatever stands there, or that nothing does, goes to the client as ever."""
    exchange, plain = Exchange(*steps), Exchange(*steps)
    assert exchange.relay.look_ahead(1e6) is None
    assert exchange.take() == plain.take()
    assert exchange.settled.outcome == plain.settled.outcome


def test_looking_ahead_and_no_further() -> None:
    """A stream that is closed behind its first event was left by its client."""
    exchange = Exchange(frame(chunk("a")), frame(chunk("b")), DONE)
    exchange.relay.look_ahead(1e6)
    exchange.relay.close()
    assert exchange.settled.outcome is Outcome.CLIENT_ABORT


def test_a_client_that_left_before_the_first_event() -> None:
    """Nothing was given out, though all of it had come: nobody is there to have got it."""
    exchange = Exchange(frame(chunk("a")) + DONE)
    exchange.departure.left_at = exchange.clock.now
    exchange.relay.look_ahead(1e6)
    assert exchange.take() == []
    assert exchange.settled.outcome is Outcome.CLIENT_ABORT
    assert exchange.settled.bytes_out == 0


def test_the_first_comment_waits_no_longer_than_for_an_answer() -> None:
    """Routers give up when nothing has come for 30 s, be it that upstream's headers came in between."""
    exchange = Exchange(Wait(100), frame(chunk("a")), DONE, heartbeat_s=15, commit_s=2)
    begun_at = exchange.clock.now
    assert next(iter(exchange.relay)) == HEARTBEAT
    assert exchange.clock.now - begun_at == 2
    exchange.relay.close()


# Cut answers, and budgets


FINISH = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()


def test_the_usage_of_a_complete_answer_is_waited_for_though_the_client_has_left() -> None:
    """After its last word nothing more is generated, so the true figures cost nothing."""
    exchange = Exchange(frame(chunk("a")), frame(FINISH), Wait(1.0), frame(usage_only(7)), frame(b"[DONE]"))
    items = iter(exchange.relay)
    next(items), next(items)
    exchange.departure.leave()
    assert exchange.call.cancelled is None
    assert list(items) == []
    exchange.relay.close()
    settled = exchange.settled
    assert (settled.outcome, settled.usage_final) == (Outcome.CLIENT_ABORT, True)
    assert settled.usage == Usage(completion_tokens=7)


def test_who_leaves_before_the_last_word_ends_the_call() -> None:
    """Also behind a text that looks like an end: its quotes have a backslash."""
    exchange = Exchange(frame(FINISH), frame(chunk('"finish_reason":"stop"')), frame(chunk("b")))
    items = iter(exchange.relay)
    next(items), next(items)
    exchange.departure.leave()
    assert isinstance(exchange.call.cancelled, ClientGoneError)


def test_silence_counts_for_a_model_that_reasons() -> None:
    """Before the first word, in the middle, and when its client leaves; not where upstream failed."""
    for pace, tokens in ((10.0, 95 + 45), (0.0, 0)):
        steps = (Wait(10.0), frame(chunk("a")), Wait(5.0), frame(chunk("b")), Wait(0.4), frame(chunk("c")))
        exchange = Exchange(*steps, Wait(19.0), meter=Meter(pace))
        items = iter(exchange.relay)
        for _ in range(3):
            next(items)
        exchange.relay.close()
        assert exchange.settled.silent_tokens == tokens
    broken = Exchange(frame(chunk("a")), Wait(IDLE_S + 1), meter=Meter(10.0))
    broken.take()
    assert (broken.settled.outcome, broken.settled.silent_tokens) == (Outcome.TIMEOUT, 0)


class SmallAllowance:
    """Room for so many tokens."""

    def __init__(self, due: float) -> None:
        self.due = due

    def check(self, used_tokens: int) -> GrokflaskError | None:
        return BudgetUsedUpError() if used_tokens >= self.due else None


@pytest.mark.parametrize(
    ("dialect", "event", "parts"),
    [
        (CHAT, chunk("word"), [b'"code":"insufficient_quota"']),
        (RESPONSES, b'{"type":"response.output_text.delta","delta":"word"}', [b'"type":"error"', b"_quota"]),
        (
            MESSAGES,
            b'{"type":"content_block_delta","delta":{"text":"word"}}',
            [b"event: error", b"rate_limit"],
        ),
    ],
)
def test_a_stream_whose_budget_is_used_up(dialect: Dialect, event: bytes, parts: list[bytes]) -> None:
    """It ends with what has come and an error of its dialect, and upstream is closed."""
    exchange = Exchange(
        *[frame(event)] * 200, dialect=dialect, wants_json=True, meter=Meter(allowance=SmallAllowance(50))
    )
    items = exchange.take()
    assert b"[DONE]" not in items[-1]
    assert all(part in items[-1] for part in parts)
    assert 50 <= exchange.settled.text_tokens == exchange.settled.events <= 80
    assert (exchange.settled.outcome, exchange.settled.status) == (Outcome.LIMIT, 200)
    assert exchange.stream.calls == ["close"]
    assert exchange.stream.steps
    assert exchange.finished[0].outcome is Outcome.LIMIT


def test_a_silence_that_uses_up_a_budget() -> None:
    """It is not seen to the end, nor only at a heartbeat."""
    exchange = Exchange(frame(chunk("a")), Wait(1000.0), meter=Meter(10.0, SmallAllowance(100)))
    items = exchange.take()
    assert "used up" in read_error(items[-1], as_json=False)
    assert exchange.settled.outcome is Outcome.LIMIT
    assert 100 <= exchange.settled.text_tokens + exchange.settled.silent_tokens <= 110
    assert exchange.clock.now == pytest.approx(1010.5, abs=0.5)


def test_a_complete_answer_without_usage_is_counted_to_its_end() -> None:
    """It is booked by its text, however little of it came last."""
    exchange = Exchange(*[frame(chunk("word"))] * 10, frame(b"[DONE]"), meter=Meter(10.0))
    exchange.take()
    assert (exchange.settled.text_tokens, exchange.settled.silent_tokens) == (10, 0)
