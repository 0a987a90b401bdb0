"""From the client's body to what goes upstream: what is decided, and that all else stays as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from grokflask.config import Settings
from grokflask.errors import InvalidRequestError, RouteNotFoundError
from grokflask.protocol.routes import ROUTES, Shape
from grokflask.shaping import bodies
from grokflask.shaping.bodies import asks_for_stream, shape_request
from grokflask.shaping.fields import read_fields
from grokflask.shaping.request import ClientRequest, UpstreamRequest

BY_PATH = {route.path: route for route in ROUTES}
CHAT, IMAGES, VISION = "/chat/completions", "/images/generate", "/vision/analyze"
MESSAGES = [{"role": "user", "content": "hi"}]
RAW_MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
IMAGE_PART = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
PICTURE = [{"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE_PART]}]


def shape(
    body: bytes | Mapping[str, Any],
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    **settings: Any,
) -> UpstreamRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = ClientRequest(BY_PATH[path], "r1", raw, headers=headers)
    return shape_request(request, Settings(**settings))


def sent(request: UpstreamRequest) -> dict[str, Any]:
    """The body that goes upstream."""
    assert request.body is not None
    fields: dict[str, Any] = json.loads(request.body)
    return fields


def refuse(body: bytes | Mapping[str, Any], path: str = CHAT) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        shape(body, path)
    return caught.value


def test_every_shape_has_a_rule() -> None:
    """A route may have any shape of body."""
    assert bodies._RULES.keys() == set(Shape)


# Defaults


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {"messages": MESSAGES}, "chat-x"),
        (CHAT, {"messages": PICTURE}, "vision-x"),
        (VISION, {"image": {"url": "https://example.com/cat.png"}}, "vision-x"),
        (IMAGES, {"prompt": "a cat"}, "image-x"),
        ("/images/generations", {"prompt": "a cat"}, "image-x"),
    ],
)
def test_default_model(path: str, body: dict[str, Any], expected: str, model: dict[str, Any]) -> None:
    """A request without a model gets the one set for its kind; null and "" count as none."""
    request = shape(
        {**model, **body},
        path,
        default_chat_model="chat-x",
        default_vision_model="vision-x",
        default_image_model="image-x",
    )
    assert request.model == sent(request)["model"] == expected


@pytest.mark.parametrize("messages", [MESSAGES, PICTURE])
def test_clients_own_model_is_kept(messages: list[Any]) -> None:
    """The client's model goes upstream, whatever is asked of it."""
    request = shape({"model": "grok-9", "messages": messages})
    assert request.model == sent(request)["model"] == "grok-9"


@pytest.mark.parametrize(
    ("path", "upstream_path"),
    [
        (CHAT, "/chat/completions"),
        (IMAGES, "/images/generations"),
        ("/images/generations", "/images/generations"),
        (VISION, "/chat/completions"),
    ],
)
def test_upstream_path(path: str, upstream_path: str) -> None:
    """Each route has its place upstream."""
    body = {"messages": MESSAGES, "prompt": "x", "image": {"url": "https://example.com/x.png"}}
    request = shape(body, path)
    assert (request.method, request.path) == ("POST", upstream_path)


# Streaming and usage


@pytest.mark.parametrize(
    ("options", "asked", "forwarded"),
    [
        (None, False, {"include_usage": True}),
        ({}, False, {"include_usage": True}),
        ({"include_usage": True}, True, {"include_usage": True}),
        ({"include_usage": False}, False, {"include_usage": True}),
        ({"include_usage": None}, False, {"include_usage": True}),
        ({"other": {"deep": [1.50]}}, False, {"other": {"deep": [1.5]}, "include_usage": True}),
        ({"include_usage": True, "other": None}, True, {"include_usage": True, "other": None}),
    ],
)
def test_usage_is_always_asked_for(options: Any, asked: bool, forwarded: Any) -> None:
    """Upstream is asked for usage; whether the client did is remembered, and its other options stay."""
    for extra in [{"stream_options": options}] + ([{}] if options is None else []):
        request = shape({"messages": MESSAGES, "stream": True, **extra})
        assert request.stream is True
        assert request.wants_usage is asked
        assert sent(request)["stream_options"] == forwarded


