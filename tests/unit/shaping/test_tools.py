"""The tools that a request asks for, and which keys may have them."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import msgspec
import pytest

from grokflask.config import Settings
from grokflask.errors import InvalidRequestError, ToolsNotAllowedError
from grokflask.keys.limits import Allowed, check_tools
from grokflask.protocol.raw_json import RawFields
from grokflask.protocol.routes import ROUTES
from grokflask.shaping import scan
from grokflask.shaping import tools as module
from grokflask.shaping.bodies import shape_request
from grokflask.shaping.request import ClientRequest
from grokflask.shaping.scan import check_names
from grokflask.shaping.tools import Use, find_use

FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT = next(route for route in ROUTES if route.name == "chat")
SERVER_TYPES = ["web_search", "x_search", "code_interpreter", "code_execution", "file_search", "mcp"]


def read(body: Any) -> RawFields:
    return msgspec.json.decode(msgspec.json.encode(body), type=RawFields)


@pytest.mark.parametrize(
    ("body", "use"),
    [
        ({}, ""),
        ({"tools": []}, ""),
        ({"tools": None}, ""),
        ({"tool_choice": "auto"}, ""),
        ({"search_parameters": {"mode": "off"}}, ""),
        ({"tools": [FUNCTION]}, "client"),
        ({"tools": [FUNCTION] * 100}, "client"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "client"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "client"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "client"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "client"),
        ({"functions": [{"name": "f"}]}, "client"),
        *[({"tools": [{"type": kind}]}, "server") for kind in (*SERVER_TYPES, "live_search", "new_one")],
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server"),
        ({"tools": [FUNCTION] * 100 + [{"type": "web_search"}]}, "server"),
        ({"tools": [{"type": "Function"}]}, "server"),
        ({"tools": {"type": "web_search"}}, "server"),
        ({"tools": "web_search"}, "server"),
        ({"tools": [7]}, "server"),
        ({"tools": [FUNCTION] * 2001}, "server"),
        ({"tools": [{**FUNCTION, "mode": 7}]}, "client"),
        ({"tools": [{"type": ["web_search"]}]}, "server"),
        ({"search_parameters": {}}, "server"),
        ({"search_parameters": {"mode": "auto"}}, "server"),
        ({"search_parameters": {"sources": []}}, "server"),
        ({"search_parameters": 7}, "server"),
        ({"web_search_options": {}}, "server"),
        ({"web_search_options": {"search_context_size": "low"}}, "server"),
        ({"mcp_servers": [{"url": "https://example.org"}], "tools": [FUNCTION]}, "server"),
    ],
)
def test_what_is_asked_for(body: Any, use: Use) -> None:
    """Functions are the client's; what runs at xAI's, or is not known here, is not."""
    assert find_use(read(body)) == use


def test_no_way_around() -> None:
    """An escaped letter hides no type. A tool with two types is refused for a key with a limit on tools."""
    hidden = b'{"tools": [{"t\\u0079pe": "web_\\u0073earch"}]}'
    assert find_use(msgspec.json.decode(hidden, type=RawFields)) == "server"
    twice = b'{"messages": [1], "tools": [{"type": "web_search", "type": "function"}]}'
    request = ClientRequest(CHAT, "r1", twice)
    with pytest.raises(InvalidRequestError, match="twice") as caught:
        shape_request(request, Settings(), limited=True)
    assert caught.value.param == "type"
    assert shape_request(request, Settings()).tools == ""


@pytest.mark.parametrize(("names", "scanned"), [(60_000, False), (150_000, True)])
def test_many_names(names: int, scanned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one tool: others have turns while they are read, and what the scan has read is not read again."""
    turns: list[int] = []
    checked: list[int] = []

    def check(body: bytes, fields: RawFields) -> None:
        checked.append(1)
        check_names(body, fields)

    monkeypatch.setattr(scan, "step_aside", lambda: turns.append(1))
    monkeypatch.setattr(module, "check_names", check)
    tool = json.dumps({f"k{number}": 1 for number in range(names)} | {"type": "web_search"})
    body = b'{"messages":[1],"tools":[%s]}' % tool.encode()
    assert shape_request(ClientRequest(CHAT, "r1", body), Settings(), limited=True).tools == "server"
    assert len(turns) >= (names // 4000 if scanned else names // 1000)
    assert bool(checked) != scanned


def test_collections() -> None:
    """They are the operator's: a search in them is more than any other tool."""
    tools = [FUNCTION, {"type": "file_search", "vector_store_ids": ["v"]}]
    body = msgspec.json.encode({"messages": [1], "tools": tools})
    assert shape_request(ClientRequest(CHAT, "r1", body), Settings(), limited=True).tools == "collections"


ALLOWED: dict[Allowed, set[Use]] = {
    "all": {"", "client", "server", "collections"},
    "no-collections": {"", "client", "server"},
    "client": {"", "client"},
    "none": {""},
}


@pytest.mark.parametrize(("use", "allowed"), list(product(("", "client", "server", "collections"), ALLOWED)))
def test_what_a_key_may(use: Use, allowed: Allowed) -> None:
    """`all` everything, `client` functions, `none` nothing; a refusal is a 403 with a code of its own."""
    if use in ALLOWED[allowed]:
        check_tools(use, allowed)
        return
    with pytest.raises(ToolsNotAllowedError) as caught:
        check_tools(use, allowed)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        403,
        "tools_not_allowed",
        "tools",
    )
