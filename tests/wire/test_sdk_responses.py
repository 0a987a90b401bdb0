"""OpenAI's SDK and the Responses API against real gunicorn; the ledger against what the sandbox charged."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI
from support.processes import UPSTREAM_KEY
from support.scripted import WAIT_S, Exchange, ScriptedUpstream
from support.stores import KeyedGateway

from grokflask.sandbox import Exchange as Noted
from grokflask.sandbox import Sandbox

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
RESPONSE = {"id": "resp-1", "object": "response", "model": "grok-4.3", "output": [], "status": "in_progress"}
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "cost_in_usd_ticks": 8750}
STORY: list[dict[str, Any]] = [
    {"sequence_number": 0, "type": "response.created", "response": RESPONSE},
    {"sequence_number": 1, "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0}
    | {"content_index": 0, "delta": "Once", "logprobs": []},
    {
        "sequence_number": 2,
        "type": "response.completed",
        "response": {**RESPONSE, "status": "completed", "usage": USAGE},
    },
]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator without pauses, with the one key that it takes."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def over_sandbox(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], sandbox: Sandbox
) -> KeyedGateway:
    """A gateway over each pair of stores, in front of the sandbox."""
    return make_keyed(**stores, XAI_API_BASE=sandbox.base_url)


def connect(gateway: KeyedGateway, name: str) -> OpenAI:
    """The SDK with a new key of this name."""
    secret = gateway.make_key(name)["Authorization"].removeprefix("Bearer ")
    return OpenAI(api_key=secret, base_url=f"{gateway.url}/v1", max_retries=0)


def check_rows(gateway: KeyedGateway, noted: list[Noted], *, estimated: bool = False) -> list[dict[str, Any]]:
    """Each exchange that upstream noted has a row with what it charged. The rows, the oldest first."""
    rows = [row for row in gateway.wait_for_rows(len(noted)) if row["upstream_request_id"]]
    by_id = {row["upstream_request_id"]: row for row in reversed(rows)}
    for each in noted:
        row = by_id[each.request_id]
        told = (row["prompt_tokens"], row["cost_ticks"], row["estimated"], row["outcome"])
        assert told == (each.prompt_tokens, each.cost_ticks, estimated, "complete")
        output = (row["completion_tokens"] or 0) + (row["reasoning_tokens"] or 0)
        assert (output, row["total_tokens"]) == (each.output_tokens, each.prompt_tokens + each.output_tokens)
    return list(by_id.values())


def test_responses(over_sandbox: KeyedGateway, sandbox: Sandbox) -> None:
    """Whole and streamed, with reasoning, with functions and with xAI's own tools; paid to the tick."""
    with connect(over_sandbox, "ann") as sdk:
        whole = sdk.responses.create(model="grok-4.7", input="Tell me a story")
        with sdk.responses.create(model="grok-4.7", input="Tell me a story", stream=True) as stream:
            events = list(stream)
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert told == whole.output_text
        assert events[-1].type == "response.completed"
        assert events[-1].response.usage == whole.usage
        with sdk.responses.stream(
            model="grok-4.5", input="What is the weather?", tools=[FUNCTION, {"type": "web_search"}]
        ) as helper:
            helper.until_done()
            done = helper.get_final_response()
        assert [item.type for item in done.output] == ["web_search_call", "function_call"]
        call = done.output[1]
        assert call.type == "function_call"
        assert json.loads(call.arguments)["city"]
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        answered = sdk.responses.create(model="grok-4.3", input=[result], previous_response_id=done.id)
        assert "sunny" in answered.output_text
        short = sdk.responses.create(model="grok-4.3", input="Tell me a story", max_output_tokens=20)
        assert short.status == "incomplete"
        compact = sdk.responses.compact(model="grok-4.3", input="A long conversation")
        assert compact.output[0].type == "compaction"
    sandbox.journal.wait_for(lambda _: len(sandbox.journal) == 6)
    rows = check_rows(over_sandbox, list(sandbox.journal))
    assert [row["server_tools"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert {row["route"] for row in rows} == {"responses", "responses-compact"}


def test_stored_responses_and_another_key(over_sandbox: KeyedGateway, sandbox: Sandbox) -> None:
    """What a key made it can fetch, go on from and delete, through any worker; another finds nothing."""
    with connect(over_sandbox, "ann") as ann, connect(over_sandbox, "bob") as bob:
        with ann.responses.create(model="grok-4.3", input="hello", stream=True) as stream:
            first, *_ = stream  # to its end: this client does not leave
        made = [
            first.response.id,
            *(ann.responses.create(model="grok-4.3", input="hello").id for _ in range(4)),
        ]
        unstored = ann.responses.create(model="grok-4.3", input="hello", store=False).id
        before = len(made) + 1
        sandbox.journal.wait_for(lambda _: len(sandbox.journal) == before)  # a moment behind the last byte
        for response_id in [*made, unstored, "nothing", "a" * 300]:
            for steal in (
                lambda: bob.responses.retrieve(response_id),  # noqa: B023
                lambda: bob.responses.delete(response_id),  # noqa: B023
                lambda: bob.responses.create(input="go on", previous_response_id=response_id),  # noqa: B023
                lambda: bob.responses.create(input="go on", previous_response_id=response_id, stream=True),  # noqa: B023
                lambda: bob.responses.compact(model="grok-4.3", previous_response_id=response_id),  # noqa: B023
            ):
                with pytest.raises(openai.NotFoundError):
                    steal()
        assert len(sandbox.journal) == before
        for response_id in made:
            assert ann.responses.retrieve(response_id).id == response_id
            ann.responses.delete(response_id)
            with pytest.raises(openai.NotFoundError):
                ann.responses.retrieve(response_id)
        with pytest.raises(openai.NotFoundError):
            ann.responses.retrieve(unstored)
    rows = over_sandbox.wait_for_rows(len(made) * 3 + 1, outcome="complete")
    fetched = [row["cost_ticks"] for row in rows if row["route"] != "responses"]
    assert fetched == [0] * len(made) * 2


def test_a_wrong_key(over_sandbox: KeyedGateway) -> None:
    """An AuthenticationError, as everywhere."""
    with (
        OpenAI(api_key="wrong-key-here", base_url=f"{over_sandbox.url}/v1", max_retries=0) as sdk,
        pytest.raises(openai.AuthenticationError),
    ):
        sdk.responses.create(model="grok-4.3", input="hello")


def _cut(number: int, how: str) -> Callable[[Exchange], None]:
    """An upstream that sends so many events of the story, and then ends, breaks off or fails."""

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for event in STORY[:number]:
            exchange.event(event)
        if how == "error":
            exchange.event(
                {"type": "error", "code": "unavailable", "message": "It fell over.", "param": None}
            )
        if how == "close":
            exchange.close()
        else:
            exchange.end()

    return answer


@pytest.mark.parametrize("how", ["end", "close", "error"])
def test_wherever_a_stream_is_cut_it_says_so(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream, how: str
) -> None:
    """After any event but the last a stream that stops raises in the SDK; behind the last it is whole."""
    gateway = make_keyed()
    words = {"end": "before it was complete", "close": "broke", "error": "fell over"}
    with connect(gateway, "ann") as sdk:
        for number in range(len(STORY)):
            upstream.handler = _cut(number, how)
            seen = []
            with (
                sdk.responses.create(model="grok-4.3", input="hello", stream=True) as stream,
                pytest.raises(openai.APIError, match=words[how]),
            ):
                for event in stream:
                    seen.append(event.type)
            assert seen == [event["type"] for event in STORY[:number]]
        upstream.handler = _cut(len(STORY), how)
        with sdk.responses.create(model="grok-4.3", input="hello", stream=True) as stream:
            assert [event.type for event in stream] == [event["type"] for event in STORY]
    outcome = "upstream_error" if how == "error" else "truncated"
    rows = gateway.wait_for_rows(len(STORY) + 1)
    assert [row["outcome"] for row in rows] == ["complete", *[outcome] * len(STORY)]
    assert (rows[0]["cost_ticks"], rows[0]["estimated"]) == (8750, False)
    # What fails before it has begun was refused, and is not paid.
    assert [row["estimated"] for row in rows[1:]] == [True, True, how != "error"]


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
    key = gateway.make_key("ann")
    with requests.post(
        f"{gateway.url}/v1/responses",
        json={"input": "hello", "stream": True},
        headers=key,
        stream=True,
        timeout=WAIT_S,
    ) as reply:
        assert next(reply.iter_lines()).startswith(b"data: ")
    assert left.wait(WAIT_S)
    (row,) = gateway.wait_for_rows(1)
    assert (row["outcome"], row["estimated"]) == ("client_abort", True)


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
        f"{gateway.url}/v1/responses",
        json={"input": "hello", "stream": True},
        headers=gateway.make_key("ann"),
        stream=True,
        timeout=WAIT_S,
    ) as reply:
        for data in reply.iter_content(None):
            got += data
            if b": keep-alive\n" in data:
                beaten.release()
    assert got.startswith(b": keep-alive\ndata: {")

    def replay(exchange: Exchange) -> None:
        exchange.start()
        exchange.chunk(got)
        exchange.end()

    upstream.handler = replay
    with (
        OpenAI(api_key="any", base_url=upstream.base_url, max_retries=0) as sdk,
        sdk.responses.create(model="grok-4.3", input="hello", stream=True) as stream,
    ):
        assert [event.type for event in stream] == [event["type"] for event in STORY]