@pytest.mark.parametrize("extra", [{}, {"stream": False}, {"stream": None}])
def test_without_streaming_no_usage_option_is_sent(extra: dict[str, Any]) -> None:
    """A whole answer has its usage anyway, and xAI refuses `stream_options` beside it."""
    request = shape({"messages": MESSAGES, **extra, "stream_options": {"include_usage": True}})
    assert (request.stream, request.wants_usage, request.fallback) == (False, False, None)
    assert "stream_options" not in sent(request)
    assert request.dropped == ("stream_options",)
    assert shape({"messages": MESSAGES, **extra}).dropped == ()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": []}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": "x"}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"model": 4}, "model"),
        ({"model": ["grok"]}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": 1}, "messages"),
    ],
)
def test_wrong_type_names_the_parameter(body: dict[str, Any], param: str) -> None:
    """A field that is read here and has the wrong type is a 400 that says which."""
    error = refuse({"messages": MESSAGES, **body})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


def test_missing_messages() -> None:
    """A chat without messages is a 400."""
    error = refuse({"model": "grok-4.3"})
    assert (error.status, error.param) == (400, "messages")
    assert refuse(b'{"messages": [ \n\t ]}').param == "messages"


# Bodies that are no JSON object


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="blank"),
        pytest.param(b"hello", id="text"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"x"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"1", id="number"),
        pytest.param(b"{" + RAW_MESSAGES, id="cut"),
        pytest.param(b"{" + RAW_MESSAGES + b"}}", id="too-much"),
        pytest.param(b"{" + RAW_MESSAGES + b",}", id="trailing-comma"),
        pytest.param(b"{'messages':[1]}", id="single-quotes"),
        pytest.param(b'{"top_p":NaN,' + RAW_MESSAGES + b"}", id="NaN"),
        pytest.param(b'{"top_p":[-Infinity],' + RAW_MESSAGES + b"}", id="infinity"),
        pytest.param(b"\xef\xbb\xbf{" + RAW_MESSAGES + b"}", id="BOM"),
        pytest.param(b'{"x":"a\nb",' + RAW_MESSAGES + b"}", id="raw-newline"),
        pytest.param(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep-list"),
        pytest.param(b'{"x":' * 100_000 + b"1" + b"}" * 100_000, id="deep-object"),
        pytest.param(b'{"\xff":1,' + RAW_MESSAGES + b"}", id="key-not-utf8"),
        pytest.param(b'{"\\ud800":1,' + RAW_MESSAGES + b"}", id="key-half-a-character"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, IMAGES, VISION])
def test_body_that_is_no_json_object(body: bytes, path: str) -> None:
    """Anything but a JSON object is a 400 with a reason, never a crash."""
    error = refuse(body, path)
    assert (error.status, error.code, error.param) == (400, "invalid_request", None)
    assert error.message


@pytest.mark.parametrize(
    ("body", "path"),
    [
        pytest.param(b'{"model":"\xff",' + RAW_MESSAGES + b"}", CHAT, id="model"),
        pytest.param(
            b'{"stream":true,"stream_options":{"\xff":1},' + RAW_MESSAGES + b"}", CHAT, id="stream_options"
        ),
        pytest.param(b'{"prompt":"\xff"}', IMAGES, id="images-prompt"),
        pytest.param(b'{"model":"\xff","prompt":"x"}', IMAGES, id="images-model"),
        pytest.param(
            b'{"prompt":"\xff","image":{"url":"https://example.com/x"}}', VISION, id="vision-prompt"
        ),
        pytest.param(b'{"image":{"url":"https://example.com/\xff"}}', VISION, id="vision-image"),
        pytest.param(b'{"messages":[{"content":[{"type":"\xff image"}]}]}', CHAT, id="part-type"),
    ],
)
def test_field_that_is_not_utf8(body: bytes, path: str) -> None:
    """A field that is read here and is not UTF-8 is the client's fault, not a failure of the gateway."""
    assert refuse(body, path).status == 400


# What passes


@pytest.mark.parametrize(
    "value",
    [
        b"123456789012345678901234567890",
        b"-0",
        b"1.10000000000000000000000000001",
        b"1e400",
        b"1E+2",
        b'"\\u00e9 \\/ \\ud83d\\ude00 \\n"',
        '"ö 世界 👩"'.encode(),
        b'"\\u0000"',
        b'{ "a" : [ 1 , 2.50 ] }',
        b'{"a":1,"a":2}',
        b'{"additionalProperties":false,"x":[]}',
        b"null",
        b"[]",
    ],
)
@pytest.mark.parametrize("name", ["seed", "response_format", "reasoning_effort", "new_in_2031"])
@pytest.mark.parametrize("stream", [b"false", b"true"])
def test_other_fields_pass_byte_for_byte(name: str, value: bytes, stream: bytes) -> None:
    """A field that is not read here reaches upstream as the client wrote it, known or not."""
    body = b'{ "%b" : %b , "stream":%b,%b}' % (name.encode(), value, stream, RAW_MESSAGES)
    request = shape(body)
    assert request.body is not None
    assert b'"%b":%b,' % (name.encode(), value) in request.body
    assert request.dropped == ()


