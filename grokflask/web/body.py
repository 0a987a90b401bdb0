"""Reading a request's body: never more than the limit, never longer than it may take."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from socket import SHUT_RD
from urllib.parse import parse_qsl

from flask import Flask, Request
from werkzeug.exceptions import ClientDisconnected

from grokflask.delivery.clients import ClientWatcher
from grokflask.delivery.spool import PIECE_BYTES, Spool
from grokflask.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError, MediaTypeError
from grokflask.gateway import Gateway
from grokflask.sockets import shut_down
from grokflask.web.current import get_app, get_notes, get_request

MAX_FIELDS = 100
"""Of a form."""

PEEK_BYTES = 1024 * 1024
PEEK_S = 1.0
"""How much of a refused request's body is read, and for how long, to learn whether it asked for a stream."""


def read_body() -> bytes:
    """The JSON body, if it comes whole and in time. Raises ClientError.

    A stated length over the limit is refused unread, a chunked body when it passes the limit.
    """
    app, asked, notes = get_app(), get_request(), get_notes()
    if not asked.is_json:
        raise MediaTypeError
    coding = asked.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise MediaTypeError(f"The request's body is compressed as {coding[:64]!r}: send it as plain JSON.")
    limit = app.config["MAX_CONTENT_LENGTH"]
    # Werkzeug ends a chunked body at its limit without a word: one byte more shows that there was more.
    asked.max_content_length = limit + 1
    notes.body = b""  # what an error finds when reading fails halfway
    gateway: Gateway = app.extensions["gateway"]
    with gateway.exchanges.upload():
        notes.body = body = _take(app, asked, app.config["BODY_TIMEOUT_S"])
    if len(body) > limit:
        raise BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
    if len(body) < (asked.content_length or 0):
        raise InvalidRequestError("The request's body ended before the length that was announced.")
    return body


def read_upload() -> Spool:
    """A form with a file, if it comes whole and in time. The caller closes it. Raises ClientError."""
    app, asked, notes = get_app(), get_request(), get_notes()
    if asked.mimetype != "multipart/form-data":
        raise MediaTypeError("Send the file in a form: 'Content-Type: multipart/form-data'.")
    if asked.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaTypeError("The request's body is compressed: send it as it is.")
    limit = app.extensions["settings"].max_upload_bytes
    asked.max_content_length = limit + 1
    notes.body = b""
    gateway: Gateway = app.extensions["gateway"]
    spool = Spool()
    try:
        if (asked.content_length or 0) > limit:
            raise BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
        with gateway.exchanges.upload(), _in_time(app, asked, app.config["BODY_TIMEOUT_S"]):
            while (piece := asked.stream.read(PIECE_BYTES)) and len(spool) <= limit:
                spool.append(piece)
        if len(spool) > limit:
            raise BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
        if len(spool) < (asked.content_length or 0):
            raise InvalidRequestError("The request's body ended before the length that was announced.")
    except BaseException:
        spool.close()
        raise
    return spool


def read_form(limit_bytes: int) -> dict[str, str]:
    """The fields of a page's form, if it comes whole and in time; of a name's values the last.

    Raises ClientError.
    """
    app, asked = get_app(), get_request()
    if asked.mimetype != "application/x-www-form-urlencoded":
        raise MediaTypeError("Send the form as 'Content-Type: application/x-www-form-urlencoded'.")
    too_large = BodyTooLargeError(f"The form is larger than {limit_bytes} bytes.")
    if (asked.content_length or 0) > limit_bytes:
        raise too_large
    asked.max_content_length = limit_bytes + 1
    body = _take(app, asked, app.config["BODY_TIMEOUT_S"])
    if len(body) > limit_bytes:
        raise too_large
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise InvalidRequestError("The form cannot be read.") from None


def peek_body() -> bytes:
    """The body of a request that is refused for another reason, as far as that costs little; else b""."""
    app, asked, notes = get_app(), get_request(), get_notes()
    if "body" not in notes:
        notes.body = b""
        if 0 < (asked.content_length or 0) <= PEEK_BYTES:
            with contextlib.suppress(BodyTimeoutError):  # then it is refused without being understood
                notes.body = _take(app, asked, min(PEEK_S, app.config["BODY_TIMEOUT_S"]))
    body: bytes = notes.body
    return body


def drop_body() -> None:
    """Lets go of it: a stream may run for an hour and must not keep megabytes alive so long."""
    get_notes().pop("body", None)


def _take(app: Flask, asked: Request, timeout_s: float) -> bytes:
    """What comes within `timeout_s`. Raises BodyTimeoutError; a client that leaves cuts it short."""
    taken: list[bytes] = []
    with _in_time(app, asked, timeout_s):
        taken.append(asked.get_data(cache=False))
    return b"".join(taken)


@contextlib.contextmanager
def _in_time(app: Flask, asked: Request, timeout_s: float) -> Iterator[None]:
    """Ends reading after `timeout_s`. Raises BodyTimeoutError; that a client has left is no error."""
    late = threading.Event()
    sock = asked.environ.get("gunicorn.socket")

    def give_up() -> None:
        late.set()
        shut_down(sock, SHUT_RD)  # the read ends; the answer can still be sent

    clients: ClientWatcher = app.extensions["clients"]
    watch = clients.limit(sock, timeout_s, give_up)
    try:
        yield
    except (OSError, ClientDisconnected):
        pass
    finally:
        watch.stop()
    if late.is_set():
        raise BodyTimeoutError
