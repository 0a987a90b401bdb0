"""What this folder uses of its libraries beyond their documented interfaces: gunicorn 26.2, gevent 26.9.

Each part has a test in `tests/unit/server/test_private.py`. Gains are CPU of the worker (docs/levers.md):

- `gunicorn.http.wsgi.Response` is replaced, for head and body in one send: 14 µs of `/health`, 37 of a chat.
- `gunicorn.util.write_error` is replaced, for errors as JSON. gunicorn has no setting for it.
- `gunicorn.config.Config` gets its settings as attributes: 23 µs of a request.
- `AsyncWorker.handle` and `handle_request` are extended, to find idle connections and close them.
- `gunicorn.http.parser.SocketUnreader` is extended, to limit heads: gunicorn's own limits allow 820 kB.
- gunicorn's requests get bodies of ours, for the limits in `bodies`: `body.reader` says of which kind,
  `unreader` has the bytes, and `_expected_100_continue` is left to the body.
- gevent's `hub.loop` makes the watchers of `waits.ReadWait`: a paced event costs 0.92 as much.
- The watchdog knows two functions on a stack: gevent's `Hub.run`, in which the loop waits, and gunicorn's
  `AsyncWorker.handle_request`, which has the `environ` of its request. So no request or event pays for it.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from gevent.hub import Hub
from gunicorn import util
from gunicorn.http import parser, wsgi
from gunicorn.http.errors import LimitRequestHeaders, ObsoleteFolding
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.base_async import AsyncWorker

from grokflask.runtime import REQUEST_ID
from grokflask.server.bodies import Body, ChunkedBody, LengthBody
from grokflask.server.response import Response, write_error

MAX_HEAD_BYTES = 64 * 1024


class HeadUnreader(SocketUnreader):  # type: ignore[misc]
    """gunicorn's reader of a connection, which only heads are read with: bodies go past it."""

    head_bytes = 0

    def chunk(self) -> bytes:
        """What comes next. Raises LimitRequestHeaders after MAX_HEAD_BYTES without a request."""
        data: bytes = self.sock.recv(self.mxchunk)
        self.head_bytes += len(data)
        if self.head_bytes > MAX_HEAD_BYTES:
            raise LimitRequestHeaders(f"more than {MAX_HEAD_BYTES} bytes")
        return data


def install() -> None:
    """Makes gunicorn use classes and functions of ours, which it looks up in their modules."""
    parser.SocketUnreader = HeadUnreader
    wsgi.Response = Response
    util.write_error = write_error


def fix_settings(cfg: Any) -> None:
    """Stores a worker's settings as attributes. gunicorn computes each one anew whenever it is read."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


_NO_BODY: Body = LengthBody(None, 0)


def replace_body(request: Any) -> Body:
    """Gives gunicorn's request a body of ours, if it has one. Nothing of it may have been read.

    Raises ObsoleteFolding for a head with a folded line. gunicorn's parser in C lets it pass, without a name.
    """
    if "" in dict(request.headers):
        raise ObsoleteFolding("")
    request.unreader.head_bytes = 0
    length = getattr(request.body.reader, "length", None)
    if length == 0:
        return _NO_BODY
    make = ChunkedBody if length is None else LengthBody
    body = make(request.unreader, length, expects_continue=request._expected_100_continue)
    request.body, request._expected_100_continue = body, False
    return body


def is_waiting(frame: FrameType) -> bool:
    """Whether the thread that runs `frame` waits in gevent's loop."""
    return frame.f_code is Hub.run.__code__


def find_request_id(frame: FrameType) -> str | None:
    """The id of the request that `frame` handles for gunicorn; None if it is another function's."""
    if frame.f_code is not AsyncWorker.handle_request.__code__:
        return None
    request_id: str | None = frame.f_locals.get("environ", {}).get(REQUEST_ID)
    return request_id
