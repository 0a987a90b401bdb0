"""What a client may send and what comes back, by Flask's test client over a scripted upstream."""

from __future__ import annotations

import gc
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY, UPSTREAM_KEY, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk, reply_story

from grokflask.shaping.request import ClientRequest, UpstreamRequest

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
JSON_ACCEPT = {"Accept": "application/json"}
CHAT = "/api/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
IMAGE_PART = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


def ask(client: FlaskClient, path: str = CHAT, headers: dict[str, str] | None = None, **body: Any) -> Any:
    reply = client.post(path, json=body, headers={**AUTH, **(headers or {})})
    reply.get_data()
    reply.close()  # as a server does, once all is written
    return reply


@pytest.mark.parametrize("prefix", ["/api/v1", "/v1"])
def test_both_prefixes_serve_chat(client: FlaskClient, prefix: str) -> None:
    """The same routes stand under /api/v1 and /v1."""
    reply = ask(client, f"{prefix}/chat/completions", messages=MESSAGES)
    assert reply.status_code == 200
    assert reply.json["choices"][0]["message"]["content"] == "Once upon"


def test_whole_reply_is_byte_for_byte(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A JSON answer is not re-encoded: odd spacing, escapes and big numbers survive."""
    body = b'{ "id":"x",  "big": 123456789012345678901234567890, "f": 1.10, "s":"\\u00e9", "choices":[{}] }\n'
    upstream.handler = lambda exchange: exchange.reply(body)
    reply = ask(client, messages=MESSAGES)
    assert reply.data == body
    assert reply.content_type == "application/json"


def test_stream_headers(client: FlaskClient) -> None:
    """A stream is marked so that no proxy stores, packs or buffers it."""
    reply = ask(client, messages=MESSAGES, stream=True)
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-cache, no-transform"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in reply.headers
    assert reply.data.endswith(b"data: [DONE]\n\n")


def test_usage_is_asked_for_and_withheld(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Upstream is asked for usage; a client that did not ask never sees the event without choices."""
    reply = ask(client, messages=MESSAGES, stream=True)
    assert upstream.exchanges[0].document["stream_options"] == {"include_usage": True}
    assert b'"choices": []' not in reply.data
    assert reply.data.count(b"data: ") == 4


def test_usage_is_passed_on_when_asked_for(client: FlaskClient) -> None:
    """`stream_options.include_usage: true` brings the usage-only event."""
    reply = ask(client, messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    assert b'"choices": []' in reply.data


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1", 404, "not_found"),
        ("POST", "/api/v1/chat/completions/", 404, "not_found"),
        ("POST", "/api//v1/chat/completions", 404, "not_found"),
        ("POST", "/api/v1/audio/speech", 404, "not_found"),
        ("GET", "/api/v1/models/a/b", 404, "not_found"),
        ("GET", "/api/v1/models/%2e%2e", 404, "not_found"),
        ("GET", "/api/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_what_does_not_exist(client: FlaskClient, method: str, path: str, status: int, code: str) -> None:
    """Paths and methods outside the table get JSON errors, never HTML or a redirect."""
    reply = client.open(path, method=method, headers=AUTH)
    assert (reply.status_code, reply.json["error"]["code"]) == (status, code)
    if status == 405:
        assert reply.headers["Allow"]
    assert reply.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("body", "media_type", "status", "param"),
    [
        (b"{not json", "application/json", 400, None),
        (b"", "application/json", 400, None),
        (b"[1]", "application/json", 400, None),
        (b'{"messages": NaN}', "application/json", 400, None),
        (b"{}", "application/json", 400, "messages"),
        (b'{"messages": []}', "application/json", 400, "messages"),
        (b'{"messages": "hi"}', "application/json", 400, "messages"),
        (b'{"messages": [{}], "stream": "yes"}', "application/json", 400, "stream"),
        (b'{"messages": [{}], "model": 7}', "application/json", 400, "model"),
        (
            b'{"messages": [{}], "stream": true, "stream_options": 1}',
            "application/json",
            400,
            "stream_options",
        ),
        (b'{"messages": [{}]}', "text/plain", 415, None),
        (b'{"messages": [{}]}', "application/x-www-form-urlencoded", 415, None),
        (b'{"messages":' + b"[" * 100_000, "application/json", 400, None),
    ],
)
def test_bad_bodies(
    client: FlaskClient,
    upstream: ScriptedUpstream,
    body: bytes,
    media_type: str,
    status: int,
    param: str | None,
) -> None:
    """A bad body is refused with the parameter's name, and costs nothing upstream."""
    reply = client.post(CHAT, data=body, content_type=media_type, headers={**AUTH, **JSON_ACCEPT})
    assert reply.status_code == status
    assert reply.json["error"]["param"] == param
    assert reply.json["error"]["message"]
    assert upstream.exchanges == []


def test_body_limit_by_length(make_client: Callable[..., FlaskClient]) -> None:
    """A body whose stated length passes the limit is refused."""
    client = make_client(GROKFLASK_MAX_BODY_BYTES="2000")
    reply = ask(client, messages=[{"role": "user", "content": "x" * 3000}])
    assert (reply.status_code, reply.json["error"]["code"]) == (413, "body_too_large")
    stream = {"stream": True, "messages": [{"role": "user", "content": "x" * 3000}]}
    assert client.post(CHAT, json=stream, headers={"Authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages", "images/generate", "batches"])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b'"' + b"word " * 5000 + b'"', 413),
        (b'{"url":"' + b"x" * 25_000 + b'"}', 413),
        (b"[" + b"1," * 2000 + b"1]", 400),
        (b'[{"file_id":1},' + b"[" * 300 + b"]" * 300 + b"]", 400),
        (b'[{"file_id":"a","b":1,"b":2}]', 400),
        (b'[{"file_id":"\\ud800"}]', 400),
    ],
)
def test_limits_of_json(
    make_client: Callable[..., FlaskClient],
    upstream: ScriptedUpstream,
    path: str,
    text: bytes,
    status: int,
) -> None:
    """A body with too much JSON is refused in the form of its API, before it is decoded."""
    client = make_client(GROKFLASK_MAX_JSON_BYTES="20000", GROKFLASK_MAX_JSON_ELEMENTS="1000")
    headers = {**AUTH, **JSON_ACCEPT}
    reply = client.post(
        f"/v1/{path}", data=b'{"x":1,"messages":%b}' % text, content_type="application/json", headers=headers
    )
    error = reply.json["error"]
    assert (reply.status_code, bool(error["message"])) == (status, True), reply.json
    if path == "messages":
        assert error["type"] == ("request_too_large" if status == 413 else "invalid_request_error")
    elif b"file_id" not in text:
        code = "body_too_large" if status == 413 else "invalid_request"
        assert (error["param"], error["code"]) == ("messages", code)
    assert upstream.exchanges == []


