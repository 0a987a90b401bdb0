"""What an answer of Responses or Messages tells of itself: id, model, usage. No IO.

Both count reasoning inside of their output tokens; `Usage` has it outside, as chat does, wherever it is told
how much it was. Messages count tokens read from a cache outside of their input tokens, and Responses inside.
"""

from __future__ import annotations

from mmap import mmap

import msgspec
from msgspec.structs import replace

from grokflask.errors import MALFORMED
from grokflask.protocol.usage import Usage, check_figure, read_chunk

_NULL = msgspec.Raw(b"null")


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
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


class TypedReply(msgspec.Struct):
    """The top level of a response or a message: what is read of it. All else is only passed on."""

    id: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL

    @property
    def has_error(self) -> bool:
        """Its `error` is there and tells of something."""
        return bytes(self.error) not in (b"null", b"false", b'""', b"{}")

    @property
    def is_answer(self) -> bool:
        """It is one of the API's objects, though it may say that it failed."""
        return bytes(self.object) != b"null" or bytes(self.type) == b'"message"'

    def read_id(self) -> str | None:
        """Upstream's id."""
        return _read_text(self.id)

    def read_model(self) -> str | None:
        """The model that answered."""
        return _read_text(self.model)

    def read_usage(self) -> Usage | None:
        """The usage it states, or None; a usage of another shape counts as none."""
        try:
            wire = _USAGE.decode(self.usage)
        except MALFORMED:
            return None
        if wire is None:
            return None
        if wire.input_tokens is None and wire.output_tokens is None:
            # xAI has been seen to answer Responses with chat's names.
            chunk = read_chunk(b'{"usage":' + bytes(self.usage) + b"}")
            return chunk.read_usage() if chunk else None
        return _to_usage(wire)


_REPLY = msgspec.json.Decoder(TypedReply)


def read_reply(body: bytes | mmap) -> TypedReply | None:
    """The answer in `body`, or None when it is no JSON object."""
    try:
        return _REPLY.decode(body)
    except MALFORMED:
        return None


def merge_usage(before: Usage | None, after: Usage | None) -> Usage | None:
    """A later usage over an earlier one: what the later does not tell stays."""
    if before is None or after is None:
        return after or before
    told = {name: value for name in Usage.__struct_fields__ if (value := getattr(after, name)) is not None}
    merged = replace(before, **told)
    if after.prompt_tokens is None or after.total_tokens is None:
        return replace(merged, total_tokens=_add(merged.prompt_tokens, merged.completion_tokens))
    return merged


def _to_usage(wire: _WireUsage) -> Usage:
    prompt, output = check_figure(wire.input_tokens), check_figure(wire.output_tokens)
    inside, reasoning = wire.input_tokens_details, wire.output_tokens_details
    cached = check_figure(inside.cached_tokens if inside else wire.cache_read_input_tokens)
    if inside is None and prompt is not None:
        written = check_figure(wire.cache_creation_input_tokens)
        prompt += (cached or 0) + (written or 0)
    total = check_figure(wire.total_tokens)
    if total is None:
        total = _add(prompt, output)
    thought = check_figure(reasoning.reasoning_tokens if reasoning else None)
    if output is not None and thought is not None and thought <= output and total == _add(prompt, output):
        output -= thought
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=output,
        reasoning_tokens=thought,
        total_tokens=total,
        cost_ticks=check_figure(wire.cost_in_usd_ticks),
        server_tools=check_figure(wire.num_server_side_tools_used),
    )


def _add(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _read_text(raw: msgspec.Raw) -> str | None:
    try:
        return _TEXT.decode(raw)
    except MALFORMED:
        return None
