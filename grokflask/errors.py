"""The tree of errors, and what each one looks like to a client.

    GrokflaskError                  500 internal_error
    ├── ConfigError                 the service cannot start: every problem with the settings
    ├── ClientError                 the request cannot be served as it stands
    │   ├── InvalidRequestError     400 invalid_request (names the parameter)
    │   ├── AuthenticationError     401 invalid_api_key
    │   ├── KeyRevokedError         403 key_revoked
    │   ├── KeyExpiredError         403 key_expired
    │   ├── ModelNotAllowedError    403 model_not_allowed
    │   ├── ToolsNotAllowedError    403 tools_not_allowed
    │   ├── UnmeteredError          403 not_metered
    │   ├── RouteNotFoundError      404 not_found
    │   ├── KeyNotFoundError        404 key_not_found
    │   ├── MethodNotAllowedError   405 method_not_allowed
    │   ├── BodyTimeoutError        408 body_timeout
    │   ├── KeyExistsError          409 key_exists
    │   ├── IdempotencyKeyInUseError  409 idempotency_key_in_use
    │   ├── StreamElsewhereError    409 stream_elsewhere: of a process that cannot be told to end it
    │   ├── StreamGoneError         410 stream_gone: there is nothing to go on with
    │   ├── BodyTooLargeError       413 body_too_large
    │   ├── MediaTypeError          415 unsupported_media_type
    │   ├── IdempotencyKeyReusedError 422 idempotency_key_reused
    │   ├── RateLimitError          429 rate_limit_exceeded
    │   │   ├── TokenLimitError         429 token_limit_exceeded
    │   │   ├── TooManyStreamsError     429 too_many_streams
    │   │   └── FairShareError          429 fair_share_exceeded
    │   ├── BudgetSpentError        429 insufficient_quota
    │   └── ClientGoneError         499 client_gone: nobody is left to read this
    ├── GatewayFullError            503 gateway_full
    ├── ShuttingDownError           503 shutting_down
    ├── StreamStoppedError          503 stream_stopped: an admin has ended it
    ├── RecordingLostError          503 recording_lost: an answer that was read along is no longer kept
    ├── StoreUnavailableError       503 store_unavailable: the database or Redis is away
    └── UpstreamError               xAI's side failed
        ├── UpstreamConnectError    502 upstream_unreachable: no connection, so nothing was paid
        │   └── ConnectTimeoutError     504 connect_timeout
        ├── UpstreamTimeoutError    504 upstream_timeout: connected, then silent too long
        │   ├── FirstEventTimeoutError  504 first_event_timeout
        │   ├── IdleTimeoutError        504 idle_timeout
        │   └── TotalTimeoutError       504 total_timeout
        ├── NoAnswerError           502 upstream_no_answer: it took the request and closed the connection
        ├── UpstreamProtocolError   502 upstream_protocol_error: an answer that is not the API's
        ├── UpstreamStatusError     upstream's own status, code and message
        └── StreamBrokenError       502 stream_broken: the connection died inside the answer
            └── StreamTruncatedError    502 stream_truncated: it ended tidily, but before [DONE]

An error has a status, a code and an outcome. The two shapes that clients of the chat API see are rendered
here; `dialects` has those of the others. No IO. This module imports nothing of grokflask.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

import msgspec

MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What reading JSON from outside may raise: bad syntax or type, nesting too deep, a key that is not UTF-8."""


class Outcome(StrEnum):
    """How an exchange ended: the word in the log line and in the ledger."""

    COMPLETE = "complete"
    CLIENT_ABORT = "client_abort"
    UPSTREAM_ERROR = "upstream_error"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"
    """The process that carried it was killed; what it used is not known."""
    REFUSED = "refused"
    """Turned away by the gateway itself: nothing reached upstream."""


class GrokflaskError(Exception):
    """The root: something that a client is told about.

    Attributes:
        status: HTTP status, when no byte of the answer has gone out yet.
        code: stable machine-readable name of the case.
        param: the request's field that is at fault, or None.
        headers: response headers that belong to this error.
        detail: what the log says beyond the code (the system's own error, say); never sent to a client.
        in_stream: whether the request was to be answered as a stream; None while nobody has read it.
        outcome: what the exchange's log line says.
    """

    status: int = 500
    code: str = "internal_error"
    default_message: ClassVar[str] = "Something went wrong inside the gateway."
    outcome: ClassVar[Outcome] = Outcome.REFUSED

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.param = param
        self.headers = dict(headers or {})
        self.detail: str | None = None
        self.in_stream: bool | None = None
        super().__init__(self.message)

    @property
    def type(self) -> str:
        """OpenAI's error family for this status, which SDKs and their users branch on."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def to_fields(self) -> dict[str, str | None]:
        """What OpenAI's SDKs read of an error."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class ConfigError(GrokflaskError):
    """The settings cannot work. `problems` lists every reason, each with its remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("grokflask cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


class ClientError(GrokflaskError):
    """The request cannot be served as it stands; repeating it unchanged will not help."""


class InvalidRequestError(ClientError):
    """A body that is not JSON, or a field that is missing or of the wrong type."""

    status = 400
    code = "invalid_request"
    default_message = "The request is not valid."


class AuthenticationError(ClientError):
    """No key, or one that nobody here knows."""

    status = 401
    code = "invalid_api_key"
    default_message = (
        "Invalid API key: send a key of this gateway as 'Authorization: Bearer <key>'. "
        "Its operator hands them out."
    )

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class KeyRevokedError(ClientError):
    """The key was good once and has been revoked."""

    status = 403
    code = "key_revoked"
    default_message = "This API key has been revoked."


class KeyExpiredError(ClientError):
    """The key, or this secret of it, was valid until a time that has passed."""

    status = 403
    code = "key_expired"
    default_message = "This API key has expired."


class ModelNotAllowedError(ClientError):
    """The key may not ask for this model."""

    status = 403
    code = "model_not_allowed"
    default_message = "This API key may not use that model."


class ToolsNotAllowedError(ClientError):
    """The key may not have tools run, or not those that run at xAI's."""

    status = 403
    code = "tools_not_allowed"
    default_message = "This API key may not use tools."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, param="tools")


