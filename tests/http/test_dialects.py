"""Responses and Messages by Flask's test client over a scripted upstream: owners, keys, errors, fallbacks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.kept import Door, door
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from support.scripted import USAGE as CHAT_USAGE
from support.scripted import Exchange, ScriptedUpstream, chat_chunk

from grokflask.gateway import MAX_LISTED_VALUES

__all__ = ["door"]

ALICE = {"Authorization": f"Bearer {CLIENT_KEY}"}
BOB = {"Authorization": "Bearer bob-secret-key-1"}
JSON_ACCEPT = {"Accept": "application/json"}
RESPONSES, MESSAGES, CHAT = "/api/v1/responses", "/v1/messages", "/v1/chat/completions"
TURNS = [{"role": "user", "content": "hello"}]
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "cost_in_usd_ticks": 8750}
RESPONSE = {"id": "resp-1", "object": "response", "model": "grok-4.3", "output": [], "error": None}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "model": "grok-4.3",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


def tell_response(exchange: Exchange, kind: str = "completed", **fields: Any) -> None:
    """A short stream of Responses."""
    exchange.start()
    exchange.event({"type": "response.created", "response": RESPONSE})
    exchange.event({"type": "response.output_text.delta", "delta": "Once"})
    exchange.event({"type": f"response.{kind}", "response": {**RESPONSE, "usage": USAGE, **fields}})
    exchange.end()


def answer(exchange: Exchange) -> None:
    """Whatever is asked, of either API."""
    if exchange.method == "DELETE":
        exchange.reply({"id": "resp-1", "object": "response", "deleted": True})
    elif exchange.method == "GET" or not exchange.document.get("stream"):
        whole = MESSAGE if exchange.path.endswith("messages") else {**RESPONSE, "usage": USAGE}
        exchange.reply(whole)
    else:
        tell_response(exchange)


@pytest.fixture
def both(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> FlaskClient:
    """The app with keys for alice and bob."""
    upstream.handler = answer
    return make_client(GROKFLASK_KEYS=f"alice:{CLIENT_KEY},bob:bob-secret-key-1")


def post(client: FlaskClient, path: str, headers: dict[str, str], **body: Any) -> Any:
    reply = client.post(path, json=body, headers=headers)
    reply.get_data()
    reply.close()  # as a server does, once all is written
    return reply


@pytest.mark.parametrize("streams", [False, True])
def test_a_stored_response_is_its_makers(
    both: FlaskClient, upstream: ScriptedUpstream, streams: bool
) -> None:
    """Another key gets a 404 from all that takes its id, and upstream hears nothing of it."""
    made = post(both, RESPONSES, ALICE, input="hello", stream=streams)
    assert made.status_code == 200
    upstream.exchanges.clear()
    for reply in (
        both.get(f"{RESPONSES}/resp-1", headers=BOB),
        both.delete(f"{RESPONSES}/resp-1", headers=BOB),
        post(both, RESPONSES, BOB, input="hello", previous_response_id="resp-1"),
        post(both, f"{RESPONSES}/compact", BOB, previous_response_id="resp-1"),
        both.get(f"{RESPONSES}/resp-2", headers=ALICE),
    ):
        assert (reply.status_code, reply.json["error"]["code"]) == (404, "not_found")
    assert upstream.exchanges == []
    assert both.get(f"{RESPONSES}/resp-1", headers=ALICE).json["id"] == "resp-1"
    assert post(both, RESPONSES, ALICE, input="hello", previous_response_id="resp-1").status_code == 200
    assert both.delete(f"{RESPONSES}/resp-1", headers=ALICE).json["deleted"]
    assert both.get(f"{RESPONSES}/resp-1", headers=ALICE).status_code == 404
    assert [exchange.path for exchange in upstream.exchanges] == [
        "/v1/responses/resp-1",
        "/v1/responses",
        "/v1/responses/resp-1",
    ]


def test_what_is_not_stored_is_nobodys(both: FlaskClient) -> None:
    """With `store: false` there is nothing to come back to."""
    post(both, RESPONSES, ALICE, input="hello", store=False)
    assert both.get(f"{RESPONSES}/resp-1", headers=ALICE).status_code == 404


def test_a_response_that_is_fetched_costs_nothing(both: FlaskClient) -> None:
    """The usage that it tells was paid when it was made."""
    post(both, RESPONSES, ALICE, input="hello")
    both.get(f"{RESPONSES}/resp-1", headers=ALICE)
    usage = both.get("/v1/usage", headers=ALICE).json
    assert [row["cost_ticks"] for row in usage["recent"]] == [0, 8750]
    assert usage["spent"]["day_ticks"] == 8750


def test_without_the_database_answers_are_given_all_the_same(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """An owner that cannot be noted loses the id, not the answer; one that cannot be looked up is a 503."""
    upstream.handler = answer
    client = make_client(DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:9/none")
    assert post(client, RESPONSES, ALICE, input="hello").json["id"] == "resp-1"
    streamed = post(client, RESPONSES, ALICE, input="hello", stream=True)
    assert streamed.data.endswith(b"data: [DONE]\n\n")
    reply = client.get(f"{RESPONSES}/resp-1", headers=ALICE)
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "store_unavailable")


@pytest.mark.parametrize("path", ["/responses/../models", "/responses/%2e%2e", "/responses/a%2Fb"])
def test_an_id_steers_nothing(both: FlaskClient, upstream: ScriptedUpstream, path: str) -> None:
    """No id leads to another of upstream's paths."""
    assert both.get(f"/v1{path}", headers=ALICE).status_code == 404
    assert upstream.exchanges == []


