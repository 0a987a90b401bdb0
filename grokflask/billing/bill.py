"""What a request may cost before it is sent, and what it did cost when it is over. No IO.

A bill uses upstream's own figures. Where there are none, because a stream was cut short or upstream reports
no usage, it is an estimate, and marked as one. Reservations are on the high side. The bill for an answer that
was cut short counts the tokens of the text that came, and silence of a model that reasons by its usual pace.
"""

from __future__ import annotations

from math import ceil

import msgspec
from msgspec.structs import replace

from grokflask.billing.prices import LONGEST_VIDEO_S, VIDEO_TICKS, price_images, price_tokens
from grokflask.errors import ForeignAnswerError, Outcome, UpstreamStatusError
from grokflask.protocol.routes import Billing
from grokflask.protocol.usage import Settlement, Usage
from grokflask.runtime import take_turns

MAX_OUTPUT_TOKENS = 2_000_000
"""Caps are believed up to this: upstream refuses requests for more."""

ASCII_BYTES_PER_TOKEN = 4
OTHER_BYTES_PER_TOKEN = 2
"""A Chinese character has three bytes, and one or two tokens."""

IMAGE_TOKENS = 1792
"""The highest figure ever published for an image in a prompt."""

_ASCII = bytes(range(128))


class Estimate(msgspec.Struct, frozen=True):
    """What a request may use. 1 USD = 10^10 ticks."""

    billing: Billing
    model: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Visible and reasoning tokens."""
    prompt_ticks: int = 0
    """Charged as soon as upstream has read the prompt."""
    ticks: int = 0
    """The cost of prompt and output."""
    output_ticks: int = 0
    """The price of a token of output."""
    reasoning_tokens: int = 0
    """Those expected of each answer."""
    answers: int = 1
    cap_tokens: int | None = None
    """The most visible tokens of each answer, if the client set that."""
    caps_reasoning: bool = False
    """The cap is for reasoning as well."""
    reasons: bool = False
    effort: str = ""
    """As the client asks for it, in JSON."""
    route: str = ""
    pace: float = 60.0
    """Tokens a second that the model usually writes."""

    @property
    def tokens(self) -> int:
        """Tokens that count against tokens per minute."""
        return self.prompt_tokens + self.output_tokens

    def expect(self, visible_tokens: int, reasoning_tokens: int) -> Estimate:
        """The estimate if each answer has so many tokens, unless its cap is lower."""
        cap_tokens = MAX_OUTPUT_TOKENS if self.cap_tokens is None else self.cap_tokens
        if not self.reasons:
            reasoning_tokens = 0
        output_tokens = min(visible_tokens, cap_tokens) + reasoning_tokens
        if self.caps_reasoning:
            output_tokens = min(output_tokens, cap_tokens)
        output_tokens *= self.answers
        ticks = self.prompt_ticks + output_tokens * self.output_ticks
        return replace(self, output_tokens=output_tokens, reasoning_tokens=reasoning_tokens, ticks=ticks)


FREE = Estimate("free", "")
FETCHED = Estimate("fetched", "")


class Bill(msgspec.Struct, frozen=True):
    """What an exchange used."""

    usage: Usage
    estimated: bool
    """Not all of the figures are upstream's own."""

    @property
    def ticks(self) -> int:
        """The cost. 1 USD = 10^10 ticks."""
        return self.usage.cost_ticks or 0

    @property
    def tokens(self) -> int:
        """Tokens that count against tokens per minute."""
        return (self.usage.prompt_tokens or 0) + count_output(self.usage)


def estimate_chat(
    model: str, body: bytes, output_tokens: int, pictures: int = 0, picture_bytes: int = 0
) -> Estimate:
    """An estimate for a chat with the JSON `body` and `output_tokens` in all its answers."""
    prompt_tokens = count_prompt(body, pictures, picture_bytes)
    prompt_ticks = price_tokens(model, prompt_tokens, 0)
    output_ticks = price_tokens(model, prompt_tokens, 1) - prompt_ticks
    return Estimate(
        "tokens",
        model,
        prompt_tokens,
        output_tokens,
        prompt_ticks,
        prompt_ticks + output_tokens * output_ticks,
        output_ticks,
    )


