"""What a request may cost, from the fields of its body. No IO."""

from __future__ import annotations

from msgspec.structs import replace

from grokflask.billing.bill import FREE, Estimate, estimate_chat, estimate_images, estimate_video
from grokflask.config import Settings
from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import NULL, RawFields, is_empty
from grokflask.protocol.routes import Shape
from grokflask.runtime import step_aside
from grokflask.shaping.dropped_params import is_reasoning
from grokflask.shaping.fields import LIST, read_count
from grokflask.shaping.scan import Findings

MAX_ANSWERS = 128
"""Estimates go no higher: upstream refuses requests for more."""
MAX_EFFORT = 64  # bytes of its field, enough to tell one from another


def estimate(
    shape: Shape, model: str, body: bytes, fields: RawFields, found: Findings, settings: Settings
) -> Estimate:
    """An estimate for the `body` that goes upstream and has these `fields`."""
    answers = min(read_count(fields, "n") or 1, MAX_ANSWERS)
    match shape:
        case Shape.CHAT | Shape.VISION | Shape.MESSAGE:
            cap = read_count(fields, "max_completion_tokens", "max_tokens")  # it does not include reasoning
            effort = fields.get("reasoning_effort", b"")
        case Shape.RESPONSE | Shape.COMPACTION:
            cap = read_count(fields, "max_output_tokens")
            effort = fields.get("reasoning", b"")
        case Shape.IMAGE:
            return estimate_images(model, answers)
        case Shape.IMAGE_EDIT:  # the pictures to edit are charged as well
            return estimate_images(model, answers + count_pictures(fields))
        case Shape.VIDEO:
            return estimate_video(model, read_count(fields, "duration"))
        case _:
            return FREE
    known = replace(
        estimate_chat(model, body, 0, found.pictures + (shape is Shape.VISION), found.picture_bytes),
        answers=answers,
        cap_tokens=cap,
        caps_reasoning=shape in (Shape.RESPONSE, Shape.COMPACTION),
        route=shape.name,
        reasons=is_reasoning(model) and b'"none"' not in bytes(effort),
        effort=bytes(effort)[:MAX_EFFORT].decode(errors="replace"),
    )
    return known.expect(settings.output_estimate_tokens, settings.output_estimate_tokens)


def count_pictures(fields: RawFields) -> int:
    """The number of pictures to edit. Upstream reports what else is wrong with them."""
    if not is_empty(fields.get("image")):
        return 1
    step_aside(memoryview(fields.get("images", NULL)).nbytes)
    try:
        return len(LIST.decoder.decode(fields.get("images", NULL)) or ())
    except MALFORMED:
        return 1