def test_the_stream_of_a_response(both: FlaskClient, logged: io.StringIO) -> None:
    """Data only, [DONE] behind the last event, and the ledger's figures from it."""
    reply = post(both, RESPONSES, {**ALICE, "X-Request-ID": "r1"}, input="hello", stream=True)
    lines = reply.data.decode().strip().split("\n\n")
    assert [json.loads(line[6:])["type"] for line in lines[:-1]] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    assert lines[-1] == "data: [DONE]"
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert (row["outcome"], row["cost_ticks"], row["total_tokens"], row["estimated"]) == (
        "complete",
        8750,
        5,
        False,
    )
    assert (row["route"], row["model_served"]) == ("responses", "grok-4.3")


def test_server_side_tools_are_in_the_ledger(both: FlaskClient, upstream: ScriptedUpstream) -> None:
    """How often xAI's own tools were called stands in the row."""
    usage = {**USAGE, "num_server_side_tools_used": 3}
    upstream.handler = lambda exchange: tell_response(exchange, usage=usage)
    post(both, RESPONSES, ALICE, input="hello", stream=True)
    upstream.handler = lambda exchange: exchange.reply({**RESPONSE, "usage": usage})
    post(both, RESPONSES, ALICE, input="hello")
    rows = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert [row["server_tools"] for row in rows] == [3, 3]


def chat_usages(exchange: Exchange, *usages: Any) -> None:
    """A chat of ten words whose usage comes in several chunks."""
    exchange.start()
    for _ in range(10):
        exchange.event(chat_chunk("word "))
    for usage in usages:
        exchange.event(chat_chunk("", choices=[], usage=usage))
    exchange.event("[DONE]")
    exchange.end()


@pytest.mark.parametrize(
    "odd",
    [
        {"prompt_tokens": 3.0, "completion_tokens": 2.2, "total_tokens": 5, "cost_in_usd_ticks": 8750.0},
        {**CHAT_USAGE, "prompt_tokens_details": [], "completion_tokens_details": 7},
        {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 2**64}, "num_sources_used": "none"},
    ],
)
@pytest.mark.parametrize("last", [None, {}, [], {"prompt_tokens": 0, "cost_in_usd_ticks": 0}])
def test_odd_usage_of_a_chat(both: FlaskClient, upstream: ScriptedUpstream, odd: Any, last: Any) -> None:
    """Each figure is read for itself, and what is known stays, in whatever chunk it came."""
    usages = [odd, *([] if last is None else [last])]
    upstream.handler = lambda exchange: chat_usages(exchange, *usages)
    post(both, CHAT, ALICE, messages=TURNS, stream=True)
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    known = ("outcome", "prompt_tokens", "completion_tokens", "total_tokens", "cost_ticks", "estimated")
    assert [row[name] for name in known] == ["complete", 3, 2, 5, 8750, False]


