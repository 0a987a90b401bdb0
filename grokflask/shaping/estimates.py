"""What a request may cost, from the fields of its body. No IO.

Each function takes the model, the body that goes upstream, its fields and the settings.
"""

from __future__ import annotations

from collections.abc import Callable

from grokflask.billing.bill import FREE, Estimate, estimate_chat, estimate_images, estimate_video
from grokflask.config import Settings
from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import NULL, RawFields, is_empty
from grokflask.shaping.dropped_params import is_reasoning
from grokflask.shaping.fields import LIST, read_count

MAX_OUTPUT_TOKENS = 2_000_000
MAX_ANSWERS = 128
"""Estimates go no higher: upstream refuses requests for more."""

Estimator = Callable[[str, bytes, RawFields, Settings], Estimate]


def estimate_nothing(_model: str, _body: bytes, _fields: RawFields, _settings: Settings) -> Estimate:
    """The request costs nothing, or its cost is unknown."""
    return FREE


def estimate_completion(model: str, body: bytes, fields: RawFields, settings: Settings) -> Estimate:
    """A chat or a message. Its cap does not include reasoning."""
    output_tokens = settings.output_estimate_tokens
    if (cap := read_count(fields, "max_completion_tokens", "max_tokens")) is not None:
        output_tokens = cap + (output_tokens if is_reasoning(model) else 0)
    return _estimate_output(model, body, fields, output_tokens)


def estimate_response(model: str, body: bytes, fields: RawFields, settings: Settings) -> Estimate:
    """A response. Its cap includes reasoning."""
    cap = read_count(fields, "max_output_tokens")
    return _estimate_output(model, body, fields, settings.output_estimate_tokens if cap is None else cap)


def _estimate_output(model: str, body: bytes, fields: RawFields, output_tokens: int) -> Estimate:
    return estimate_chat(model, body, min(output_tokens, MAX_OUTPUT_TOKENS) * _count_answers(fields))


def estimate_image(model: str, _body: bytes, fields: RawFields, _settings: Settings) -> Estimate:
    """Generated images."""
    return estimate_images(model, _count_answers(fields))


def estimate_edit(model: str, _body: bytes, fields: RawFields, _settings: Settings) -> Estimate:
    """Edited images, where the pictures to edit are charged as well."""
    return estimate_images(model, _count_answers(fields) + count_pictures(fields))


def estimate_clip(model: str, _body: bytes, fields: RawFields, _settings: Settings) -> Estimate:
    """A video."""
    return estimate_video(model, read_count(fields, "duration"))


def count_pictures(fields: RawFields) -> int:
    """The number of pictures to edit. Upstream reports what else is wrong with them."""
    if not is_empty(fields.get("image")):
        return 1
    try:
        return len(LIST.decoder.decode(fields.get("images", NULL)) or ())
    except MALFORMED:
        return 1


def _count_answers(fields: RawFields) -> int:
    return min(read_count(fields, "n") or 1, MAX_ANSWERS)
