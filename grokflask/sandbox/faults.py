"""The fault models: a table of their names and of what goes wrong when a request names one as `model`.

Most faults alter a stream: they are functions from events to steps. The second argument of an `Alter` is the
number of seconds from the fault model's name.
"""

import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from grokflask.sandbox.answers import PLAIN_STYLE, Style
from grokflask.sandbox.chunks import Frame, frame_in_lines, frame_plainly, frame_with
from grokflask.sandbox.refusals import (
    API_KEY_ID,
    TEAM_ID,
    RefusalError,
    flat_error,
    nested_error,
    refuse,
    refuse_key,
)
from grokflask.sandbox.steps import Cut, Event, Pause, Step

MAX_SECONDS = 3_600.0
_SUFFIX = re.compile(r"(.+)-(\d{1,4}(?:\.\d{1,3})?)")

Delay = Callable[[float], Iterable[Step]]
Alter = Callable[[Iterator[Event], float], Iterable[Step]]

BROKEN_AFTER_EVENTS = 6
"""How many events arrive before a stream is broken."""
_GAP = Pause(0.002)  # long enough for the client to read what is before it by itself


def _stop_early(*then: Step) -> Alter:
    """Send a few events, and do some steps instead of the rest; then the HTTP body ends."""

    def alter(events: Iterator[Event], _: float) -> Iterator[Step]:
        yield from itertools.islice(events, BROKEN_AFTER_EVENTS)
        yield from then

    return alter


def _pause_after(count: int | None) -> Alter:
    """Send some events, and the rest after the seconds; None for all, and the end of the HTTP body later."""

    def alter(events: Iterator[Event], seconds: float) -> Iterator[Step]:
        yield from itertools.islice(events, count)
        yield Pause(seconds)
        yield from events

    return alter


