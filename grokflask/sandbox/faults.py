"""The table of fault models: a name that is asked for as `model`, and what then goes wrong.

`docs/sandbox.md` lists the same names and summaries, and a test compares the two.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from grokflask.sandbox import fault_steps as steps
from grokflask.sandbox import framing
from grokflask.sandbox.answers import PLAIN_STYLE, Style
from grokflask.sandbox.refusals import (
    API_KEY_ID,
    TEAM_ID,
    RefusalError,
    flat_error,
    nested_error,
    refuse,
    refuse_key,
)

PREFIX = "sandbox-"
DEFAULT_SECONDS = 5.0
MAX_SECONDS = 3_600.0
_SUFFIX = re.compile(r"(.+)-(\d{1,4}(?:\.\d{1,3})?)")

Refuse = Callable[[str | None], RefusalError]
"""From the bearer key that came with the request to the answer."""


@dataclass(frozen=True)
class Fault:
    """What one fault model does. All but what is named here is as with grok-4.3.

    `refuse` answers instead of the model, on all requests or on one kind; `before_headers` makes the answer
    wait, or "cut" leaves it out; `alter` spoils a stream, `spoil` a reply that is not streamed; `timed` ones
    take their seconds from the end of the model's name.
    """

    summary: str
    refuse: Refuse | None = None
    refuse_on: Literal["all", "plain", "stream"] = "all"
    style: Style = PLAIN_STYLE
    frame: framing.Frame = framing.frame_plainly
    alter: steps.Alter | None = None
    spoil: steps.Spoil | None = None
    before_headers: steps.Delay | Literal["cut"] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    strict_content: bool = False
    timed: bool = False


NO_FAULT = Fault("nothing")


def _refuse_for_credits(status: int) -> Refuse:
    text = f"Your team {TEAM_ID} has used all available credits or reached its monthly spending limit."
    return lambda _: refuse(status, text)


def _refuse_by_moderation(_: str | None) -> RefusalError:
    return refuse(
        403,
        f"Content violates usage guidelines. Team: {TEAM_ID}, API key ID: {API_KEY_ID}, Model: grok-4.3, "
        "Failed check: SAFETY_CHECK_TYPE_BIO.",
    )


def _refuse_by_rate(headers: dict[str, str] | None = None) -> Refuse:
    text = (
        f"Too many requests for team {TEAM_ID} and model grok-4.3. Requests per minute (actual/limit): 61/60."
    )
    return lambda _: refuse(429, text, headers=headers)


_RATE_HEADERS = {
    "Retry-After": "7",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-limit-tokens": "100000",
    "x-ratelimit-remaining-tokens": "40000",
}
_HTML_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1></body></html>\n"
)
_UNICODE_TEXT = (
    "Ein Bär, größer als gedacht, trank Tee. Пятнадцать ёжиков пришли вечером. 雨が静かに降っていた。 "
    "👩‍🚀🦊 said ¡olé! while 𝄞 played, é over é, and the النهاية was near. "
) * 3


def _status(status: int, text: str) -> Refuse:
    return lambda _: refuse(status, text)


def _leak(bearer: str | None) -> RefusalError:
    key = bearer or "no key"
    return refuse(403, f"Key {key} (API key ID {API_KEY_ID}) of team {TEAM_ID} may not use this model.")


FAULTS: dict[str, Fault] = {
    "wrong-key": Fault("400, the flat error of a wrong key", refuse_key),
    "old-codes": Fault(
        "the same 400 with `code` spelled as a sentence, as before 2026",
        lambda bearer: refuse_key(bearer, "Client specified an invalid argument"),
    ),
    "no-credits": Fault("403, out of credits; the text holds a team UUID", _refuse_for_credits(403)),
    "no-credits-429": Fault("429 with the same text, as in early 2026", _refuse_for_credits(429)),
    "moderation": Fault("403, content refused; the text holds team and API key ids", _refuse_by_moderation),
    "rate-limit": Fault("429 without Retry-After, as xAI sends it", _refuse_by_rate()),
    "rate-limit-retry-after": Fault(
        "429 with `Retry-After: 7` and `x-ratelimit-*` headers", _refuse_by_rate(_RATE_HEADERS)
    ),
    "error-500": Fault("500, flat error", _status(500, "The sandbox was asked to fail.")),
    "error-503": Fault("503, flat error", _status(503, "The service is currently unavailable.")),
    "error-html": Fault("502 with an HTML page", lambda _: RefusalError(502, _HTML_PAGE, "text/html")),
    "error-no-code": Fault(
        "500 with `error` alone, no `code`",
        lambda _: RefusalError(500, b'{"error":"The sandbox was asked to fail."}'),
    ),
    "openai-error": Fault(
        "400 in OpenAI's nested shape",
        lambda _: RefusalError(
            400, nested_error("The sandbox was asked to fail.", "invalid_request_error", "bad")
        ),
    ),
    "json-on-200": Fault(
        "200 with a flat error as JSON, also where a stream was asked for",
        lambda _: RefusalError(200, steps.FLAT_FAILURE),
    ),
    "leaky-error": Fault("403 whose text quotes the key it was sent, a team UUID and an API key id", _leak),
    "forged": Fault(
        "an error whose text holds newlines and `data: [DONE]`; in mid-stream, or as a 500",
        lambda _: RefusalError(500, flat_error(steps.FORGED_TEXT, "internal")),
        "plain",
        alter=steps.fail_in_middle(steps.FORGED_FAILURE),
    ),
    "strict-content": Fault(
        "400 for an assistant message without content, as xAI does at times", strict_content=True
    ),
    "drop-before-headers": Fault("the request is read, the connection closed", before_headers="cut"),
    "slow-headers": Fault("N seconds before the headers", before_headers=steps.wait, timed=True),
    "slow-first-event": Fault(
        "headers at once, N seconds before the body",
        alter=steps.be_slow_to_start,
        spoil=steps.spoil_by_delay,
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
        "a few events, then a flat error object as an event", alter=steps.fail_in_middle(steps.FLAT_FAILURE)
    ),
    "error-mid-stream-openai": Fault(
        "the same in OpenAI's nested shape", alter=steps.fail_in_middle(steps.NESTED_FAILURE)
    ),
    "error-event": Fault(
        "the same as an event named error", alter=steps.fail_in_middle(steps.FLAT_FAILURE, named=True)
    ),
    "crlf": Fault("lines end with CR LF", frame=framing.frame_crlf),
    "cr": Fault("lines end with CR", frame=framing.frame_cr),
    "no-space": Fault("`data:` without a space", frame=framing.frame_without_space),
    "bom": Fault("a byte order mark first", alter=steps.put_bom_first),
    "comments": Fault("comments between and within events", alter=steps.put_comments_between),
    "multiline": Fault("each chunk's JSON over several `data:` lines", frame=framing.frame_in_lines),
    "other-fields": Fault(
        "`id:`, `event:`, `retry:` and an unknown field in each event", frame=framing.frame_with_fields
    ),
    "bytewise": Fault("each byte in a send of its own", alter=steps.send_bytewise),
    "burst": Fault("all events in one send", alter=steps.send_at_once),
    "unicode": Fault(
        "many scripts, characters cut across segments",
        style=Style(text=_UNICODE_TEXT),
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


def find_fault(model: str) -> tuple[Fault, float] | None:
    """Return the fault that a model's name selects and its seconds, or None for every other name."""
    if not model.startswith(PREFIX):
        return None
    name = model.removeprefix(PREFIX)
    if name in FAULTS:
        return FAULTS[name], DEFAULT_SECONDS
    match = _SUFFIX.fullmatch(name)
    if match and match[1] in FAULTS and FAULTS[match[1]].timed:
        return FAULTS[match[1]], min(float(match[2]), MAX_SECONDS)
    return None