class UnmeteredError(ClientError):
    """What this costs is not seen here, so a key with limits on that may not ask for it."""

    status = 403
    code = "not_metered"
    default_message = (
        "This API key has a limit on tokens, money, models or tools, and could not be held to it here."
    )


class RouteNotFoundError(ClientError):
    """No such path."""

    status = 404
    code = "not_found"
    default_message = "There is nothing at this path."


class KeyNotFoundError(ClientError):
    """No key has this name."""

    status = 404
    code = "key_not_found"
    default_message = "There is no key of this name."


class KeyExistsError(ClientError):
    """The name is taken; a revoked key keeps its name, for the ledger's sake."""

    status = 409
    code = "key_exists"
    default_message = "There is a key of this name already."


class StreamElsewhereError(ClientError):
    """An admin would end a stream of another process, and there is no way to tell that."""

    status = 409
    code = "stream_elsewhere"
    default_message = "Another worker has this stream, and without Redis it cannot be told."


class IdempotencyKeyInUseError(ClientError):
    """A request with this Idempotency-Key is running, and its answer cannot be read along.

    The status is the one of draft-ietf-httpapi-idempotency-key-header, the code is Stripe's.
    """

    status = 409
    code = "idempotency_key_in_use"
    default_message = "A request with this Idempotency-Key is still running, and its answer is not kept."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class IdempotencyKeyReusedError(ClientError):
    """The Idempotency-Key belongs to a request with another body, or to another route.

    The status is the one of draft-ietf-httpapi-idempotency-key-header.
    """

    status = 422
    code = "idempotency_key_reused"
    default_message = (
        "This Idempotency-Key has been used for a different request. Choose a new key for each request, and "
        "send it again only with the same body."
    )


class StreamGoneError(ClientError):
    """The stream of this Last-Event-ID is not kept: it has failed, was too large, or ended too long ago."""

    status = 410
    code = "stream_gone"
    default_message = (
        "The stream with this Last-Event-ID is no longer kept, so it cannot go on. Send the request again "
        "without Last-Event-ID to begin a new one."
    )


class MethodNotAllowedError(ClientError):
    """The path exists, but not for this method; `Allow` names those that do."""

    status = 405
    code = "method_not_allowed"
    default_message = "This path does not take that method."


class BodyTooLargeError(ClientError):
    """The body passes GROKFLASK_MAX_BODY_BYTES."""

    status = 413
    code = "body_too_large"
    default_message = "The request's body is too large."


class BodyTimeoutError(ClientError):
    """The body did not come in whole within GROKFLASK_BODY_TIMEOUT_S."""

    status = 408
    code = "body_timeout"
    default_message = "The request's body took too long to arrive."


class MediaTypeError(ClientError):
    """The body is not announced as JSON."""

    status = 415
    code = "unsupported_media_type"
    default_message = "Send the body as JSON, with the header 'Content-Type: application/json'."


class RateLimitError(ClientError):
    """The key has used up its requests of this window; `Retry-After` says when to come back."""

    status = 429
    code = "rate_limit_exceeded"
    default_message = "Too many requests."


class TokenLimitError(RateLimitError):
    """The key's tokens per minute are used up, or this request alone may need more."""

    code = "token_limit_exceeded"
    default_message = "Too many tokens."


class TooManyStreamsError(RateLimitError):
    """The key has as many streams open as it may."""

    code = "too_many_streams"
    default_message = "Too many open streams."


class FairShareError(RateLimitError):
    """The gateway is nearly full, and this key has its fair part of it."""

    code = "fair_share_exceeded"
    default_message = "The gateway is nearly full and this key has its fair share of it."


