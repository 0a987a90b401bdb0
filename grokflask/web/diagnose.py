"""GET /diagnose/stream: a short timed stream without upstream, by which the doctor finds proxies that buffer.

`flask --app wsgi doctor --url` compares when the events were sent with when they arrive. The stream costs
nothing, but it holds a connection for up to two minutes. So it needs a key or the admin token, and few may be
open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request

from grokflask.config import Settings
from grokflask.errors import InvalidRequestError, ShuttingDownError, TooManyStreamsError
from grokflask.keys.ring import read_bearer
from grokflask.register import OpenExchanges
from grokflask.web.attempts import is_admin_token
from grokflask.web.callers import authenticate
from grokflask.web.current import get_current
from grokflask.web.responses import STREAM_HEADERS

PATH = "/diagnose/stream"
EVENTS = 5
INTERVAL_S = 0.3
MAX_OPEN = 4
"""Per worker."""

MAX_SILENCE_S = 120.0
HEARTBEAT = b": keep-alive\n"

blueprint = Blueprint("diagnose", __name__)

_slots = threading.BoundedSemaphore(MAX_OPEN)


@blueprint.get(PATH)
def stream_diagnosis() -> Response:
    """Five events, 0.3 s apart; the first describes the request. With `silence_s`, two events that far apart.

    Raises AuthenticationError, RateLimitError, TooManyStreamsError, InvalidRequestError, ShuttingDownError.
    """
    _check_caller()
    silence_s = _read_silence()
    exchanges: OpenExchanges = current_app.extensions["gateway"].exchanges
    if exchanges.draining:
        raise ShuttingDownError
    if not _slots.acquire(blocking=False):
        text = "Too many diagnostic streams are open: try again in a few seconds."
        raise TooManyStreamsError(text, headers={"Retry-After": "3"})
    with ExitStack() as stack:
        stack.callback(_slots.release)
        gone = threading.Event()
        sock = request.environ.get("gunicorn.socket")
        stack.callback(current_app.extensions["clients"].watch(sock, gone.set).stop)
        events = _send_events(_describe_request(), silence_s, gone, exchanges)
        response = Response(events, headers=STREAM_HEADERS)
        response.call_on_close(stack.pop_all().close)  # also called for a stream that is never iterated
    return response


def _send_events(
    description: dict[str, Any], silence_s: float, gone: threading.Event, exchanges: OpenExchanges
) -> Iterator[bytes]:
    """The events, each made when it is sent. Heartbeats fill a silence, as in any stream.

    Ends without `[DONE]` when the client has `gone` or the process shuts down.
    """
    total, interval_s = (2, silence_s) if silence_s else (EVENTS, INTERVAL_S)
    started_at = sent_at = time.monotonic()
    for number in range(1, total + 1):
        while number > 1 and (wait_s := sent_at + interval_s - time.monotonic()) > 0:
            gone.wait(min(wait_s, description["heartbeat_s"]))
            if gone.is_set() or exchanges.draining:
                return
            if time.monotonic() < sent_at + interval_s:
                yield HEARTBEAT
        sent_at = time.monotonic()
        event = {"number": number, "of": total, "sent_ms": round((sent_at - started_at) * 1000)}
        yield b"data: " + msgspec.json.encode(event | (description if number == 1 else {})) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _read_silence() -> float:
    """Seconds. Raises InvalidRequestError."""
    try:
        seconds = float(request.args.get("silence_s", "0"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SILENCE_S:
        message = f"'silence_s' expects seconds from 0 to {MAX_SILENCE_S:g}."
        raise InvalidRequestError(message, param="silence_s")
    return seconds


def _check_caller() -> None:
    """Raises the errors of `authenticate` for callers without the admin token."""
    app, flask_request, _ = get_current()
    authorization = flask_request.headers.get("Authorization")
    if not is_admin_token(read_bearer(authorization)):
        authenticate(app, flask_request, authorization)


def _describe_request() -> dict[str, Any]:
    """The request as it arrived here through proxies. Of addresses only their number is shown."""
    forwarded = ",".join(request.headers.getlist("X-Forwarded-For"))
    settings: Settings = current_app.extensions["settings"]
    return {
        "request_id": g.request_id,
        "scheme": request.scheme,
        "forwarded_for": len([each for each in forwarded.split(",") if each.strip()]),
        "forwarded_proto": request.headers.get("X-Forwarded-Proto", "")[:20] or None,
        "trusted_proxies": settings.trusted_proxies,
        "heartbeat_s": settings.heartbeat_s,
    }
