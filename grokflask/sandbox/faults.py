"""The table of fault models: the name, and what goes wrong when it is asked for as `model`.

`docs/sandbox.md` has the same names and summaries; a test compares the two.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from grokflask.sandbox import fault_steps as steps
from grokflask.sandbox.answers import PLAIN_STYLE, Style
from grokflask.sandbox.framing import Frame, frame_in_lines, frame_plainly, frame_with
from grokflask.sandbox.refusals import (
    API_KEY_ID,
    TEAM_ID,
    RefusalError,
    flat_error,
    nested_error,
    refuse,
    refuse_key,
)
from grokflask.sandbox.steps import Cut, Data, Pause, Step

PREFIX = "sandbox-"
MAX_SECONDS = 3_600.0
_SUFFIX = re.compile(r"(.+)-(\d{1,4}(?:\.\d{1,3})?)")

Refuse = Callable[[str | None], RefusalError]
"""Makes the answer, from the bearer key that came with the request."""


@dataclass(frozen=True)
class Fault:
    """What one fault model does differently from grok-4.3.

    `refuse` answers instead of the model; where there is `alter` too, only if no stream was asked for.
    `before_headers` makes the answer wait or cuts it off, `alter` spoils a stream, `spoil` any other reply.
    Those that are `timed` take `seconds` from the end of the model's name.
    """

    summary: str
    refuse: Refuse | None = None
    style: Style = PLAIN_STYLE
    frame: Frame = frame_plainly
    alter: steps.Alter | None = None
    spoil: steps.Spoil | None = None
    before_headers: steps.Delay = lambda _: ()
    headers: Mapping[str, str] = field(default_factory=dict)
    strict_content: bool = False
    timed: bool = False
    seconds: float = 5.0


NO_FAULT = Fault("nothing")


def _refuse(status: int, text: str, headers: dict[str, str] | None = None) -> Refuse:
    return lambda _: refuse(status, text, headers=headers)


def _refuse_raw(status: int, body: bytes, content_type: str = "application/json") -> Refuse:
    return lambda _: RefusalError(status, body, content_type)


def _leak(bearer: str | None) -> RefusalError:
    text = f"Key {bearer or 'no key'} (API key ID {API_KEY_ID}) of team {TEAM_ID} may not use this model."
    return refuse(403, text)


def _wait(seconds: float) -> Iterator[Step]:
    yield Pause(seconds)


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
    "x-ratelimit-limit-tokens": "100000",
    "x-ratelimit-remaining-tokens": "40000",
}
_HTML = (
    b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1></body></html>\n"
)
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

FAULTS: dict[str, Fault] = {
    "wrong-key": Fault("400, the flat error of a wrong key", refuse_key),
    "old-codes": Fault(
        "the same 400 with `code` spelled as a sentence, as before 2026",
        lambda bearer: refuse_key(bearer, "Client specified an invalid argument"),
    ),
    "no-credits": Fault("403, out of credits; the text holds a team UUID", _refuse(403, _NO_CREDITS)),
    "no-credits-429": Fault("429 with the same text, as in early 2026", _refuse(429, _NO_CREDITS)),
    "moderation": Fault(
        "403, content refused; the text holds team and API key ids", _refuse(403, _MODERATED)
    ),
    "rate-limit": Fault("429 without Retry-After, as xAI sends it", _refuse(429, _RATE_LIMITED)),
    "rate-limit-retry-after": Fault(
        "429 with `Retry-After: 7` and `x-ratelimit-*` headers", _refuse(429, _RATE_LIMITED, _RATE_HEADERS)
    ),
    "error-500": Fault("500, flat error", _refuse(500, _FAILED)),
    "error-503": Fault("503, flat error", _refuse(503, "The service is currently unavailable.")),
    "error-html": Fault("502 with an HTML page", _refuse_raw(502, _HTML, "text/html")),
    "error-no-code": Fault(
        "500 with `error` alone, no `code`",
        _refuse_raw(500, b'{"error":"The sandbox was asked to fail."}'),
    ),
    "openai-error": Fault(
        "400 in OpenAI's nested shape",
        _refuse_raw(400, nested_error(_FAILED, "invalid_request_error", "bad")),
    ),
    "json-on-200": Fault(
        "200 with a flat error as JSON, also where a stream was asked for",
        _refuse_raw(200, _FLAT),
    ),
    "leaky-error": Fault("403 whose text quotes the key it was sent, a team UUID and an API key id", _leak),
    "forged": Fault(
        "an error whose text holds newlines and `data: [DONE]`; in mid-stream, or as a 500",
        _refuse_raw(500, _FORGED),
        alter=steps.fail_in_middle(frame_plainly(_FORGED)),
    ),
    "strict-content": Fault(
        "400 for an assistant message without content, as xAI does at times", strict_content=True
    ),
    "drop-before-headers": Fault(
        "the request is read, the connection closed", before_headers=lambda _: [Cut(reset=False)]
    ),
    "slow-headers": Fault("N seconds before the headers", before_headers=_wait, timed=True),
    "slow-first-event": Fault(
        "headers at once, N seconds before the body",
        alter=steps.be_slow_to_start,
        spoil=lambda body, seconds: [Pause(seconds), Data(body)],
        timed=True,
    ),
    "stall": Fault(
        "N seconds of silence in mid-body", alter=steps.stall, spoil=steps.spoil_by_stall, timed=True
    ),
    "linger": Fault("after `[DONE]`, N seconds before the HTTP body ends", alter=steps.linger, timed=True),
    "drop-rst": Fault(
        "a few events, then a TCP reset",
        alter=steps.break_off(reset=True),
        spoil=steps.spoil_by_cut(reset=True),
    ),
    "drop-fin": Fault(
        "a few events, then the connection closes without the last HTTP chunk",
        alter=steps.break_off(reset=False),
        spoil=steps.spoil_by_cut(reset=False),
    ),
    "drop-mid-event": Fault(
        "the connection closes within an event",
        alter=steps.break_off_in_event,
        spoil=steps.spoil_by_cut(reset=False),
    ),
    "truncated": Fault("a few events, then the HTTP body ends as if all were well", alter=steps.truncate),
    "no-done": Fault("everything but `[DONE]`", alter=steps.leave_out_done),
    "error-mid-stream": Fault(
        "a few events, then a flat error object as an event", alter=steps.fail_in_middle(frame_plainly(_FLAT))
    ),
    "error-mid-stream-openai": Fault(
        "the same in OpenAI's nested shape", alter=steps.fail_in_middle(frame_plainly(_NESTED))
    ),
    "error-event": Fault(
        "the same as an event named error",
        alter=steps.fail_in_middle(b"event: error\n" + frame_plainly(_FLAT)),
    ),
    "crlf": Fault("lines end with CR LF", frame=frame_with(after=b"\r\n\r\n")),
    "cr": Fault("lines end with CR", frame=frame_with(after=b"\r\r")),
    "no-space": Fault("`data:` without a space", frame=frame_with(b"data:")),
    "bom": Fault("a byte order mark first", alter=steps.put_bom_first),
    "comments": Fault("comments between and within events", alter=steps.put_comments_between),
    "multiline": Fault("each chunk's JSON over several `data:` lines", frame=frame_in_lines),
    "other-fields": Fault(
        "`id:`, `event:`, `retry:` and an unknown field in each event",
        frame=frame_with(b"id: 7\nevent: message\nretry: 3000\nweather: mild\ndata: "),
    ),
    "bytewise": Fault("each byte in a send of its own", alter=steps.send_bytewise),
    "burst": Fault("all events in one send", alter=steps.send_at_once),
    "unicode": Fault(
        "many scripts, characters cut across segments",
        style=Style(text=_UNICODE),
        alter=steps.cut_characters,
    ),
    "gzip": Fault(
        "the stream compressed though nobody asked",
        alter=steps.compress,
        headers={"Content-Encoding": "gzip"},
    ),
    "big-event": Fault(
        "one event of 1 MiB of content", style=Style(text="whale " * (2**20 // 6) + "fish", in_one_piece=True)
    ),
    "hidden-reasoning": Fault(
        "100 chunks with an empty delta before the answer", style=Style(empty_deltas=100)
    ),
    "two-tools": Fault("two tool calls in one answer", style=Style(tool_calls=2)),
    "split-tools": Fault("a tool call's arguments over several chunks", style=Style(split_arguments=True)),
    "finish-empty": Fault("an empty `finish_reason` with tool calls", style=Style(finish_with_tools="")),
    "usage-every-chunk": Fault("growing usage on each chunk, none at the end", style=Style(usage="every")),
    "usage-none": Fault("no usage though asked for", style=Style(usage="none")),
    "usage-zero": Fault("usage of nothing but zeros", style=Style(usage="zero")),
    "documented-nulls": Fault(
        "`role` and null `finish_reason` and `usage` on each chunk, as the reference documents",
        style=Style(documented_nulls=True),
    ),
}


def find_fault(model: str) -> Fault | None:
    """Return the fault that a model's name selects, with its seconds; None for any other name."""
    if not model.startswith(PREFIX):
        return None
    name = model.removeprefix(PREFIX)
    match = _SUFFIX.fullmatch(name)
    if match and match[1] in FAULTS and FAULTS[match[1]].timed:
        return replace(FAULTS[match[1]], seconds=min(float(match[2]), MAX_SECONDS))
    return FAULTS.get(name)
