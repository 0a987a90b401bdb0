"""The sandbox's chat route: shapes, order of chunks, usage and cost, tools, and what it refuses."""

import itertools
import json
import time
from collections.abc import Iterator
from email.message import Message
from typing import Any

import openai
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import WAIT_S

from grokflask.sandbox import Sandbox
from grokflask.sandbox.chat_request import Message as ChatMessage
from grokflask.sandbox.models import CHAT_MODELS, cost_ticks
from grokflask.sandbox.plans import PLANNERS
from grokflask.sandbox.refusals import RefusalError
from grokflask.sandbox.request import Request, State

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Tell me a story about a whale"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def ask(sandbox: Sandbox, **fields: Any) -> requests.Response:
    body = {"model": "grok-4.3", "messages": HELLO, **fields}
    return requests.post(sandbox.base_url + "/chat/completions", json=body, timeout=WAIT_S)


def stream(sandbox: Sandbox, **fields: Any) -> list[dict[str, Any]]:
    """Return the chunks of a stream that must end with [DONE]."""
    reply = ask(sandbox, stream=True, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert "Content-Length" not in reply.headers
    events = reply.content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(delta.get("content", "") for delta in deltas(chunks))


def test_a_reply_has_the_recorded_shape(sandbox: Sandbox) -> None:
    """A reply that is not streamed has these keys and no others."""
    reply = ask(sandbox).json()
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert reply["object"] == "chat.completion"
    assert set(reply["choices"][0]) == {"index", "message", "finish_reason"}
    assert set(reply["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert reply["choices"][0]["message"]["refusal"] is None
    assert reply["system_fingerprint"].startswith("fp_")
    assert len(reply["system_fingerprint"]) == 13


def test_a_stream_has_the_recorded_order_and_absent_keys(sandbox: Sandbox) -> None:
    """The first chunk has role and first token; finish_reason and usage are absent until their own chunks."""
    chunks = stream(sandbox, stream_options={"include_usage": True})
    *told, finish, usage = chunks
    assert set(told[0]["choices"][0]["delta"]) == {"role", "content"}
    assert told[0]["choices"][0]["delta"]["content"]
    for chunk in told[1:]:
        assert set(chunk["choices"][0]) == {"index", "delta"}
        assert set(chunk["choices"][0]["delta"]) == {"content"}
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert all("usage" not in chunk for chunk in chunks[:-1])
    for key in ("id", "model", "system_fingerprint", "object"):
        assert len({chunk[key] for chunk in chunks}) == 1


def test_a_stream_without_include_usage_ends_with_the_finish(sandbox: Sandbox) -> None:
    """Unasked, no chunk carries usage and none has empty choices."""
    chunks = stream(sandbox)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_created_moves_with_the_clock() -> None:
    """`created` is the second in which a chunk was made, not that of the request."""
    seconds = itertools.count(1_000.0)
    with Sandbox(events_per_s=0, clock=lambda: next(seconds)) as sandbox:
        created = [chunk["created"] for chunk in stream(sandbox)]
    assert created == list(range(1_000, 1_000 + len(created)))


def test_stream_and_reply_tell_the_same(sandbox: Sandbox) -> None:
    """The same messages give the same words whether streamed or not, and other messages give others."""
    whole = ask(sandbox).json()["choices"][0]["message"]["content"]
    assert text_of(stream(sandbox)) == whole
    other = ask(sandbox, messages=[{"role": "user", "content": "Another story"}]).json()
    assert other["choices"][0]["message"]["content"] != whole


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_cap_on_tokens_ends_with_length(sandbox: Sandbox, field: str) -> None:
    """Capped at five tokens, five are sent, and finish_reason says length."""
    chunks = stream(sandbox, stream_options={"include_usage": True}, **{field: 5})
    assert len([delta for delta in deltas(chunks) if "content" in delta]) == 5
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    "model", ["grok-3-mini", "grok-4.7", "grok-4.20-0309-reasoning", "grok-4-fast-reasoning"]
)
def test_reasoning_comes_first_and_is_counted_apart(sandbox: Sandbox, model: str) -> None:
    """Models that show reasoning send it before the content; its tokens lie outside completion_tokens."""
    chunks = stream(sandbox, model=model, stream_options={"include_usage": True})
    kinds = [next(iter(set(delta) - {"role"}), "") for delta in deltas(chunks)]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["reasoning_content", "content", ""]
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == kinds.count("content")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == kinds.count("reasoning_content")
    parts = usage["prompt_tokens"] + kinds.count("content") + kinds.count("reasoning_content")
    assert usage["total_tokens"] == parts


@pytest.mark.parametrize("model", ["grok-4.3", "grok-4-fast-non-reasoning", "grok-4.20-0309-non-reasoning"])
def test_other_models_show_no_reasoning(sandbox: Sandbox, model: str) -> None:
    """No reasoning_content appears where a model does not reason aloud."""
    assert all("reasoning_content" not in delta for delta in deltas(stream(sandbox, model=model)))


def test_silent_reasoning_is_counted(sandbox: Sandbox) -> None:
    """grok-4.6 shows no reasoning but reports and bills it."""
    reply = ask(sandbox, model="grok-4.6").json()
    assert "reasoning_content" not in reply["choices"][0]["message"]
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_effort_none_stops_the_reasoning(sandbox: Sandbox) -> None:
    """reasoning_effort none is taken by grok-4.3."""
    usage = ask(sandbox, reasoning_effort="none").json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


def test_cost_agrees_with_recorded_bills() -> None:
    """The price table gives, to the tick, what two recorded grok-3-mini answers were billed."""
    assert cost_ticks("grok-3-mini", 12, 1 + 290, cached_tokens=11) == 1_466_250
    assert cost_ticks("grok-3-mini", 291, 26 + 196, cached_tokens=290) == 1_330_500


def test_a_long_prompt_doubles_every_price() -> None:
    """From 200,000 prompt tokens on, all tokens cost twice as much."""
    assert cost_ticks("grok-4.7", 199_999, 10) == 199_999 * 20_000 + 10 * 60_000
    assert cost_ticks("grok-4.7", 200_000, 10) == 2 * (200_000 * 20_000 + 10 * 60_000)


def test_usage_states_its_cost(sandbox: Sandbox) -> None:
    """cost_in_usd_ticks is prompt and output at the price of the model that served."""
    usage = ask(sandbox, model="grok-4").json()["usage"]
    output = usage["total_tokens"] - usage["prompt_tokens"]
    assert usage["cost_in_usd_ticks"] == usage["prompt_tokens"] * 12_500 + output * 25_000


@pytest.mark.parametrize("model", CHAT_MODELS)
def test_every_model_answers_as_what_serves_it(sandbox: Sandbox, model: str) -> None:
    """Retired ids answer, with the name of the model that took over."""
    assert ask(sandbox, model=model).json()["model"] == CHAT_MODELS[model].served


def test_retired_ids_redirect() -> None:
    """grok-4 and grok-3 go to grok-4.3, grok-code-fast-1 to grok-build-0.1."""
    assert [CHAT_MODELS[name].served for name in ("grok-4", "grok-3", "grok-code-fast-1")] == [
        "grok-4.3",
        "grok-4.3",
        "grok-build-0.1",
    ]


def test_a_tool_is_called_in_one_chunk(sandbox: Sandbox) -> None:
    """A whole call comes in one delta, with arguments that fit the schema, and finish_reason tool_calls."""
    messages = [{"role": "user", "content": "What is the weather in Lisbon tomorrow?"}]
    chunks = stream(sandbox, messages=messages, tools=[WEATHER])
    calls = [call for delta in deltas(chunks) for call in delta.get("tool_calls", [])]
    assert [set(call) for call in calls] == [{"id", "index", "type", "function"}]
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"]["name"] == "get_weather"
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Lisbon", "days": 2}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_reply_with_a_tool_call_has_empty_content(sandbox: Sandbox) -> None:
    """Not streamed, a tool call has no index and stands beside an empty string."""
    choice = ask(sandbox, tools=[WEATHER]).json()["choices"][0]
    assert choice["message"]["content"] == ""
    assert set(choice["message"]["tool_calls"][0]) == {"id", "type", "function"}
    assert choice["finish_reason"] == "tool_calls"


def test_tool_choice_names_the_tool_or_none(sandbox: Sandbox) -> None:
    """A named function is the one called; with none there is prose."""
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named = ask(
        sandbox, tools=[WEATHER, other], tool_choice={"type": "function", "function": {"name": "other"}}
    )
    assert named.json()["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "other",
        "arguments": "{}",
    }
    assert ask(sandbox, tools=[WEATHER], tool_choice="none").json()["choices"][0]["message"]["content"]


def test_a_tools_result_is_quoted(sandbox: Sandbox) -> None:
    """After a tool's answer there is prose that repeats it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees and drizzle"},
    ]
    chunks = stream(sandbox, messages=messages, tools=[WEATHER])
    assert "18 degrees and drizzle" in text_of(chunks)


def test_structured_answers_are_json(sandbox: Sandbox) -> None:
    """json_object gives an object, json_schema one with the schema's fields."""
    plain = ask(sandbox, response_format={"type": "json_object"}).json()["choices"][0]["message"]["content"]
    assert isinstance(json.loads(plain), dict)
    schema = {"name": "x", "schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
    shaped = ask(sandbox, response_format={"type": "json_schema", "json_schema": schema}).json()
    assert set(json.loads(shaped["choices"][0]["message"]["content"])) == {"city", "days"}


def test_stop_cuts_where_it_is_taken(sandbox: Sandbox) -> None:
    """A model that does not reason ends before a stop sequence."""
    whole = ask(sandbox, model="grok-3").json()["choices"][0]["message"]["content"]
    cut = ask(sandbox, model="grok-3", stop=["."]).json()["choices"][0]["message"]["content"]
    assert cut == whole.partition(".")[0]


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"presence_penalty": 0}, "presencePenalty"),
        ({"frequency_penalty": 0.5}, "frequencyPenalty"),
        ({"model": "grok-3", "presence_penalty": 0}, "presencePenalty"),
        ({"model": "grok-4.20-0309-non-reasoning", "presence_penalty": 0}, "presencePenalty"),
        ({"stop": ["x"]}, "stop"),
        ({"model": "grok-4.7", "stop": ["x"]}, "stop"),
        ({"model": "grok-3", "stop": list("abcde")}, "stop"),
        ({"tool_choice": "auto"}, "tool_choice was set on the request but no tools"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": []}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
        ({"model": "grok-4", "reasoning_effort": "low"}, "reasoningEffort"),
        ({"model": "grok-3", "reasoning_effort": "low"}, "reasoningEffort"),
        ({"model": "grok-4-fast-reasoning", "reasoning_effort": "low"}, "reasoningEffort"),
        ({"model": "grok-4.7", "reasoning_effort": "none"}, "reasoningEffort"),
        ({"model": "grok-4.5", "reasoning_effort": "xhigh"}, "reasoningEffort"),
        ({"model": "grok-3-mini", "reasoning_effort": "medium"}, "reasoningEffort"),
        ({"temperature": 2.5}, "temperature"),
        ({"n": 2}, "n must be"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content element"),
    ],
)
def test_what_xai_refuses_is_refused(sandbox: Sandbox, fields: dict[str, Any], fragment: str) -> None:
    """A value or an argument that the model does not take is a flat 400 that names it."""
    reply = ask(sandbox, **fields)
    assert reply.status_code == 400
    assert set(reply.json()) == {"code", "error"}
    assert fragment in reply.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "hello"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"temperature": "warm"},
        {"stream": "yes"},
        {"max_tokens": 1.5},
        {"model": None},
        {"tools": [{"type": "function", "function": {"name": "x"}}]},
    ],
)
def test_wrong_types_are_422(sandbox: Sandbox, fields: dict[str, Any]) -> None:
    """A missing field or a wrong type is a flat 422."""
    reply = ask(sandbox, **fields)
    assert reply.status_code == 422
    assert set(reply.json()) == {"code", "error"}


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none"},
        {"model": "grok-4.7", "reasoning_effort": "xhigh"},
        {"model": "grok-3-mini", "reasoning_effort": "high"},
        {"logit_bias": {}, "logprobs": True, "seed": 4, "user": "u", "surprise": [1]},
        {"presence_penalty": None, "stop": None, "tools": None, "tool_choice": None},
    ],
)
def test_what_xai_takes_is_taken(sandbox: Sandbox, fields: dict[str, Any]) -> None:
    """Known arguments, unknown ones, and nulls pass."""
    assert ask(sandbox, **fields).status_code == 200


