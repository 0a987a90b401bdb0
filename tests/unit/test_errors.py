"""The tree of errors, and the two shapes in which clients see them."""

from __future__ import annotations

import json

import pytest

from grokflask import errors
from grokflask.errors import (
    AuthenticationError,
    BodiesFullError,
    BodyTimeoutError,
    BodyTooLargeError,
    BudgetSpentError,
    BudgetUsedUpError,
    ClientError,
    ClientGoneError,
    ConfigError,
    ConnectTimeoutError,
    CrossSiteError,
    DiskFullError,
    FairShareError,
    FirstEventTimeoutError,
    ForeignAnswerError,
    GatewayFullError,
    GrokflaskError,
    HostNotAllowedError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    IdleTimeoutError,
    InvalidRequestError,
    KeyExistsError,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    MediaTypeError,
    MethodNotAllowedError,
    ModelNotAllowedError,
    NoAnswerError,
    Outcome,
    RateLimitError,
    RecordingLostError,
    RouteNotFoundError,
    ShuttingDownError,
    StoreUnavailableError,
    StreamBrokenError,
    StreamElsewhereError,
    StreamGoneError,
    StreamStoppedError,
    StreamTruncatedError,
    TokenLimitError,
    ToolsNotAllowedError,
    TooManyStreamsError,
    TotalTimeoutError,
    UnmeteredError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatusError,
    UpstreamTimeoutError,
    render_event,
    render_json,
)

TREE = [
    (GrokflaskError(), 500, "internal_error", "server_error", Outcome.REFUSED),
    (InvalidRequestError(), 400, "invalid_request", "invalid_request_error", Outcome.REFUSED),
    (AuthenticationError(), 401, "invalid_api_key", "authentication_error", Outcome.REFUSED),
    (RouteNotFoundError(), 404, "not_found", "not_found_error", Outcome.REFUSED),
    (MethodNotAllowedError(), 405, "method_not_allowed", "invalid_request_error", Outcome.REFUSED),
    (BodyTooLargeError(), 413, "body_too_large", "invalid_request_error", Outcome.REFUSED),
    (MediaTypeError(), 415, "unsupported_media_type", "invalid_request_error", Outcome.REFUSED),
    (BodyTimeoutError(), 408, "body_timeout", "invalid_request_error", Outcome.REFUSED),
    (ClientGoneError(), 499, "client_gone", "invalid_request_error", Outcome.CLIENT_ABORT),
    (GatewayFullError(), 503, "gateway_full", "server_error", Outcome.REFUSED),
    (BodiesFullError(), 503, "bodies_full", "server_error", Outcome.REFUSED),
    (DiskFullError(), 507, "disk_full", "server_error", Outcome.REFUSED),
    (ShuttingDownError(), 503, "shutting_down", "server_error", Outcome.SHUTDOWN),
    (StreamStoppedError(), 503, "stream_stopped", "server_error", Outcome.SHUTDOWN),
    (ConnectTimeoutError(), 504, "connect_timeout", "server_error", Outcome.TIMEOUT),
    (FirstEventTimeoutError(), 504, "first_event_timeout", "server_error", Outcome.TIMEOUT),
    (IdleTimeoutError(), 504, "idle_timeout", "server_error", Outcome.TIMEOUT),
    (TotalTimeoutError(), 504, "total_timeout", "server_error", Outcome.TIMEOUT),
    (KeyRevokedError(), 403, "key_revoked", "permission_error", Outcome.REFUSED),
    (KeyExpiredError(), 403, "key_expired", "permission_error", Outcome.REFUSED),
    (UnmeteredError(), 403, "not_metered", "permission_error", Outcome.REFUSED),
    (ToolsNotAllowedError(), 403, "tools_not_allowed", "permission_error", Outcome.REFUSED),
    (HostNotAllowedError(), 403, "host_not_allowed", "permission_error", Outcome.REFUSED),
    (CrossSiteError(), 403, "cross_site", "permission_error", Outcome.REFUSED),
    (ModelNotAllowedError(), 403, "model_not_allowed", "permission_error", Outcome.REFUSED),
    (KeyNotFoundError(), 404, "key_not_found", "not_found_error", Outcome.REFUSED),
    (KeyExistsError(), 409, "key_exists", "invalid_request_error", Outcome.REFUSED),
    (IdempotencyKeyInUseError(), 409, "idempotency_key_in_use", "invalid_request_error", Outcome.REFUSED),
    (StreamElsewhereError(), 409, "stream_elsewhere", "invalid_request_error", Outcome.REFUSED),
    (StreamGoneError(), 410, "stream_gone", "invalid_request_error", Outcome.REFUSED),
    (IdempotencyKeyReusedError(), 422, "idempotency_key_reused", "invalid_request_error", Outcome.REFUSED),
    (RecordingLostError(), 503, "recording_lost", "server_error", Outcome.REFUSED),
    (TokenLimitError(), 429, "token_limit_exceeded", "rate_limit_error", Outcome.REFUSED),
    (TooManyStreamsError(), 429, "too_many_streams", "rate_limit_error", Outcome.REFUSED),
    (FairShareError(), 429, "fair_share_exceeded", "rate_limit_error", Outcome.REFUSED),
    (BudgetSpentError(), 429, "insufficient_quota", "insufficient_quota", Outcome.REFUSED),
    (BudgetUsedUpError(), 429, "insufficient_quota", "insufficient_quota", Outcome.LIMIT),
    (StoreUnavailableError(), 503, "store_unavailable", "server_error", Outcome.REFUSED),
    (RateLimitError(), 429, "rate_limit_exceeded", "rate_limit_error", Outcome.REFUSED),
    (UpstreamConnectError(), 502, "upstream_unreachable", "server_error", Outcome.UPSTREAM_ERROR),
    (UpstreamTimeoutError(), 504, "upstream_timeout", "server_error", Outcome.TIMEOUT),
    (NoAnswerError(), 502, "upstream_no_answer", "server_error", Outcome.UPSTREAM_ERROR),
    (UpstreamProtocolError(), 502, "upstream_protocol_error", "server_error", Outcome.UPSTREAM_ERROR),
    (ForeignAnswerError(), 502, "upstream_protocol_error", "server_error", Outcome.UPSTREAM_ERROR),
    (UpstreamStatusError("no"), 502, "upstream_error", "server_error", Outcome.UPSTREAM_ERROR),
    (
        UpstreamStatusError("no", status=403, code="denied"),
        403,
        "denied",
        "permission_error",
        Outcome.UPSTREAM_ERROR,
    ),
    (StreamBrokenError(), 502, "stream_broken", "server_error", Outcome.TRUNCATED),
    (StreamTruncatedError(), 502, "stream_truncated", "server_error", Outcome.TRUNCATED),
]

