"""Bodies of Responses and Messages: what is decided, and that all else stays as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from grokflask.billing.bill import IMAGE_TOKENS
from grokflask.billing.prices import price_tokens
from grokflask.config import Settings
from grokflask.errors import InvalidRequestError, RouteNotFoundError
from grokflask.protocol.routes import ROUTES
from grokflask.shaping.bodies import shape_request
from grokflask.shaping.request import ClientRequest, UpstreamRequest

BY_NAME = {route.name: route for route in ROUTES}
TEXT = {"input": "hi"}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
SEEN = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://e.org/c.png"}]}]}
SOURCE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * 1000}
IMAGE = {"type": "image", "source": SOURCE}
SHOWN = {"messages": [{"role": "user", "content": [IMAGE]}], "max_tokens": 10}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [IMAGE]}


def shape(name: str, body: bytes | Mapping[str, Any], **settings: Any) -> UpstreamRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return shape_request(ClientRequest(BY_NAME[name], "r1", raw), Settings(**settings))


def sent(request: UpstreamRequest) -> dict[str, Any]:
    """The body that goes upstream."""
    assert request.body is not None
    fields: dict[str, Any] = json.loads(request.body)
    return fields


@pytest.mark.parametrize(("name", "body"), [("responses", TEXT), ("messages", MESSAGES)])
def test_defaults(name: str, body: dict[str, Any]) -> None:
    """A model where none is named; all else passes through, known or not."""
    shaped = shape(name, {**body, "odd": {"a": [1.50]}}, default_chat_model="chat-x")
    assert sent(shaped) == {**body, "odd": {"a": [1.50]}, "model": "chat-x"}
    assert (shaped.stream, shaped.fallback, shaped.dropped, shaped.model) == (False, None, (), "chat-x")


@pytest.mark.parametrize(
    ("name", "body", "param"),
    [
        ("responses", {}, "input"),
        ("responses", {"input": None}, "input"),
        ("responses", {"input": []}, "input"),
        ("responses", {**TEXT, "stream": "yes"}, "stream"),
        ("responses", {**TEXT, "store": "no"}, "store"),
        ("responses", {**TEXT, "model": 7}, "model"),
        ("responses", {**TEXT, "previous_response_id": 7}, "previous_response_id"),
        ("responses-compact", {"previous_response_id": {}}, "previous_response_id"),
        ("messages", {"max_tokens": 1}, "messages"),
        ("messages", {"messages": []}, "messages"),
        ("messages", {**MESSAGES, "stream": 1}, "stream"),
    ],
)
def test_bodies_that_are_refused(name: str, body: dict[str, Any], param: str) -> None:
    """What is missing or of the wrong type is named."""
    with pytest.raises(InvalidRequestError) as caught:
        shape(name, body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("responses", SEEN),
        (
            "responses",
            {
                "input": [
                    {"type": "function_call_output", "call_id": "c1", "output": SEEN["input"][0]["content"]}
                ]
            },
        ),
        ("messages", SHOWN),
        ("messages", {"messages": [{"role": "user", "content": [RESULT]}]}),
    ],
)
def test_pictures_are_answered_whole(name: str, body: dict[str, Any]) -> None:
    """A stream with a picture falls back, as in a chat, unless the settings let it stream."""
    streamed = {**body, "stream": True}
    shaped = shape(name, streamed, default_vision_model="vision-x")
    assert (shaped.stream, shaped.fallback, shaped.model) == (False, "vision", "vision-x")
    assert sent(shaped) == {**body, "stream": False, "model": "vision-x"}
    relayed = shape(name, streamed, vision_stream="stream")
    assert (relayed.stream, relayed.fallback) == (True, None)
    assert shape(name, body).fallback is None


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("responses", {"input": "an image: input_image"}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "image"}]}]}),
        ("messages", {"messages": [{"role": "user", "content": "the type is image"}]}),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": '"type":"image"'}]}]},
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [{**RESULT}]}]}]},
        ),
    ],
)
def test_talk_of_pictures_streams(name: str, body: dict[str, Any]) -> None:
    """A text about pictures is none, nor is what no API has in such a place."""
    assert shape(name, {**body, "stream": True}).stream


def test_tool_controls_without_tools_are_dropped() -> None:
    """xAI refuses them on every route."""
    controls = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    shaped = shape("responses", {**TEXT, **controls})
    assert shaped.dropped == ("tools", "tool_choice", "parallel_tool_calls")
    assert sent(shape("responses", {**TEXT, **controls}, drop_params=False)).items() >= controls.items()
    assert shape("messages", {**MESSAGES, "tools": [], "tool_choice": {"type": "auto"}}).dropped == (
        "tools",
        "tool_choice",
    )


def test_stop_sequences_of_reasoning_models_are_dropped() -> None:
    """They are `stop` by another name."""
    body = {**MESSAGES, "stop_sequences": ["x"]}
    assert shape("messages", {**body, "model": "grok-4.7"}).dropped == ("stop_sequences",)
    assert shape("messages", {**body, "model": "grok-4.20-0309-non-reasoning"}).dropped == ()


def test_options_of_tools_that_xai_refuses_are_dropped() -> None:
    """Options that OpenAI's clients send; those of other tools, and of the same name elsewhere, stay."""
    tools: list[dict[str, Any]] = [
        {"type": "web_search", "search_context_size": "low", "user_location": None, "filters": {"a": 1.50}},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "file_search", "vector_store_ids": ["v"], "filters": {}},
        {"type": "function", "name": "f", "container": 1, "parameters": {"search_context_size": 1}},
    ]
    shaped = shape("responses", {**TEXT, "tools": tools})
    assert shaped.dropped == (
        "tools.search_context_size",
        "tools.user_location",
        "tools.container",
        "tools.filters",
    )
    assert sent(shaped)["tools"] == [
        {"type": "web_search", "filters": {"a": 1.50}},
        {"type": "code_interpreter"},
        {"type": "file_search", "vector_store_ids": ["v"]},
        tools[3],
    ]
    assert shape("responses", {**TEXT, "tools": tools}, drop_params=False).dropped == ()