def test_an_unknown_model_does_not_exist(sandbox: Sandbox) -> None:
    """An id that nobody serves is a flat 404, an image model and an unknown fault too."""
    for model in ("gpt-4", "grok-imagine-image", "sandbox-nonsense", "sandbox-crlf-3"):
        reply = ask(sandbox, model=model)
        assert reply.status_code == 404
        assert f"The model {model} does not exist or your team" in reply.json()["error"]


def test_openais_client_streams_from_it(sandbox: Sandbox) -> None:
    """OpenAI's own client reads a stream, tools and usage included."""
    with openai.OpenAI(base_url=sandbox.base_url, api_key="any", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="grok-4.3",
                messages=[{"role": "user", "content": "Tell me a story about a whale"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[-1].usage
        assert chunks[-1].usage.total_tokens > 80
        told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert told == ask(sandbox).json()["choices"][0]["message"]["content"]


def test_openais_client_sees_a_bad_request(sandbox: Sandbox) -> None:
    """OpenAI's client raises BadRequestError for a wrong key, because xAI answers 400."""
    with openai.OpenAI(base_url=sandbox.base_url, api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="sandbox-wrong-key", messages=[{"role": "user", "content": "x"}]
            )
        assert "grok-4.7" in [model.id for model in client.models.list()]


WORDS = st.sampled_from(
    [
        "type",
        "function",
        "properties",
        "items",
        "$ref",
        "#/",
        "anyOf",
        "enum",
        "format",
        "json_schema",
        "schema",
        "object",
    ]
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def plan(fields: dict[str, Any]) -> int:
    """Return how many steps an answer to such a request has, 0 if it is refused."""
    body = json.dumps({"model": "grok-4.3", "messages": HELLO, **fields}).encode()
    try:
        request = Request(CHAT, "", Message(), body, "", "", State(0, None, lambda: 0.0))
        return len(list(PLANNERS[CHAT](request).steps))
    except RefusalError:
        return 0


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "tools", "tool_choice", "stop", "stream"]), ANYTHING
    )
)
def test_any_field_is_answered_or_refused(fields: dict[str, Any]) -> None:
    """Whatever JSON stands in a field, the request is answered or refused, and nothing breaks."""
    plan(fields)


