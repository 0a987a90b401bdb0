"""An answer of upstream's, read off its socket as it comes.

It reads from the socket itself, so that what has come is had in one step and a wait that ends without data
can be repeated.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from typing import Any, Self

import requests

from grokflask.errors import StreamBrokenError, UpstreamError
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.connections import Attempt
from grokflask.upstream.parser import AnswerParser
from grokflask.upstream.transport import RECEIVE_BYTES, Answer

TURN_BYTES = 64 * 1024
"""After so many a stream lets others run: one that never has to wait would keep the worker to itself."""
LARGE_BYTES = 4096
"""After so many at once more are likely to have come."""
LINGER_S = 0.05
"""How long a finished answer's connection is waited for, so that it can be used again."""

_RESPONSE_HEADERS = frozenset(("retry-after", "retry-after-ms", "x-should-retry", "x-request-id"))
_NAME = re.compile(r"[a-z0-9_-]+")


class UpstreamStream:
    """An answer of upstream's, read as it comes. It owns the connection until `close`.

    One greenlet or thread reads and closes it; another one ends its wait by cancelling the call.

    Attributes:
        retried: the request was sent a second time, for its first connection was dead.
        status: upstream's HTTP status.
        headers: those that a client may see, names in lower case.
        media_type: such as "text/event-stream", in lower case.
    """

    def __init__(self, response: requests.Response, attempt: Attempt, *, retried: bool = False) -> None:
        answer: Any = response.raw
        self._answer: Answer = answer
        self._socket: Any = answer.sock
        self._wait = answer.wait
        self._parser: AnswerParser = answer.parser
        self._attempt = attempt
        self._closed = False
        self._turn_left = TURN_BYTES
        self._drained = True  # there is nothing more to read for now, as far as can be told
        self.retried = retried
        self.status = response.status_code
        self.headers = _visible_headers(response.headers)
        self.media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()

    def is_answer_to(self, request: UpstreamRequest) -> bool:
        """A success, and events where events were asked for."""
        if not 200 <= self.status < 300:
            return False
        return not request.stream or self.media_type == "text/event-stream"

    def read(self, timeout_s: float) -> bytes | None:
        """Body bytes that have come, as soon as there are any; b"" at the end; None after `timeout_s`.

        It can be called again after None. Raises StreamBrokenError and UpstreamProtocolError.
        """
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while not self._parser.ended:
            if self._parser.error:
                raise self._parser.error
            data: bytes | None = self._answer.received or self._receive(left_s)
            self._answer.received = b""
            if data is None:
                return None
            if not data:
                self._parser.feed_eof()
                break
            body = self._parser.feed(data)
            if body:
                return body
            left_s = max(deadline - time.monotonic(), 0.001)  # framing alone does not buy more time
        return b""

    def read_what_comes(self, timeout_s: float, max_bytes: int) -> bytes:
        """The body as far as it comes within `timeout_s`: its first `max_bytes`, or up to where it breaks."""
        deadline = time.monotonic() + timeout_s
        body = b""
        try:
            while len(body) < max_bytes and (left_s := deadline - time.monotonic()) > 0:
                data = self.read(left_s)
                if not data:
                    break
                body += data
        except UpstreamError:
            pass  # what has come by then is all there is
        return body[:max_bytes]

    def finish(self) -> None:
        """The answer is known to be complete: waits a moment for its framing to end, then closes."""
        deadline = time.monotonic() + LINGER_S
        try:
            while not self._closed and (left_s := deadline - time.monotonic()) > 0 and self.read(left_s):
                pass
        except UpstreamError:
            pass  # all that was wanted has come; the connection is not used again
        self.close()

    def close(self) -> None:
        """Gives the connection back when the body has ended, else closes it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._answer.close(keep=self._attempt.release())
        self._socket = self._wait = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, timeout_s: float) -> bytes | None:
        try:
            if self._wait is not None and self._drained and not self._wait(timeout_s):
                return None
            self._socket.settimeout(timeout_s)
            data: bytes = self._socket.recv(RECEIVE_BYTES)
        except (TimeoutError, ssl.SSLWantReadError):
            return None
        except (OSError, ValueError) as error:  # ValueError: a TLS socket that was closed meanwhile
            broken = StreamBrokenError()
            broken.detail = repr(error)[:200]
            raise broken from error
        self._drained = len(data) < LARGE_BYTES
        self._turn_left -= len(data)
        if self._turn_left <= 0:
            self._turn_left = TURN_BYTES
            time.sleep(0)
        return data


def _visible_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The allow-list: when to retry, the limits' state, upstream's id. Cookies, cf-* and CORS stay here.

    An odd name, or a value with anything but visible ASCII, is left out: the server would refuse the whole
    response, and drop it without closing its stream.
    """
    visible = {}
    for name, value in headers.items():
        if not (name.startswith("x-ratelimit-") or name in _RESPONSE_HEADERS):
            continue
        if _NAME.fullmatch(name) and value.isascii() and value.isprintable():
            visible["x-upstream-request-id" if name == "x-request-id" else name] = value
    return visible
