"""Anthropic's SDK against real gunicorn: what its users do must just work, and the ledger be true."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import anthropic
import pytest
import requests
from anthropic import Anthropic, AsyncAnthropic
from support.processes import UPSTREAM_KEY, GatewayServer
from support.scripted import WAIT_S, Exchange, ScriptedUpstream
from support.stores import KeyedGateway

from grokflask.sandbox import Sandbox

TURNS: Any = [{"role": "user", "content": "Tell me a story of Berlin"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
USAGE = {"input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
STORY: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "grok-4.3",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**USAGE, "output_tokens": 0},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Once"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {**USAGE, "output_tokens": 2},
    },
    {"type": "message_stop"},
]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator without pauses, with the one key that it takes."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def over_sandbox(make_keyed: Callable[..., KeyedGateway], sandbox: Sandbox) -> KeyedGateway:
    """A gateway in front of the sandbox."""
    return make_keyed(XAI_API_BASE=sandbox.base_url)


def connect(gateway: KeyedGateway, name: str) -> Anthropic:
    """The SDK with a new key of this name, which it sends as x-api-key."""
    secret = gateway.make_key(name)["Authorization"].removeprefix("Bearer ")
    return Anthropic(api_key=secret, base_url=f"{gateway.url}/api", max_retries=0)


def ask(sdk: Anthropic, **fields: Any) -> Any:
    asked = {"model": "grok-4.7", "max_tokens": 500, "messages": TURNS, **fields}
    return sdk.messages.create(**asked)


def test_messages(over_sandbox: KeyedGateway, sandbox: Sandbox) -> None:
    """Whole and streamed, with thinking and with tools; the rows have what upstream charged."""
    with connect(over_sandbox, "ann") as sdk:
        whole = ask(sdk)
        with sdk.messages.stream(model="grok-4.7", max_tokens=500, messages=TURNS) as stream:
            told = "".join(stream.text_stream)
            streamed = stream.get_final_message()
        assert told == whole.content[-1].text
        assert streamed.content[0] == whole.content[0]
        assert whole.content[0].type == "thinking"
        assert streamed.usage == whole.usage
        with sdk.messages.stream(
            model="grok-4.3", max_tokens=500, messages=TURNS, tools=[TOOL], system="Be brief."
        ) as stream:
            called = stream.get_final_message()
        (use,) = called.content
        assert use.type == "tool_use"
        assert use.input == {"city": "Berlin"}
        assert called.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turns = [
            *TURNS,
            {"role": "assistant", "content": called.content},
            {"role": "user", "content": [result]},
        ]
        answered = ask(sdk, model="grok-4.3", messages=turns, tools=[TOOL])
        assert "sunny" in answered.content[0].text
        assert ask(sdk, max_tokens=1).stop_reason == "max_tokens"
    rows = over_sandbox.wait_for_rows(5)
    charged = [
        (
            noted.prompt_tokens,
            noted.output_tokens,
            noted.prompt_tokens + noted.output_tokens,
            noted.cost_ticks,
        )
        for noted in sandbox.journal.wait_until_idle()
    ]
    assert [
        (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"], row["cost_ticks"])
        for row in reversed(rows)
    ] == charged
    # Upstream tells tokens here and no cost: the price list's figure is exact, but it is the gateway's.
    assert {(row["route"], row["outcome"], row["estimated"]) for row in rows} == {
        ("messages", "complete", True)
    }


def test_pictures(over_sandbox: KeyedGateway) -> None:
    """A picture is looked at; asked to stream, the answer comes whole and says so."""
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with connect(over_sandbox, "ann") as sdk:
        assert "PNG" in ask(sdk, model="grok-4.3", messages=turns).content[0].text
        raw = sdk.messages.with_raw_response.create(
            model="grok-4.3",
            max_tokens=500,
            messages=turns,  # type: ignore[arg-type]
            stream=True,
        )
        assert raw.headers["x-stream-fallback"] == "vision"
        assert raw.headers["content-type"] == "application/json"


def test_async(over_sandbox: KeyedGateway) -> None:
    """The asynchronous client, with a key as Authorization, many at once."""
    secret = over_sandbox.make_key("ann")["Authorization"].removeprefix("Bearer ")

    async def run() -> list[str]:
        async with AsyncAnthropic(
            auth_token=secret, base_url=f"{over_sandbox.url}/api", max_retries=0
        ) as sdk:

            async def tell() -> str:
                async with sdk.messages.stream(model="grok-4.3", max_tokens=500, messages=TURNS) as stream:
                    return await stream.get_final_text()

            return await asyncio.gather(*(tell() for _ in range(20)))

    assert len(set(asyncio.run(run()))) == 1


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("sandbox-wrong-key", anthropic.BadRequestError, "Incorrect API key"),
        ("sandbox-no-credits", anthropic.PermissionDeniedError, "credits"),
        ("no-such-model", anthropic.NotFoundError, "does not exist"),
        ("sandbox-rate-limit", anthropic.RateLimitError, "Too many"),
        ("sandbox-error-500", anthropic.InternalServerError, "asked to fail"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class_and_message(
    sandbox_gateway: GatewayServer,
    model: str,
    kind: type[anthropic.APIStatusError],
    text: str,
    stream: bool,
) -> None:
    """Upstream's errors are raised as the SDK's own classes, with upstream's message."""
    with (
        Anthropic(api_key="any", base_url=f"{sandbox_gateway.url}/api", max_retries=0) as sdk,
        pytest.raises(kind) as caught,
    ):
        ask(sdk, model=model, stream=stream)
    assert text in caught.value.message


