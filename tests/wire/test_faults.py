"""Every fault of the sandbox through the real gateway, in both error shapes, streaming and not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import requests
from support.processes import GatewayServer

from grokflask.sandbox.faults import FAULTS

SHAPES = {"json": "application/json", "guide": "text/event-stream"}
MESSAGES = [{"role": "user", "content": "tell me about lighthouses"}]

# Before the first byte: the status, and a word of the message.
REFUSED = {
    "wrong-key": (400, "Incorrect API key"),
    "old-codes": (400, "Incorrect API key"),
    "no-credits": (403, "credits"),
    "no-credits-429": (429, "credits"),
    "moderation": (403, "usage guidelines"),
    "rate-limit": (429, "Too many"),
    "rate-limit-retry-after": (429, "Too many"),
    "error-500": (500, "asked to fail"),
    "error-503": (503, "unavailable"),
    "error-html": (502, "status 502"),
    "error-no-code": (500, "asked to fail"),
    "openai-error": (400, "asked to fail"),
    "json-on-200": (502, "unavailable"),
    "leaky-error": (403, "[redacted]"),
    "strict-content": (400, "content element"),
    "drop-before-headers": (502, "without an answer"),
    "slow-headers": (504, "sent nothing for 0.5 s"),
}
# Inside the stream: the outcome that the log tells.
BROKEN = {
    "forged": "upstream_error",
    "slow-first-event": "timeout",
    "stall": "timeout",
    "drop-rst": "truncated",
    "drop-fin": "truncated",
    "drop-mid-event": "truncated",
    "truncated": "truncated",
    "no-done": "truncated",
    "error-mid-stream": "upstream_error",
    "error-mid-stream-openai": "upstream_error",
    "error-event": "upstream_error",
}
TOOLS = {"two-tools", "split-tools", "finish-empty"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "5"},
]
HEALTHY = set(FAULTS) - set(REFUSED) - set(BROKEN)


FindGateway = Callable[[str], GatewayServer]


def is_silence(fault: str) -> bool:
    """It lasts for as long as its name says, but for the one that only lingers."""
    return FAULTS[fault].timed and fault != "linger"


@pytest.fixture
def find_gateway(sandbox_gateway: GatewayServer, impatient_gateway: GatewayServer) -> FindGateway:
    """The gateway for a fault: the others must not be too slow on any machine."""
    return lambda fault: impatient_gateway if is_silence(fault) else sandbox_gateway


def ask(gateway: GatewayServer, fault: str, shape: str, **extra: Any) -> requests.Response:
    seconds = "-60" if is_silence(fault) else ""
    body = {"model": f"sandbox-{fault}{seconds}", "messages": MESSAGES, **extra}
    if fault in TOOLS:
        body["tools"] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    if fault == "strict-content":
        body["messages"] = MESSAGES + CALLED
    headers = {"Accept": SHAPES[shape], "Authorization": "Bearer any", "X-Request-ID": f"{fault}.{shape}"}
    return requests.post(f"{gateway.url}/api/v1/chat/completions", json=body, headers=headers, timeout=60)


def split_events(data: bytes) -> list[bytes]:
    """The data of each event; the framing must be the contract's own, whatever upstream's was."""
    assert data.endswith(b"\n\n")
    assert b"\r" not in data
    events = data[:-2].split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events), events
    return [event[6:] for event in events]


def read_message(error: Any, shape: str) -> str:
    if shape == "json":
        assert set(error) == {"message", "type", "param", "code"}
        message: str = error["message"]
        return message
    assert error.startswith("API error: ")
    text: str = error.removeprefix("API error: ")
    return text


def test_every_fault_is_known_here() -> None:
    """A new fault of the sandbox has to be sorted into one of the three groups."""
    assert set(REFUSED) | set(BROKEN) <= set(FAULTS)
    assert not set(REFUSED) & set(BROKEN)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fault", REFUSED)
def test_refused_before_the_first_byte(find_gateway: FindGateway, fault: str, shape: str) -> None:
    """The status is kept, the shape is the client's, and no id or key is in it."""
    status, word = REFUSED[fault]
    reply = ask(find_gateway(fault), fault, shape, stream=True)
    assert reply.status_code == status, reply.text
    error = (reply.json() if shape == "json" else json.loads(split_events(reply.content)[0]))["error"]
    assert word in read_message(error, shape)
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", reply.text)
    assert "Bearer any" not in reply.text
    if fault == "rate-limit-retry-after":
        assert reply.headers["Retry-After"] == "7"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_in_mid_stream(find_gateway: FindGateway, fault: str, shape: str) -> None:
    """The events that came are delivered, an error event is last, there is no [DONE], and the log knows."""
    reply = ask(find_gateway(fault), fault, shape, stream=True)
    assert reply.status_code == 200
    events = split_events(reply.content)
    assert b"[DONE]" not in events
    assert read_message(json.loads(events[-1])["error"], shape)
    for event in events[:-1]:
        assert json.loads(event)["choices"]
    if fault != "slow-first-event":
        assert len(events) > 1
    find_gateway(fault).wait_for_line(f"request_id={fault}.{shape}", f"outcome={BROKEN[fault]}")


@pytest.mark.parametrize("fault", sorted(HEALTHY))
def test_odd_but_healthy(find_gateway: FindGateway, fault: str) -> None:
    """Whatever the framing, pace or usage: one `data:` line an event, [DONE] at the end, outcome complete."""
    reply = ask(find_gateway(fault), fault, "guide", stream=True)
    assert reply.status_code == 200, reply.text
    events = split_events(reply.content)
    assert events[-1] == b"[DONE]"
    assert all(json.loads(event)["choices"] for event in events[:-1])
    find_gateway(fault).wait_for_line(f"request_id={fault}.guide", "outcome=complete")


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_without_streaming(find_gateway: FindGateway, fault: str) -> None:
    """A plain request ends in a completion or in a JSON error with the right kind of status."""
    reply = ask(find_gateway(fault), fault, "guide")
    document = reply.json()
    if reply.status_code == 200:
        assert document["choices"]
    else:
        assert set(document["error"]) == {"message", "type", "param", "code"}
        assert reply.status_code >= 400
    assert not re.search(r"team [0-9a-f]{8}-[0-9a-f]{4}-", reply.text)


def test_text_survives_every_framing(sandbox_gateway: GatewayServer) -> None:
    """The same prompt gives the same text, however upstream frames it."""
    texts = {}
    for fault in (
        "burst",
        "crlf",
        "cr",
        "no-space",
        "bom",
        "comments",
        "multiline",
        "bytewise",
        "gzip",
        "other-fields",
    ):
        chunks = [
            json.loads(event)
            for event in split_events(ask(sandbox_gateway, fault, "guide", stream=True).content)[:-1]
        ]
        texts[fault] = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert len(set(texts.values())) == 1, texts
    assert len(texts["burst"]) > 100
