"""The tools that a request asks for: the client's own, which cost nothing, or xAI's, which do. No IO.

The client runs its own functions. All else runs at xAI: a search, its interpreter, an MCP server that xAI
calls. Unknown tools count as xAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import is_empty
from grokflask.shaping.scan import NOTHING, Findings

Use = Literal["", "client", "server", "collections"]
"""From the least to the most. Collections (vector stores) belong to the operator's team at xAI."""

_TOOL_FIELDS = frozenset({"tools", "functions", "search_parameters", "web_search_options", "mcp_servers"})
"""The fields of a body that ask for tools, in any of the APIs."""

_CLIENT_TYPES = ("", "function", "custom")
_CLIENT_PREFIXES = ("bash_", "text_editor_", "computer_", "memory_")
"""Of Anthropic's client tools, whose types end with a date."""


class _Tool(msgspec.Struct):
    type: str | None = None


class _Search(msgspec.Struct):
    """xAI's older `search_parameters`."""

    mode: str | None = None


_TOOLS = msgspec.json.Decoder(list[_Tool])
_SEARCH = msgspec.json.Decoder(_Search)


def find_use(fields: Mapping[str, msgspec.Raw], found: Findings = NOTHING) -> Use:
    """Where the tools run that a body with these fields asks for; "" when it asks for none."""
    if found.collections:
        return "collections"
    used = {name for name in _TOOL_FIELDS if not is_empty(fields.get(name))}
    if "search_parameters" in used and _is_off(fields["search_parameters"]):
        used.discard("search_parameters")
    if used - {"tools", "functions"}:
        return "server"
    if "tools" in used:
        try:
            tools = _TOOLS.decode(fields["tools"])
        except MALFORMED:
            return "server"  # upstream refuses it, or reads it in another way
        types = (tool.type or "" for tool in tools)
        if not all(type in _CLIENT_TYPES or type.startswith(_CLIENT_PREFIXES) for type in types):
            return "server"
    return "client" if used else ""


def _is_off(raw: msgspec.Raw) -> bool:
    try:
        return _SEARCH.decode(raw).mode == "off"
    except MALFORMED:
        return False
