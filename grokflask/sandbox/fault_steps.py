"""Fault steps: how a fault model spoils an answer. Functions from steps to steps.

The second argument of an `Alter` is the number of seconds from the fault model's name.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

from grokflask.sandbox.steps import Cut, Event, Pause, Step

Delay = Callable[[float], Iterable[Step]]
Alter = Callable[[Iterator[Event], float], Iterable[Step]]

BROKEN_AFTER_EVENTS = 6
"""How many events arrive before a stream is broken."""
_SEGMENT_GAP_S = 0.002  # long enough for the client to read what is before it by itself


def stop_early(*then: Step) -> Alter:
    """Send a few events, and do some steps instead of the rest; then the HTTP body ends."""

    def alter(events: Iterator[Event], _: float) -> Iterator[Step]:
        yield from itertools.islice(events, BROKEN_AFTER_EVENTS)
        yield from then

    return alter


def break_off(reset: bool) -> Alter:
    """Send a few events, then an RST, or a FIN without the last HTTP chunk."""
    return stop_early(Pause(_SEGMENT_GAP_S), Cut(reset))


def pause_after(count: int | None) -> Alter:
    """Send some events, and the rest after the seconds; None for all, and the end of the HTTP body later."""

    def alter(events: Iterator[Event], seconds: float) -> Iterator[Step]:
        yield from itertools.islice(events, count)
        yield Pause(seconds)
        yield from events

    return alter


def break_off_in_event(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send a few events and half of another, then a FIN."""
    yield from itertools.islice(events, BROKEN_AFTER_EVENTS)
    data = next(events).data
    yield Event(data[: len(data) // 2], events=0)
    yield Cut(reset=False)


def leave_out_done(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send everything but the event that ends the stream."""
    return (event for event in events if not event.done)


def put_bom_first(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send a byte order mark before the first event."""
    first = next(events)
    yield first._replace(data=b"\xef\xbb\xbf" + first.data)
    yield from events


def put_comments_between(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send comment lines between events, and one within each."""
    for event in events:
        yield Event(b": the sandbox is still here\n\n:\n\n", events=0)
        yield event._replace(data=b": within an event\n" + event.data)


def send_bytewise(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send every byte by itself."""
    for event in events:
        yield from (Event(event.data[i : i + 1], events=0) for i in range(len(event.data) - 1))
        yield event._replace(data=event.data[-1:])


def send_at_once(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send all events together."""
    every = list(events)
    usage = next((event.usage for event in reversed(every) if event.usage), None)
    tokens = sum(event.tokens for event in every)
    count = sum(event.events for event in every)
    yield Event(b"".join(event.data for event in every), tokens, usage, count, every[-1].done)


def cut_characters(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send every event in two parts, cut within a multi-byte character where it has one."""
    for event in events:
        starts = (i for i, byte in enumerate(event.data) if byte >= 0xC0)
        middle = next(starts, len(event.data) // 2) + 1
        yield Event(event.data[:middle], events=0)
        yield Pause(_SEGMENT_GAP_S)
        yield event._replace(data=event.data[middle:])


def compress(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send gzip, flushed after every event."""
    packer = zlib.compressobj(wbits=31)
    for event in events:
        yield event._replace(data=packer.compress(event.data) + packer.flush(zlib.Z_SYNC_FLUSH))
    yield Event(packer.flush(), events=0)
