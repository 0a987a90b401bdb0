"""The price table, for estimates only: bills use upstream's own `cost_in_usd_ticks`. No IO.

Prices are ticks per token (12,500 ticks a token is 1.25 USD per million) as xAI published them in October
2026 (docs.x.ai, "Models and Pricing" and the `*_token_price` fields of `/v1/models`, whose unit this is).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

LONG_PROMPT_TOKENS = 200_000
"""From this prompt size on, every token of a request is charged at the long-context rate."""


@dataclass(frozen=True, slots=True)
class Price:
    """Ticks per token; `long_factor` multiplies all of them for a long prompt."""

    input_ticks: int
    cached_ticks: int
    output_ticks: int
    long_factor: int = 2


_GROK_4_5_ON = Price(20_000, 5_000, 60_000)
_GROK_4_3 = Price(12_500, 2_000, 25_000)
_GROK_4_20 = Price(12_500, 2_000, 25_000, long_factor=1)
_BUILD = Price(10_000, 10_000, 20_000, long_factor=1)  # no cached price is published

DEAREST = _GROK_4_5_ON
"""For models that are not in the table: better too high than too low."""

_PRICES = {
    "grok-4.7": _GROK_4_5_ON,
    "grok-4.6": _GROK_4_5_ON,
    "grok-4.5": _GROK_4_5_ON,
    "grok-4.3": _GROK_4_3,
    "grok-4.20-": _GROK_4_20,
    "grok-build-": _BUILD,
    # Retired: xAI redirects them to other models, and bills those.
    "grok-4-1-fast": _GROK_4_3,
    "grok-4-fast": _GROK_4_3,
    "grok-4-0709": _GROK_4_3,
    "grok-code-fast": _BUILD,
    "grok-3-mini": Price(3_000, 750, 5_000, long_factor=1),
    "grok-3": _GROK_4_3,
    "grok-2-vision": _GROK_4_3,
}
"""By the beginning of the model's name. The longest match counts."""

_IMAGES = {
    "grok-imagine-image": 200_000_000,
    "grok-imagine-image-2.0": 500_000_000,  # tiered, and not published
    "grok-imagine-image-quality": 500_000_000,
    "grok-imagine-image-pro": 500_000_000,
    "grok-2-image": 700_000_000,
}
"""Ticks per image, by the beginning of the model's name."""

DEAREST_IMAGE_TICKS = 700_000_000

MAX_NAME = 64
"""Names in the tables are shorter."""


def find_price(model: str) -> Price:
    """The price of a chat model; DEAREST for an unknown one."""
    return _find_price(model[:MAX_NAME])  # clients choose what is cached


@lru_cache(maxsize=500)
def _find_price(model: str) -> Price:
    if model == "grok-4":
        return _GROK_4_3
    matches = [name for name in _PRICES if model.startswith(name)]
    return _PRICES[max(matches, key=len)] if matches else DEAREST


def price_tokens(model: str, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
    """Ticks for a chat. Output includes reasoning; the prompt includes cached tokens."""
    price = find_price(model)
    factor = price.long_factor if prompt_tokens >= LONG_PROMPT_TOKENS else 1
    cached_tokens = min(cached_tokens, prompt_tokens)
    fresh_ticks = (prompt_tokens - cached_tokens) * price.input_ticks
    return factor * (fresh_ticks + cached_tokens * price.cached_ticks + output_tokens * price.output_ticks)


def price_saved(model: str, cached_tokens: int) -> int:
    """Ticks by which cached tokens are cheaper than fresh ones, at the rate for prompts of usual size."""
    price = find_price(model)
    return cached_tokens * (price.input_ticks - price.cached_ticks)


def price_images(model: str, count: int) -> int:
    """Ticks for `count` generated images."""
    matches = [name for name in _IMAGES if model.startswith(name)]
    return count * (_IMAGES[max(matches, key=len)] if matches else DEAREST_IMAGE_TICKS)


VIDEO_TICKS = 500_000_000
"""Per second of a video. Higher resolutions may cost more."""
LONGEST_VIDEO_S = 15
