"""Errors and answers as Flask responses: the one place where the gateway's values become HTTP.

Which shape an error takes is decided here (the shapes themselves are in `errors`): OpenAI's JSON object,
or the guide's event for a client that streams and does not name application/json in its Accept header.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from flask import Flask, Response, current_app, g, request, stream_with_context
from flask_limiter import RateLimitExceeded
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from grokflask.delivery.answer import Reply, StreamReply
from grokflask.errors import (
    BodyTooLargeError,
    GrokflaskError,
    InvalidRequestError,
    MediaTypeError,
    MethodNotAllowedError,
    Outcome,
    RouteNotFoundError,
)
from grokflask.protocol.dialects import CHAT
from grokflask.protocol.routes import Route
from grokflask.shaping.bodies import asks_for_stream
from grokflask.web.body import peek_body
from grokflask.web.current import get_request

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx holds 4 kB back otherwise
}

CONTENT_HEADERS = {
    "Content-Disposition": "attachment",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}")

_log = logging.getLogger("grokflask.web")


def wants_json() -> bool:
    """The request's Accept header names application/json, as OpenAI's SDKs do."""
    return "application/json" in get_request().headers.get("Accept", "").lower()


def reply_stream(reply: StreamReply) -> Response:
    """A response that sends each event when it comes, and closes the relay whatever happens."""
    try:
        response = Response(
            stream_with_context(iter(reply.relay)), headers={**reply.headers, **STREAM_HEADERS}
        )
        # The only call that Flask makes on every path: never iterated, cut short, or read to its end.
        response.call_on_close(reply.relay.close)
    except BaseException:
        reply.relay.close()
        raise
    return response


def reply_json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body`, which is JSON already."""
    return Response(body, status=status, headers=dict(headers or {}), content_type="application/json")


def reply_whole(reply: Reply) -> Response:
    """An answer that has come whole; what is large goes out of its file piece by piece."""
    body, kind = reply.body, reply.media_type
    if not body and kind == "application/json":
        response = Response(b"", reply.status, reply.headers)
        del response.headers["Content-Type"]  # of nothing there is no type, and JSON least of all
        return response
    if isinstance(body, bytes) and kind == "application/json":
        return reply_json(body, reply.status, reply.headers)
    headers = dict(reply.headers)
    if kind != "application/json":
        headers |= CONTENT_HEADERS  # somebody's file, which no browser may take for a page of ours
        kind = kind if _MEDIA_TYPE.fullmatch(kind) else "application/octet-stream"
    if isinstance(body, bytes):
        return Response(body, reply.status, headers, content_type=kind)
    try:
        headers["Content-Length"] = str(len(body))
        response = Response(iter(body), reply.status, headers, content_type=kind)
        response.call_on_close(body.close)
    except BaseException:
        body.close()
        raise
    return response


def reply_error(error: GrokflaskError) -> Response:
    """`error` in the shape that this client reads."""
    g.error_code = error.code
    g.refused = error.outcome in (Outcome.REFUSED, Outcome.SHUTDOWN)
    # Its frames hold the request's body, and objects that hold the error: a cycle, megabytes until collected.
    error.__traceback__ = None
    in_stream = asked_for_stream() if error.in_stream is None else error.in_stream
    route: Route | None = g.get("route")
    dialect = route.dialect if route else CHAT
    if not (in_stream and dialect.tells_errors_as_events) or wants_json():
        return reply_json(dialect.render_json(error), error.status, error.headers)
    body = dialect.render_event(error, as_json=False, number=0)
    return Response(body, status=error.status, headers={**error.headers, **STREAM_HEADERS})


def asked_for_stream() -> bool:
    """The request is one for a stream, as far as can be told without having accepted it."""
    if not g.get("route_streams", False):
        return False
    asked = asks_for_stream(peek_body())
    if asked is None:  # unread or unreadable: then by what the client would take
        return "text/event-stream" in request.headers.get("Accept", "").lower()
    return asked


def register_errors(app: Flask) -> None:
    """Every way out of a request that is no answer: JSON, in one of the two shapes."""
    app.register_error_handler(GrokflaskError, reply_error)
    app.register_error_handler(
        RateLimitExceeded, lambda _: reply_error(current_app.extensions["request_limits"].explain())
    )
    app.register_error_handler(HTTPException, lambda error: reply_error(translate(error)))
    app.register_error_handler(Exception, _reply_failure)


def _reply_failure(error: Exception) -> Response:
    _log.error("unexpected failure", exc_info=error, extra={"fields": {"request_id": g.get("request_id")}})
    return reply_error(GrokflaskError())


def translate(error: HTTPException) -> GrokflaskError:
    """Werkzeug's error as one of ours."""
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        message = f"{request.path} takes {allowed}, not {request.method}."
        return MethodNotAllowedError(message, headers={"Allow": allowed})
    if isinstance(error, RequestEntityTooLarge):
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        return BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
    if error.code == 404:
        return RouteNotFoundError(f"There is nothing at {request.path}.")
    if error.code == 415:
        return MediaTypeError()
    if error.code is not None and 400 <= error.code < 500:
        translated: GrokflaskError = InvalidRequestError(error.description)
        translated.status = error.code
        return translated
    _log.error("unexpected failure", exc_info=error, extra={"fields": {"request_id": g.get("request_id")}})
    return GrokflaskError()
