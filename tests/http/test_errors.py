"""Errors of upstream's and of the gateway's own, in both shapes, before and after the first byte."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from support.scripted import WAIT_S, Exchange, Handler, ScriptedUpstream, answer_chat, chat_chunk, reply_story

from grokflask.upstream import connections
from grokflask.upstream.client import MAX_ERROR_BYTES

CHAT = "/api/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}
AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
TEAM = "7d1f4cf0-1111-4222-8333-0123456789ab"

SHAPES = ["json", "guide"]


def stream(client: FlaskClient, shape: str, headers: dict[str, str] | None = None, **extra: Any) -> Any:
    accept = {"json": "application/json", "guide": "text/event-stream"}[shape]
    headers = {**AUTH, "Accept": accept, **(headers or {})}
    reply = client.post(CHAT, json={**BODY, "stream": True, **extra}, headers=headers)
    reply.get_data()
    reply.close()  # as a server does, once all is written
    return reply


def read_error(reply: Any, shape: str) -> str:
    """The message of an error response, whose shape must be the one asked for."""
    if shape == "json":
        assert reply.content_type == "application/json"
        error = reply.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        message: str = error["message"]
        return message
    assert reply.content_type == "text/event-stream; charset=utf-8"
    return read_guide_event(reply.data)


def read_guide_event(data: bytes) -> str:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    text: str = json.loads(data[6:])["error"]
    assert text.startswith("API error: ")
    return text.removeprefix("API error: ")


def answering(document: Any, status: int, *headers: str) -> Handler:
    return lambda exchange: exchange.reply(document, status, *headers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("document", "status", "message", "code", "kind"),
    [
        ({"code": "invalid-argument", "error": "bad thing"}, 400, "bad thing", "invalid-argument", None),
        ({"error": {"message": "nested", "type": "t", "param": "p", "code": "c"}}, 422, "nested", "c", "t"),
        ({"error": "only text"}, 404, "only text", "upstream_error", "not_found_error"),
        (
            b"<html>Bad gateway</html>",
            502,
            "The upstream API answered with status 502.",
            "upstream_error",
            None,
        ),
        (b"", 500, "The upstream API answered with status 500.", "upstream_error", "server_error"),
        (
            {"code": 7, "error": {"detail": "x"}},
            403,
            "The upstream API answered with status 403.",
            None,
            None,
        ),
    ],
)
def test_status_errors_keep_their_status(
    client: FlaskClient,
    upstream: ScriptedUpstream,
    shape: str,
    document: Any,
    status: int,
    message: str,
    code: str | None,
    kind: str | None,
) -> None:
    """Before the first byte upstream's own status, message and code reach the client, in its shape."""
    upstream.handler = answering(document, status)
    reply = stream(client, shape)
    assert reply.status_code == status
    assert read_error(reply, shape) == message
    if shape == "json" and code:
        assert reply.json["error"]["code"] == code
    if shape == "json" and kind:
        assert reply.json["error"]["type"] == kind


def answer_too_much(exchange: Exchange) -> None:
    exchange.start(429, "Retry-After: 7", media_type="application/json")
    exchange.chunk(b'{"code":"c","error":"' + b"x" * MAX_ERROR_BYTES + b'"}')
    exchange.end()


def answer_half(exchange: Exchange) -> None:
    exchange.start(429, "Retry-After: 7", media_type="application/json")
    exchange.chunk(b'{"code":"c","err')
    exchange.close()


def answer_half_and_wait(exchange: Exchange) -> None:
    exchange.start(429, "Retry-After: 7", media_type="application/json")
    exchange.chunk(b'{"code":"c","err')
    assert exchange.wait_until_left()


