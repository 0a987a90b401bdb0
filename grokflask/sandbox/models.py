"""The models: which ids exist, which model serves each of them, and what it costs.

Prices are ticks per token (1 USD = 10,000,000,000 ticks, so 12,500 ticks per token is 1.25 USD per million),
as xAI published them by October 2026. A retired id is served by the model that xAI redirects it to, at that
model's price.
"""

import hashlib
from typing import Any, Literal, NamedTuple

LONG_PROMPT_TOKENS = 200_000
"""From this prompt size on, every token of the request costs `long_factor` times as much."""


class Price(NamedTuple):
    """A serving model's prices in ticks per token, its context size in tokens and its other names."""

    input_ticks: int
    cached_ticks: int
    output_ticks: int
    context_tokens: int
    long_factor: int = 1
    aliases: tuple[str, ...] = ()


class ChatModel(NamedTuple):
    """What serves an id, whether it shows its reasoning, and which arguments it accepts."""

    served: str
    thinking: Literal["shown", "hidden", "no"] = "no"
    efforts: tuple[str, ...] = ()
    takes_stop: bool = False


PRICES = {
    "grok-4.7": Price(20_000, 5_000, 60_000, 500_000, 2),
    "grok-4.6": Price(20_000, 5_000, 60_000, 500_000, 2),
    "grok-4.5": Price(20_000, 5_000, 60_000, 500_000, 2, ("grok-4.5-latest",)),
    "grok-4.3": Price(12_500, 2_000, 25_000, 1_000_000, 2, ("grok-4.3-latest", "grok-4")),
    "grok-4.20-0309-reasoning": Price(12_500, 2_000, 25_000, 2_000_000),
    "grok-4.20-0309-non-reasoning": Price(12_500, 2_000, 25_000, 2_000_000),
    "grok-4.20-multi-agent-0309": Price(12_500, 2_000, 25_000, 2_000_000),
    "grok-build-0.1": Price(10_000, 10_000, 20_000, 256_000),  # no cached price is published
    "grok-3-mini": Price(3_000, 750, 5_000, 131_072),
}

_LOW_TO_HIGH = ("low", "medium", "high")
_TO_XHIGH = (*_LOW_TO_HIGH, "xhigh")
CHAT_MODELS = {
    "grok-4.7": ChatModel("grok-4.7", "shown", _TO_XHIGH),
    "grok-4.6": ChatModel("grok-4.6", "hidden", _TO_XHIGH),
    "grok-4.5": ChatModel("grok-4.5", "hidden", _LOW_TO_HIGH),
    "grok-4.5-latest": ChatModel("grok-4.5", "hidden", _LOW_TO_HIGH),
    "grok-4.3": ChatModel("grok-4.3", "no", ("none", *_LOW_TO_HIGH)),
    "grok-4.3-latest": ChatModel("grok-4.3", "no", ("none", *_LOW_TO_HIGH)),
    "grok-4.20-0309-reasoning": ChatModel("grok-4.20-0309-reasoning", "shown"),
    "grok-4.20-0309-non-reasoning": ChatModel("grok-4.20-0309-non-reasoning", takes_stop=True),
    "grok-4.20-multi-agent-0309": ChatModel("grok-4.20-multi-agent-0309", "hidden", _LOW_TO_HIGH),
    "grok-build-0.1": ChatModel("grok-build-0.1", "hidden"),
    # Retired ids, served by another model:
    "grok-4-1-fast-reasoning": ChatModel("grok-4.3", "shown"),
    "grok-4-1-fast-non-reasoning": ChatModel("grok-4.3", takes_stop=True),
    "grok-4-fast-reasoning": ChatModel("grok-4.3", "shown"),
    "grok-4-fast-non-reasoning": ChatModel("grok-4.3", takes_stop=True),
    "grok-4-0709": ChatModel("grok-4.3"),
    "grok-4": ChatModel("grok-4.3"),
    "grok-code-fast-1": ChatModel("grok-build-0.1", "hidden"),
    "grok-3": ChatModel("grok-4.3", takes_stop=True),
    "grok-3-mini": ChatModel("grok-3-mini", "shown", ("low", "high")),
    "grok-2-vision-1212": ChatModel("grok-4.3", takes_stop=True),
}

