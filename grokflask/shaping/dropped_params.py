"""What xAI answers with a 400, and is left out before it costs a request. No IO.

After xAI's guides and reference, and measured reports.
"""

from __future__ import annotations

import msgspec

from grokflask.errors import MALFORMED

Fields = dict[str, msgspec.Raw]

_TOOL_OPTIONS = {
    "web_search": ("search_context_size", "user_location", "external_web_access"),
    "file_search": ("filters", "ranking_options"),
    "code_interpreter": ("container",),
}
"""Options of tools that other vendors' clients send, by the tool's type: with any of them xAI's Responses
refuse the whole request."""

_TOOLS: msgspec.json.Decoder[list[Fields]] = msgspec.json.Decoder(list[Fields])


def drop_refused(fields: Fields, model: str) -> tuple[str, ...]:
    """Removes what xAI refuses from a body, and names it.

    Tool controls without tools are refused by all models; penalties (even 0) and logit_bias by grok-3 and
    everything since; `stop`, or `stop_sequences`, by those of them that reason.
    """
    refused = []
    if is_empty(fields.get("tools")):
        refused += ["tools", "tool_choice", "parallel_tool_calls"]
    if model.startswith("grok-") and not model.startswith(("grok-1", "grok-2", "grok-beta", "grok-vision")):
        refused += ["presence_penalty", "frequency_penalty", "logit_bias"]
        if is_reasoning(model):
            refused += ["stop", "stop_sequences"]
    dropped = tuple(name for name in refused if name in fields)
    for name in dropped:
        del fields[name]
    return dropped


def drop_tool_options(fields: Fields) -> tuple[str, ...]:
    """Removes the options of a Responses body's tools that xAI refuses, and names them: `tools.container`."""
    raw = bytes(fields.get("tools", b""))
    if not any(f'"{name}"'.encode() in raw for names in _TOOL_OPTIONS.values() for name in names):
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
    """The model thinks before it answers."""
    if "non-reasoning" in model or model.startswith("grok-2"):
        return False
    return not model.startswith("grok-3") or "mini" in model


def is_empty(raw: msgspec.Raw | None) -> bool:
    """Absent, null, or a list of nothing."""
    return raw is None or (
        memoryview(raw).nbytes < 4096 and bytes(raw).translate(None, b" \t\r\n") in (b"null", b"[]")
    )
