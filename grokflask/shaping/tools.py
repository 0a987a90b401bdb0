"""The tools that a request asks for: the client's own, which cost nothing, or xAI's, which do. No IO.

The client runs its own functions. All else runs at xAI: a search, its interpreter, an MCP server that xAI
calls. Unknown tools count as xAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec

from grokflask.errors import MALFORMED
from grokflask.protocol.raw_json import decode_fields, decode_list, is_empty
from grokflask.runtime import step_aside
from grokflask.shaping.scan import NOTHING, Findings, check_names

Use = Literal["", "client", "server", "collections"]
"""From the least to the most. Collections (vector stores) belong to the operator's team at xAI."""

_TOOL_FIELDS = frozenset({"tools", "functions", "search_parameters", "web_search_options", "mcp_servers"})
"""The fields of a body that ask for tools, in any of the APIs."""

_CLIENT_TYPES = ("", "function", "custom")
_CLIENT_PREFIXES = ("bash_", "text_editor_", "computer_", "memory_")
"""Of Anthropic's client tools, whose types end with a date."""


MAX_TOOLS = 2000
"""A longer list counts as xAI's tools. No API takes as many."""


class _Tool(msgspec.Struct):
    """What is read of a tool. No other field of it becomes an object of Python."""

    type: str | None = None


class _Search(msgspec.Struct):
    """What is read of `search_parameters`."""

    mode: str | None = None


_T = TypeVar("_T")
_TOOL = msgspec.json.Decoder(_Tool)
_SEARCH = msgspec.json.Decoder(_Search)


def find_use(fields: Mapping[str, msgspec.Raw], found: Findings = NOTHING) -> Use:
    """Where the tools run that a body with these fields asks for; "" when it asks for none.

    Raises InvalidRequestError if a name stands twice where this is read, unless the scan has looked.
    """
    if found.collections:
        return "collections"
    used = {name for name in _TOOL_FIELDS if not is_empty(fields.get(name))}
    if "search_parameters" in used and _is_off(fields["search_parameters"], found):
        used.discard("search_parameters")
    if used - {"tools", "functions"}:
        return "server"
    if "tools" in used:
        try:
            tools = decode_list(fields["tools"])
            types = [_read(tool, _TOOL, found).type or "" for tool in tools[:MAX_TOOLS]]
        except MALFORMED:
            return "server"  # upstream refuses it, or reads it in another way
        if len(tools) > MAX_TOOLS or not all(
            type in _CLIENT_TYPES or type.startswith(_CLIENT_PREFIXES) for type in types
        ):
            return "server"
    return "client" if used else ""


def _is_off(search_parameters: msgspec.Raw, found: Findings) -> bool:
    try:
        return _read(search_parameters, _SEARCH, found).mode == "off"
    except MALFORMED:
        return False


def _read(raw: msgspec.Raw, decoder: msgspec.json.Decoder[_T], found: Findings) -> _T:
    """An object. Raises MALFORMED, and InvalidRequestError for two fields with the same name."""
    if found is NOTHING:
        check_names(bytes(raw), decode_fields(raw))
    step_aside(memoryview(raw).nbytes)
    return decoder.decode(raw)
