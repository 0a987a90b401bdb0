"""The tools that a request asks for: the client's own, which cost nothing, or xAI's, which do. No IO.

Client tools are functions that the client itself runs. All else runs at xAI's: a search, its interpreter, an
MCP server that xAI calls. What nobody here knows counts as one of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from grokflask.errors import MALFORMED

Use = Literal["", "client", "server"]

FIELDS = frozenset({"tools", "functions", "search_parameters", "web_search_options", "mcp_servers"})
"""The fields of a body by which it asks for tools, in any of the APIs."""

_CLIENT_TYPES = ("", "function", "custom")
_CLIENT_PREFIXES = ("bash_", "text_editor_", "computer_", "memory_")
"""Of Anthropic's API: tools that the client runs, each with its date."""

_EMPTY = (b"null", b"[]")


class _Tool(msgspec.Struct):
    """An entry of `tools`."""

    type: str | None = None


class _Search(msgspec.Struct):
    """xAI's older `search_parameters`."""

    mode: str | None = None


_TOOLS = msgspec.json.Decoder(list[_Tool])
_SEARCH = msgspec.json.Decoder(_Search)


def find_use(fields: Mapping[str, msgspec.Raw]) -> Use:
    """What a body with these fields would have run, "" being nothing."""
    given = {name for name in FIELDS if name in fields and not _is_empty(fields[name])}
    if "search_parameters" in given and _is_off(fields["search_parameters"]):
        given.discard("search_parameters")
    if given - {"tools", "functions"}:
        return "server"
    if "tools" in given:
        try:
            tools = _TOOLS.decode(fields["tools"])
        except MALFORMED:
            return "server"  # it will be refused upstream, or understood otherwise
        if not all(_is_client(tool.type or "") for tool in tools):
            return "server"
    return "client" if given else ""


def _is_client(kind: str) -> bool:
    return kind in _CLIENT_TYPES or kind.startswith(_CLIENT_PREFIXES)


def _is_empty(raw: msgspec.Raw) -> bool:
    return memoryview(raw).nbytes < 64 and bytes(raw).translate(None, b" \t\r\n") in _EMPTY


def _is_off(raw: msgspec.Raw) -> bool:
    try:
        return _SEARCH.decode(raw).mode == "off"
    except MALFORMED:
        return False