def test_messages_pass_byte_for_byte() -> None:
    """Prompts are forwarded, not read: escapes, spaces and order of fields stay."""
    messages = b'[ {"content" : "a\\u0041 \\"stream\\": true", "role":"user","x":1.0} ,\n{"role":"tool"} ]'
    request = shape(b'{"messages":' + messages + b"}")
    assert request.body is not None
    assert b'"messages":' + messages in request.body


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        (b'"model":"a","model":"b"', "model"),
        (b'"stream":true,"stream":true', "stream"),
        (b'"tools":[],"to\\u006fls":[{"type":"web_search"}]', "tools"),
        (b'"seed":12,"seed":1', "seed"),
        (b'"seed":1, "seed":12', "seed"),
        (b'"a\\"b":{"c":1},"\\u0061\\"b":{"c":1}', 'a"b'),
        ('"é":1,"\\u00e9":1'.encode(), "é"),
    ],
)
@pytest.mark.parametrize("blank", [b"", b" \n"])
def test_duplicate_names(pair: bytes, name: str, blank: bytes) -> None:
    """Of two fields with one name a parser takes the first or the last: such a body is refused."""
    for body in (b"{%b,%b%b}" % (RAW_MESSAGES, blank, pair), b"{%b%b,%b }" % (blank, pair, RAW_MESSAGES)):
        error = refuse(body)
        assert ("twice" in error.message, error.param) == (True, name)
        assert shape(body.replace(pair, b'"seed" : 1 ')).body


def test_escaped_names_are_the_same_names() -> None:
    """Nothing gets past the rules by spelling a name with escapes."""
    request = shape(b'{"\\u006dodel":"grok-4.3","st\\u006fp":["x"],' + RAW_MESSAGES + b"}")
    assert request.model == "grok-4.3"
    assert request.dropped == ("stop",)
    assert "stop" not in sent(request)


# What is dropped

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
SAMPLING = {"presence_penalty": 0, "frequency_penalty": 0.5, "logit_bias": {"1": 2}}
STOP = {"stop": ["x"]}


@pytest.mark.parametrize(
    ("model", "dropped"),
    [
        ("grok-4.3", [*SAMPLING, *STOP]),
        ("grok-4.7", [*SAMPLING, *STOP]),
        ("grok-4", [*SAMPLING, *STOP]),
        ("grok-4-1-fast-reasoning", [*SAMPLING, *STOP]),
        ("grok-3-mini", [*SAMPLING, *STOP]),
        ("grok-code-fast-1", [*SAMPLING, *STOP]),
        ("grok-build-0.1", [*SAMPLING, *STOP]),
        ("grok-4-1-fast-non-reasoning", [*SAMPLING]),
        ("grok-4.20-0309-non-reasoning", [*SAMPLING]),
        ("grok-3", [*SAMPLING]),
        ("grok-3-fast", [*SAMPLING]),
        ("grok-2-1212", []),
        ("grok-2-vision-1212", []),
        ("grok-beta", []),
        ("grok-vision-beta", []),
        ("another-model", []),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_parameters_that_a_model_refuses(model: str, dropped: list[str], stream: bool) -> None:
    """Penalties (even 0), logit_bias and stop are dropped for the models that answer them with a 400."""
    request = shape({"model": model, "messages": MESSAGES, "stream": stream, "top_p": 1, **SAMPLING, **STOP})
    assert sorted(request.dropped) == sorted(dropped)
    left = {"top_p": 1, **SAMPLING, **STOP}
    assert {name: sent(request).get(name) for name in left} == {
        name: None if name in dropped else value for name, value in left.items()
    }


def test_dropping_follows_the_default_model() -> None:
    """The model that counts is the one that is asked, also when the client named none."""
    assert shape({"messages": MESSAGES, **STOP}, default_chat_model="grok-4.3").dropped == ("stop",)
    assert shape({"messages": MESSAGES, **STOP}, default_chat_model="grok-3").dropped == ()


@pytest.mark.parametrize("model", ["grok-4.3", "grok-2", "another-model"])
@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"tools": []}, ["tools"]),
        ({"tools": None}, ["tools"]),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, ["*"]),
        ({"tool_choice": "none"}, ["tool_choice"]),
        ({"tool_choice": None}, ["tool_choice"]),
        ({"parallel_tool_calls": False}, ["parallel_tool_calls"]),
        ({"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}, []),
        ({"tools": TOOLS}, []),
    ],
)
def test_tool_controls_without_tools(model: str, fields: dict[str, Any], dropped: list[str]) -> None:
    """Empty tools, and what steers tools that are not there, are dropped for every model."""
    request = shape({"model": model, "messages": MESSAGES, **fields})
    expected = list(fields) if dropped == ["*"] else dropped
    assert sorted(request.dropped) == sorted(expected)
    kept = {name: value for name, value in sent(request).items() if name in fields}
    assert kept == {name: value for name, value in fields.items() if name not in expected}


