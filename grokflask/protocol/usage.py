"""What an exchange used, and how it ended: tokens, and cost in ticks (1 USD = 10^10 ticks). No IO.

xAI's chat routes count reasoning tokens outside `completion_tokens`: total = prompt + completion + reasoning.
Responses and Messages include them in their output tokens; `Usage` has them apart, where they are reported.
Responses include cached tokens in their input tokens, Messages do not. Zero is a figure, None a missing one.
"""

from __future__ import annotations

from mmap import mmap
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from grokflask.errors import MALFORMED, GrokflaskError, Outcome
from grokflask.protocol.raw_json import NULL, decode_fields, is_empty, read_text

MAX_FIGURE = 10**15
"""Larger figures are not believed. As ticks it is 100,000 USD."""
MAX_SALVAGED_BYTES = 64 * 1024
"""In a larger usage with an odd field nothing is read: each of its fields would become an object."""

S = TypeVar("S", bound=msgspec.Struct)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _WireUsage(msgspec.Struct):
    total_tokens: int | None = None
    cost_in_usd_ticks: int | None = None
    # Chat's names.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    # Those of Responses and Messages.
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    num_server_side_tools_used: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens and cost as upstream reports them; None where it does not."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    cost_ticks: int | None = None
    server_tools: int | None = None
    """Calls of tools that run at xAI, which are charged separately."""


class Settlement(msgspec.Struct, frozen=True):
    """How an exchange ended and what it used. Each exchange has one."""

    outcome: Outcome
    error: GrokflaskError | None = None
    usage: Usage | None = None
    model_served: str | None = None
    events: int = 0
    """Events relayed to the client, without `[DONE]` and error events."""
    bytes_out: int = 0
    """Bytes of the response's body."""
    ttft_s: float | None = None
    """Seconds from the client's request to the first event; None when there was none."""
    usage_final: bool = False
    """`usage` covers the whole answer, not only its beginning."""
    events_seen: int = 0
    """`events`, and those that came after the client had left."""
    text_tokens: int = 0
    """Tokens of the text that has come, by its events and bytes."""
    silent_tokens: int = 0
    """Tokens that upstream may have reasoned in silence."""
    status: int = 200
    """Of the response that the client got."""


class Envelope(msgspec.Struct):
    """The top level of a reply or an event, in any API. Only these fields are read; the rest is passed on."""

    model: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL

    @property
    def has_error(self) -> bool:
        """It reports an error."""
        if self.error is NULL:
            return False
        # A large one is not copied.
        return memoryview(self.error).nbytes > 5 or bytes(self.error) not in (b"null", b"false", b'""', b"{}")

    def read_model(self) -> str | None:
        """The model that answered."""
        return read_text(self.model)

    def _decode_usage(self) -> _WireUsage | None:
        try:
            return _WIRE_USAGE.decode(self.usage)
        except MALFORMED:
            is_small = memoryview(self.usage).nbytes <= MAX_SALVAGED_BYTES
            return _salvage(_WireUsage, self.usage) if is_small else None


class Chunk(Envelope):
    """A chunk of chat, or a whole reply."""

    choices: msgspec.Raw = NULL

    @property
    def has_choices(self) -> bool:
        """It has at least one choice."""
        return not is_empty(self.choices)

    is_answer = has_choices

    @property
    def has_usage(self) -> bool:
        """Its `usage` is present and not null."""
        return memoryview(self.usage).nbytes != 4 or bytes(self.usage) != b"null"

    def read_usage(self) -> Usage | None:
        """The usage; None when there is none, or when it has another shape."""
        wire = self._decode_usage()
        return None if wire is None else _read_chat_usage(wire)


class TypedReply(Envelope):
    """A response or a message."""

    id: msgspec.Raw = NULL
    object: msgspec.Raw = NULL
    type: msgspec.Raw = NULL

    @property
    def is_answer(self) -> bool:
        """It is one of the API's objects, which may report a failure."""
        return bytes(self.object) != b"null" or bytes(self.type) == b'"message"'

    def read_id(self) -> str | None:
        """Upstream's id."""
        return read_text(self.id)

    def read_usage(self) -> Usage | None:
        """The usage; None when there is none, or when it has another shape."""
        wire = self._decode_usage()
        if wire is None:
            return None
        if wire.input_tokens is None and wire.output_tokens is None:
            return _read_chat_usage(wire)  # xAI has answered Responses with chat's names
        return _read_typed_usage(wire)


