"""What this folder uses of its libraries beyond their documented interfaces: gunicorn 26.2, gevent 26.9.

Each part has a test in `tests/unit/server/test_private.py`. Gains are CPU of the worker (docs/levers.md):

- `gunicorn.http.wsgi.Response` is replaced, for head and body in one send: 14 µs of `/health`, 37 of a chat.
- `gunicorn.util.write_error` is replaced, for errors as JSON. gunicorn has no setting for it.
- `gunicorn.config.Config` gets its settings as attributes: 23 µs of a request.
- `AsyncWorker.handle` and `handle_request` are extended, to find idle connections and close them.
- gevent's `hub.loop` makes the watchers of `waits.ReadWait`: a paced event costs 0.92 as much.
- The watchdog knows two functions on a stack: gevent's `Hub.run`, in which the loop waits, and gunicorn's
  `AsyncWorker.handle_request`, which has the `environ` of its request. So no request or event pays for it.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from gevent.hub import Hub
from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.workers.base_async import AsyncWorker

from grokflask.runtime import REQUEST_ID
from grokflask.server.response import Response, write_error


def install() -> None:
    """Makes gunicorn use our response and our error replies. It looks up both in their modules."""
    wsgi.Response = Response
    util.write_error = write_error


def fix_settings(cfg: Any) -> None:
    """Stores a worker's settings as attributes. gunicorn computes each one anew whenever it is read."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def is_waiting(frame: FrameType) -> bool:
    """Whether the thread that runs `frame` waits in gevent's loop."""
    return frame.f_code is Hub.run.__code__


def find_request_id(frame: FrameType) -> str | None:
    """The id of the request that `frame` handles for gunicorn; None if it is another function's."""
    if frame.f_code is not AsyncWorker.handle_request.__code__:
        return None
    request_id: str | None = frame.f_locals.get("environ", {}).get(REQUEST_ID)
    return request_id
