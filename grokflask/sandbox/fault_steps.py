"""Fault steps: how a fault model spoils a body that would have been sent well. Functions from steps to steps.

Those for streams see events, those for replies that are not streamed see the two halves of a body. The second
argument is the duration in seconds from the model's name.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

from grokflask.sandbox.framing import frame_as_error, frame_plainly
from grokflask.sandbox.refusals import flat_error, nested_error
from grokflask.sandbox.steps import Cut, Data, Event, Pause, Step

Delay = Callable[[float], Iterable[Pause]]
Alter = Callable[[Iterator[Event], float], Iterable[Step]]
Spoil = Callable[[bytes, float], Iterable[Step]]

BROKEN_AFTER_EVENTS = 6
"""So many events arrive before a stream is broken in its middle."""
_SEGMENT_GAP_S = 0.002  # long enough for the halves of an event to be read apart
_UNAVAILABLE = "The service is currently unavailable: the model stopped in mid-answer."
FORGED_TEXT = 'The model failed.\n\ndata: {"choices":[]}\r\n\r\ndata: [DONE]\n\nevent: error\ndata: forged'


def _first(events: Iterator[Event]) -> Iterator[Event]:
    return itertools.islice(events, BROKEN_AFTER_EVENTS)


def wait(seconds: float) -> Iterator[Pause]:
    """Silence."""
    yield Pause(seconds)


def break_off(reset: bool) -> Alter:
    """A few events, then an RST or a FIN without the last HTTP chunk."""

    def alter(events: Iterator[Event], _: float) -> Iterator[Step]:
        yield from _first(events)
        yield Pause(_SEGMENT_GAP_S)
        yield Cut(reset)

    return alter


def break_off_in_event(events: Iterator[Event], _: float) -> Iterator[Step]:
    """A few events, half of another, then a FIN."""
    yield from _first(events)
    data = next(events).data
    yield Data(data[: len(data) // 2])
    yield Cut(reset=False)


def truncate(events: Iterator[Event], _: float) -> Iterator[Step]:
    """A few events, then the regular end of the HTTP body."""
    yield from _first(events)


def leave_out_done(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Everything but [DONE]."""
    return (event for event in events if event.kind != "done")


def be_slow_to_start(events: Iterator[Event], seconds: float) -> Iterator[Step]:
    """Headers at once, silence, then the stream."""
    yield Pause(seconds)
    yield from events


def stall(events: Iterator[Event], seconds: float) -> Iterator[Step]:
    """A few events, silence, then the rest."""
    yield from _first(events)
    yield Pause(seconds)
    yield from events


def linger(events: Iterator[Event], seconds: float) -> Iterator[Step]:
    """The whole stream with [DONE], then silence before the HTTP body ends."""
    yield from events
    yield Pause(seconds)


def put_bom_first(events: Iterator[Event], _: float) -> Iterator[Step]:
    """A byte order mark before the first event."""
    first = next(events)
    yield first._replace(data=b"\xef\xbb\xbf" + first.data)
    yield from events


def put_comments_between(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Comment lines between events, and one within an event."""
    for event in events:
        yield Data(b": the sandbox is still here\n\n:\n\n")
        yield event._replace(data=b": within an event\n" + event.data)


def send_bytewise(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Every byte in a send of its own."""
    for event in events:
        yield from (Data(event.data[i : i + 1]) for i in range(len(event.data) - 1))
        yield event._replace(data=event.data[-1:])


def send_at_once(events: Iterator[Event], _: float) -> Iterator[Step]:
    """All events in one send."""
    every = list(events)
    usage = next((event.usage for event in reversed(every) if event.usage), None)
    tokens = sum(event.tokens for event in every)
    yield Event(b"".join(event.data for event in every), every[-1].kind, tokens, usage, len(every))


def cut_characters(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Every event in two sends, cut within a multi-byte character where it has one."""
    for event in events:
        starts = (i for i, byte in enumerate(event.data) if byte >= 0xC0)
        middle = next(starts, len(event.data) // 2) + 1
        yield Data(event.data[:middle])
        yield Pause(_SEGMENT_GAP_S)
        yield event._replace(data=event.data[middle:])


def compress(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Gzip, flushed after every event."""
    packer = zlib.compressobj(wbits=31)
    for event in events:
        yield event._replace(data=packer.compress(event.data) + packer.flush(zlib.Z_SYNC_FLUSH))
    yield Data(packer.flush())


def fail_in_middle(body: bytes, named: bool = False) -> Alter:
    """A few events, then an error object as an event (named error, or not), then the regular end."""
    failure = Event(frame_as_error(body) if named else frame_plainly(body), "error")

    def alter(events: Iterator[Event], _: float) -> Iterator[Step]:
        yield from _first(events)
        yield failure

    return alter


FLAT_FAILURE = flat_error(_UNAVAILABLE, "The service is currently unavailable")
NESTED_FAILURE = nested_error(_UNAVAILABLE, "server_error", "unavailable")
FORGED_FAILURE = flat_error(FORGED_TEXT, "internal")


def spoil_by_cut(reset: bool) -> Spoil:
    """Half of the body that Content-Length promised, then an RST or a FIN."""

    def spoil(body: bytes, _: float) -> Iterator[Step]:
        yield Data(body[: len(body) // 2])
        yield Pause(_SEGMENT_GAP_S)
        yield Cut(reset)

    return spoil


def spoil_by_delay(body: bytes, seconds: float) -> Iterator[Step]:
    """Headers at once, silence, then the body."""
    yield Pause(seconds)
    yield Data(body)


def spoil_by_stall(body: bytes, seconds: float) -> Iterator[Step]:
    """Half of the body, silence, then the rest."""
    yield Data(body[: len(body) // 2])
    yield Pause(seconds)
    yield Data(body[len(body) // 2 :])
