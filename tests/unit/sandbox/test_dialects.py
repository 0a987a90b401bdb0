"""The sandbox's Responses and Messages routes: shapes, order, usage, and what is charged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from support.scripted import WAIT_S

from grokflask.sandbox import Exchange, Sandbox
from grokflask.sandbox.models import cost_ticks

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
RESPONSES, MESSAGES = "/responses", "/messages"
HELLO: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": "grok-4.7", "input": "Hello there"},
    MESSAGES: {
        "model": "grok-4.7",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Hello there"}],
    },
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def post(sandbox: Sandbox, path: str, **fields: Any) -> requests.Response:
    body = {**HELLO.get(path, HELLO[RESPONSES]), **fields}
    return requests.post(sandbox.base_url + path, json=body, timeout=WAIT_S)


def stream(sandbox: Sandbox, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, [DONE] left out."""
    reply = post(sandbox, path, stream=True, **fields)
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def note(sandbox: Sandbox, number: int) -> Exchange:
    """What was noted of the exchange with this number."""
    return sandbox.journal.wait_until_idle()[number - 1]


def test_a_response_is_told_in_the_order_of_recordings(sandbox: Sandbox) -> None:
    """Each item is added, told in pieces and done; events are numbered; the last has the whole."""
    events = stream(sandbox, RESPONSES)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event["type"] for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.completed",
    ]
    told = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert told == last["output"][1]["content"][0]["text"]
    assert last["usage"]["cost_in_usd_ticks"] == note(sandbox, 1).cost_ticks


def test_streamed_or_not_a_response_is_the_same(sandbox: Sandbox) -> None:
    """Words, usage and charge do not depend on how they are told."""
    whole = post(sandbox, RESPONSES).json()
    streamed = stream(sandbox, RESPONSES)[-1]["response"]
    assert whole["usage"] == streamed["usage"]
    assert whole["output"][1]["content"] == streamed["output"][1]["content"]
    assert note(sandbox, 1).cost_ticks == note(sandbox, 2).cost_ticks


def test_usage_of_a_response_has_reasoning_inside(sandbox: Sandbox) -> None:
    """total = input + output, reasoning is a part of the output, the price is the list's."""
    usage = post(sandbox, RESPONSES).json()["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert usage["cost_in_usd_ticks"] == cost_ticks("grok-4.7", usage["input_tokens"], usage["output_tokens"])


@pytest.mark.parametrize("streams", [False, True])
def test_tools_of_xais_are_counted_and_paid(sandbox: Sandbox, streams: bool) -> None:
    """A search costs half a cent beside the tokens, is counted, and is an item of its own."""
    plain = post(sandbox, RESPONSES).json()["usage"]["cost_in_usd_ticks"]
    tools = [{"type": "web_search"}, FUNCTION]
    choice = {"tools": tools, "tool_choice": {"type": "function", "name": "get_weather"}}
    if streams:
        reply = stream(sandbox, RESPONSES, tools=tools[:1])[-1]["response"]
    else:
        reply = post(sandbox, RESPONSES, tools=tools[:1]).json()
    assert reply["usage"]["num_server_side_tools_used"] == 1
    assert reply["usage"]["server_side_tool_usage_details"]["web_search_calls"] == 1
    assert reply["usage"]["cost_in_usd_ticks"] == plain + 50_000_000 == note(sandbox, 2).cost_ticks
    assert [item["type"] for item in reply["output"]] == ["web_search_call", "reasoning", "message"]
    assert post(sandbox, RESPONSES, **choice).json()["output"][-1]["name"] == "get_weather"


def test_a_conversation_by_previous_response(sandbox: Sandbox) -> None:
    """A call of a function is answered in a request that only names the response before."""
    first = post(sandbox, RESPONSES, tools=[FUNCTION]).json()
    call = first["output"][-1]
    assert json.loads(call["arguments"])["city"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    second = post(sandbox, RESPONSES, input=[output], previous_response_id=first["id"]).json()
    assert "sunny" in second["output"][-1]["content"][0]["text"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_what_is_stored_can_be_fetched_and_deleted(sandbox: Sandbox) -> None:
    """A response is kept unless the request says no; deleted, it is a 404 to everything."""
    made = post(sandbox, RESPONSES).json()
    unkept = post(sandbox, RESPONSES, store=False).json()
    url = f"{sandbox.base_url}/responses/"
    assert requests.get(url + made["id"], timeout=WAIT_S).json() == made
    assert requests.get(url + unkept["id"], timeout=WAIT_S).status_code == 404
    deleted = requests.delete(url + made["id"], timeout=WAIT_S).json()
    assert deleted == {"id": made["id"], "object": "response", "deleted": True}
    assert requests.get(url + made["id"], timeout=WAIT_S).status_code == 404
    assert requests.delete(url + made["id"], timeout=WAIT_S).status_code == 404
    assert post(sandbox, RESPONSES, previous_response_id=made["id"]).status_code == 404


def test_a_cap_ends_a_response_as_incomplete(sandbox: Sandbox) -> None:
    """`max_output_tokens` has reasoning in it; what it cuts says why."""
    events = stream(sandbox, RESPONSES, max_output_tokens=60)
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens"] == 60


def test_a_compacted_conversation_can_be_sent_back(sandbox: Sandbox) -> None:
    """Compaction gives one opaque item, which stands in a later input for what it was made of."""
    compact = post(sandbox, "/responses/compact").json()
    assert compact["object"] == "response.compaction"
    (item,) = compact["output"]
    assert compact["usage"]["cost_in_usd_ticks"] == note(sandbox, 1).cost_ticks
    follow = [item, {"role": "user", "content": "And now?"}]
    assert post(sandbox, RESPONSES, input=follow).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"instructions": "x", "previous_response_id": "nothing"}, 404),
        ({"tools": []}, 400),
        ({"tool_choice": "auto"}, 400),
        ({"tools": [{"type": "web_search", "search_context_size": "low"}]}, 400),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, 400),
        ({"max_output_tokens": 0}, 400),
        ({"input": [{"role": "nobody", "content": "x"}]}, 422),
        ({"input": 7}, 422),
        ({"input": [{"role": "user", "content": [7]}]}, 422),
        ({"input": [{"type": "compaction", "encrypted_content": "?"}]}, 400),
        ({"model": "nothing"}, 404),
    ],
)
def test_what_a_response_is_refused_for(sandbox: Sandbox, fields: dict[str, Any], status: int) -> None:
    """Flat errors, as xAI's reference and reports have them."""
    reply = post(sandbox, RESPONSES, **fields)
    assert (reply.status_code, set(reply.json())) == (status, {"code", "error"})