def test_a_wrong_key(over_sandbox: KeyedGateway) -> None:
    """An AuthenticationError, typed as Anthropic's own."""
    with (
        Anthropic(api_key="wrong-key-here", base_url=f"{over_sandbox.url}/api", max_retries=0) as sdk,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        ask(sdk)
    assert caught.value.type == "authentication_error"


def _cut(number: int, how: str, *, named: bool) -> Callable[[Exchange], None]:
    """An upstream that sends so many events of the story, and then ends, breaks off or fails."""

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for event in STORY[:number]:
            if named:
                exchange.chunk(f"event: {event['type']}\n".encode())
            exchange.event(event)
        if how == "error":
            error = {"type": "overloaded_error", "message": "It fell over."}
            exchange.event({"type": "error", "error": error})
        if how == "close":
            exchange.close()
        else:
            exchange.event("[DONE]")  # as xAI's reference has it; it is no end here
            exchange.end()

    return answer


def test_wherever_a_stream_is_cut_it_says_so(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream
) -> None:
    """After any event but the last a stream that stops raises in the SDK; behind the last it is whole."""
    gateway = make_keyed()
    for how, named in product(("end", "close", "error"), (False, True)):
        _cut_everywhere(gateway, upstream, how, named)


def _cut_everywhere(gateway: KeyedGateway, upstream: ScriptedUpstream, how: str, named: bool) -> None:
    words = {"end": "before it was complete", "close": "broke", "error": "fell over"}
    name = f"{how}-{named}"
    with connect(gateway, name) as sdk:
        for number in range(len(STORY)):
            upstream.handler = _cut(number, how, named=named)
            seen = []
            with ask(sdk, stream=True) as stream, pytest.raises(anthropic.APIError) as caught:
                for event in stream:
                    seen.append(event.type)
            assert words[how] in str(caught.value)
            assert seen == [event["type"] for event in STORY[:number]]
        upstream.handler = _cut(len(STORY), how, named=named)
        with ask(sdk, stream=True) as stream:
            assert [event.type for event in stream] == [event["type"] for event in STORY]
    rows = gateway.wait_for_rows(len(STORY) + 1, key=name)
    outcome = "upstream_error" if how == "error" else "truncated"
    assert [row["outcome"] for row in rows] == ["complete", *[outcome] * len(STORY)]
    assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"], rows[0]["total_tokens"]) == (9, 2, 11)
    # The prompt is known from the first event on, and the output from the last but one.
    assert [row["prompt_tokens"] for row in rows[1:-1]] == [9] * (len(STORY) - 1)
    assert rows[1]["completion_tokens"] == 2


def test_a_client_that_leaves(make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream) -> None:
    """Upstream's connection is closed while it is silent, and the row says who went."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(STORY[0])
        if exchange.wait_until_left():
            left.set()

    upstream.handler = answer
    gateway = make_keyed()
    with requests.post(
        f"{gateway.url}/v1/messages",
        json={"model": "grok-4.3", "messages": TURNS, "max_tokens": 9, "stream": True},
        headers=gateway.make_key("ann"),
        stream=True,
        timeout=WAIT_S,
    ) as reply:
        assert next(reply.iter_lines()) == b"event: message_start"
    assert left.wait(WAIT_S)
    (row,) = gateway.wait_for_rows(1)
    assert (row["outcome"], row["prompt_tokens"]) == ("client_abort", 9)


def test_silence_is_bridged(make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream) -> None:
    """Comments come before the first event and between two, and the SDK does not mind them."""
    beaten = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for event in STORY:
            assert beaten.acquire(timeout=WAIT_S)
            exchange.event(event)
        exchange.end()

    upstream.handler = answer
    gateway = make_keyed(GROKFLASK_HEARTBEAT_S="0.1")
    got = b""
    with requests.post(
        f"{gateway.url}/v1/messages",
        json={"model": "grok-4.3", "messages": TURNS, "max_tokens": 9, "stream": True},
        headers=gateway.make_key("ann"),
        stream=True,
        timeout=WAIT_S,
    ) as reply:
        for data in reply.iter_content(None):
            got += data
            if b": keep-alive\n" in data:
                beaten.release()
    assert got.startswith(b": keep-alive\nevent: message_start\n")

    def replay(exchange: Exchange) -> None:
        exchange.start()
        exchange.chunk(got)
        exchange.end()

    upstream.handler = replay
    origin = f"http://127.0.0.1:{upstream.port}"
    with Anthropic(api_key="any", base_url=origin, max_retries=0) as sdk, ask(sdk, stream=True) as stream:
        assert [event.type for event in stream] == [event["type"] for event in STORY]