@pytest.mark.parametrize("asks", ["stream", "whole"])
@pytest.mark.parametrize(
    "answer",
    [
        answer_too_much,
        answer_half,
        answer_half_and_wait,
        answering(b"not gzip", 429, "Retry-After: 7", "Content-Encoding: gzip"),
        answering(b"brotli", 429, "Retry-After: 7", "Content-Encoding: br"),
    ],
    ids=["too much", "cut", "stalled", "damaged", "unknown coding"],
)
def test_a_status_counts_though_its_body_cannot_be_read(
    client: FlaskClient,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    answer: Handler,
    asks: str,
) -> None:
    """What upstream's status and headers say reaches the client, whatever is wrong with the error's text."""
    monkeypatch.setattr("grokflask.upstream.client.ERROR_BODY_S", 0.2)
    upstream.handler = answer
    reply = client.post(CHAT, json={**BODY, "stream": asks == "stream"}, headers=AUTH)
    assert reply.status_code == 429
    assert reply.headers["Retry-After"] == "7"
    assert b"The upstream API answered with status 429." in reply.data


def test_non_streaming_errors_are_always_json(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Without `stream: true` the error is the JSON object, whatever Accept says."""
    upstream.handler = answering({"code": "c", "error": "no"}, 400)
    for accept in ("*/*", "text/html", "application/json"):
        reply = client.post(CHAT, json=BODY, headers={**AUTH, "Accept": accept})
        assert reply.json["error"]["message"] == "no"


@pytest.mark.parametrize("shape", SHAPES)
def test_retry_and_limit_headers_are_kept(
    client: FlaskClient, upstream: ScriptedUpstream, shape: str
) -> None:
    """Retry-After and upstream's rate-limit headers survive; they are upstream's, not ours."""
    headers = (
        "Retry-After: 7",
        "X-RateLimit-Limit: 5",
        "X-RateLimit-Remaining: 0",
        "x-ratelimit-limit-tokens: 9",
    )
    upstream.handler = answering({"code": "c", "error": "slow down"}, 429, *headers)
    reply = stream(client, shape)
    assert reply.status_code == 429
    assert reply.headers["Retry-After"] == "7"
    assert reply.headers["X-RateLimit-Limit"] == "5"
    assert reply.headers["X-RateLimit-Limit-Tokens"] == "9"


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_and_keys_are_cut_out(client: FlaskClient, upstream: ScriptedUpstream, shape: str) -> None:
    """The operator's team, key id and key do not reach the client; the rest of the message does."""

    def answer(exchange: Exchange) -> None:
        bearer = exchange.headers["authorization"]
        exchange.reply(
            {"code": f"x {TEAM}", "error": f"Model gone for team {TEAM}, key xa***89, sent {bearer}"}, 404
        )

    upstream.handler = answer
    reply = stream(client, shape)
    message = read_error(reply, shape)
    assert message.startswith("Model gone for team [redacted], key [redacted]")
    for secret in (TEAM, UPSTREAM_KEY, "xa***89"):
        assert secret not in reply.text


@pytest.mark.parametrize("shape", SHAPES)
def test_auth_error_of_a_stream_has_its_shape(client: FlaskClient, shape: str) -> None:
    """A wrong key on a streaming request: 401, in the shape the client reads."""
    reply = stream(client, shape, {"Authorization": "Bearer nobody"})
    assert reply.status_code == 401
    assert "Invalid API key" in read_error(reply, shape)


@pytest.mark.parametrize("headers", [AUTH, {"Authorization": "Bearer nobody"}], ids=["bad body", "bad key"])
def test_a_request_that_does_not_stream_is_refused_in_json(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    """What the body says of `stream` decides, and not that the client could take events as well."""
    accept = {"Accept": "text/event-stream"}
    reply = client.post(CHAT, json={"stream": False, "messages": []}, headers={**headers, **accept})
    assert read_error(reply, "json")


@pytest.mark.parametrize("body", [b"", b"{", b'{"messages": [], "stream": "yes"}'])
def test_a_body_that_does_not_say_is_judged_by_accept(client: FlaskClient, body: bytes) -> None:
    """A client that takes events is answered with one when its body does not tell what it asked for."""
    headers = {**AUTH, "Content-Type": "application/json", "Accept": "text/event-stream"}
    assert read_error(client.post(CHAT, data=body, headers=headers), "guide")


def test_curl_gets_the_guides_shape(client: FlaskClient) -> None:
    """curl sends Accept: */* and `stream: true` in the body: that is a streaming request."""
    reply = client.post(CHAT, json={**BODY, "stream": True}, headers={"Accept": "*/*"})
    assert reply.status_code == 401
    assert "No API key" in read_guide_event(reply.data)


@pytest.mark.parametrize("shape", SHAPES)
def test_bad_request_of_a_stream_has_its_shape(client: FlaskClient, shape: str) -> None:
    """A bad field on a streaming request: 400, in the shape the client reads."""
    reply = stream(client, shape, stream_options=3)
    assert reply.status_code == 400
    assert "stream_options" in read_error(reply, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_json_instead_of_a_stream_is_an_error(
    client: FlaskClient, upstream: ScriptedUpstream, shape: str
) -> None:
    """xAI may answer 200 with a JSON error to a streaming request: the client gets an error, no stream."""
    upstream.handler = answering({"code": "The service is currently unavailable", "error": "later"}, 200)
    reply = stream(client, shape)
    assert reply.status_code == 502
    assert read_error(reply, shape) == "later"


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_reply_instead_of_a_stream(client: FlaskClient, upstream: ScriptedUpstream, shape: str) -> None:
    """An upstream that ignores `stream: true` and answers whole is an error that says what happened."""
    upstream.handler = reply_story
    reply = stream(client, shape)
    assert reply.status_code == 502
    assert "a whole reply instead of a stream" in read_error(reply, shape)
    assert "Once upon" not in reply.text


def test_json_error_with_status_200_on_a_plain_request(
    client: FlaskClient, upstream: ScriptedUpstream
) -> None:
    """The same on a request that does not stream."""
    upstream.handler = answering({"code": "unavailable", "error": "later"}, 200)
    reply = client.post(CHAT, json=BODY, headers=AUTH)
    assert (reply.status_code, reply.json["error"]["message"]) == (502, "later")


def test_html_with_status_200(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A page instead of an answer is an error; its HTML stays here."""
    upstream.handler = lambda exchange: exchange.reply(
        b"<html>maintenance</html>", 200, "Content-Type: text/html"
    )
    for extra in ({}, {"stream": True}):
        reply = client.post(CHAT, json={**BODY, **extra}, headers={**AUTH, "Accept": "application/json"})
        assert (reply.status_code, reply.json["error"]["code"]) == (502, "upstream_protocol_error")
        assert "maintenance" not in reply.text


def test_redirects_are_not_followed(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A redirect would carry the key elsewhere: it is an error."""
    upstream.handler = lambda exchange: exchange.reply({}, 307, f"Location: {upstream.base_url}/elsewhere")
    reply = client.post(CHAT, json=BODY, headers=AUTH)
    assert reply.status_code == 502
    assert len(upstream.exchanges) == 1


def _events(data: bytes) -> list[bytes]:
    assert data.endswith(b"\n\n")
    return data[:-2].split(b"\n\n")


def cut_stream(exchange: Exchange) -> None:
    exchange.start()
    exchange.event(chat_chunk("Once"))


def truncate(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.end()


def truncate_after_finish(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.event(chat_chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    exchange.end()


def close_by_fin(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.close()


def close_by_rst(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.reset()


def break_chunking(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.send(b"zz\r\n")


def report_flat(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.event({"code": "internal", "error": f"lost team {TEAM}\n\ndata: [DONE]"})
    exchange.event("[DONE]")
    exchange.end()


def report_nested(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.event({"error": {"message": "lost", "type": "server_error", "code": "internal"}})
    exchange.end()


def report_by_name(exchange: Exchange) -> None:
    cut_stream(exchange)
    exchange.chunk(b'event: error\ndata: {"message": "lost"}\n\n')
    exchange.end()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("handler", "message", "outcome"),
    [
        (truncate, "ended the stream before it was complete", "truncated"),
        (truncate_after_finish, "ended the stream before it was complete", "truncated"),
        (close_by_fin, "connection to the upstream API broke", "truncated"),
        (close_by_rst, "connection to the upstream API broke", "truncated"),
        (break_chunking, "chunk size", "upstream_error"),
        (report_flat, "lost team [redacted]\n\ndata: [DONE]", "upstream_error"),
        (report_nested, "lost", "upstream_error"),
        (report_by_name, "lost", "upstream_error"),
    ],
)
def test_a_broken_stream_says_so(
    client: FlaskClient,
    upstream: ScriptedUpstream,
    logged: io.StringIO,
    shape: str,
    handler: Handler,
    message: str,
    outcome: str,
) -> None:
    """What came is delivered, then one error event in the client's shape, and no [DONE]."""
    upstream.handler = handler
    reply = stream(client, shape)
    assert reply.status_code == 200
    events = _events(reply.data)
    assert json.loads(events[0][6:])["choices"][0]["delta"]["content"] == "Once"
    assert b"data: [DONE]" not in events
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    text = error["message"] if shape == "json" else error
    assert message in text
    assert TEAM not in reply.text
    if shape == "json":
        assert set(error) == {"message", "type", "param", "code"}
    assert f"outcome={outcome}" in logged.getvalue()


@pytest.mark.parametrize("shape", SHAPES)
def test_silence_before_the_answer(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, shape: str
) -> None:
    """No headers within the first-event timeout: 504, in the client's shape."""

    def answer(exchange: Exchange) -> None:
        assert exchange.wait_until_left()

    upstream.handler = answer
    reply = stream(make_client(GROKFLASK_FIRST_EVENT_TIMEOUT_S="0.2"), shape)
    assert reply.status_code == 504
    assert "sent nothing for 0.2 s" in read_error(reply, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_silence_before_the_first_event(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, shape: str
) -> None:
    """Headers and comments, but no event: comments do not push the deadline away."""

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.chunk(b": still thinking\n\n")
        assert exchange.wait_until_left()

    upstream.handler = answer
    reply = stream(make_client(GROKFLASK_FIRST_EVENT_TIMEOUT_S="0.3"), shape)
    assert reply.status_code == 200
    (event,) = _events(reply.data)
    assert "sent nothing for 0.3 s" in event.decode()


@pytest.mark.parametrize("shape", SHAPES)
def test_silence_between_events(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, shape: str
) -> None:
    """A stream that stalls ends with an error event once the idle timeout is over."""

    def answer(exchange: Exchange) -> None:
        cut_stream(exchange)
        assert exchange.wait_until_left()

    upstream.handler = answer
    reply = stream(make_client(GROKFLASK_IDLE_TIMEOUT_S="0.2"), shape)
    assert "sent nothing more for 0.2 s" in _events(reply.data)[-1].decode()


@pytest.mark.parametrize("shape", SHAPES)
def test_upstream_unreachable(
    make_client: Callable[..., FlaskClient], logged: io.StringIO, shape: str
) -> None:
    """Nobody listens: 502; the log tells the system's own error, the client is not told."""
    reply = stream(make_client(XAI_API_BASE="http://127.0.0.1:9/v1"), shape)
    assert reply.status_code == 502
    assert "cannot be reached" in read_error(reply, shape)
    assert "ConnectionRefusedError" in logged.getvalue()
    assert "Refused" not in reply.text


def test_closed_without_an_answer(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A fresh connection that dies without an answer is not tried again: the work may have been done."""
    upstream.handler = Exchange.close
    reply = client.post(CHAT, json=BODY, headers=AUTH)
    assert reply.status_code == 502
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize(
    "head", ["garbage {key}\r\n\r\n", "HTTP/1.1 200 OK\r\nodd {key}\r\nContent-Length: 0\r\n\r\n"]
)
def test_a_malformed_head_that_quotes_a_key_is_not_logged_with_it(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, logged: io.StringIO, head: str
) -> None:
    """The log tells what was wrong with upstream's answer; a client's own xAI key is none of its words."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head.format(key=exchange.headers["authorization"]).encode())
        exchange.close()

    upstream.handler = answer
    client = make_client(XAI_API_KEY="", GROKFLASK_KEYS="", GROKFLASK_AUTH="passthrough")
    reply = client.post(CHAT, json=BODY, headers={"Authorization": "Bearer xai-of-the-client-0123456789"})
    assert reply.status_code == 502
    assert "code=upstream_protocol_error" in logged.getvalue()
    assert "0123456789" not in logged.getvalue()


def test_one_retry_on_a_connection_that_had_died(
    client: FlaskClient, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection that dies before a byte of the answer is replaced once, unseen by the client."""
    monkeypatch.setattr(connections, "RESEND_S", WAIT_S)  # for a busy machine
    assert stream(client, "json").data.endswith(b"[DONE]\n\n")
    answer = upstream.handler
    assert answer is not None

    def die_once(exchange: Exchange) -> None:
        upstream.handler = answer
        exchange.reset()

    upstream.handler = die_once
    assert stream(client, "json").data.endswith(b"[DONE]\n\n")
    assert len(upstream.exchanges) == 3
    assert upstream.connections == 2


def test_no_retry_once_upstream_has_the_request(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """An interim response shows that upstream works on the request: sent again it would be paid twice."""
    assert stream(client, "json").data.endswith(b"[DONE]\n\n")

    def die(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        exchange.close()

    upstream.handler = die
    reply = client.post(CHAT, json=BODY, headers=AUTH)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "upstream_no_answer")
    assert len(upstream.exchanges) == 2


@pytest.mark.parametrize("kind", ["chunked", "length"])
def test_a_connection_with_bytes_left_over_is_not_kept(
    client: FlaskClient, upstream: ScriptedUpstream, kind: str
) -> None:
    """What an upstream sends behind its answer must not become the next client's answer."""

    def answer(exchange: Exchange) -> None:
        forged = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        if kind == "chunked":
            exchange.start(media_type="application/json")
            exchange.send(b'e\r\n{"choices":[0]\r\n1\r\n}\r\n0\r\n\r\n' + forged + b'{"forged":true}')
        else:
            body = b'{"choices":[0]}'
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            exchange.send(head.encode() + body + forged + b'{"forged":true}')

    upstream.handler = answer
    for number in range(3):
        reply = client.post(CHAT, json=BODY, headers=AUTH)
        assert reply.json == {"choices": [0]}
        reply.close()
        assert upstream.connections == number + 1


@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_responses_are_passed_over(
    client: FlaskClient, upstream: ScriptedUpstream, status: int
) -> None:
    """A 1xx is not the answer yet; taken for one, the answer behind it would be the next client's."""

    def answer(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 {status} X\r\nLink: </style.css>\r\n\r\n".encode() * 2)
        answer_chat(exchange)

    upstream.handler = answer
    for _ in range(2):
        assert stream(client, "json").data.endswith(b"[DONE]\n\n")
        assert client.post(CHAT, json=BODY, headers=AUTH).json["choices"]
    assert upstream.connections == 1


def test_a_switch_of_protocols_is_no_answer(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Nobody asks for one, so a 101 is nonsense, and its connection is not used again."""

    def answer(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
        assert exchange.wait_until_left()

    upstream.handler = answer
    reply = client.post(CHAT, json=BODY, headers=AUTH)
    assert reply.status_code == 502
    assert reply.json["error"]["code"] == "upstream_protocol_error"
    upstream.handler = answer_chat
    assert client.post(CHAT, json=BODY, headers=AUTH).status_code == 200
    assert upstream.connections == 2


def test_connections_are_kept(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Streams, replies and errors all leave their connection fit for the next request."""
    good = upstream.handler
    for number in range(6):
        upstream.handler = answering({"error": "no"}, 400) if number == 3 else good
        reply = client.post(CHAT, json={**BODY, "stream": number % 2 == 0}, headers=AUTH)
        assert reply.data
        reply.close()
    assert len(upstream.exchanges) == 6
    assert upstream.connections == 1


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_a_compressed_body_is_refused_as_that(
    client: FlaskClient, upstream: ScriptedUpstream, coding: str
) -> None:
    """Not as broken JSON: its sender is told what to change."""
    headers = {**AUTH, "Content-Type": "application/json", "Content-Encoding": coding}
    reply = client.post(CHAT, data=gzip.compress(b'{"messages":[]}'), headers=headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (415, "unsupported_media_type")
    assert coding in reply.json["error"]["message"]
    assert upstream.exchanges == []
