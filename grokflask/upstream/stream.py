"""An answer from upstream, read off its socket as it comes."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from typing import Any, Self

import requests

from grokflask.errors import StreamBrokenError, UpstreamError
from grokflask.runtime import step_aside
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.connections import Attempt
from grokflask.upstream.parser import AnswerParser
from grokflask.upstream.sending import RECEIVE_BYTES
from grokflask.upstream.transport import Answer

TURN_BYTES = 64 * 1024
"""A stream yields to others after this much: one that never waits would block its worker."""
LARGE_BYTES = 4096
"""After a read of this size more bytes have probably come."""
REUSE_WAIT_S = 0.05
"""How long a complete answer may take to end its framing, so that its connection can be used again."""

_RESPONSE_HEADERS = frozenset(("retry-after", "retry-after-ms", "x-should-retry", "x-request-id"))
_NAME = re.compile(r"[a-z0-9_-]+")


class UpstreamStream:
    """An answer from upstream, read as it comes. It owns the connection until `close`.

    One greenlet or thread reads and closes it; another one ends its wait by cancelling the call.
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
        self._drained = True  # the last read probably took all that had come
        #: The request was sent a second time because its first connection was dead.
        self.retried = retried
        self.status = response.status_code
        #: The headers that a client may see, names in lower case.
        self.headers = _filter_headers(response.headers)
        #: Such as "text/event-stream", in lower case.
        self.media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()

    def is_answer_to(self, request: UpstreamRequest) -> bool:
        """The status is a success, and the body is a stream if the request asks for one."""
        has_type = not request.stream or self.media_type == "text/event-stream"
        return 200 <= self.status < 300 and has_type

    def read(self, timeout_s: float) -> bytes | None:
        """The next bytes of the body, as soon as there are any; b"" at its end; None after `timeout_s`.

        It can be called again after None. Raises StreamBrokenError and UpstreamProtocolError.
        """
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while not self._parser.ended:
            if self._parser.is_packed:
                step_aside()
                body = self._parser.unpack()
            elif self._parser.error:
                raise self._parser.error
            else:
                data = self._answer.received or self._receive(left_s)
                self._answer.received = b""
                if data is None:
                    return None
                if not data:
                    self._parser.feed_eof()
                    break
                body = self._parser.feed(data)
            if body:
                return body
            left_s = max(deadline - time.monotonic(), 0.001)  # bytes of framing do not extend the wait
        return b""

    def read_what_comes(self, timeout_s: float, max_bytes: int) -> bytes:
        """The first `max_bytes` of the body, or what comes of it within `timeout_s` and before an error."""
        deadline = time.monotonic() + timeout_s
        body = bytearray()
        try:
            while len(body) < max_bytes and (left_s := deadline - time.monotonic()) > 0:
                data = self.read(left_s)
                if not data:
                    break
                body += data
        except UpstreamError:
            pass  # the caller wants what came before
        return bytes(body[:max_bytes])

    def finish(self) -> None:
        """Closes a stream whose last event has come, after a short wait for its framing to end."""
        deadline = time.monotonic() + REUSE_WAIT_S
        try:
            while not self._closed and (left_s := deadline - time.monotonic()) > 0 and self.read(left_s):
                pass
        except UpstreamError:
            pass  # the answer is complete; only its connection is lost
        self.close()

    def close(self) -> None:
        """Keeps the connection for the next request if the body has ended, else closes it. Idempotent."""
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
            raise StreamBrokenError(detail=repr(error)[:200]) from error
        self._drained = len(data) < LARGE_BYTES
        self._turn_left -= len(data)
        if self._turn_left <= 0:
            self._turn_left = TURN_BYTES
            step_aside()
        return data


def _filter_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an allow-list: when to retry, the state of xAI's limits, and xAI's request id.

    Leaves out odd names, and values with anything but visible ASCII: the server would refuse the whole
    response, and drop it without closing its stream.
    """
    filtered = {}
    for name, value in headers.items():
        if not (name.startswith("x-ratelimit-") or name in _RESPONSE_HEADERS):
            continue
        if _NAME.fullmatch(name) and value.isascii() and value.isprintable():
            filtered["x-upstream-request-id" if name == "x-request-id" else name] = value
    return filtered
