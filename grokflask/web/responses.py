"""Flask responses for the gateway's replies and errors.

An error is OpenAI's JSON object, or an event if the request asks for a stream and its Accept header does not
name application/json. `errors` and `protocol.dialects` render both.
"""

from __future__ import annotations

import logging
import re

from flask import Flask, Request, Response, stream_with_context
from flask_limiter import RateLimitExceeded
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from grokflask.delivery.answer import Reply, StreamReply
from grokflask.errors import (
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
from grokflask.web.current import Notes, get_current

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


def wants_json(flask_request: Request) -> bool:
    """Whether the Accept header names application/json, as OpenAI's SDKs do."""
    return "application/json" in flask_request.headers.get("Accept", "").lower()


def reply_stream(reply: StreamReply) -> Response:
    """A response that sends each event as it arrives. It closes the relay, whatever happens."""
    try:
        response = Response(
            stream_with_context(iter(reply.relay)), headers={**reply.headers, **STREAM_HEADERS}
        )
        # This is called on every path: if the response is never iterated, cut short, or read to its end.
        response.call_on_close(reply.relay.close)
    except BaseException:
        reply.relay.close()
        raise
    return response


def reply_whole(reply: Reply) -> Response:
    """A response with the whole reply. A large body is sent from its file, piece by piece."""
    body, media_type, headers = reply.body, reply.media_type, dict(reply.headers)
    if media_type != "application/json":
        headers |= CONTENT_HEADERS  # a user's file, which a browser must not show as a page of this host
        media_type = media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
    if isinstance(body, bytes):
        response = Response(body, reply.status, headers, content_type=media_type)
        if not body and media_type == "application/json":
            del response.headers["Content-Type"]  # an empty body is not JSON
        return response
    try:
        headers["Content-Length"] = str(len(body))
        response = Response(iter(body), reply.status, headers, content_type=media_type)
        response.call_on_close(body.close)
    except BaseException:
        body.close()
        raise
    return response


def reply_error(error: GrokflaskError) -> Response:
    """A response with `error`, in the shape that this client reads."""
    app, flask_request, notes = get_current()
    notes.error_code = error.code
    notes.refused = error.outcome in (Outcome.REFUSED, Outcome.SHUTDOWN)
    # The frames hold the request's body and objects that hold the error: a cycle of megabytes.
    error.__traceback__ = None
    route: Route | None = notes.get("route")
    dialect = route.dialect if route else CHAT
    in_stream = _asks_for_stream(app, flask_request, notes) if error.in_stream is None else error.in_stream
    if not (in_stream and dialect.errors_as_events) or wants_json(flask_request):
        body = dialect.render_json(error)
        return Response(body, error.status, error.headers, content_type="application/json")
    body = dialect.render_event(error, as_json=False, number=0)
    return Response(body, error.status, {**error.headers, **STREAM_HEADERS})


def _asks_for_stream(app: Flask, flask_request: Request, notes: Notes) -> bool:
    """Whether the refused request asks for a stream, as far as its body can be read."""
    if not notes.get("route_streams", False):
        return False
    stream = asks_for_stream(peek_body(app, flask_request, notes))
    accepted = flask_request.headers.get("Accept", "").lower()
    return "text/event-stream" in accepted if stream is None else stream


def register_errors(app: Flask) -> None:
    """Turns every error of a request into a JSON object or an event."""
    app.register_error_handler(
        RateLimitExceeded, lambda _: reply_error(app.extensions["request_limits"].explain())
    )
    app.register_error_handler(Exception, lambda error: reply_error(translate(error)))


def translate(error: Exception) -> GrokflaskError:
    """Any error as one of the gateway's own. Logs those that are not expected."""
    _, flask_request, notes = get_current()
    if isinstance(error, GrokflaskError):
        return error
    if isinstance(error, MethodNotAllowed):
        methods = ", ".join(sorted(error.valid_methods or ()))
        message = f"{flask_request.path} takes {methods}, not {flask_request.method}."
        return MethodNotAllowedError(message, headers={"Allow": methods})
    status = error.code if isinstance(error, HTTPException) else None
    if status == 404:
        return RouteNotFoundError(f"There is nothing at {flask_request.path}.")
    if status == 415:
        return MediaTypeError()
    if isinstance(error, HTTPException) and status is not None and 400 <= status < 500:
        invalid = InvalidRequestError(error.description)
        invalid.status = status
        return invalid
    _log.error(
        "unexpected failure", exc_info=error, extra={"fields": {"request_id": notes.get("request_id")}}
    )
    return GrokflaskError()
