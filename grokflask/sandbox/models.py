"""The models the sandbox knows: what may be asked for, what then serves it, and what that costs.

Prices are ticks per token (1 USD = 10,000,000,000 ticks, so 12,500 ticks a token is 1.25 USD per million), as
xAI published them by October 2026. Retired ids answer as the model which xAI redirects them to, at that
model's price.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

LONG_PROMPT_TOKENS = 200_000
"""From this prompt size on, every token of the request is billed at the long-context rate."""
_RELEASED = 1_790_000_000  # an arbitrary constant second for `created` in the lists

Thinking = Literal["shown", "hidden", "no"]


@dataclass(frozen=True)
class Price:
    """Ticks per token of a model that serves; `long_factor` multiplies all of them for a long prompt."""

    input_ticks: int
    cached_ticks: int
    output_ticks: int
    context_tokens: int
    long_factor: int = 1
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatModel:
    """How one id that may be asked for behaves: what serves it, how it thinks, what it takes."""

    served: str
    thinking: Thinking = "no"
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
    "grok-build-0.1": Price(10_000, 10_000, 20_000, 256_000),
    "grok-3-mini": Price(3_000, 750, 5_000, 131_072),
}
"""Where no cached price is published (grok-build-0.1) the full input price stands."""

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
    # retired: still answered, by another model
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
    "grok-imagine-image-2.0": 500_000_000,  # tiered in truth, the figures are not published
    "grok-imagine-image-pro": 500_000_000,
    "grok-2-image-1212": 200_000_000,
}
"""Ticks per picture, by the id asked for."""

VIDEO_TICKS = {"grok-imagine-video": 500_000_000, "grok-imagine-video-1.5": 500_000_000}
"""Ticks per second of video."""


def cost_ticks(served: str, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
    """Return what a chat costs; output is visible and reasoning tokens, the prompt includes cached ones."""
    price = PRICES[served]
    factor = price.long_factor if prompt_tokens >= LONG_PROMPT_TOKENS else 1
    fresh = (prompt_tokens - cached_tokens) * price.input_ticks
    return factor * (fresh + cached_tokens * price.cached_ticks + output_tokens * price.output_ticks)


def fingerprint(served: str) -> str:
    """Return the `system_fingerprint` of a model: `fp_` and ten hex digits, always the same."""
    return "fp_" + hashlib.blake2b(served.encode(), digest_size=5).hexdigest()


def find_served(asked: str) -> str | None:
    """Return the id of the chat model that serves `asked`, or None where nothing does."""
    model = CHAT_MODELS.get(asked)
    return model.served if model else None


def model_item(served: str) -> dict[str, Any]:
    """Return a chat model as an item of `/v1/models`; prices are US cents per 100 million tokens."""
    price = PRICES[served]
    long = price.long_factor
    return {
        "id": served,
        "created": _RELEASED,
        "object": "model",
        "owned_by": "xai",
        "aliases": list(price.aliases),
        "context_length": price.context_tokens,
        "long_context_threshold": LONG_PROMPT_TOKENS if long > 1 else None,
        "prompt_text_token_price": price.input_ticks,
        "cached_prompt_text_token_price": price.cached_ticks,
        "completion_text_token_price": price.output_ticks,
        "prompt_text_token_price_long_context": price.input_ticks * long if long > 1 else None,
        "cached_prompt_text_token_price_long_context": price.cached_ticks * long if long > 1 else None,
        "completion_text_token_price_long_context": price.output_ticks * long if long > 1 else None,
        "prompt_image_token_price": price.input_ticks,
        "image_price": None,
    }


def image_item(model: str) -> dict[str, Any]:
    """Return an image model as an item of `/v1/models`; `image_price` is in US cents per picture."""
    priced = {key: None for key in model_item("grok-4.3") if key.endswith("price") or "long" in key}
    return {
        "id": model,
        "created": _RELEASED,
        "object": "model",
        "owned_by": "xai",
        "aliases": ["grok-imagine-image-pro"] if model.endswith("-quality") else [],
        "context_length": None,
        **priced,
        "image_price": IMAGE_TICKS[model] // 100_000_000,
    }


def short_item(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item of `/v1/models` as it was before mid-June 2026."""
    return {name: item[name] for name in ("id", "created", "object", "owned_by")}


def picture_item(model: str) -> dict[str, Any]:
    """Return an image model as an item of `/v1/image-generation-models`; `image_price` is in US cents."""
    item = image_item(model)
    return {
        **short_item(item),
        "fingerprint": fingerprint(model),
        "version": "1.0.0",
        "max_prompt_length": 1024,
        "input_modalities": ["text", "image"],
        "output_modalities": ["image"],
        "image_price": item["image_price"],
        "aliases": item["aliases"],
    }


def film_item(model: str) -> dict[str, Any]:
    """Return a video model as an item of `/v1/video-generation-models`."""
    return {
        "id": model,
        "created": _RELEASED,
        "object": "model",
        "owned_by": "xai",
        "fingerprint": fingerprint(model),
        "version": "1.0.0",
        "input_modalities": ["text", "image", "video"],
        "output_modalities": ["video"],
        "aliases": [],
    }


def list_pictures() -> list[str]:
    """Return the ids of the image models that are current."""
    return [name for name in IMAGE_TICKS if name.startswith("grok-imagine") and not name.endswith("-pro")]


def language_item(served: str) -> dict[str, Any]:
    """Return a chat model as an item of `/v1/language-models`."""
    price = PRICES[served]
    return {
        "id": served,
        "fingerprint": fingerprint(served),
        "created": _RELEASED,
        "object": "model",
        "owned_by": "xai",
        "version": "1.0.0",
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "prompt_text_token_price": price.input_ticks,
        "cached_prompt_text_token_price": price.cached_ticks,
        "prompt_image_token_price": price.input_ticks,
        "completion_text_token_price": price.output_ticks,
        "search_price": 0,
        "aliases": list(price.aliases),
    }


def list_models() -> list[dict[str, Any]]:
    """Return the items of `/v1/models`: what is current, neither retired ids nor fault models."""
    pictures = list_pictures()
    chats = [name for name in PRICES if name != "grok-3-mini"]
    return [model_item(name) for name in chats] + [image_item(name) for name in pictures]
