"""Reading a request's body, within limits of bytes, of time, and of memory that all bodies take."""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Iterator
from socket import SHUT_RD
from urllib.parse import parse_qsl

from flask import Flask, Request
from werkzeug.exceptions import ClientDisconnected

from grokflask.delivery.clients import ClientWatcher
from grokflask.delivery.spool import PIECE_BYTES, Spool
from grokflask.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    GrokflaskError,
    InvalidRequestError,
    MediaTypeError,
)
from grokflask.gateway import Gateway
from grokflask.keys.ring import ApiKey
from grokflask.register import SMALL_BODY_BYTES, HeldBody
from grokflask.sockets import BrokenBodyError, shut_down
from grokflask.web.current import Notes

ADMIN = "admin"
"""The administrator, as a caller whose bodies are counted. Keys have a prefix."""

MAX_FORM_FIELDS = 100

FORM_S = 5.0
"""Time for a page's form, which anybody can send."""

PEEK_BYTES = 1024 * 1024
PEEK_BYTES_OF_STRANGERS = 64 * 1024
PEEK_S = 1.0
"""Limits for reading the body of a refused request, to learn whether it asks for a stream."""


def find_caller(notes: Notes) -> str:
    """Who holds the body in `OpenExchanges`: a key, the administrator, or "" for strangers."""
    key: ApiKey | None = notes.get("api_key")
    return key.limit_id if key else notes.get("caller", "")


def read_body(
    app: Flask, flask_request: Request, notes: Notes, limit: int | None = None, held: HeldBody | None = None
) -> bytes:
    """The JSON body, of at most `limit` bytes; the default is the setting. Raises GrokflaskError."""
    if not flask_request.is_json:
        raise MediaTypeError
    coding = flask_request.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise MediaTypeError(f"The request's body is compressed as {coding[:64]!r}: send it as plain JSON.")
    notes.body = b""  # the value if reading fails
    gateway: Gateway = app.extensions["gateway"]
    with gateway.exchanges.upload(find_caller(notes)):
        notes.body = body = _read_limited(
            app, flask_request, app.config["MAX_CONTENT_LENGTH"] if limit is None else limit, held
        )
    return body


def read_upload(app: Flask, flask_request: Request, notes: Notes, held: HeldBody) -> Spool:
    """A form with a file, which the caller closes. Raises GrokflaskError."""
    if flask_request.mimetype != "multipart/form-data":
        raise MediaTypeError("Send the file in a form: 'Content-Type: multipart/form-data'.")
    if flask_request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaTypeError("The request's body is compressed: send it as it is.")
    limit: int = app.extensions["settings"].max_upload_bytes
    notes.body = b""
    gateway: Gateway = app.extensions["gateway"]
    spool = Spool()
    try:
        _limit_size(flask_request, limit)
        with (
            gateway.exchanges.upload(find_caller(notes)),
            _limit_time(app, flask_request, app.config["BODY_TIMEOUT_S"]),
        ):
            for piece in _read_pieces(flask_request, limit):
                held.resize(len(spool) + len(piece) if spool.in_memory else 0)
                spool.append(piece)
        _check_size(len(spool), limit, flask_request)
    except BaseException:
        spool.close()
        raise
    return spool


def _limit_size(flask_request: Request, limit: int) -> None:
    """Raises BodyTooLargeError for a Content-Length over the limit."""
    _check_size(flask_request.content_length or 0, limit, flask_request)
    # Werkzeug silently ends a chunked body at its limit. One byte more shows that there was more.
    flask_request.max_content_length = limit + 1


def _check_size(size: int, limit: int, flask_request: Request) -> None:
    """Raises BodyTooLargeError, or InvalidRequestError for a body that ended early."""
    if size > limit:
        raise BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
    if size < (flask_request.content_length or 0):
        raise InvalidRequestError("The request's body ended before the length that was announced.")


def read_form(limit: int, app: Flask, flask_request: Request, notes: Notes) -> dict[str, str]:
    """The fields of a page's form; the last value of each. `limit` is bytes. Raises GrokflaskError."""
    if flask_request.mimetype != "application/x-www-form-urlencoded":
        raise MediaTypeError("Send the form as 'Content-Type: application/x-www-form-urlencoded'.")
    gateway: Gateway = app.extensions["gateway"]
    with gateway.exchanges.upload(find_caller(notes)):
        body = _read_limited(app, flask_request, limit, most_s=FORM_S)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS))
    except ValueError:
        raise InvalidRequestError("The form cannot be read.") from None


def peek_body(app: Flask, flask_request: Request, notes: Notes) -> bytes:
    """The body of a refused request if it is small and comes soon, else b""."""
    if "body" not in notes:
        notes.body = b""
        limit = PEEK_BYTES if "api_key" in notes else PEEK_BYTES_OF_STRANGERS
        waits = "HTTP_EXPECT" in flask_request.environ  # for `100 Continue`: a refused body need not be sent
        if 0 < (flask_request.content_length or 0) <= limit and not waits:
            gateway: Gateway = app.extensions["gateway"]
            with contextlib.suppress(GrokflaskError), HeldBody(gateway.exchanges, find_caller(notes)) as held:
                flask_request.max_content_length = limit
                timeout_s = min(PEEK_S, app.config["BODY_TIMEOUT_S"])
                notes.body = _read_all(app, flask_request, timeout_s, limit, held)
    body: bytes = notes.body
    return body


def _read_limited(
    app: Flask, flask_request: Request, limit: int, held: HeldBody | None = None, most_s: float = math.inf
) -> bytes:
    """The whole body. Raises GrokflaskError."""
    _limit_size(flask_request, limit)
    body = _read_all(app, flask_request, min(most_s, app.config["BODY_TIMEOUT_S"]), limit, held)
    _check_size(len(body), limit, flask_request)
    return body


def _read_all(
    app: Flask, flask_request: Request, timeout_s: float, limit: int, held: HeldBody | None
) -> bytes:
    """The whole body, or a little more than `limit` of it. Raises GrokflaskError."""
    # One block of memory, which the system gets back. Freed pieces of 64 KiB would stay in the heap.
    body = io.BytesIO()
    with _limit_time(app, flask_request, timeout_s):
        for piece in _read_pieces(flask_request, limit):
            size = body.tell() + len(piece)
            if held is not None and size > SMALL_BODY_BYTES:
                held.resize(size)
            body.write(piece)
    return body.getvalue()


def _read_pieces(flask_request: Request, limit: int) -> Iterator[bytes]:
    """The body as it arrives, until it is larger than `limit`."""
    size, announced = 0, flask_request.content_length
    while size != announced and size <= limit and (piece := flask_request.stream.read(PIECE_BYTES)):
        size += len(piece)
        yield piece


@contextlib.contextmanager
def _limit_time(app: Flask, flask_request: Request, timeout_s: float) -> Iterator[None]:
    """Stops reading after `timeout_s`. Raises BodyTimeoutError, or InvalidRequestError for a broken body."""
    timed_out = threading.Event()
    sock = flask_request.environ.get("gunicorn.socket")

    def give_up() -> None:
        timed_out.set()
        shut_down(sock, SHUT_RD)  # reading ends, and the response can still be sent

    clients: ClientWatcher = app.extensions["clients"]
    watch = clients.limit(sock, timeout_s, give_up)
    try:
        yield
    except (OSError, ClientDisconnected, BrokenBodyError) as error:
        if not timed_out.is_set():
            broken = isinstance(error, BrokenBodyError)
            raise InvalidRequestError(str(error) if broken else "The request's body ended early.") from None
    finally:
        watch.stop()
    if timed_out.is_set():
        raise BodyTimeoutError
