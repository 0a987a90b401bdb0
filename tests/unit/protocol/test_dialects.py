"""How errors are rendered for the clients of each API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.errors import (
    AuthenticationError,
    BodyTooLargeError,
    GatewayFullError,
    GrokflaskError,
    IdleTimeoutError,
    InvalidRequestError,
    KeyRevokedError,
    RateLimitError,
    RouteNotFoundError,
    StreamTruncatedError,
    UpstreamStatusError,
)
from grokflask.protocol.dialects import CHAT, MESSAGES, RESPONSES, Dialect

FORGED = 'No.\n\ndata: [DONE]\r\n\r\nevent: message_stop\ndata: {"type":"message_stop"}'


def read_event(event: bytes) -> tuple[bytes, dict[str, Any]]:
    """An event's name and JSON; it must be one event on one line of data."""
    name, mark, line = event.partition(b"data: ")
    assert (mark, line[-2:], line.count(b"\n"), line.count(b"\r")) == (b"data: ", b"\n\n", 2, 0)
    return name, json.loads(line)


@pytest.mark.parametrize("as_json", [False, True])
def test_chat_has_the_two_shapes(as_json: bool) -> None:
    """OpenAI's object, or the guide's text."""
    name, event = read_event(CHAT.render_event(StreamTruncatedError(), as_json=as_json, number=7))
    assert name == b""
    message = StreamTruncatedError.default_message
    shapes = (f"API error: {message}", {"message": message, "type": "server_error"})
    error = event.pop("error")
    assert event == {}
    assert error == shapes[0] if not as_json else shapes[1].items() <= error.items()  # type: ignore[union-attr]


@pytest.mark.parametrize("as_json", [False, True])
def test_responses_have_them_within_their_own(as_json: bool) -> None:
    """Clients that go by types find type, code, message and number; the others find what chat has."""
    error = InvalidRequestError("No.", param="input")
    name, event = read_event(RESPONSES.render_event(error, as_json=as_json, number=7))
    _, chat = read_event(CHAT.render_event(error, as_json=as_json, number=7))
    assert name == b""
    assert event == {
        "type": "error",
        "sequence_number": 7,
        "code": "invalid_request",
        "message": "No.",
        "param": "input",
        **chat,
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError(), "invalid_request_error"),
        (AuthenticationError(), "authentication_error"),
        (KeyRevokedError(), "permission_error"),
        (RouteNotFoundError(), "not_found_error"),
        (BodyTooLargeError(), "request_too_large"),
        (RateLimitError(), "rate_limit_error"),
        (GrokflaskError(), "api_error"),
        (StreamTruncatedError(), "api_error"),
        (GatewayFullError(), "overloaded_error"),
        (IdleTimeoutError(), "timeout_error"),
        (UpstreamStatusError("No.", status=529), "overloaded_error"),
        (UpstreamStatusError("No.", status=422), "invalid_request_error"),
        (UpstreamStatusError("No.", status=502, kind="overloaded_error"), "overloaded_error"),
        (UpstreamStatusError("No.", status=502, kind="server_error"), "api_error"),
    ],
)
def test_messages_have_anthropics(error: GrokflaskError, kind: str) -> None:
    """Type by status, unless upstream named one of Anthropic's; named `error` inside a stream."""
    body = json.loads(MESSAGES.render_json(error))
    assert body == {"type": "error", "error": {"type": kind, "message": error.message}}
    name, event = read_event(MESSAGES.render_event(error, as_json=False, number=0))
    assert (name, event) == (b"event: error\n", body)


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("as_json", [False, True])
def test_no_message_forges_an_event(dialect: Dialect, as_json: bool) -> None:
    """Newlines in an upstream's message stay inside of one JSON string."""
    error = UpstreamStatusError(FORGED)
    _, event = read_event(dialect.render_event(error, as_json=as_json, number=0))
    assert "message_stop" in json.dumps(event)