def test_usage_in_several_chunks(both: FlaskClient, upstream: ScriptedUpstream) -> None:
    """They are put together."""
    parts = [{name: figure} for name, figure in CHAT_USAGE.items()]
    upstream.handler = lambda exchange: chat_usages(exchange, *parts)
    post(both, CHAT, ALICE, messages=TURNS, stream=True)
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    known = ("prompt_tokens", "completion_tokens", "total_tokens", "cost_ticks", "estimated")
    assert [row[name] for name in known] == [3, 2, 5, 8750, False]


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"output_tokens": "many"}}])
def test_a_message_that_does_not_tell_its_output(
    both: FlaskClient, upstream: ScriptedUpstream, usage: dict[str, Any]
) -> None:
    """It is booked by its events, as an estimate: before, only the prompt was."""

    def tell(exchange: Exchange) -> None:
        exchange.start()
        exchange.event({"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 3}}})
        for _ in range(10):
            exchange.event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word "}})
        exchange.event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **usage})
        exchange.event({"type": "message_stop"})
        exchange.end()

    upstream.handler = tell
    post(both, MESSAGES, ALICE, messages=TURNS, max_tokens=100, stream=True)
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert (row["outcome"], row["prompt_tokens"], row["estimated"]) == ("complete", 3, True)
    assert row["completion_tokens"] >= 10
    assert row["cost_ticks"] >= 3 * 12_500 + 10 * 25_000


def test_a_cancelled_response_is_complete(both: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Its last event is an end, with its usage."""
    upstream.handler = lambda exchange: tell_response(exchange, "cancelled")
    reply = post(both, RESPONSES, ALICE, input="hello", stream=True)
    assert reply.data.endswith(b"data: [DONE]\n\n")
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert (row["outcome"], row["cost_ticks"], row["estimated"]) == ("complete", 8750, False)


def test_a_failed_response(both: FlaskClient, upstream: ScriptedUpstream) -> None:
    """It is upstream's failure, though the client got it as upstream told it, and is paid as told."""
    error = {"code": "server_error", "message": f"Team key {UPSTREAM_KEY} failed."}
    upstream.handler = lambda exchange: tell_response(exchange, "failed", error=error)
    reply = post(both, RESPONSES, ALICE, input="hello", stream=True)
    last = json.loads(reply.data.decode().strip().split("\n\n")[-1][6:])
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "Team key [redacted] failed."}
    upstream.handler = lambda exchange: exchange.reply({**RESPONSE, "status": "failed", "error": error})
    whole = post(both, RESPONSES, ALICE, input="hello")
    assert (whole.status_code, whole.json["status"]) == (200, "failed")
    assert UPSTREAM_KEY not in whole.text + reply.text
    rows = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert (rows[1]["outcome"], rows[1]["code"], rows[1]["cost_ticks"]) == (
        "upstream_error",
        "server_error",
        8750,
    )


