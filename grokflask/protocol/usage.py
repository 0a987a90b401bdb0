"""What an exchange used, and how it ended: tokens, and cost in ticks (1 USD = 10^10 ticks). No IO.

xAI's chat routes count reasoning tokens outside `completion_tokens`: total = prompt + completion + reasoning.
Zero is a figure, None a missing one.
"""

from __future__ import annotations

from mmap import mmap

import msgspec

from grokflask.errors import MALFORMED, GrokflaskError, Outcome
from grokflask.protocol.raw_json import NULL, read_text

MAX_FIGURE = 10**15
"""Larger figures are not believed. As ticks it is 100,000 USD."""


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
        return bytes(self.error) not in (b"null", b"false", b'""', b"{}")

    def read_model(self) -> str | None:
        """The model that answered."""
        return read_text(self.model)


class Chunk(Envelope):
    """A chunk of chat, or a whole reply."""

    choices: msgspec.Raw = NULL

    @property
    def has_choices(self) -> bool:
        """It has at least one choice."""
        return bytes(self.choices).translate(None, b" \t\r\n") not in (b"null", b"[]")

    is_answer = has_choices

    @property
    def has_usage(self) -> bool:
        """Its `usage` is present and not null."""
        return bytes(self.usage) != b"null"

    def read_usage(self) -> Usage | None:
        """The usage; None when there is none, or when it has another shape."""
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
    """`figure` if it is plausible, else None."""
    return figure if figure is not None and 0 <= figure <= MAX_FIGURE else None


_DECODER = msgspec.json.Decoder(Chunk)
_USAGE_DECODER: msgspec.json.Decoder[_WireUsage | None] = msgspec.json.Decoder(
    _WireUsage | None, strict=False
)


def read_chunk(data: bytes | mmap) -> Chunk | None:
    """The chunk in `data`; None when it is not a JSON object."""
    try:
        return _DECODER.decode(data)
    except MALFORMED:
        return None