def estimate_images(model: str, count: int) -> Estimate:
    """An estimate for generated images, which are charged even if the client has left."""
    ticks = price_images(model, count)
    return Estimate("images", model, prompt_ticks=ticks, ticks=ticks)


def estimate_video(model: str, duration_s: int | None) -> Estimate:
    """An estimate for a video of `duration_s` seconds; None is the longest that there is."""
    ticks = VIDEO_TICKS * min(LONGEST_VIDEO_S, duration_s or LONGEST_VIDEO_S)
    return Estimate("images", model, prompt_ticks=ticks, ticks=ticks)


def count_prompt(body: bytes, pictures: int = 0, picture_bytes: int = 0) -> int:
    """About how many tokens a chat's JSON has. A picture counts as one piece, not by its bytes."""
    others = 0 if body.isascii() else sum(len(piece.translate(None, _ASCII)) for piece in take_turns(body))
    ascii_bytes = max(0, len(body) - others - picture_bytes)
    tokens = ceil(ascii_bytes / ASCII_BYTES_PER_TOKEN) + ceil(others / OTHER_BYTES_PER_TOKEN)
    return tokens + pictures * IMAGE_TOKENS


def count_output(usage: Usage) -> int:
    """Visible and reasoning tokens.

    `completion_tokens` excludes reasoning in xAI's chat routes, and includes it elsewhere. The total decides.
    """
    visible = usage.completion_tokens or 0
    if usage.total_tokens is not None and usage.prompt_tokens is not None:
        return max(visible, usage.total_tokens - usage.prompt_tokens)
    return visible + (usage.reasoning_tokens or 0)


def make_bill(estimate: Estimate, settlement: Settlement, *, reached: bool) -> Bill:
    """The bill of an exchange. `reached`: upstream may have received all of the request."""
    usage = settlement.usage
    final = settlement.usage_final or settlement.outcome is Outcome.COMPLETE
    if usage is None or _is_unreported(usage, estimate, final):
        # Upstream does not charge for a request that it refused before it sent an event.
        refusals = (UpstreamStatusError, ForeignAnswerError)
        refused = isinstance(settlement.error, refusals) and not settlement.events_seen
        unsent = not (reached or settlement.events_seen)  # it may answer before it has read everything
        if estimate.billing in ("free", "fetched") or unsent or refused:
            return Bill(Usage(cost_ticks=0), estimated=False)
        return _guess(estimate, settlement)
    if usage.cost_ticks is not None:
        return Bill(usage, estimated=not final)
    if estimate.billing == "free":
        return Bill(replace(usage, cost_ticks=0), estimated=False)
    is_unknown = not count_output(usage) and (not final or usage.completion_tokens is None)
    if is_unknown and estimate.billing == "tokens":  # only the prompt was reported
        seen = settlement.text_tokens + settlement.silent_tokens
        total = None if usage.prompt_tokens is None else usage.prompt_tokens + seen
        usage = replace(usage, completion_tokens=seen, total_tokens=total)
    return Bill(replace(usage, cost_ticks=_price(usage, estimate, settlement)), estimated=True)


def _is_unreported(usage: Usage, estimate: Estimate, final: bool) -> bool:
    """Every chat has a prompt, so zero tokens means "not reported". A final cost of zero is believed."""
    return (
        estimate.billing == "tokens"
        and not usage.prompt_tokens
        and not count_output(usage)
        and (usage.cost_ticks is None or not (final or usage.cost_ticks))
    )


def _guess(estimate: Estimate, settlement: Settlement) -> Bill:
    """A bill without reported usage: the prompt, the text that came, and the silence."""
    if estimate.billing == "images":
        return Bill(Usage(cost_ticks=estimate.ticks), estimated=True)
    text, silent = settlement.text_tokens, settlement.silent_tokens
    usage = Usage(
        prompt_tokens=estimate.prompt_tokens,
        completion_tokens=text,
        reasoning_tokens=silent or None,
        total_tokens=estimate.prompt_tokens + text + silent,
    )
    return Bill(replace(usage, cost_ticks=_price(usage, estimate, settlement)), estimated=True)


def _price(usage: Usage, estimate: Estimate, settlement: Settlement) -> int:
    if estimate.billing == "images":
        return estimate.ticks
    prompt_tokens = estimate.prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    model = settlement.model_served or estimate.model
    return price_tokens(model, prompt_tokens, count_output(usage), usage.cached_tokens or 0)
