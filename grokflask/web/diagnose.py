"""GET /diagnose/stream: a short timed stream without upstream, by which the doctor finds proxies that buffer.

`flask --app wsgi doctor --url` compares when the events were sent with when they arrive. The stream costs
nothing, but it holds a connection for up to two minutes. So it needs a key or the admin token, and few may be
open.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request

from grokflask.config import Settings
from grokflask.errors import (
    AuthenticationError,
    InvalidRequestError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyStreamsError,
)
from grokflask.exchanges import OpenExchanges
from grokflask.keys.ring import KeyRing, read_bearer
from grokflask.web.attempts import is_admin_token
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
    if current_app.extensions["gateway"].exchanges.draining:
        raise ShuttingDownError
    if not _slots.acquire(blocking=False):
        text = "Too many diagnostic streams are open: try again in a few seconds."
        raise TooManyStreamsError(text, headers={"Retry-After": "3"})
    try:
        events = _Events(_describe_request(), silence_s)
        sock = request.environ.get("gunicorn.socket")
        watch = current_app.extensions["clients"].watch(sock, events.gone.set)
    except BaseException:
        _slots.release()
        raise

    def close() -> None:
        watch.stop()
        events.close()

    response = Response(events, headers=STREAM_HEADERS)
    response.call_on_close(close)  # also called for a stream that is never iterated
    return response


class _Events:
    """The events, each made when it is sent. Holds a slot until it is closed.

    Heartbeats fill a silence, as in any stream. The stream ends without `[DONE]` when the client leaves or
    the process shuts down.
    """

    def __init__(self, description: dict[str, Any], silence_s: float) -> None:
        #: Set when the client has left; this ends a wait.
        self.gone = threading.Event()
        self._description = description
        self._total = 2 if silence_s else EVENTS
        self._interval_s = silence_s or INTERVAL_S
        self._heartbeat_s: float = current_app.extensions["settings"].heartbeat_s
        self._exchanges: OpenExchanges = current_app.extensions["gateway"].exchanges
        self._number = 0
        self._started_at = 0.0
        self._due_at = 0.0  # monotonic
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> _Events:
        return self

    def __next__(self) -> bytes:
        if self._number > self._total:
            raise StopIteration
        now = time.monotonic()
        if self._number == 0:
            self._started_at = now
        elif self._number < self._total and now < self._due_at:
            self.gone.wait(min(self._due_at - now, self._heartbeat_s))
            if self.gone.is_set() or self._exchanges.draining:
                self._number = self._total + 1
                raise StopIteration
            if time.monotonic() < self._due_at:
                return HEARTBEAT
        return self._make_next()

    def _make_next(self) -> bytes:
        self._number += 1
        if self._number > self._total:
            return b"data: [DONE]\n\n"
        now = time.monotonic()
        self._due_at = now + self._interval_s
        sent_ms = round((now - self._started_at) * 1000)
        event = {"number": self._number, "of": self._total, "sent_ms": sent_ms, **self._description}
        self._description = {}
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def close(self) -> None:
        """Returns the slot. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self.gone.set()
            _slots.release()


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
    """Raises AuthenticationError, other errors of KeyRing, or RateLimitError after too many wrong tokens."""
    authorization = request.headers.get("Authorization")
    keys: KeyRing = current_app.extensions["keys"]
    try:
        keys.authenticate(authorization, request.remote_addr or "unknown")
    except (AuthenticationError, StoreUnavailableError):
        if not is_admin_token(read_bearer(authorization)):
            raise


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