@given(ANYTHING, ANYTHING, st.booleans())
def test_any_schema_is_answered_or_refused(schema: Any, choice: Any, stream: bool) -> None:
    """Schemas of tools and of structured answers, and tool_choice, may be any JSON."""
    function = {"name": "f", "parameters": {"properties": {"x": schema}}}
    assert plan({"tools": [{"type": "function", "function": function}], "stream": stream})
    plan({"tools": [{"type": "function", "function": function}], "tool_choice": {"function": choice}})
    plan({"response_format": {"type": "json_schema", "json_schema": schema}})
    plan({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})


def test_deep_json_is_refused(sandbox: Sandbox) -> None:
    """Nesting beyond all reason is a 400."""
    body = b'{"model":"grok-4.3","messages":[],"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    url = sandbox.base_url + "/chat/completions"
    reply = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=WAIT_S)
    assert reply.status_code == 400


def test_the_pictures_of_a_text() -> None:
    """There are none, and it is not looked at."""

    class Text(str):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError

    assert ChatMessage("user", Text("hello")).image_urls() == []


def test_a_long_prompt_gives_turns(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are counted one by one, and other threads run in between; a list of so many is refused."""
    turns: list[int] = []
    monkeypatch.setattr(time, "sleep", turns.append)
    text = "a. " * 50_000
    usage = ask(sandbox, messages=[{"role": "user", "content": text}]).json()["usage"]
    assert usage["prompt_tokens"] == 100_005  # with the last blank, and 4 for the message
    assert len(turns) >= 20
    turns.clear()
    many = [{"role": "user", "content": "a"}] * 20_000
    assert ask(sandbox, messages=many).json()["usage"]["prompt_tokens"] == 100_000
    assert len(turns) >= 20
    turns.clear()
    reply = requests.post(
        f"{sandbox.base_url}/tokenize-text", json={"model": "grok-4.3", "text": text}, timeout=WAIT_S
    )
    assert len(reply.json()["token_ids"]) == 100_001
    assert len(turns) >= 20
    reply = requests.post(
        f"{sandbox.base_url}/tokenize-text", json={"model": "grok-4.3", "text": 2 * text}, timeout=WAIT_S
    )
    assert reply.status_code == 400
    assert "too long" in reply.json()["error"]