MESSAGES = [
    "plain",
    'with "quotes" and \\ backslash',
    "two\nlines\n\ndata: [DONE]\n\n",
    "\r\rdata: forged\r\r",
    "Grüße, 世界 👩",
]


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Exception) else ""


@pytest.mark.parametrize(("error", "status", "code", "kind", "outcome"), TREE, ids=name)
def test_status_code_type_and_outcome(
    error: GrokflaskError, status: int, code: str, kind: str, outcome: Outcome
) -> None:
    """Every error has the status, code, type and outcome that the contract's table gives it."""
    assert (error.status, error.code, error.type, error.outcome) == (status, code, kind, outcome)
    assert error.message
    assert str(error) == error.message


def test_every_error_is_in_the_table() -> None:
    """No error class goes untested."""
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    defined = {value for value in classes if issubclass(value, GrokflaskError)}
    assert defined - {type(row[0]) for row in TREE} == {ConfigError, ClientError, UpstreamError}


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (InvalidRequestError, ClientError),
        (RateLimitError, ClientError),
        (UpstreamConnectError, UpstreamError),
        (UpstreamStatusError, UpstreamError),
        (StreamBrokenError, UpstreamError),
        (StreamTruncatedError, StreamBrokenError),
    ],
)
def test_families(child: type, parent: type) -> None:
    """What catches a family catches its members."""
    assert issubclass(child, parent)


def test_authentication_error_says_how() -> None:
    """A 401 names the scheme, as RFC 9110 wants it."""
    assert AuthenticationError().headers == {"WWW-Authenticate": "Bearer"}


def test_headers_belong_to_one_error() -> None:
    """Errors do not share a dict of headers, with each other or with the caller."""
    given = {"Retry-After": "3"}
    first, second = RateLimitError(headers=given), RateLimitError()
    first.headers["X"] = "y"
    assert given == {"Retry-After": "3"}
    assert second.headers == {}


def test_config_error_lists_all_problems() -> None:
    """The message has a line for every problem."""
    error = ConfigError(["PORT is wrong", "REDIS_URL is wrong"])
    assert error.problems == ["PORT is wrong", "REDIS_URL is wrong"]
    assert error.message.splitlines()[1:] == ["  - PORT is wrong", "  - REDIS_URL is wrong"]


def test_upstream_type_goes_before_the_status_family() -> None:
    """Upstream's own `type` is kept."""
    assert UpstreamStatusError("no", status=429, kind="tokens").type == "tokens"
    assert UpstreamStatusError("no", status=429, kind="").type == "rate_limit_error"


@pytest.mark.parametrize("message", MESSAGES)
def test_json_shape(message: str) -> None:
    """OpenAI's object has exactly four fields, all there even when null."""
    error = UpstreamStatusError(message, status=429, code="slow", param=None)
    expected = {"message": message, "type": "rate_limit_error", "param": None, "code": "slow"}
    assert json.loads(render_json(error)) == {"error": expected}
    error = InvalidRequestError(message, param="stream")
    assert json.loads(render_json(error))["error"]["param"] == "stream"


@pytest.mark.parametrize("message", MESSAGES)
def test_guide_shape(message: str) -> None:
    """The guide's event is one object with one text, which begins with "API error: "."""
    event = render_event(UpstreamStatusError(message), as_json=False)
    assert json.loads(event.removeprefix(b"data: ")) == {"error": f"API error: {message}"}


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("message", MESSAGES)
def test_no_message_forges_an_event(message: str, as_json: bool) -> None:
    """Whatever a message holds, the error is one `data:` line and a blank line."""
    event = render_event(UpstreamStatusError(message, code=message, param=message), as_json=as_json)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert b"\r" not in event


def test_event_in_json_shape_is_the_json_object() -> None:
    """Before and after the first byte, the object is the same."""
    error = RateLimitError("slow down")
    assert render_event(error, as_json=True) == b"data: " + render_json(error) + b"\n\n"


def test_unicode_is_sent_as_it_is() -> None:
    """A message is not escaped to ASCII."""
    assert "世界".encode() in render_event(UpstreamStatusError("世界"), as_json=False)