def test_a_message_is_told_with_names(sandbox: Sandbox) -> None:
    """Each event is named after its type; the end is message_stop, and nothing comes behind it."""
    reply = post(sandbox, MESSAGES, stream=True)
    blocks = [block.split("\n") for block in reply.text.strip().split("\n\n")]
    names = [lines[0].removeprefix("event: ") for lines in blocks]
    assert names == [json.loads(lines[1][6:])["type"] for lines in blocks]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-2:] == ["message_delta", "message_stop"]


def test_usage_of_a_message(sandbox: Sandbox) -> None:
    """The four documented figures, equal to what is charged, streamed or not."""
    whole = post(sandbox, MESSAGES).json()["usage"]
    events = stream(sandbox, MESSAGES)
    assert events[-2]["usage"] == whole
    noted = note(sandbox, 2)
    assert (noted.prompt_tokens, noted.output_tokens) == (whole["input_tokens"], whole["output_tokens"])
    assert noted.cost_ticks == cost_ticks("grok-4.7", whole["input_tokens"], whole["output_tokens"])


def test_a_tool_of_a_message(sandbox: Sandbox) -> None:
    """A block of type tool_use, whose input comes in pieces of JSON; its result is quoted."""
    tools = [{"name": "get_weather", "input_schema": SCHEMA}]
    events = stream(sandbox, MESSAGES, tools=tools, metadata={"user_id": "sandbox-split-tools"})
    pieces = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    told = "".join(piece.get("partial_json", "") for piece in pieces)
    whole = post(sandbox, MESSAGES, tools=tools).json()
    (use,) = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert json.loads(told) == use["input"]
    assert whole["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "sunny"}]}
    turns = [
        *HELLO[MESSAGES]["messages"],
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [result]},
    ]
    answer = post(sandbox, MESSAGES, messages=turns, tools=tools).json()
    assert "sunny" in answer["content"][-1]["text"]
    assert answer["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"messages": [{"role": "nobody", "content": "x"}]}, 422),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "x"}}]}]}, 422),
        ({"messages": []}, 400),
        ({"stop_sequences": ["x"]}, 400),
        ({"model": "nothing"}, 404),
    ],
)
def test_what_a_message_is_refused_for(sandbox: Sandbox, fields: dict[str, Any], status: int) -> None:
    """Flat errors: of others on this route nothing is known."""
    reply = post(sandbox, MESSAGES, **fields)
    assert (reply.status_code, set(reply.json())) == (status, {"code", "error"})


@pytest.mark.parametrize(("path", "end"), [(RESPONSES, "response.completed"), (MESSAGES, "message_stop")])
@pytest.mark.parametrize("fault", ["sandbox-truncated", "sandbox-no-done", "sandbox-drop-fin"])
def test_faults_leave_out_the_end(sandbox: Sandbox, path: str, end: str, fault: str) -> None:
    """The fault models cut these streams as well, and are charged for what was sent."""
    reply = requests.post(
        sandbox.base_url + path,
        json={**HELLO[path], "model": fault, "stream": True},
        stream=True,
        timeout=WAIT_S,
    )
    got = b""
    try:
        for data in reply.iter_content(None):
            got += data
    except requests.exceptions.ChunkedEncodingError:
        assert fault == "sandbox-drop-fin"
    assert end.encode() not in got
    noted = sandbox.journal.wait_for(lambda exchange: exchange.model == fault)
    assert noted.outcome == "fault"
    assert noted.cost_ticks == cost_ticks("grok-4.3", noted.prompt_tokens, noted.output_tokens)
