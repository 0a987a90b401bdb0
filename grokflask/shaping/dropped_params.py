"""Parameters that xAI refuses with a 400, or ignores: they are removed before the request is sent. No IO.

Sources: xAI's guides and reference, and measured reports.
"""

from __future__ import annotations

import msgspec

from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import NULL, RawFields, is_empty
from grokflask.shaping.fields import drop

_IMAGE_OPTIONS = (
    "size style seed mask background moderation output_format output_compression input_fidelity"
).split()
"""Options of OpenAI's image models."""

_TOOL_OPTIONS = {
    "web_search": ("search_context_size", "user_location", "external_web_access"),
    "file_search": ("filters", "ranking_options"),
    "code_interpreter": ("container",),
}
"""Options in other vendors' APIs, by the tool's type. With any of them xAI's Responses API refuses the whole
request."""

MAX_TOOLS_BYTES = 2**20
"""Larger lists of tools are passed on as they are: reading them would take too long."""

_TOOLS: msgspec.json.Decoder[list[RawFields]] = msgspec.json.Decoder(list[RawFields])


def drop_refused(fields: RawFields, model: str) -> tuple[str, ...]:
    """Removes parameters that xAI refuses, and returns their names.

    All models refuse tool controls without tools. grok-3 and later models refuse penalties (even 0) and
    logit_bias; those of them that reason also `stop` and `stop_sequences`.
    """
    refused = []
    if is_empty(fields.get("tools")):
        refused += ["tools", "tool_choice", "parallel_tool_calls"]
    if model.startswith("grok-") and not model.startswith(("grok-1", "grok-2", "grok-beta", "grok-vision")):
        refused += ["presence_penalty", "frequency_penalty", "logit_bias"]
        if is_reasoning(model):
            refused += ["stop", "stop_sequences"]
    return drop(fields, refused)


def drop_image_options(fields: RawFields, model: str) -> tuple[str, ...]:
    """Removes image options that xAI ignores, or sometimes refuses, and returns their names."""
    dropped = drop(fields, _IMAGE_OPTIONS)
    has_quality = model.startswith("grok-imagine-image-2")
    if has_quality and bytes(fields.get("quality", NULL)) in (b'"low"', b'"medium"'):
        return dropped
    return dropped + drop(fields, ["quality"])


def drop_tool_options(fields: RawFields) -> tuple[str, ...]:
    """Removes options of tools that xAI's Responses refuse, and returns their names: `tools.container`."""
    raw = bytes(fields.get("tools", b""))
    if len(raw) > MAX_TOOLS_BYTES or not any(
        f'"{name}"'.encode() in raw for names in _TOOL_OPTIONS.values() for name in names
    ):
        return ()
    try:
        tools = _TOOLS.decode(raw)
    except MALFORMED:
        return ()
    dropped = []
    for tool in tools:
        kind = bytes(tool.get("type", b"")).decode(errors="replace").strip('"')
        for name in _TOOL_OPTIONS.get(kind, ()):
            if tool.pop(name, None) is not None:
                dropped.append(f"tools.{name}")
    if dropped:
        fields["tools"] = msgspec.Raw(msgspec.json.encode(tools))
    return tuple(dict.fromkeys(dropped))


def is_reasoning(model: str) -> bool:
    """The model reasons before it answers."""
    if "non-reasoning" in model or model.startswith("grok-2"):
        return False
    return not model.startswith("grok-3") or "mini" in model