def _break_off_in_event(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send a few events and half of another, then a FIN."""
    yield from itertools.islice(events, BROKEN_AFTER_EVENTS)
    data = next(events).data
    yield Event(data[: len(data) // 2], events=0)
    yield Cut(reset=False)


def _put_bom_first(events: Iterator[Event], _: float) -> Iterator[Step]:
    first = next(events)
    yield first._replace(data=b"\xef\xbb\xbf" + first.data)
    yield from events


def _put_comments_between(events: Iterator[Event], _: float) -> Iterator[Step]:
    for event in events:
        yield Event(b": the sandbox is still here\n\n:\n\n", events=0)
        yield event._replace(data=b": within an event\n" + event.data)


def _send_bytewise(events: Iterator[Event], _: float) -> Iterator[Step]:
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


def _cut_characters(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send every event in two parts, cut within a multi-byte character where it has one."""
    for event in events:
        starts = (i for i, byte in enumerate(event.data) if byte >= 0xC0)
        middle = next(starts, len(event.data) // 2) + 1
        yield Event(event.data[:middle], events=0)
        yield _GAP
        yield event._replace(data=event.data[middle:])


def _compress(events: Iterator[Event], _: float) -> Iterator[Step]:
    """Send gzip, flushed after every event."""
    packer = zlib.compressobj(wbits=31)
    for event in events:
        yield event._replace(data=packer.compress(event.data) + packer.flush(zlib.Z_SYNC_FLUSH))
    yield Event(packer.flush(), events=0)


Refuse = Callable[[str | None], RefusalError]
"""Makes the answer, from the bearer key that came with the request."""


@dataclass(frozen=True)
class Fault:
    """What one fault model does differently from grok-4.3.

    `refuse` answers instead of the model; where there is `alter` too, only for requests without a stream.
    `before_headers` makes the answer wait or cuts it off. `alter` changes a stream, and with
    `alters_replies` also the body of any other reply, which it gets in pieces.
    Those that are `timed` take `seconds` from the end of the model's name.
    """

    refuse: Refuse | None = None
    style: Style = PLAIN_STYLE
    frame: Frame = frame_plainly
    alter: Alter | None = None
    alters_replies: bool = False
    before_headers: Delay = lambda _: ()
    headers: Mapping[str, str] = field(default_factory=dict)
    strict_content: bool = False
    timed: bool = False
    seconds: float = 5.0


NO_FAULT = Fault()


def _refuse(status: int, text: str, **headers: str) -> Refuse:
    return lambda _: refuse(status, text, **headers)


def _refuse_raw(status: int, body: bytes, content_type: str = "application/json") -> Refuse:
    return lambda _: RefusalError(status, body, {"Content-Type": content_type})


def _leak(bearer: str | None) -> RefusalError:
    text = f"Key {bearer or 'no key'} (API key ID {API_KEY_ID}) of team {TEAM_ID} may not use this model."
    return refuse(403, text)


_NO_CREDITS = f"Your team {TEAM_ID} has used all available credits or reached its monthly spending limit."
_MODERATED = (
    f"Content violates usage guidelines. Team: {TEAM_ID}, API key ID: {API_KEY_ID}, Model: grok-4.3, "
    "Failed check: SAFETY_CHECK_TYPE_BIO."
)
_RATE_LIMITED = (
    f"Too many requests for team {TEAM_ID} and model grok-4.3. Requests per minute (actual/limit): 61/60."
)
_RATE_HEADERS = {
    "Retry-After": "7",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
}
_HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>502</body></html>\n"
_FAILED = "The sandbox was asked to fail."
_STOPPED = "The service is currently unavailable: the model stopped in mid-answer."
_FLAT = flat_error(_STOPPED, "The service is currently unavailable")
_NESTED = nested_error(_STOPPED, "server_error", "unavailable")
FORGED_TEXT = 'The model failed.\n\ndata: {"choices":[]}\r\n\r\ndata: [DONE]\n\nevent: error\ndata: forged'
_FORGED = flat_error(FORGED_TEXT, "internal")
_UNICODE = (
    "Ein Bär, größer als gedacht, trank Tee. Пятнадцать ёжиков пришли вечером. 雨が静かに降っていた。 "
    "👩‍🚀🦊 said ¡olé! while 𝄞 played, é over é, and the النهاية was near. "
) * 3

FAULTS = {
    # Answers instead of the model.
    "wrong-key": Fault(refuse_key),
    "old-codes": Fault(lambda bearer: refuse_key(bearer, "Client specified an invalid argument")),
    "no-credits": Fault(_refuse(403, _NO_CREDITS)),
    "no-credits-429": Fault(_refuse(429, _NO_CREDITS)),
    "moderation": Fault(_refuse(403, _MODERATED)),
    "rate-limit": Fault(_refuse(429, _RATE_LIMITED)),
    "rate-limit-retry-after": Fault(_refuse(429, _RATE_LIMITED, **_RATE_HEADERS)),
    "error-500": Fault(_refuse(500, _FAILED)),
    "error-503": Fault(_refuse(503, "The service is currently unavailable.")),
    "error-html": Fault(_refuse_raw(502, _HTML, "text/html")),
    "error-no-code": Fault(_refuse_raw(500, b'{"error":"The sandbox was asked to fail."}')),
    "openai-error": Fault(_refuse_raw(400, nested_error(_FAILED, "invalid_request_error", "bad"))),
    "json-on-200": Fault(_refuse_raw(200, _FLAT)),
    "leaky-error": Fault(_leak),
    "forged": Fault(_refuse_raw(500, _FORGED), alter=_stop_early(Event(frame_plainly(_FORGED)))),
    "strict-content": Fault(strict_content=True),
    # Silence and breaking off.
    "drop-before-headers": Fault(before_headers=lambda _: [Cut(reset=False)]),
    "slow-headers": Fault(before_headers=lambda seconds: [Pause(seconds)], timed=True),
    "slow-first-event": Fault(alter=_pause_after(0), alters_replies=True, timed=True),
    "stall": Fault(alter=_pause_after(BROKEN_AFTER_EVENTS), alters_replies=True, timed=True),
    "linger": Fault(alter=_pause_after(None), timed=True),
    "drop-rst": Fault(alter=_stop_early(_GAP, Cut(reset=True)), alters_replies=True),
    "drop-fin": Fault(alter=_stop_early(_GAP, Cut(reset=False)), alters_replies=True),
    "drop-mid-event": Fault(alter=_break_off_in_event, alters_replies=True),
    "truncated": Fault(alter=_stop_early()),
    "no-done": Fault(alter=lambda events, _: (event for event in events if not event.done)),
    "error-mid-stream": Fault(alter=_stop_early(Event(frame_plainly(_FLAT)))),
    "error-mid-stream-openai": Fault(alter=_stop_early(Event(frame_plainly(_NESTED)))),
    "error-event": Fault(alter=_stop_early(Event(b"event: error\n" + frame_plainly(_FLAT)))),
    # Framing.
    "crlf": Fault(frame=frame_with(after=b"\r\n\r\n")),
    "cr": Fault(frame=frame_with(after=b"\r\r")),
    "no-space": Fault(frame=frame_with(b"data:")),
    "bom": Fault(alter=_put_bom_first),
    "comments": Fault(alter=_put_comments_between),
    "multiline": Fault(frame=frame_in_lines),
    "other-fields": Fault(frame=frame_with(b"id: 7\nevent: message\nretry: 3000\nweather: mild\ndata: ")),
    "bytewise": Fault(alter=_send_bytewise),
    "burst": Fault(alter=send_at_once),
    "unicode": Fault(style=Style(text=_UNICODE), alter=_cut_characters),
    "gzip": Fault(alter=_compress, headers={"Content-Encoding": "gzip"}),
    # Chunks and usage.
    "big-event": Fault(style=Style(text="whale " * (2**20 // 6) + "fish", in_one_piece=True)),
    "hidden-reasoning": Fault(style=Style(empty_deltas=100)),
    "two-tools": Fault(style=Style(tool_calls=2)),
    "split-tools": Fault(style=Style(split_arguments=True)),
    "finish-empty": Fault(style=Style(finish_with_tools="")),
    "usage-every-chunk": Fault(style=Style(usage="every")),
    "usage-none": Fault(style=Style(usage="none")),
    "usage-zero": Fault(style=Style(usage="zero")),
    "documented-nulls": Fault(style=Style(documented_nulls=True)),
}
"""By the name without its prefix, in the order of docs/sandbox.md, which describes each of them."""


def find_fault(model: str) -> Fault | None:
    """Return the fault that a model's name selects, with its seconds; None for any other name."""
    prefix, _, name = model.partition("-")
    if prefix != "sandbox":
        return None
    match = _SUFFIX.fullmatch(name)
    if match and match[1] in FAULTS and FAULTS[match[1]].timed:
        return replace(FAULTS[match[1]], seconds=min(float(match[2]), MAX_SECONDS))
    return FAULTS.get(name)