_WIRE_USAGE: msgspec.json.Decoder[_WireUsage | None] = msgspec.json.Decoder(_WireUsage | None, strict=False)
_NUMBER = msgspec.json.Decoder(float, strict=False)
_CHUNK = msgspec.json.Decoder(Chunk)
_REPLY = msgspec.json.Decoder(TypedReply)


def read_chunk(data: bytes | mmap) -> Chunk | None:
    """The chunk in `data`; None when it is not a JSON object."""
    try:
        return _CHUNK.decode(data)
    except MALFORMED:
        return None


def read_reply(data: bytes | mmap | msgspec.Raw) -> TypedReply | None:
    """The response or message in `data`; None when it is not a JSON object."""
    try:
        return _REPLY.decode(data)
    except MALFORMED:
        return None


def merge_usage(before: Usage | None, after: Usage | None) -> Usage | None:
    """`before`, updated with the figures of `after` that are not None; nothing but zeros is no news."""
    if before is None or after is None:
        return after or before
    reported = {
        name: value for name in Usage.__struct_fields__ if (value := getattr(after, name)) is not None
    }
    if not any(reported.values()):
        return before
    merged = replace(before, **reported)
    if after.prompt_tokens is None or after.total_tokens is None:
        visible = _add(merged.prompt_tokens, merged.completion_tokens)
        merged = replace(merged, total_tokens=_add(visible, merged.reasoning_tokens or 0))
    if after.cost_ticks is None and merged.total_tokens != before.total_tokens:
        return replace(merged, cost_ticks=None)  # what is known is the cost of less
    return merged


def _salvage(kind: type[S], raw: msgspec.Raw) -> S | None:
    """An object with odd fields: each field is read by itself. None when it is not an object."""
    try:
        fields = decode_fields(raw)
    except MALFORMED:
        return None
    found = kind()
    for name in kind.__struct_fields__:
        if (field := fields.get(name)) is not None:
            is_object = name.endswith("_details")
            setattr(found, name, _salvage(_Details, field) if is_object else _read_figure(field))
    return found


def _read_figure(raw: msgspec.Raw) -> int | None:
    try:
        return round(_NUMBER.decode(raw))
    except (*MALFORMED, ValueError, OverflowError):
        return None


def _read_chat_usage(wire: _WireUsage) -> Usage:
    prompt, completion = wire.prompt_tokens_details, wire.completion_tokens_details
    return Usage(
        prompt_tokens=_check(wire.prompt_tokens),
        cached_tokens=_check(prompt.cached_tokens if prompt else None),
        completion_tokens=_check(wire.completion_tokens),
        reasoning_tokens=_check(completion.reasoning_tokens if completion else None),
        total_tokens=_check(wire.total_tokens),
        cost_ticks=_check(wire.cost_in_usd_ticks),
    )


def _read_typed_usage(wire: _WireUsage) -> Usage:
    prompt, output = _check(wire.input_tokens), _check(wire.output_tokens)
    details, output_details = wire.input_tokens_details, wire.output_tokens_details
    cached = _check(details.cached_tokens if details else wire.cache_read_input_tokens)
    if details is None and prompt is not None:  # Messages
        prompt += (cached or 0) + (_check(wire.cache_creation_input_tokens) or 0)
    total = _check(wire.total_tokens)
    if total is None:
        total = _add(prompt, output)
    reasoning = _check(output_details.reasoning_tokens if output_details else None)
    if output is not None and reasoning is not None and reasoning <= output and total == _add(prompt, output):
        output -= reasoning
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=output,
        reasoning_tokens=reasoning,
        total_tokens=total,
        cost_ticks=_check(wire.cost_in_usd_ticks),
        server_tools=_check(wire.num_server_side_tools_used),
    )


def _check(figure: int | None) -> int | None:
    """`figure` if it is plausible, else None."""
    return figure if figure is not None and 0 <= figure <= MAX_FIGURE else None


def _add(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
