"""Function calling through real gunicorn with OpenAI's SDK, and the switch that a key has for tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count, product
from typing import Any

import openai
import pytest
from openai import OpenAI
from support.processes import UPSTREAM_KEY
from support.scripted import Exchange, ScriptedUpstream, chat_chunk
from support.stores import KeyedGateway

NUMBERS = count()
MESSAGES: Any = [{"role": "user", "content": "the weather in Paris and in Rome?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("sun", "rain")
]


@pytest.fixture
def upstream(clean_upstream: ScriptedUpstream) -> ScriptedUpstream:
    """The one that `keyed` is in front of."""
    return clean_upstream


@pytest.fixture
def keyed(module_keyed: KeyedGateway, clean_upstream: ScriptedUpstream) -> KeyedGateway:
    """One gateway over each pair of stores for all tests, whose keys have names of their own."""
    return module_keyed


@pytest.fixture
def make_sdk(keyed: KeyedGateway) -> Iterator[Callable[..., OpenAI]]:
    """A client with a new key that has these limits."""
    clients: list[OpenAI] = []

    def make(name: str, **limits: str) -> OpenAI:
        key = keyed.make_key(f"{name}-{next(NUMBERS)}", **limits)
        secret = key["Authorization"].removeprefix("Bearer ")
        clients.append(OpenAI(api_key=secret, base_url=f"{keyed.url}/api/v1", max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def call(number: int, **function: str) -> dict[str, Any]:
    """A piece of a call, as it stands in a delta."""
    first = {"id": f"call_{number}", "type": "function"} if "name" in function else {}
    return {"index": number, **first, "function": function}


PARALLEL = [
    [call(0, name="sun", arguments=""), call(1, name="rain", arguments='{"ci')],
    [call(0, arguments='{"city":')],
    [call(1, arguments='ty":"Rome"}'), call(0, arguments='"Par')],
    [call(0, arguments='is"}')],
]
"""Two calls at once, their arguments in pieces that come between each other."""


def stream_calls(exchange: Exchange) -> None:
    exchange.start()
    for number, calls in enumerate(PARALLEL):
        role = {"role": "assistant"} if not number else {}
        chunk = chat_chunk("")
        chunk["choices"] = [{"index": 0, "delta": {**role, "tool_calls": calls}}]
        exchange.event(chunk)
    last = chat_chunk("")
    last["choices"] = [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]
    exchange.event(last)
    exchange.event("[DONE]")
    exchange.end()


def test_parallel_calls_in_pieces(make_sdk: Callable[..., OpenAI], upstream: ScriptedUpstream) -> None:
    """Streamed calls that are interleaved arrive piece by piece, as they came; the SDK puts them together."""
    upstream.handler = stream_calls
    sdk = make_sdk("ann", tools="client")
    with sdk.chat.completions.create(
        model="grok-4.3", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=True, stream=True
    ) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    got = [[piece.model_dump(exclude_unset=True) for piece in each.tool_calls or []] for each in deltas]
    assert got == [*PARALLEL, []]
    asked = upstream.exchanges[-1].document
    assert (asked["tools"], asked["parallel_tool_calls"]) == (TOOLS, True)
    with sdk.chat.completions.stream(model="grok-4.3", messages=MESSAGES, tools=TOOLS) as told:
        final = told.get_final_completion().choices[0].message.tool_calls or []
    assert [(each.function.name, json.loads(each.function.arguments)) for each in final] == [
        ("sun", {"city": "Paris"}),
        ("rain", {"city": "Rome"}),
    ]


def test_parallel_calls_in_a_whole_reply(make_sdk: Callable[..., OpenAI], upstream: ScriptedUpstream) -> None:
    """They pass untouched, and so do the results that are sent back."""
    calls = [{**call(n, name=name, arguments='{"city":"Rome"}')} for n, name in enumerate(("sun", "rain"))]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    upstream.handler = lambda exchange: exchange.reply({"id": "x", "model": "grok-4.3", "choices": [choice]})
    sdk = make_sdk("ann", tools="client")
    done = sdk.chat.completions.create(model="grok-4.3", messages=MESSAGES, tools=TOOLS)
    assert [each.id for each in done.choices[0].message.tool_calls or []] == ["call_0", "call_1"]
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "none"} for each in calls]
    messages: Any = [*MESSAGES, message, *results]
    sdk.chat.completions.create(model="grok-4.3", messages=messages, tools=TOOLS, tool_choice="auto")
    assert upstream.exchanges[-1].document["messages"] == messages


CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("all", {"tools": TOOLS}, True),
    ("all", {"tools": [{"type": "web_search"}]}, True),
    ("client", {"tools": TOOLS}, True),
    ("client", {"tools": [*TOOLS, {"type": "web_search"}]}, False),
    ("client", {"search_parameters": {"mode": "auto"}}, False),
    ("none", {}, True),
    ("none", {"tools": []}, True),
    ("none", {"tools": TOOLS}, False),
    ("none", {"tools": [{"type": "x_search"}]}, False),
]


def test_the_switch(make_sdk: Callable[..., OpenAI], upstream: ScriptedUpstream) -> None:
    """A key with it set gets a PermissionDeniedError for what it may not use, and upstream sees nothing."""
    sdks = {allowed: make_sdk(allowed, tools=allowed) for allowed in ("all", "client", "none")}
    for (allowed, extra, passes), stream in product(CASES, (False, True)):
        upstream.exchanges.clear()
        create: Any = sdks[allowed].chat.completions.with_raw_response.create
        asked = {"model": "grok-4.3", "messages": MESSAGES, "stream": stream, "extra_body": extra}
        if passes:
            create(**asked).http_response.read()
            assert upstream.exchanges[-1].headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
            continue
        with pytest.raises(openai.PermissionDeniedError) as caught:
            create(**asked).http_response.read()
        assert (caught.value.code, caught.value.param) == ("tools_not_allowed", "tools")
        assert not upstream.exchanges
