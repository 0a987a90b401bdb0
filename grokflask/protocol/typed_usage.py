"""Id, model and usage of an answer of the Responses or Messages API. No IO.

Both APIs include reasoning in their output tokens; `Usage` has it apart, as chat does, where its amount is
reported. Responses include cached tokens in their input tokens, Messages do not.
"""

from __future__ import annotations

from mmap import mmap

import msgspec
from msgspec.structs import replace

from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import NULL, read_text
from grokflask.protocol.usage import Envelope, Usage, check_figure, read_chunk


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _WireUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    num_server_side_tools_used: int | None = None
    cost_in_usd_ticks: int | None = None


_USAGE: msgspec.json.Decoder[_WireUsage | None] = msgspec.json.Decoder(_WireUsage | None, strict=False)


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
        try:
            wire = _USAGE.decode(self.usage)
        except MALFORMED:
            return None
        if wire is None:
            return None
        if wire.input_tokens is None and wire.output_tokens is None:
            # xAI has answered Responses with chat's names.
            chunk = read_chunk(b'{"usage":' + bytes(self.usage) + b"}")
            return chunk.read_usage() if chunk else None
        return _to_usage(wire)


_REPLY = msgspec.json.Decoder(TypedReply)


def read_reply(body: bytes | mmap) -> TypedReply | None:
    """The answer in `body`; None when it is not a JSON object."""
    try:
        return _REPLY.decode(body)
    except MALFORMED:
        return None


def merge_usage(before: Usage | None, after: Usage | None) -> Usage | None:
    """`before`, updated with the figures of `after` that are not None."""
    if before is None or after is None:
        return after or before
    reported = {
        name: value for name in Usage.__struct_fields__ if (value := getattr(after, name)) is not None
    }
    merged = replace(before, **reported)
    if after.prompt_tokens is None or after.total_tokens is None:
        return replace(merged, total_tokens=_add(merged.prompt_tokens, merged.completion_tokens))
    return merged


def _to_usage(wire: _WireUsage) -> Usage:
    prompt, output = check_figure(wire.input_tokens), check_figure(wire.output_tokens)
    details, output_details = wire.input_tokens_details, wire.output_tokens_details
    cached = check_figure(details.cached_tokens if details else wire.cache_read_input_tokens)
    if details is None and prompt is not None:  # Messages
        prompt += (cached or 0) + (check_figure(wire.cache_creation_input_tokens) or 0)
    total = check_figure(wire.total_tokens)
    if total is None:
        total = _add(prompt, output)
    reasoning = check_figure(output_details.reasoning_tokens if output_details else None)
    if output is not None and reasoning is not None and reasoning <= output and total == _add(prompt, output):
        output -= reasoning
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=output,
        reasoning_tokens=reasoning,
        total_tokens=total,
        cost_ticks=check_figure(wire.cost_in_usd_ticks),
        server_tools=check_figure(wire.num_server_side_tools_used),
    )


def _add(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
