"""What an exchange used, and how it ended: tokens, and cost in ticks (1 USD = 10^10 ticks). No IO.

xAI's chat routes count reasoning tokens outside `completion_tokens`, so that
total = prompt + completion + reasoning. Zero is a figure, None is a missing one.
"""

from __future__ import annotations

from mmap import mmap

import msgspec

from grokflask.errors import MALFORMED, GrokflaskError, Outcome

MOST = 10**15
"""No exchange has so many tokens, or costs so many ticks (100,000 USD)."""

_NULL = msgspec.Raw(b"null")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _WireUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cost_in_usd_ticks: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens and cost as upstream told them; None where it did not.

    Attributes:
        server_tools: calls of tools that run at xAI's, which are paid apart from tokens.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    cost_ticks: int | None = None
    server_tools: int | None = None


class Settlement(msgspec.Struct, frozen=True):
    """How an exchange ended and what it used.

    Attributes:
        status: of the response that the client got.
        events: relayed to the client, `[DONE]` and error events not counted.
        bytes_out: of the response's body.
        ttft_s: from the client's request to the first event, None when there was none.
        usage_final: `usage` is of the whole answer, not of what had come of it by then.
        events_seen: as `events`, with those that came after the client had left.
    """

    outcome: Outcome
    error: GrokflaskError | None = None
    usage: Usage | None = None
    model_served: str | None = None
    events: int = 0
    bytes_out: int = 0
    ttft_s: float | None = None
    usage_final: bool = False
    events_seen: int = 0
    status: int = 200


class Chunk(msgspec.Struct):
    """The top level of a chunk, or of a whole reply: what is read of it. All else is only passed on."""

    model: msgspec.Raw = _NULL
    choices: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL

    @property
    def has_choices(self) -> bool:
        """There is at least one choice in it."""
        return bytes(self.choices).translate(None, b" \t\r\n") not in (b"null", b"[]")

    @property
    def has_error(self) -> bool:
        """Its `error` is there and tells of something."""
        return bytes(self.error) not in (b"null", b"false", b'""', b"{}")

    is_answer = has_choices

    @property
    def has_usage(self) -> bool:
        """Its `usage` is there and not null."""
        return bytes(self.usage) != b"null"

    def read_model(self) -> str | None:
        """The model that answered."""
        try:
            return _MODEL_DECODER.decode(self.model)
        except MALFORMED:
            return None

    def read_usage(self) -> Usage | None:
        """The usage it states, or None; a usage of another shape counts as none."""
        try:
            wire = _USAGE_DECODER.decode(self.usage)
        except MALFORMED:
            return None
        if wire is None:
            return None
        prompt, completion = wire.prompt_tokens_details, wire.completion_tokens_details
        return Usage(
            prompt_tokens=check_figure(wire.prompt_tokens),
            cached_tokens=check_figure(prompt.cached_tokens if prompt else None),
            completion_tokens=check_figure(wire.completion_tokens),
            reasoning_tokens=check_figure(completion.reasoning_tokens if completion else None),
            total_tokens=check_figure(wire.total_tokens),
            cost_ticks=check_figure(wire.cost_in_usd_ticks),
        )


def check_figure(figure: int | None) -> int | None:
    """A figure that can be one; others count as missing."""
    return figure if figure is not None and 0 <= figure <= MOST else None


_DECODER = msgspec.json.Decoder(Chunk)
_MODEL_DECODER: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)
_USAGE_DECODER: msgspec.json.Decoder[_WireUsage | None] = msgspec.json.Decoder(
    _WireUsage | None, strict=False
)


def read_chunk(data: bytes | mmap) -> Chunk | None:
    """The chunk in `data`, or None when it is no JSON object (it is passed on all the same)."""
    try:
        return _DECODER.decode(data)
    except MALFORMED:
        return None