class BudgetSpentError(ClientError):
    """The key's budget of the day or month is spent, or what is left does not cover this request."""

    status = 429
    code = "insufficient_quota"
    default_message = "The budget of this key is spent."

    def __init__(self, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        # OpenAI's SDKs try a 429 again at once unless this header says no.
        super().__init__(message, headers={"x-should-retry": "false", **(headers or {})})

    @property
    def type(self) -> str:
        """OpenAI's name for it, which is its code as well."""
        return "insufficient_quota"


class ClientGoneError(ClientError):
    """The client has closed its connection. 499 is nginx's word for it; only the log ever sees it."""

    status = 499
    code = "client_gone"
    outcome = Outcome.CLIENT_ABORT
    default_message = "The client has gone."


class GatewayFullError(GrokflaskError):
    """The worker carries as many exchanges as it may."""

    status = 503
    code = "gateway_full"
    default_message = "The gateway is full. Try again in a moment."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class ShuttingDownError(GrokflaskError):
    """The process is about to end; another one takes the request."""

    status = 503
    code = "shutting_down"
    outcome = Outcome.SHUTDOWN
    default_message = "The gateway is shutting down. Send the request again."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class StreamStoppedError(GrokflaskError):
    """Whoever runs the gateway has ended this stream."""

    status = 503
    code = "stream_stopped"
    outcome = Outcome.SHUTDOWN
    default_message = "The answer was stopped by the operator of the gateway; it is incomplete."

    def __init__(self) -> None:
        super().__init__(headers={"x-should-retry": "false"})  # or SDKs would begin it again


class RecordingLostError(GrokflaskError):
    """Who reads an answer along has fallen behind what is kept of it, or whoever kept it has gone."""

    status = 503
    code = "recording_lost"
    default_message = "The gateway no longer has the rest of this answer; it is incomplete."


class StoreUnavailableError(GrokflaskError):
    """The database or Redis is away, and what was asked cannot be told without it."""

    status = 503
    code = "store_unavailable"
    default_message = "The gateway cannot look that up right now. Try again in a moment."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class UpstreamError(GrokflaskError):
    """xAI's side failed, or the way there."""

    status = 502
    code = "upstream_error"
    outcome = Outcome.UPSTREAM_ERROR
    default_message = "The upstream API failed."


class UpstreamConnectError(UpstreamError):
    """No connection came about, so upstream has not seen the request."""

    code = "upstream_unreachable"
    default_message = "The upstream API cannot be reached."


class UpstreamTimeoutError(UpstreamError):
    """Upstream took the request and then said nothing for too long."""

    status = 504
    code = "upstream_timeout"
    outcome = Outcome.TIMEOUT
    default_message = "The upstream API was silent for too long."


class ConnectTimeoutError(UpstreamConnectError):
    """No connection within GROKFLASK_CONNECT_TIMEOUT_S."""

    status = 504
    code = "connect_timeout"
    outcome = Outcome.TIMEOUT
    default_message = "The upstream API cannot be reached in time."


class FirstEventTimeoutError(UpstreamTimeoutError):
    """The answer did not begin within GROKFLASK_FIRST_EVENT_TIMEOUT_S."""

    code = "first_event_timeout"


class IdleTimeoutError(UpstreamTimeoutError):
    """No event for GROKFLASK_IDLE_TIMEOUT_S."""

    code = "idle_timeout"


class TotalTimeoutError(UpstreamTimeoutError):
    """The exchange has taken GROKFLASK_TOTAL_TIMEOUT_S."""

    code = "total_timeout"


class NoAnswerError(UpstreamError):
    """Upstream closed the connection without a byte of an answer. It may have done the work."""

    code = "upstream_no_answer"
    default_message = "The upstream API closed the connection without an answer."


class UpstreamProtocolError(UpstreamError):
    """Upstream answered something that this API does not know."""

    code = "upstream_protocol_error"
    default_message = "The upstream API gave an answer that cannot be understood."


class UpstreamStatusError(UpstreamError):
    """Upstream said no, with a status or with an error object in a stream. Both are kept as they came.

    Attributes:
        told: the message is upstream's; False when it sent none and one had to be made up.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str | None = None,
        kind: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        told: bool = True,
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.told = told
        self.status = status
        self.code = code or "upstream_error"
        self._kind = kind

    @property
    def type(self) -> str:
        """Upstream's own `type` where it sent one, else the family of its status."""
        return self._kind or super().type


class StreamBrokenError(UpstreamError):
    """The connection to upstream died inside the answer."""

    code = "stream_broken"
    outcome = Outcome.TRUNCATED
    default_message = "The connection to the upstream API broke; the answer is incomplete."


class StreamTruncatedError(StreamBrokenError):
    """The answer ended tidily, but upstream never said that it was complete."""

    code = "stream_truncated"
    default_message = "The upstream API ended the stream before it was complete."


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def render_json(error: GrokflaskError) -> bytes:
    """The JSON object that OpenAI's SDKs read: `{"error": {message, type, param, code}}`."""
    return msgspec.json.encode({"error": error.to_fields()})


def render_event(error: GrokflaskError, *, as_json: bool) -> bytes:
    """The error as one event.

    `as_json` (the client's `Accept` names application/json) gives `render_json`'s object; otherwise it
    is the guide's `{"error": "API error: <message>"}`. Newlines in a message stay inside the JSON
    string, so no message can forge a further event.
    """
    body = render_json(error) if as_json else msgspec.json.encode({"error": f"API error: {error.message}"})
    return b"data: " + body + b"\n\n"