IMAGE_TICKS = {
    "grok-imagine-image": 200_000_000,
    "grok-imagine-image-quality": 500_000_000,
    "grok-imagine-image-2.0": 500_000_000,  # has tiers at xAI, whose prices are not published
    "grok-imagine-image-pro": 500_000_000,
    "grok-2-image-1212": 200_000_000,
}
"""Ticks per picture."""
_ALIASES = {"grok-imagine-image-quality": ("grok-imagine-image-pro",)} | {
    model: price.aliases for model, price in PRICES.items()
}
RETIRED_IMAGES = ("grok-imagine-image-pro", "grok-2-image-1212")
VIDEO_TICKS = {"grok-imagine-video": 500_000_000, "grok-imagine-video-1.5": 500_000_000}
"""Ticks per second of video."""


def cost_ticks(served: str, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
    """Return a chat's cost. The prompt includes its cached tokens, the output includes reasoning."""
    price = PRICES[served]
    factor = price.long_factor if prompt_tokens >= LONG_PROMPT_TOKENS else 1
    fresh = (prompt_tokens - cached_tokens) * price.input_ticks
    return factor * (fresh + cached_tokens * price.cached_ticks + output_tokens * price.output_ticks)


def find_served(model: str) -> str:
    """Return the id of the model that serves a chat model; any other id is returned as it is."""
    return CHAT_MODELS[model].served if model in CHAT_MODELS else model


def fingerprint(served: str) -> str:
    """Return a model's `system_fingerprint`: `fp_` and ten hex digits."""
    return "fp_" + hashlib.blake2b(served.encode(), digest_size=5).hexdigest()


def short_item(model: str) -> dict[str, Any]:
    """Return any model as an item of `/v1/models` before mid-June 2026."""
    return {"id": model, "created": 1_790_000_000, "object": "model", "owned_by": "xai"}


def list_item(model: str) -> dict[str, Any]:
    """Return a chat or image model as an item of `/v1/models`.

    Token prices are in US cents per 100 million tokens, which are ticks; `image_price` is in US cents.
    """
    price = PRICES.get(model)
    names = ("prompt_text_token_price", "cached_prompt_text_token_price", "completion_text_token_price")
    prices = dict(zip(names, price[:3] if price else (None,) * 3, strict=True))
    long = price.long_factor if price and price.long_factor > 1 else None
    return {
        **short_item(model),
        "aliases": list(_ALIASES.get(model, ())),
        "context_length": price and price.context_tokens,
        "long_context_threshold": long and LONG_PROMPT_TOKENS,
        **prices,
        **{f"{name}_long_context": long and each and each * long for name, each in prices.items()},
        "prompt_image_token_price": price and price.input_ticks,
        "image_price": None if price else IMAGE_TICKS[model] // 100_000_000,
    }


def detailed_item(model: str) -> dict[str, Any]:
    """Return a model as an item of `/v1/language-models` or its siblings for images and videos."""
    kind = "text" if model in PRICES else "image" if model in IMAGE_TICKS else "video"
    prices = {} if kind == "video" else list_item(model)
    return {
        **short_item(model),
        "fingerprint": fingerprint(model),
        "version": "1.0.0",
        "input_modalities": ["text", "image", "video"] if kind == "video" else ["text", "image"],
        "output_modalities": [kind],
        "aliases": list(_ALIASES.get(model, ())),
        **{name: value for name, value in prices.items() if name.endswith("price") and value is not None},
    }


def list_models() -> list[dict[str, Any]]:
    """Return the items of `/v1/models`: neither retired ids nor fault models."""
    retired = ("grok-3-mini", *RETIRED_IMAGES)
    return [list_item(model) for model in [*PRICES, *IMAGE_TICKS] if model not in retired]