@pytest.mark.parametrize(
    "tools", [b'[{"type":"web_search"}]', b'{"container":1}', b'["container"]', b'[{"type":7,"container":1}]']
)
def test_tools_without_such_options_stay_as_they_came(tools: bytes) -> None:
    """Also those of an unknown shape: upstream reports what is wrong with them."""
    shaped = shape("responses", b'{"input":"hi","tools":' + tools + b"}")
    assert shaped.dropped == ()
    assert shaped.body is not None
    assert tools in shaped.body


def test_what_upstream_keeps() -> None:
    """A response is stored unless the request says no; one that continues another uses that one."""
    assert shape("responses", TEXT).makes == "response"
    assert shape("responses", {**TEXT, "store": None}).makes == "response"
    assert shape("responses", {**TEXT, "store": True}).makes == "response"
    assert shape("responses", {**TEXT, "store": False}).makes is None
    assert shape("messages", MESSAGES).makes is None
    assert shape("responses", TEXT).uses is None
    assert shape("responses", {**TEXT, "previous_response_id": None}).uses is None
    for name in ("responses", "responses-compact"):
        assert shape(name, {**TEXT, "previous_response_id": "a1"}).uses == ("response", "a1")
    assert shape("responses-compact", TEXT).makes is None


def test_a_response_that_is_named_twice() -> None:
    """Upstream might take the one that was not looked at."""
    body = b'{"input":"hi","previous_response_id":"mine","previous_response\\u005fid":"theirs"}'
    with pytest.raises(InvalidRequestError, match="twice") as caught:
        shape("responses", body)
    assert caught.value.param == "previous_response_id"


def test_compaction_never_streams() -> None:
    """`stream` is left out, and named."""
    shaped = shape("responses-compact", {**TEXT, "stream": True})
    assert (shaped.stream, shaped.dropped, "stream" in sent(shaped)) == (False, ("stream",), False)


@pytest.mark.parametrize("name", ["response", "response-delete"])
def test_an_id_in_the_path(name: str) -> None:
    """It stands in upstream's path, and only its owner may use it."""
    shaped = shape_request(ClientRequest(BY_NAME[name], "r1", item_id="a-1"), Settings())
    assert (shaped.method, shaped.path) == (BY_NAME[name].method, "/responses/a-1")
    assert (BY_NAME[name].kind, shaped.body, shaped.estimate.billing) == ("response", None, "free")


@pytest.mark.parametrize(
    "response_id", ["", ".", "..", "%2e%2e", "a/b", "a%2fb", "a b", "a?b", "a#b", "a\n", "{model_id}", "-a"]
)
def test_an_id_that_could_leave_its_place(response_id: str) -> None:
    """What could reach another path upstream is a 404 here."""
    request = ClientRequest(BY_NAME["response"], "r1", item_id=response_id)
    with pytest.raises(RouteNotFoundError):
        shape_request(request, Settings())


def test_estimates() -> None:
    """The cap of Responses has the reasoning inside, that of Messages has not; all of the body is prompt."""
    capped = shape("responses", {**TEXT, "instructions": "x" * 4000, "max_output_tokens": 70})
    assert capped.estimate.output_tokens == 70
    assert capped.estimate.prompt_tokens > 1000
    assert capped.estimate.ticks == price_tokens(capped.model, capped.estimate.prompt_tokens, 70)
    open_ended = shape("responses", TEXT, output_estimate_tokens=500)
    assert open_ended.estimate.output_tokens == 1000
    message = shape("messages", {**MESSAGES, "model": "grok-4.7"}, output_estimate_tokens=500)
    assert message.estimate.output_tokens == 510


@pytest.mark.parametrize(("name", "body"), [("responses", SEEN), ("messages", SHOWN)])
def test_pictures_count_by_the_piece(name: str, body: dict[str, Any]) -> None:
    """Not by their bytes."""
    prompt_tokens = shape(name, body).estimate.prompt_tokens
    assert IMAGE_TOKENS <= prompt_tokens < IMAGE_TOKENS + 200