def test_blank_inside_empty_tools() -> None:
    """`[ ]` is as empty as `[]`."""
    assert shape(b'{"tools":[ \n ],' + RAW_MESSAGES + b"}").dropped == ("tools",)


def test_dropping_can_be_turned_off() -> None:
    """With GROKFLASK_DROP_PARAMS=false the client's parameters go upstream as they are."""
    fields = {"tools": [], "tool_choice": "auto", **SAMPLING, **STOP}
    request = shape({"messages": MESSAGES, **fields}, drop_params=False)
    assert request.dropped == ()
    assert {name: sent(request)[name] for name in fields} == fields


def test_nothing_is_dropped_that_was_not_sent() -> None:
    """A plain request has nothing to report."""
    assert shape({"model": "grok-4.3", "messages": MESSAGES, "temperature": 0}).dropped == ()


# Vision in chat


def parts(*content: Any) -> list[Any]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": list(content)}]


TEXT_PART = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("messages", "has_image"),
    [
        pytest.param(PICTURE, True, id="image_url"),
        pytest.param(parts(TEXT_PART, {"type": "input_image", "image_url": "x"}), True, id="input_image"),
        pytest.param([*PICTURE, {"role": "assistant", "content": "a cat"}, *MESSAGES], True, id="earlier"),
        pytest.param(parts(TEXT_PART), False, id="text-parts"),
        pytest.param(parts(), False, id="no-parts"),
        pytest.param([{"role": "user", "content": "what is an image_url?"}], False, id="word-in-text"),
        pytest.param(parts({"type": "text", "text": '{"type":"image_url"}'}), False, id="word-in-a-part"),
        pytest.param(parts({"type": "file", "file": {"name": "image_url"}}), False, id="word-in-a-file"),
        pytest.param(
            [{"role": "assistant", "content": None, "tool_calls": [{"name": "image_url"}]}],
            False,
            id="null-content",
        ),
        pytest.param([{"role": "assistant", "name": "image_url"}], False, id="no-content"),
        pytest.param([{"role": "user", "content": "\u00e9"}], False, id="escapes"),
    ],
)
def test_what_is_vision(messages: list[Any], has_image: bool) -> None:
    """Only a part whose type says so is a picture; text about pictures streams."""
    request = shape({"messages": messages, "stream": True})
    assert request.fallback == ("vision" if has_image else None)
    assert request.stream is not has_image
    assert sent(request)["messages"] == messages


@pytest.mark.parametrize(
    "kind",
    [b"im\\u0061ge_url", b"\\u0069mage_url", b"\\u0069\\u006d\\u0061\\u0067\\u0065_url", b"image\\u005furl"],
)
def test_escaped_spelling_of_an_image_part(kind: bytes) -> None:
    """JSON may spell the type with escapes; it is a picture all the same."""
    request = shape(b'{"stream":true,"messages":[{"role":"user","content":[{"type":"%b"}]}]}' % kind)
    assert request.fallback == "vision"


def test_fallback_keeps_everything_else() -> None:
    """A vision request that wanted a stream is asked whole: all its messages and parameters still go."""
    body = {
        "model": "grok-9",
        "messages": [*MESSAGES, *PICTURE],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 7,
        "tools": TOOLS,
        "unknown": {"a": 1},
    }
    request = shape(body)
    expected = {**body, "stream": False}
    del expected["stream_options"]  # refused beside stream: false
    assert sent(request) == expected
    assert (request.stream, request.wants_usage, request.fallback) == (False, False, "vision")
    assert request.dropped == ()


def test_vision_without_streaming_is_no_fallback() -> None:
    """Nothing was changed, so nothing is said."""
    assert shape({"messages": PICTURE}).fallback is None


