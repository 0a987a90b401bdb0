"""OpenAI's Python SDK against real gunicorn: what its users do must just work."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from support.processes import CLIENT_KEY, GatewayServer
from support.scripted import Exchange, ScriptedUpstream, chat_chunk

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def sdk(gateway: GatewayServer) -> Iterator[OpenAI]:
    with OpenAI(api_key=CLIENT_KEY, base_url=f"{gateway.url}/api/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def sandbox_sdk(sandbox_gateway: GatewayServer) -> Iterator[OpenAI]:
    with OpenAI(api_key="any", base_url=f"{sandbox_gateway.url}/api/v1", max_retries=0) as client:
        yield client


def test_plain(sdk: OpenAI) -> None:
    """A whole completion, with its usage."""
    done = sdk.chat.completions.create(model="grok-4.3", messages=MESSAGES)
    assert done.choices[0].message.content == "Once upon"
    assert done.usage is not None
    assert done.usage.total_tokens == 5


def test_stream(sdk: OpenAI) -> None:
    """A stream, chunk by chunk; each has a choice, for usage was not asked for."""
    with sdk.chat.completions.create(model="grok-4.3", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Once upon"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stream_with_usage(sdk: OpenAI) -> None:
    """`include_usage` brings the usage chunk at the end."""
    options = {"include_usage": True}
    with sdk.chat.completions.create(
        model="grok-4.3", messages=MESSAGES, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3


def test_async(gateway: GatewayServer) -> None:
    """The asynchronous client, whole and streamed, many at once."""

    async def run() -> list[str]:
        async with AsyncOpenAI(api_key=CLIENT_KEY, base_url=f"{gateway.url}/v1", max_retries=0) as client:

            async def tell() -> str:
                stream = await client.chat.completions.create(
                    model="grok-4.3", messages=MESSAGES, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            whole = await client.chat.completions.create(model="grok-4.3", messages=MESSAGES)
            return [
                whole.choices[0].message.content or "",
                *await asyncio.gather(*(tell() for _ in range(20))),
            ]

    assert asyncio.run(run()) == ["Once upon"] * 21


def test_raw_response(sdk: OpenAI) -> None:
    """Headers are reachable: request id and what is left of the limit."""
    raw = sdk.chat.completions.with_raw_response.create(model="grok-4.3", messages=MESSAGES)
    assert raw.headers["x-request-id"] == raw.request_id
    assert int(raw.headers["x-ratelimit-remaining"]) < int(raw.headers["x-ratelimit-limit"])
    assert raw.parse().choices[0].message.content == "Once upon"


def test_tool_calls_pass_through(sandbox_sdk: OpenAI) -> None:
    """A streamed tool call arrives whole, and its result can be answered."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    with sandbox_sdk.chat.completions.create(
        model="grok-4.3", messages=MESSAGES, tools=[tool], stream=True
    ) as stream:
        calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function] == ["get_weather"]


def test_images(sandbox_sdk: OpenAI) -> None:
    """`images.generate` gives real pictures."""
    reply = sandbox_sdk.images.generate(
        model="grok-imagine-image", prompt="a cat", response_format="b64_json", n=2
    )
    assert reply.data is not None
    pictures = [base64.b64decode(item.b64_json or "") for item in reply.data]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(pictures) == 2


def test_vision(sandbox_sdk: OpenAI) -> None:
    """A picture in a chat is looked at; with `stream=True` the answer comes whole and says so."""
    made = sandbox_sdk.images.generate(model="grok-imagine-image", prompt="a cat", response_format="b64_json")
    assert made.data is not None
    url = f"data:image/png;base64,{made.data[0].b64_json}"
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    done = sandbox_sdk.chat.completions.create(model="grok-4.3", messages=messages)
    assert "PNG" in (done.choices[0].message.content or "")
    raw = sandbox_sdk.chat.completions.with_raw_response.create(
        model="grok-4.3", messages=messages, stream=True
    )
    assert raw.headers["x-stream-fallback"] == "vision"
    assert raw.headers["content-type"] == "application/json"
    # As docs/streaming.md warns: the SDK looks for events, and there are none.
    assert not list(sandbox_sdk.chat.completions.create(model="grok-4.3", messages=messages, stream=True))


def test_models(sandbox_sdk: OpenAI) -> None:
    """The list, and one model of it."""
    ids = [model.id for model in sandbox_sdk.models.list()]
    assert "grok-4.3" in ids
    assert sandbox_sdk.models.retrieve("grok-4.3").id == "grok-4.3"


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("sandbox-wrong-key", openai.BadRequestError, "Incorrect API key"),
        ("sandbox-no-credits", openai.PermissionDeniedError, "credits"),
        ("no-such-model", openai.NotFoundError, "does not exist"),
        ("sandbox-rate-limit", openai.RateLimitError, "Too many"),
        ("sandbox-error-500", openai.InternalServerError, ""),
        ("sandbox-error-503", openai.InternalServerError, ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class_and_message(
    sandbox_sdk: OpenAI, model: str, kind: type[openai.APIStatusError], text: str, stream: bool
) -> None:
    """Upstream's errors are raised as the SDK's own classes, with upstream's message."""
    with pytest.raises(kind) as caught:
        sandbox_sdk.chat.completions.create(model=model, messages=MESSAGES, stream=stream)
    assert text in caught.value.message
    assert caught.value.request_id


def test_wrong_key_of_ours(gateway: GatewayServer) -> None:
    """A wrong key of the gateway's is an AuthenticationError."""
    with (
        OpenAI(api_key="wrong-key-here", base_url=f"{gateway.url}/api/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model="grok-4.3", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"


def test_error_in_mid_stream_is_raised(sdk: OpenAI, shared_upstream: ScriptedUpstream) -> None:
    """A stream that breaks raises an APIError with the message, after the chunks that came."""

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.event({"code": "internal", "error": "the model fell over"})
        exchange.end()

    shared_upstream.handler = answer
    seen = []
    with (
        sdk.chat.completions.create(model="grok-4.3", messages=MESSAGES, stream=True) as stream,
        pytest.raises(openai.APIError, match="the model fell over") as caught,
    ):
        for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["Once"]
    assert caught.value.code == "internal"


def test_truncation_is_raised(sdk: OpenAI, shared_upstream: ScriptedUpstream) -> None:
    """A stream that upstream cuts never looks complete."""

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.close()

    shared_upstream.handler = answer
    with (
        sdk.chat.completions.create(model="grok-4.3", messages=MESSAGES, stream=True) as stream,
        pytest.raises(openai.APIError, match="incomplete"),
    ):
        list(stream)
