"""Every fault of the sandbox through the real gateway on Responses and Messages, streaming and not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests
from support.processes import GatewayServer
from wire.test_faults import BROKEN, HEALTHY, REFUSED, TOOLS, FindGateway, find_gateway, is_silence

PROMPT = "tell me about lighthouses"
TOOL = {"type": "object", "properties": {}}
__all__ = ["find_gateway"]  # pytest finds it here

PATHS = ("/v1/responses", "/v1/messages")
ENDS = {
    "/v1/responses": ["response.completed", "[DONE]"],
    "/v1/messages": ["message_delta", "message_stop"],
}


def ask(gateway: GatewayServer, path: str, fault: str, **extra: Any) -> requests.Response:
    seconds = "-60" if is_silence(fault) else ""
    body: dict[str, Any] = {"model": f"sandbox-{fault}{seconds}", **extra}
    if path == "/v1/responses":
        body["input"] = PROMPT
        body["tools"] = [{"type": "function", "name": "look", "parameters": TOOL}] if fault in TOOLS else None
    else:
        body |= {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1000}
        body["tools"] = [{"name": "look", "input_schema": TOOL}] if fault in TOOLS else None
    headers = {"Authorization": "Bearer any", "Accept": "application/json", "X-Request-ID": name(path, fault)}
    return requests.post(gateway.url + path, json=body, headers=headers, timeout=60)


def name(path: str, fault: str) -> str:
    return f"{fault}.{path.rpartition('/')[2]}"


def split_events(path: str, data: bytes) -> list[tuple[str, str]]:
    """Each event's name and data; the framing must be the contract's own, whatever upstream's was."""
    assert data.endswith(b"\n\n")
    assert b"\r" not in data
    events = []
    for block in data[:-2].decode().split("\n\n"):
        lines = block.split("\n")
        named = lines.pop(0).removeprefix("event: ") if path == "/v1/messages" else ""
        (line,) = lines
        assert line.startswith("data: ")
        events.append((named, line[6:]))
    return events


def list_types(events: list[tuple[str, str]]) -> list[str]:
    """Types as the data have them; where events have names, these are the same."""
    types = []
    for named, data in events:
        kind = data if data == "[DONE]" else json.loads(data)["type"]
        assert named in ("", kind)
        types.append(kind)
    return types


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", sorted(set(REFUSED) - {"strict-content"}))
@pytest.mark.parametrize("stream", [False, True])
def test_refused_before_the_first_byte(
    find_gateway: FindGateway, path: str, fault: str, stream: bool
) -> None:
    """The status is kept, the shape is the API's, and no id or key is in it."""
    status, word = REFUSED[fault]
    reply = ask(find_gateway(fault), path, fault, stream=stream)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert word in error["message"]
    fields = {"message", "type", "param", "code"} if path == "/v1/responses" else {"message", "type"}
    assert set(error) == fields
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", reply.text)
    assert "Bearer any" not in reply.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_in_mid_stream(find_gateway: FindGateway, path: str, fault: str) -> None:
    """The events that came are delivered, an error event is last, there is no end, and the log knows."""
    reply = ask(find_gateway(fault), path, fault, stream=True)
    assert reply.status_code == 200
    types = list_types(split_events(path, reply.content))
    assert types[-1] == "error"
    assert "error" not in types[:-1]
    assert not {"[DONE]", "response.completed", "message_stop"} & set(types)
    assert (len(types) > 1) == (fault != "slow-first-event")
    find_gateway(fault).wait_for_line(f"request_id={name(path, fault)}", f"outcome={BROKEN[fault]}")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", sorted(HEALTHY))
def test_odd_but_healthy(find_gateway: FindGateway, path: str, fault: str) -> None:
    """Whatever the framing, pace or usage: the API's own framing and end, outcome complete."""
    reply = ask(find_gateway(fault), path, fault, stream=True)
    assert reply.status_code == 200, reply.text
    assert list_types(split_events(path, reply.content))[-2:] == ENDS[path]
    find_gateway(fault).wait_for_line(f"request_id={name(path, fault)}", "outcome=complete")