def test_vision_can_be_streamed() -> None:
    """With GROKFLASK_VISION_STREAM=stream a chat with pictures streams as any other."""
    request = shape({"messages": PICTURE, "stream": True}, vision_stream="stream")
    assert (request.stream, request.fallback) == (True, None)
    assert sent(request)["stream_options"] == {"include_usage": True}
    assert sent(request)["messages"] == PICTURE


@pytest.mark.parametrize("messages", [["image"], [1, "image"], [[{"type": "image_url"}]]])
def test_messages_that_are_no_objects(messages: list[Any]) -> None:
    """Messages that are no objects go upstream, which says what is wrong with them."""
    assert sent(shape({"messages": messages}))["messages"] == messages


def test_parts_that_are_no_objects_hide_no_picture() -> None:
    """One odd part does not keep the others from being seen."""
    messages = [{"role": "user", "content": ["an image", 7, PICTURE[-1]["content"][-1]]}]
    assert shape({"messages": [*messages, *PICTURE], "stream": True}).fallback == "vision"


def test_body_that_is_not_utf8_below_the_top_level() -> None:
    """Bytes that are no UTF-8 are refused wherever they stand, before they cost a request."""
    body = b'{"messages":[{"role":"user","content":"\xff"}]}'
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        read_fields(body)


# /vision/analyze


def test_vision_analyze_keeps_other_parameters() -> None:
    """What is not the picture or the question is a parameter of the chat."""
    body = {
        "image": {"url": "https://example.com/cat.png"},
        "prompt": "what?",
        "detail": "high",
        "max_tokens": 5,
        "temperature": 0,
        "user": "u",
    }
    fields = sent(shape(body, VISION))
    assert sorted(fields) == ["max_tokens", "messages", "model", "temperature", "user"]
    assert (fields["max_tokens"], fields["temperature"], fields["user"]) == (5, 0, "u")
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "high"}}
    assert fields["messages"] == [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]


@pytest.mark.parametrize("vision_stream", ["fallback", "stream"])
def test_vision_analyze_never_streams(vision_stream: str) -> None:
    """Its answer is one JSON object of the gateway's own, whatever is asked."""
    body = {
        "image": {"url": "https://example.com/cat.png"},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = shape(body, VISION, vision_stream=vision_stream)
    assert (request.stream, request.fallback, request.dropped) == (False, "vision", ())
    assert not {"stream", "stream_options"} & sent(request).keys()
    assert shape({**body, "stream": False}, VISION).fallback is None


def test_vision_analyze_drops_what_its_model_refuses() -> None:
    """The chat's rules hold for it."""
    body = {"image": {"url": "https://example.com/cat.png"}, **STOP}
    assert shape(body, VISION).dropped == ("stop",)


# Images


@pytest.mark.parametrize("path", [IMAGES, "/images/generations"])
@pytest.mark.parametrize(
    ("extra", "fallback", "dropped"),
    [
        ({}, None, ()),
        ({"stream": True}, "images", ()),
        ({"stream": True, "partial_images": 2}, "images", ()),
        ({"stream": False}, None, ("stream",)),
        ({"partial_images": 2}, None, ("partial_images",)),
    ],
)
def test_images_never_stream(
    path: str, extra: dict[str, Any], fallback: str | None, dropped: tuple[str, ...]
) -> None:
    """Image models do not stream; a request for a stream gets a whole answer, and the fallback says so."""
    body = {"prompt": "a cat", "n": 2, "response_format": "b64_json", "unknown": [1]}
    request = shape({**body, **extra}, path)
    assert sent(request) == {**body, "model": "grok-imagine-image"}
    assert (request.stream, request.fallback, request.dropped) == (False, fallback, dropped)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "model": 1}, "model"),
    ],
)
def test_image_request_that_cannot_be_served(body: dict[str, Any], param: str) -> None:
    """A missing or wrong field is a 400 that names it."""
    error = refuse(body, IMAGES)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("n", "images"),
    [
        (None, 1),
        (1, 1),
        (10, 10),
        (0, 1),
        (-3, 1),
        (True, 1),
        ("5", 1),
        (129, 128),
        (10**18, 128),
        (10**30, 128),
    ],
)
def test_what_images_may_cost(n: Any, images: int) -> None:
    """The price of one times `n`, which cannot exceed what the ledger can hold."""
    estimate = shape({"prompt": "x", "n": n}, IMAGES).estimate
    assert estimate.ticks == estimate.prompt_ticks == images * 200_000_000


