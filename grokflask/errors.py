"""The tree of errors, and how clients of the chat API see them.

    GrokflaskError          the gateway failed: full, shutting down, a store unavailable
    ├── ConfigError         the gateway cannot start
    ├── ClientError         the request is at fault
    │   └── RateLimitError  one of the key's limits is reached
    └── UpstreamError       xAI, or the connection to it, failed

Each class has a status, a code, a message and an outcome. Docstrings add what the message does not say.
`protocol.dialects` renders errors for the other APIs. No IO. This module imports nothing of grokflask.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

import msgspec

MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What decoding JSON may raise: bad syntax, a wrong type, too deep nesting, a key that is not UTF-8."""

_BEARER = {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 15.5.2
_RETRY_SOON = {"Retry-After": "1"}
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's SDKs retry without it


class Outcome(StrEnum):
    """How an exchange ended, as the log and the ledger name it."""

    COMPLETE = "complete"
    CLIENT_ABORT = "client_abort"
    UPSTREAM_ERROR = "upstream_error"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"  # the process was killed; the usage is unknown
    LIMIT = "limit"  # its key's budget was used up meanwhile
    REFUSED = "refused"  # by the gateway; nothing reached upstream


class GrokflaskError(Exception):
    """The root of the tree: an error that a client can see."""

    status: int = 500
    code: str = "internal_error"
    default_message: ClassVar[str] = "Something went wrong inside the gateway."
    default_headers: ClassVar[Mapping[str, str]] = {}
    outcome: ClassVar[Outcome] = Outcome.REFUSED
    kind: str | None = None
    """The `type` that clients see, where the status does not decide it."""
    param: str | None = None
    """The field of the request that is at fault."""
    in_stream: bool | None = None
    """Whether the request asks for a stream; None while the body has not been read."""

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str | None = None,
    ) -> None:
        self.message = message or self.default_message
        #: More for the log, such as the operating system's error. Clients never see it.
        self.detail = detail
        self.param = self.param if param is None else param
        self.headers = {**self.default_headers, **(headers or {})}
        super().__init__(self.message)

    @property
    def type(self) -> str:
        """OpenAI's error type, which SDKs and their users branch on."""
        by_status = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return self.kind or by_status

    def to_fields(self) -> dict[str, str | None]:
        """The fields that OpenAI's SDKs read."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class ConfigError(GrokflaskError):
    """The settings do not work. `problems` lists every reason, each with its remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("grokflask cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


class ClientError(GrokflaskError):
    """The request is at fault; sending it again unchanged does not help."""


class InvalidRequestError(ClientError):
    """The body is not JSON, or a field is missing or of the wrong type."""

    status, code = 400, "invalid_request"
    default_message = "The request is not valid."


class AuthenticationError(ClientError):
    """The request has no key, or an unknown one."""

    status, code = 401, "invalid_api_key"
    default_message = (
        "Invalid API key: send a key of this gateway as 'Authorization: Bearer <key>'. Ask its operator "
        "for one."
    )
    default_headers = _BEARER


class KeyRevokedError(ClientError):
    status, code = 403, "key_revoked"
    default_message = "This API key has been revoked."


class KeyExpiredError(ClientError):
    status, code = 403, "key_expired"
    default_message = "This API key has expired."


class ModelNotAllowedError(ClientError):
    status, code = 403, "model_not_allowed"
    default_message = "This API key may not use that model."


class ToolsNotAllowedError(ClientError):
    """The key may not use tools, or none that run at xAI."""

    status, code = 403, "tools_not_allowed"
    default_message = "This API key may not use tools."
    param = "tools"


class UnmeteredError(ClientError):
    """The key has limits, and the gateway does not see what this route costs."""

    status, code = 403, "not_metered"
    default_message = (
        "This API key has limits on tokens, money, models or tools, which cannot be enforced here."
    )


class HostNotAllowedError(ClientError):
    status, code = 403, "host_not_allowed"
    default_message = "The gateway does not answer under this host name."


class CrossSiteError(ClientError):
    status, code = 403, "cross_site"
    default_message = "A page of another origin has sent this: list that origin in GROKFLASK_CORS_ORIGINS."


class RouteNotFoundError(ClientError):
    status, code = 404, "not_found"
    default_message = "There is nothing at this path."


class KeyNotFoundError(ClientError):
    status, code = 404, "key_not_found"
    default_message = "There is no key with this name."


class KeyExistsError(ClientError):
    """The name is taken. A revoked key keeps its name, for the ledger."""

    status, code = 409, "key_exists"
    default_message = "A key with this name already exists."


class StreamElsewhereError(ClientError):
    """An admin wants to end a stream of another process, which only Redis could reach."""

    status, code = 409, "stream_elsewhere"
    default_message = "Another worker serves this stream, and without Redis it cannot be reached."


class IdempotencyKeyInUseError(ClientError):
    """A request with this Idempotency-Key is running, and its answer cannot be shared.

    The status is that of draft-ietf-httpapi-idempotency-key-header, the code is Stripe's.
    """

    status, code = 409, "idempotency_key_in_use"
    default_message = "A request with this Idempotency-Key is still running, and its answer is not kept."
    default_headers = _RETRY_SOON


class IdempotencyKeyReusedError(ClientError):
    """The Idempotency-Key belongs to another body or route. The status is that of the same draft."""

    status, code = 422, "idempotency_key_reused"
    default_message = (
        "This Idempotency-Key was used for a different request. Use a new key for each request, and send "
        "a key again only with the same body."
    )


class StreamGoneError(ClientError):
    """The stream of this Last-Event-ID failed, was too large, or ended too long ago."""

    status, code = 410, "stream_gone"
    default_message = (
        "The stream with this Last-Event-ID is no longer kept and cannot be resumed. Send the request "
        "again without Last-Event-ID to start a new one."
    )


class MethodNotAllowedError(ClientError):
    """The path exists, but not for this method. `Allow` lists those that it has."""

    status, code = 405, "method_not_allowed"
    default_message = "This path does not support that method."


class BodyTooLargeError(ClientError):
    """The body exceeds GROKFLASK_MAX_BODY_BYTES, or its JSON GROKFLASK_MAX_JSON_BYTES."""

    status, code = 413, "body_too_large"
    default_message = "The request's body is too large."


class BodyTimeoutError(ClientError):
    """The body did not arrive within GROKFLASK_BODY_TIMEOUT_S."""

    status, code = 408, "body_timeout"
    default_message = "The request's body took too long to arrive."


class MediaTypeError(ClientError):
    status, code = 415, "unsupported_media_type"
    default_message = "Send the body as JSON, with the header 'Content-Type: application/json'."


class RateLimitError(ClientError):
    """The key has no requests left in this window. `Retry-After` says when it ends."""

    status, code = 429, "rate_limit_exceeded"
    default_message = "Too many requests."


class TokenLimitError(RateLimitError):
    """The key's tokens per minute do not cover this request."""

    code = "token_limit_exceeded"
    default_message = "Too many tokens."


class TooManyStreamsError(RateLimitError):
    code = "too_many_streams"
    default_message = "Too many open streams."


class FairShareError(RateLimitError):
    code = "fair_share_exceeded"
    default_message = "The gateway is nearly full, and this key already has its fair share of it."


class BudgetSpentError(ClientError):
    """What is left of the key's daily or monthly budget does not cover this request."""

    status, code = 429, "insufficient_quota"
    default_message = "The budget of this key is spent."
    kind = "insufficient_quota"  # as OpenAI has it
    default_headers = _NO_RETRY


class BudgetUsedUpError(BudgetSpentError):
    """A stream has used what was left of its key's budget."""

    outcome = Outcome.LIMIT
    default_message = "The budget of this key is used up; the answer is incomplete."


class ClientGoneError(ClientError):
    """The client closed its connection. Only the log shows this status, which nginx invented."""

    status, code = 499, "client_gone"
    outcome = Outcome.CLIENT_ABORT
    default_message = "The client closed its connection."


class GatewayFullError(GrokflaskError):
    """The worker runs as many exchanges as it may."""

    status, code = 503, "gateway_full"
    default_message = "The gateway is full. Try again in a moment."
    default_headers = _RETRY_SOON


class BodiesFullError(GrokflaskError):
    """The worker holds request bodies of GROKFLASK_BODIES_TOTAL_BYTES."""

    status, code = 503, "bodies_full"
    default_message = "The gateway has no memory for a request of this size now. Try again in a moment."
    default_headers = _RETRY_SOON


class DiskFullError(GrokflaskError):
    """TMPDIR takes no more bytes. Sending the request again would not help soon, and may cost money."""

    status, code = 507, "disk_full"
    default_message = "The gateway has no room for this body on its disk."
    default_headers = _NO_RETRY


class ShuttingDownError(GrokflaskError):
    status, code = 503, "shutting_down"
    outcome = Outcome.SHUTDOWN
    default_message = "The gateway is shutting down. Send the request again."
    default_headers = _RETRY_SOON


class StreamStoppedError(GrokflaskError):
    status, code = 503, "stream_stopped"
    outcome = Outcome.SHUTDOWN
    default_message = "The gateway's operator stopped this answer; it is incomplete."
    default_headers = _NO_RETRY


class RecordingLostError(GrokflaskError):
    """A reader needs bytes of an answer that were already dropped, or the worker that stored it died."""

    status, code = 503, "recording_lost"
    default_message = "The gateway no longer has the rest of this answer; it is incomplete."


class StoreUnavailableError(GrokflaskError):
    """The database or Redis is down, and the request needs it."""

    status, code = 503, "store_unavailable"
    default_message = "The gateway cannot look that up right now. Try again in a moment."
    default_headers = _RETRY_SOON


class UpstreamError(GrokflaskError):
    """xAI, or the connection to it, failed."""

    status, code = 502, "upstream_error"
    outcome = Outcome.UPSTREAM_ERROR
    default_message = "The upstream API failed."


class UpstreamConnectError(UpstreamError):
    """No connection was made, so upstream has not seen the request."""

    code = "upstream_unreachable"
    default_message = "The upstream API cannot be reached."


class UpstreamTimeoutError(UpstreamError):
    """Upstream took the request and was then silent for too long."""

    status, code = 504, "upstream_timeout"
    outcome = Outcome.TIMEOUT
    default_message = "The upstream API was silent for too long."


class ConnectTimeoutError(UpstreamConnectError):
    """No connection was made within GROKFLASK_CONNECT_TIMEOUT_S."""

    status, code = 504, "connect_timeout"
    outcome = Outcome.TIMEOUT
    default_message = "Connecting to the upstream API took too long."


class FirstEventTimeoutError(UpstreamTimeoutError):
    """The answer did not begin within GROKFLASK_FIRST_EVENT_TIMEOUT_S."""

    code = "first_event_timeout"


class IdleTimeoutError(UpstreamTimeoutError):
    """No event came for GROKFLASK_IDLE_TIMEOUT_S."""

    code = "idle_timeout"


class TotalTimeoutError(UpstreamTimeoutError):
    """The exchange took GROKFLASK_TOTAL_TIMEOUT_S."""

    code = "total_timeout"


class NoAnswerError(UpstreamError):
    """Upstream closed the connection before it answered. It may have done the work."""

    code = "upstream_no_answer"
    default_message = "The upstream API closed the connection without an answer."


class UpstreamProtocolError(UpstreamError):
    code = "upstream_protocol_error"
    default_message = "The upstream API sent an answer that the gateway cannot read."


class ForeignAnswerError(UpstreamProtocolError):
    """A redirect or a page of HTML, as a proxy sends it: the API has not seen the request."""


class UpstreamStatusError(UpstreamError):
    """Upstream answered with an error: its status, code, type and message are kept."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str | None = None,
        kind: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        has_message: bool = True,
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.status = status
        self.code = code or self.code
        self.kind = kind
        self.has_message = has_message
        """False when upstream sent no message, and `message` only names the status."""


class StreamBrokenError(UpstreamError):
    code = "stream_broken"
    outcome = Outcome.TRUNCATED
    default_message = "The connection to the upstream API broke; the answer is incomplete."


class StreamTruncatedError(StreamBrokenError):
    """The connection closed normally, but before upstream marked the answer as complete."""

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

    With `as_json` (the client's `Accept` names application/json) it has `render_json`'s object, otherwise
    the guide's `{"error": "API error: <message>"}`. JSON escapes newlines: no message can forge an event.
    """
    body = render_json(error) if as_json else msgspec.json.encode({"error": f"API error: {error.message}"})
    return b"data: " + body + b"\n\n"
