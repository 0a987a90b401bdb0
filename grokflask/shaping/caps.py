"""A cap for an answer that cannot be metered while it is made. No IO."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from grokflask.billing.bill import Estimate
from grokflask.protocol.raw_json import decode_fields
from grokflask.protocol.routes import Shape
from grokflask.shaping.request import UpstreamRequest

LEAST_CAP = 16
"""No lower cap is set: OpenAI's Responses refuse it."""
_CAPS = {
    Shape.CHAT.name: "max_completion_tokens",
    Shape.VISION.name: "max_completion_tokens",
    Shape.RESPONSE.name: "max_output_tokens",
}


def cap_output(
    request: UpstreamRequest, estimate: Estimate, ticks: int
) -> tuple[UpstreamRequest, dict[str, str]]:
    """The request for a whole answer for which only `ticks` could be reserved, with a cap if it had none.

    Also returns the header that says so.
    """
    name = _CAPS.get(estimate.route)
    if estimate.cap_tokens is not None or name is None or not isinstance(request.body, bytes):
        return request, {}
    tokens = (ticks - estimate.prompt_ticks) // estimate.output_ticks // estimate.answers
    if not estimate.caps_reasoning:
        tokens = max(tokens - estimate.reasoning_tokens, tokens // 2)
    tokens = max(LEAST_CAP, tokens)
    fields = decode_fields(request.body)
    fields[name] = msgspec.Raw(b"%d" % tokens)
    return replace(request, body=msgspec.json.encode(fields)), {"X-Output-Cap": f"{name}={tokens}"}