def test_base64_is_not_counted(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """A picture may be as large as the body."""
    client = make_client(GROKFLASK_MAX_JSON_BYTES="20000")
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000}}
    messages = [{"role": "user", "content": [part]}]
    assert ask(client, messages=messages).status_code == 200
    assert upstream.exchanges[0].document["messages"] == messages


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong-key", f"Basic {CLIENT_KEY}", CLIENT_KEY]
)
def test_keys_are_required(
    client: FlaskClient, upstream: ScriptedUpstream, authorization: str | None
) -> None:
    """Without a known key: 401 with WWW-Authenticate, and upstream hears nothing."""
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = client.post(CHAT, json={"messages": MESSAGES}, headers=headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (401, "invalid_api_key")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert upstream.exchanges == []


def test_clients_key_stays_here(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Upstream gets the server's key; the client's own headers stay behind, but for the one allowed."""
    headers = {
        "X-Grok-Conv-Id": "conv-1",
        "Cookie": "session=1",
        "X-Forwarded-For": "6.6.6.6",
        "X-Custom": CLIENT_KEY,
        "Accept-Encoding": "gzip",
        "User-Agent": "tester",
    }
    ask(client, headers=headers, messages=MESSAGES)
    got = upstream.exchanges[0].headers
    assert got["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert got["x-grok-conv-id"] == "conv-1"
    assert got["accept-encoding"] == "identity"
    assert not {"cookie", "x-forwarded-for", "x-custom"} & set(got)
    assert "tester" not in got["user-agent"]
    assert CLIENT_KEY not in json.dumps(got)


def test_passthrough_sends_the_clients_key(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """In passthrough mode each client pays with its own xAI key."""
    client = make_client(XAI_API_KEY="", GROKFLASK_KEYS="", GROKFLASK_AUTH="passthrough")
    reply = client.post(CHAT, json={"messages": MESSAGES}, headers={"Authorization": "Bearer xai-mine"})
    assert reply.status_code == 200
    assert upstream.exchanges[0].headers["authorization"] == "Bearer xai-mine"


def test_open_mode_needs_no_key(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """In open mode anybody may call, and a bearer that is sent is ignored."""
    client = make_client(GROKFLASK_KEYS="", GROKFLASK_AUTH="open")
    assert client.post(CHAT, json={"messages": MESSAGES}).status_code == 200
    assert upstream.exchanges[0].headers["authorization"] == f"Bearer {UPSTREAM_KEY}"


def test_response_headers_by_allow_list(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Upstream's cookies, CORS and proxy headers do not reach the client; its request id does, renamed."""
    headers = (
        "Set-Cookie: __cf_bm=1",
        "CF-Ray: 1",
        "Access-Control-Allow-Origin: *",
        "X-Request-Id: up-1",
        "Server: x",
    )
    upstream.handler = lambda exchange: exchange.reply({"choices": [{}]}, 200, *headers)
    reply = ask(client, messages=MESSAGES)
    for name in ("Set-Cookie", "CF-Ray", "Access-Control-Allow-Origin", "Server"):
        assert name not in reply.headers
    assert reply.headers["X-Upstream-Request-ID"] == "up-1"
    assert reply.headers["X-Request-ID"] != "up-1"


def test_odd_upstream_headers_are_left_out(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A header whose name or value the server would choke on is dropped, not the whole response."""
    odd = ("Retry-After: 1\x01", "X-RateLimit-A: \xe9", "X-RateLimit-(B): 1", 'X-RateLimit-"C": 1')
    upstream.handler = lambda exchange: exchange.reply({"choices": [{}]}, 200, *odd, "X-RateLimit-D: 1")
    reply = ask(client, messages=MESSAGES)
    assert reply.status_code == 200
    assert not [header for header in odd if header.partition(":")[0] in reply.headers]
    assert reply.headers["X-RateLimit-D"] == "1"


def test_refusals_are_logged(client: FlaskClient, logged: io.StringIO) -> None:
    """A request that never became an exchange has one line as well, with its code."""
    client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Request-ID": "r-401"})
    client.post(CHAT, data="x", headers={**AUTH, "X-Request-ID": "r-415"})
    lines = [line for line in logged.getvalue().splitlines() if "msg=refused" in line]
    assert all(text in lines[0] for text in ("request_id=r-401", "code=invalid_api_key", "who=127.0.0.1"))
    assert all(text in lines[1] for text in ("key=alice", "code=unsupported_media_type"))
    assert "who=" not in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(("hops", "statuses"), [("0", [200, 429, 429]), ("1", [200, 429, 200])])
def test_proxies_are_believed_as_told(
    make_client: Callable[..., FlaskClient], hops: str, statuses: list[int]
) -> None:
    """X-Forwarded-For counts only from as many proxies as are trusted, from the right."""
    client = make_client(
        GROKFLASK_KEYS="",
        GROKFLASK_AUTH="open",
        GROKFLASK_RATE_LIMIT="1/hour",
        GROKFLASK_TRUSTED_PROXIES=hops,
    )
    seen = [
        client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Forwarded-For": chain}).status_code
        for chain in ("6.6.6.6, 10.0.0.1", "7.7.7.7, 10.0.0.1", "6.6.6.6, 10.0.0.2")
    ]
    assert seen == statuses


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-123_x.y:z", True), ("", False), ("a" * 129, False), ("a b", False), ("é", False)]
)
def test_request_id(client: FlaskClient, sent: str, kept: bool) -> None:
    """A sane X-Request-ID of the client's is kept; anything else is replaced."""
    reply = ask(client, headers={"X-Request-ID": sent.encode("utf-8").decode("latin-1")}, messages=MESSAGES)
    assert (reply.headers["X-Request-ID"] == sent) is kept
    assert reply.headers["X-Request-ID"]


def test_default_models(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A request that names no model gets the default of its kind."""
    upstream.handler = reply_story
    ask(client, messages=MESSAGES)
    ask(client, messages=[{"role": "user", "content": [IMAGE_PART]}])
    ask(client, "/api/v1/images/generate", prompt="a cat")
    ask(client, "/api/v1/vision/analyze", image={"url": "https://example.org/cat.png"})
    models = [exchange.document["model"] for exchange in upstream.exchanges]
    assert models == ["grok-4.3", "grok-4.3", "grok-imagine-image", "grok-4.3"]


def test_dropped_parameters_are_named(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """What xAI refuses is dropped and named; what nobody knows passes."""
    reply = ask(
        client,
        model="grok-4.3",
        messages=MESSAGES,
        tools=[],
        tool_choice="auto",
        frequency_penalty=0,
        unknown={"a": 1},
    )
    assert reply.headers["X-Params-Dropped"] == "tools, tool_choice, frequency_penalty"
    assert set(upstream.exchanges[0].document) == {"model", "messages", "unknown"}


@pytest.mark.parametrize("stream", [False, True])
def test_another_model_answers(
    client: FlaskClient, upstream: ScriptedUpstream, logged: io.StringIO, stream: bool
) -> None:
    """A header names it, and the log says so once for each key and model; the ledger's line has both."""
    for asked in ("grok-2", "grok-2", "grok-4.3"):
        reply = ask(client, messages=MESSAGES, stream=stream, model=asked)
        assert reply.status_code == 200
        assert reply.headers.get("X-Model-Served") == (None if asked == "grok-4.3" else "grok-4.3")
    lines = logged.getvalue().splitlines()
    told = [line for line in lines if "another model answers" in line]
    assert len(told) == 1
    assert "key=alice model=grok-2 model_served=grok-4.3" in told[0]
    assert sum("model=grok-2 model_served=grok-4.3" in line for line in lines) == 3


def test_dropping_can_be_turned_off(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """With GROKFLASK_DROP_PARAMS=false everything goes upstream as it came."""
    reply = ask(make_client(GROKFLASK_DROP_PARAMS="false"), messages=MESSAGES, frequency_penalty=0)
    assert "X-Params-Dropped" not in reply.headers
    assert upstream.exchanges[0].document["frequency_penalty"] == 0


def test_vision_in_chat_falls_back(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Image parts with `stream: true` are answered whole; messages and parameters survive."""
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [IMAGE_PART]}]
    reply = ask(
        client,
        headers={"Accept": "text/event-stream"},
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.5,
        seed=7,
    )
    assert reply.headers["X-Stream-Fallback"] == "vision"
    assert reply.content_type == "application/json"
    assert reply.json["object"] == "chat.completion"
    sent = upstream.exchanges[0].document
    assert sent["stream"] is False
    assert sent["messages"] == messages
    assert (sent["temperature"], sent["seed"]) == (0.5, 7)
    assert "stream_options" not in sent


def test_vision_error_is_json_even_for_a_streaming_client(
    client: FlaskClient, upstream: ScriptedUpstream
) -> None:
    """A vision request does not stream, so its error is the JSON object, with the fallback named."""
    upstream.handler = lambda exchange: exchange.reply({"code": "x", "error": "no"}, 400)
    reply = ask(
        client,
        headers={"Accept": "text/event-stream"},
        messages=[{"role": "user", "content": [IMAGE_PART]}],
        stream=True,
    )
    assert (reply.status_code, reply.json["error"]["message"]) == (400, "no")
    assert reply.headers["X-Stream-Fallback"] == "vision"


def test_text_parts_do_stream(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A content array of text alone is no vision."""
    parts = [{"type": "text", "text": "what is an image_url?"}]
    reply = ask(client, messages=[{"role": "user", "content": parts}], stream=True)
    assert "X-Stream-Fallback" not in reply.headers
    assert reply.data.endswith(b"[DONE]\n\n")


def test_vision_can_stream_when_told_to(make_client: Callable[..., FlaskClient]) -> None:
    """GROKFLASK_VISION_STREAM=stream relays chat with images as a stream."""
    client = make_client(GROKFLASK_VISION_STREAM="stream")
    reply = ask(client, messages=[{"role": "user", "content": [IMAGE_PART]}], stream=True)
    assert reply.data.endswith(b"[DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_vision_route(client: FlaskClient, upstream: ScriptedUpstream, stream: bool) -> None:
    """/vision/analyze answers {model, created, content, usage}, whole in any case."""
    upstream.handler = reply_story
    reply = ask(
        client,
        "/api/v1/vision/analyze",
        image={"url": "https://example.org/cat.png"},
        prompt="What is it?",
        detail="high",
        max_tokens=9,
        stream=stream,
    )
    assert set(reply.json) == {"model", "created", "content", "usage"}
    assert reply.json["content"] == "Once upon"
    assert ("X-Stream-Fallback" in reply.headers) is stream
    sent = upstream.exchanges[0].document
    image, text = sent["messages"][0]["content"]
    assert image["image_url"] == {"url": "https://example.org/cat.png", "detail": "high"}
    assert text["text"] == "What is it?"
    assert sent["max_tokens"] == 9


def test_images_route_never_streams(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Both names of the image route reach upstream's one, without `stream`."""
    upstream.handler = lambda exchange: exchange.reply({"data": [{"url": "https://example.org/1.png"}]})
    for path in ("/api/v1/images/generate", "/api/v1/images/generations"):
        reply = ask(client, path, prompt="a cat", stream=True)
        assert reply.json["data"]
        assert reply.headers["X-Stream-Fallback"] == "images"
    assert [exchange.path for exchange in upstream.exchanges] == ["/v1/images/generations"] * 2
    assert "stream" not in upstream.exchanges[0].document


def test_models(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """The lists are relayed as they come."""
    upstream.handler = lambda exchange: exchange.reply({"object": "list", "data": []})
    assert client.get("/api/v1/models", headers=AUTH).json == {"object": "list", "data": []}
    client.get("/v1/models/grok-4.3", headers=AUTH)
    assert [(exchange.method, exchange.path) for exchange in upstream.exchanges] == [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/grok-4.3"),
    ]
    assert "content-type" not in upstream.exchanges[0].headers


def test_sandbox_is_named(make_client: Callable[..., FlaskClient]) -> None:
    """Answers of the sandbox say so in a header; it needs no key."""
    client = make_client(
        XAI_API_KEY="", XAI_API_BASE="", GROKFLASK_KEYS="", GROKFLASK_SANDBOX_EVENTS_PER_S="0"
    )
    reply = client.post(CHAT, json={"messages": MESSAGES})
    assert reply.headers["X-Grokflask-Upstream"] == "sandbox"
    assert reply.json["choices"][0]["message"]["content"]


def test_a_body_counts_until_upstream_answers(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """Also when the response has begun before: the sender holds it for as long."""
    go_on = threading.Event()

    def act(exchange: Exchange) -> None:
        go_on.wait(WAIT_S)
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = act
    client = make_client(GROKFLASK_COMMIT_S="0.05")
    exchanges = client.application.extensions["gateway"].exchanges
    body = {"messages": [{"role": "user", "content": "x" * 100_000}], "stream": True}
    reply = client.post(CHAT, json=body, headers=AUTH, buffered=False)
    pieces = reply.iter_encoded()
    assert next(pieces).startswith(b":")
    assert exchanges.held_bytes >= 100_000
    go_on.set()
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    reply.close()
    wait_for(lambda: exchanges.held_bytes == 0, "the body to be freed")


def test_the_built_in_sandbox_is_the_gateways_alone(make_client: Callable[..., FlaskClient]) -> None:
    """Another program that finds its port cannot use it, and web pages cannot read its answers."""
    client = make_client(XAI_API_KEY="", XAI_API_BASE="", GROKFLASK_KEYS="")
    assert client.get("/api/v1/files").status_code == 200
    url = client.application.extensions["sandbox"].base_url
    for headers, status in (({}, 401), ({"Authorization": "Bearer x"}, 400)):
        reply = requests.get(f"{url}/files", headers=headers, timeout=WAIT_S)
        assert reply.status_code == status
        assert "Access-Control-Allow-Origin" not in reply.headers


def test_health_and_readiness(client: FlaskClient) -> None:
    """Both answer without a key."""
    assert client.get("/health").json == {"status": "ok"}
    ready = client.get("/ready")
    assert (ready.status_code, ready.json["status"]) == (200, "ready")
    assert ready.json["rate_limits"]["store"] == "memory"


ORIGIN = "https://app.example.com"


def test_browsers_of_known_origins_may_call(make_client: Callable[..., FlaskClient]) -> None:
    """A preflight needs no key and is not counted; answers, streams and errors name the origin."""
    client = make_client(
        GROKFLASK_CORS_ORIGINS=f"{ORIGIN},http://localhost:3000", GROKFLASK_RATE_LIMIT="2/hour"
    )
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    for _ in range(5):
        reply = client.options(CHAT, headers=preflight)
        assert reply.status_code == 200
        assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "authorization" in reply.headers["Access-Control-Allow-Headers"]
        assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    for stream in (False, True):
        reply = ask(client, headers={"Origin": ORIGIN}, messages=MESSAGES, stream=stream)
        assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "X-Request-ID" in reply.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in reply.headers
    refused = ask(client, headers={"Origin": ORIGIN}, messages=MESSAGES)
    assert refused.status_code == 429
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://appXexample.com", f"{ORIGIN}.evil.example"]
)
def test_browsers_of_other_origins_may_not(make_client: Callable[..., FlaskClient], origin: str) -> None:
    """An origin that is not on the list, however alike, is not named."""
    client = make_client(GROKFLASK_CORS_ORIGINS=ORIGIN)
    reply = ask(client, headers={"Origin": origin}, messages=MESSAGES)
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_without_the_setting_there_is_no_cors(client: FlaskClient) -> None:
    """By default no page of another origin may read an answer."""
    reply = ask(client, headers={"Origin": ORIGIN}, messages=MESSAGES)
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_while_draining(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Once the end is announced /ready is 503; then new work is refused; /health still answers."""
    client.application.extensions["gateway"].exchanges.drain(grace_s=10, lead_s=0.2)
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").json["status"] == "draining"
    wait_for(lambda: ask(client, messages=MESSAGES).status_code == 503, "the door to close")
    reply = ask(client, messages=MESSAGES)
    assert (reply.json["error"]["code"], reply.headers["Retry-After"]) == ("shutting_down", "1")
    assert client.get("/health").status_code == 200


def test_bug_in_the_gateway_is_a_json_500(client: FlaskClient, logged: io.StringIO) -> None:
    """An unexpected exception is logged with the request id and told in general words."""

    def fail(*_: object) -> None:
        raise RuntimeError("the details")

    client.application.extensions["gateway"].open = fail
    reply = ask(client, messages=MESSAGES)
    assert (reply.status_code, reply.json["error"]["code"]) == (500, "internal_error")
    assert "the details" not in reply.text
    assert reply.headers["X-Request-ID"] in logged.getvalue()
    assert "the details" in logged.getvalue()


def find_bodies() -> list[object]:
    """What holds a request's body, garbage that waits for the collector included."""
    held = [each for each in gc.get_objects() if isinstance(each, ClientRequest | UpstreamRequest)]
    return [each for each in held if b'"messages"' in (each.body or b"")]


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collector")
def test_a_body_is_not_kept_alive_by_its_stream(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Once the first event is out the request's body is gone, without waiting for the collector."""
    seen = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        assert seen.wait(WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    reply = client.post(CHAT, json={"messages": MESSAGES, "stream": True}, headers=AUTH)
    events = reply.iter_encoded()
    assert b"Once" in next(events)
    wait_for(lambda: not find_bodies(), "the body to be let go of")
    seen.set()
    assert b"".join(events) == b"data: [DONE]\n\n"
    reply.close()


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("failure", ["refused", "dropped", "unreachable"])
def test_a_body_is_not_kept_alive_by_its_failure(
    client: FlaskClient, upstream: ScriptedUpstream, failure: str, stream: bool
) -> None:
    """A request that failed leaves nothing behind that holds its body."""
    upstream.handler = Exchange.close if failure == "dropped" else answering_no
    if failure == "unreachable":
        upstream.close()
    reply = ask(client, messages=MESSAGES, stream=stream)
    assert reply.status_code == (403 if failure == "refused" else 502)
    reply.close()
    wait_for(lambda: not find_bodies(), "the body to be let go of")


def answering_no(exchange: Exchange) -> None:
    exchange.reply({"code": "permission-denied", "error": "no"}, 403)


def test_an_event_is_not_touched(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """An event's chunk survives untouched however unusual its JSON is."""
    odd = b'{"choices":[{"delta":{"content":"\\u0065 \xc3\xa9 \\"error\\" [DONE]"}}],  "x":1e400}'

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(odd)
        exchange.event(chat_chunk("end"))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    reply = ask(client, messages=MESSAGES, stream=True)
    assert b"data: " + odd + b"\n\n" in reply.data