def test_a_cut_response_says_so(both: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Within the stream, in the shape that Accept asks for, and without [DONE]."""

    def cut(exchange: Exchange) -> None:
        exchange.start()
        exchange.event({"type": "response.created", "response": RESPONSE})
        exchange.end()

    upstream.handler = cut
    message = "The upstream API ended the stream before it was complete."
    own = {"type": "error", "sequence_number": 1, "code": "stream_truncated", "message": message}
    for accept, error in (
        ({}, f"API error: {message}"),
        (
            JSON_ACCEPT,
            {"message": message, "type": "server_error", "param": None, "code": "stream_truncated"},
        ),
    ):
        reply = post(both, RESPONSES, {**ALICE, **accept}, input="hello", stream=True)
        events = reply.data.decode().strip().split("\n\n")
        assert json.loads(events[-1][6:]) == {**own, "param": None, "error": error}
        assert len(events) == 2


QUOTES = f"Incorrect API key provided: {UPSTREAM_KEY}"


@pytest.mark.parametrize("size", [1, 2**20])
@pytest.mark.parametrize(
    ("path", "document"),
    [
        (
            RESPONSES,
            {**RESPONSE, "status": "failed", "error": {"message": "bad", "details": {"why": QUOTES}}},
        ),
        (RESPONSES, {**RESPONSE, "output": [{"error": [QUOTES]}]}),
        (MESSAGES, {**MESSAGE, "errors": [{"message": QUOTES}]}),
        (CHAT, {"model": "grok-4.3", "choices": [{"error": {"message": QUOTES}}]}),
    ],
)
def test_the_key_is_in_no_answer(
    both: FlaskClient, upstream: ScriptedUpstream, path: str, document: dict[str, Any], size: int
) -> None:
    """Wherever xAI quotes it in a whole reply, small or in a file, or in an event. All else is unchanged."""
    document = {**document, "filler": "x" * size}

    def quote(exchange: Exchange) -> None:
        if not exchange.document.get("stream"):
            exchange.reply(document)
            return
        exchange.start()
        kind = {RESPONSES: "response.failed", MESSAGES: "message_delta"}.get(path, "")
        exchange.event(
            {"type": kind, "response": document} if path == RESPONSES else {**document, "type": kind}
        )
        exchange.end()

    upstream.handler = quote
    body = {"input": "hello"} if path == RESPONSES else {"messages": TURNS, "max_tokens": 9}
    whole = post(both, path, ALICE, **body)
    assert whole.json == json.loads(json.dumps(document).replace(UPSTREAM_KEY, "[redacted]"))
    assert int(whole.headers["Content-Length"]) == len(whole.data)
    reply = post(both, path, ALICE, **body, stream=True)
    assert UPSTREAM_KEY not in reply.text
    assert "[redacted]" in reply.text


@pytest.mark.parametrize("path", ["/api/v1/files", "/api/v1/batches", "/api/v1/models"])
def test_a_list_of_too_many(both: FlaskClient, upstream: ScriptedUpstream, path: str) -> None:
    """What would become very many objects is not read."""
    for count, status in ((MAX_LISTED_VALUES + 1, 502), (MAX_LISTED_VALUES, 200)):
        body = b'{"data":[' + b"0," * count + b"0]}"
        upstream.handler = lambda exchange, body=body: exchange.reply(body, 200)  # type: ignore[misc]
        assert both.get(path, headers=ALICE).status_code == status


def test_a_file_is_its_owners(door: Door) -> None:
    """Its content is not changed, whatever is in it."""
    id = door.call("POST", "files", data={"file": (io.BytesIO(QUOTES.encode()), "a.txt")}).json["id"]
    assert door.call("GET", f"files/{id}/content").text == QUOTES


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_pictures_are_answered_whole(both: FlaskClient, upstream: ScriptedUpstream, path: str) -> None:
    """As JSON, with the header that says so."""
    part = {"type": "input_image", "image_url": "https://example.org/cat.png"}
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    content = [part if path == RESPONSES else image]
    field = "input" if path == RESPONSES else "messages"
    reply = post(both, path, ALICE, stream=True, **{field: [{"role": "user", "content": content}]})
    assert (reply.status_code, reply.content_type) == (200, "application/json")
    assert reply.headers["X-Stream-Fallback"] == "vision"
    assert upstream.exchanges[0].document["stream"] is False


@pytest.mark.parametrize(
    "headers",
    [
        ALICE,
        {"x-api-key": CLIENT_KEY},
        {"X-Api-Key": CLIENT_KEY, "Authorization": "Bearer of-some-other-place"},
    ],
)
def test_keys_of_the_messages_route(
    both: FlaskClient, upstream: ScriptedUpstream, headers: dict[str, str]
) -> None:
    """A key may come as Anthropic's SDKs send it; upstream gets the gateway's, and in the other header."""
    assert post(both, MESSAGES, headers, messages=TURNS).status_code == 200
    sent = upstream.exchanges[0].headers
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert "x-api-key" not in sent
    (row,) = both.get("/v1/usage", headers=ALICE).json["recent"]
    assert (row["key"], row["route"], row["total_tokens"]) == ("alice", "messages", 5)


@pytest.mark.parametrize("path", ["/v1/chat/completions", RESPONSES, "/v1/models", "/v1/usage"])
def test_that_header_is_nothing_elsewhere(both: FlaskClient, path: str) -> None:
    """On every other route only Authorization counts."""
    method = "GET" if path in ("/v1/models", "/v1/usage") else "POST"
    reply = both.open(path, method=method, headers={"x-api-key": CLIENT_KEY}, json={})
    assert reply.status_code == 401


def test_a_clients_own_key_goes_upstream(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """Where each client brings its own xAI key, it may bring it in either header."""
    upstream.handler = answer
    client = make_client(GROKFLASK_AUTH="passthrough", GROKFLASK_KEYS="", XAI_API_KEY="")
    assert post(client, MESSAGES, {"x-api-key": "xai-my-own"}, messages=TURNS).status_code == 200
    assert upstream.exchanges[0].headers["authorization"] == "Bearer xai-my-own"


@pytest.mark.parametrize("accept", [{}, JSON_ACCEPT, {"Accept": "text/event-stream"}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("headers", "body", "status", "kind"),
    [
        ({"x-api-key": "wrong"}, {"messages": TURNS}, 401, "authentication_error"),
        ({"x-api-key": ""}, {"messages": TURNS}, 401, "authentication_error"),
        ({"x-api-key": "a\tb"}, {"messages": TURNS}, 401, "authentication_error"),
        ({}, {"messages": TURNS}, 401, "authentication_error"),
        (ALICE, {"messages": []}, 400, "invalid_request_error"),
        (ALICE, {"messages": TURNS, "model": "refused"}, 429, "rate_limit_error"),
    ],
)
def test_errors_of_the_messages_route(
    both: FlaskClient,
    upstream: ScriptedUpstream,
    headers: dict[str, str],
    body: dict[str, Any],
    status: int,
    kind: str,
    stream: bool,
    accept: dict[str, str],
) -> None:
    """Anthropic's object with the status, whatever the client accepts, streaming or not."""
    refusal = {"code": "resource-exhausted", "error": "Too many requests."}
    upstream.handler = lambda exchange: exchange.reply(refusal, 429, "Retry-After: 7")
    reply = post(both, MESSAGES, {**headers, **accept}, **body, stream=stream)
    assert (reply.status_code, reply.content_type) == (status, "application/json")
    assert set(reply.json) == {"type", "error"}
    assert reply.json["type"] == "error"
    assert set(reply.json["error"]) == {"type", "message"}
    assert reply.json["error"]["type"] == kind
    assert ("Retry-After" in reply.headers) == (status == 429)
    assert reply.headers["X-Request-ID"]


def test_limits_hold_on_the_new_routes(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """Requests are counted together with those of all routes, and refused in each API's shape."""
    upstream.handler = answer
    client = make_client(GROKFLASK_RATE_LIMIT="2/hour")
    assert post(client, RESPONSES, ALICE, input="hello").status_code == 200
    assert post(client, MESSAGES, ALICE, messages=TURNS).status_code == 200
    refused = post(client, MESSAGES, ALICE, messages=TURNS)
    assert (refused.status_code, refused.json["error"]["type"]) == (429, "rate_limit_error")
    refused = post(client, RESPONSES, {**ALICE, **JSON_ACCEPT}, input="hello", stream=True)
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["Retry-After"]) > 0


def test_methods_of_a_stored_response(both: FlaskClient) -> None:
    """What the table does not have is a 405 that says what there is."""
    reply = post(both, f"{RESPONSES}/resp-1", ALICE, input="hello")
    assert reply.status_code == 405
    assert set(reply.headers["Allow"].split(", ")) >= {"GET", "DELETE"}
    assert both.get(f"{RESPONSES}/compact", headers=ALICE).status_code == 404