@pytest.mark.parametrize(
    ("fields", "output_tokens"),
    [
        ({}, 2048),
        ({"max_tokens": 100}, 1124),
        ({"max_tokens": 100, "max_completion_tokens": 7}, 1031),
        ({"max_tokens": 100, "max_completion_tokens": None}, 1124),
        ({"max_tokens": 100, "reasoning_effort": "none"}, 100),
        ({"max_tokens": 5000}, 2048),
        ({"max_tokens": -1}, 2048),
        ({"model": "grok-4.20-0309-non-reasoning", "max_tokens": 100}, 100),
        ({"model": "grok-4.20-0309-non-reasoning", "max_tokens": 0}, 0),
        ({"n": 3}, 3 * 2048),
        ({"n": 10**30, "max_tokens": 10**30}, 128 * 2048),
    ],
)
def test_what_an_answer_may_need(fields: dict[str, Any], output_tokens: int) -> None:
    """Usual text or the cap if that is lower, with usual reasoning where the model reasons, times `n`."""
    assert (
        shape({"messages": [{"role": "user", "content": "hi"}], **fields}).estimate.output_tokens
        == output_tokens
    )


# Headers and paths


def test_only_listed_headers_go_upstream() -> None:
    """The client's key, cookies and address stay here; the header that pins a prompt's cache goes."""
    headers = {
        "authorization": "Bearer alice-secret",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "x-request-id": "r",
        "accept-encoding": "gzip",
        "x-grok-conv-id": "conv-1",
        "openai-organization": "o",
    }
    assert shape({"messages": MESSAGES}, headers=headers).headers == {"x-grok-conv-id": "conv-1"}
    assert shape({"messages": MESSAGES}).headers == {}


def test_get_without_body() -> None:
    """A list has no body, and a body that came along is not looked at."""
    request = shape(b"not json", "/models")
    assert (request.method, request.path, request.body) == ("GET", "/models", None)
    assert (request.stream, request.model) == (False, "")


@pytest.mark.parametrize("model_id", ["grok-4.3", "grok-4-0709", "a", "a..b", "ft:grok@1_2", "9"])
def test_model_id_in_the_path(model_id: str) -> None:
    """A model's name takes its place in upstream's path."""
    request = ClientRequest(BY_PATH["/models/<model_id>"], "r1", model_id=model_id)
    shaped = shape_request(request, Settings())
    assert (shaped.path, shaped.model, shaped.body) == (f"/models/{model_id}", model_id, None)


@pytest.mark.parametrize(
    "model_id",
    [
        *(
            "",
            ".",
            "..",
            "%2e%2e",
            "..%2f",
            "a/b",
            "a\\b",
            "a%2fb",
            "a b",
            "a?b",
            "a#b",
            "a;b",
            "a\n",
            "\u00e4",
        ),
        *("{model_id}", "{0}", "-a", "a" * 201, "a\x00"),
    ],
)
def test_model_id_that_could_leave_its_place(model_id: str) -> None:
    """What could reach another path upstream is a 404 here."""
    request = ClientRequest(BY_PATH["/models/<model_id>"], "r1", model_id=model_id)
    with pytest.raises(RouteNotFoundError) as caught:
        shape_request(request, Settings())
    assert caught.value.status == 404


# The shape of errors


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (b'{"stream":true}', True),
        (b'{"stream" : true , "messages": 5}', True),
        (b'{"str\\u0065am":true}', True),
        (b'{"stream":false,"stream":true}', True),
        (b'{"stream":false}', False),
        (b'{"stream":"true"}', None),
        (b'{"stream":null}', False),
        (b'{"a":{"stream":true}}', False),
        (b"{}", False),
        (b'[{"stream":true}]', None),
        (b'{"stream":true', None),
        (b"", None),
        (b"\xff", None),
        (b'{"\xff":1,"stream":true}', None),
        (b'{"stream":true,"x":' + b"[" * 100_000, None),
        pytest.param(b'{"stream" :true,"x":' + b"[" * 2**20, True, id="large-begin"),
        pytest.param(b'{"x":[' + b"{}," * 2**20 + b'1],"stream": true}', True, id="large-end"),
        pytest.param(b'{"x":"' + b" " * 2**20 + b'\\"stream\\":true"}', None, id="large-text"),
    ],
)
def test_whether_a_refused_body_asked_for_a_stream(body: bytes, asks: bool | None) -> None:
    """An error takes a stream's shape when the body asked for one, however little else of it is right.

    A body that does not say is None.
    """
    assert asks_for_stream(body) is asks
