"""An answer of upstream's, read off its socket as it comes.

Reaches through requests and urllib3 to the socket, so that what has come is had in one step and a wait
that ends without data can be repeated.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any, Self

import requests

from grokflask.errors import StreamBrokenError, UpstreamError, UpstreamProtocolError, UpstreamTimeoutError
from grokflask.framing import choose_framing
from grokflask.shaping import UpstreamRequest
from grokflask.transport import Attempt

RECEIVE_BYTES = 64 * 1024
MAX_REPLY_BYTES = 256 * 2**20
LINGER_S = 0.05
"""How long a finished answer's connection is waited for, so that it can be used again."""

_RESPONSE_HEADERS = frozenset(("retry-after", "retry-after-ms", "x-should-retry"))


class UpstreamStream:
    """An answer of upstream's, read as it comes. It owns the connection until `close`.

    After the headers it reads from the socket itself: what has come is had in one step, and a read that
    times out can be repeated. One greenlet or thread reads and closes it; another one ends its wait by
    cancelling the call.

    Attributes:
        retried: the request was sent a second time, for its first connection was dead.
        status: upstream's HTTP status.
        headers: those that a client may see, names in lower case.
        media_type: such as "text/event-stream", in lower case.
    """

    def __init__(self, response: requests.Response, attempt: Attempt, *, retried: bool = False) -> None:
        # requests has no public way to the socket. `_fp` is http.client's response, whose `fp` is a
        # buffered reader over the socket; every test over sockets holds these names.
        raw: Any = response.raw
        http_response: Any = raw._fp
        self._raw = raw
        self._attempt = attempt
        self._closed = False
        self.retried = retried
        self.status = response.status_code
        self.headers = _visible_headers(response.headers)
        self.media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            self._framing = choose_framing(
                chunked=bool(http_response.chunked),
                length=http_response.length,
                encoding=response.headers.get("content-encoding", "").strip().lower(),
            )
            self._socket: Any = None
            self._buffered = b""
            if http_response.fp is None:  # http.client has closed it already: no body at all
                self._framing = choose_framing(chunked=False, length=0, encoding=None)
            else:
                self._socket = http_response.fp.raw._sock
                self._buffered = _take_buffered(http_response.fp, self._socket)
        except UpstreamError:
            self._raw.close()
            raise

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
        while not self._framing.ended:
            if self._framing.error:
                raise self._framing.error
            data = self._buffered or self._receive(left_s)
            self._buffered = b""
            if data is None:
                return None
            if not data:
                self._framing.feed_eof()
                break
            body = self._framing.feed(data)
            if body:
                return body
            left_s = max(deadline - time.monotonic(), 0.001)  # framing alone does not buy more time
        return b""

    def read_all(self, timeout_s: float, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        """The whole body. Raises UpstreamTimeoutError when it pauses for `timeout_s`, and as `read`."""
        parts: list[bytes] = []
        size = 0
        while data := self.read(timeout_s):
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                raise UpstreamProtocolError(f"The upstream API's answer is larger than {max_bytes} bytes.")
        if data is None:
            raise UpstreamTimeoutError
        return b"".join(parts)

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
        kept = self._attempt.release()
        whole = self._framing.ended and not self._framing.surplus
        if kept and whole and not self._raw._fp.will_close:
            self._raw._fp.close()  # the reader, not the socket: http.client then takes the next request
            self._raw.release_conn()
        else:
            self._raw.close()
        self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, timeout_s: float) -> bytes | None:
        try:
            self._socket.settimeout(timeout_s)
            data: bytes = self._socket.recv(RECEIVE_BYTES)
        except (TimeoutError, ssl.SSLWantReadError):
            return None
        except (OSError, ValueError) as error:  # ValueError: a TLS socket that was closed meanwhile
            broken = StreamBrokenError()
            broken.detail = repr(error)[:200]
            raise broken from error
        return data


def _take_buffered(reader: Any, sock: Any) -> bytes:
    """The bytes that http.client's buffered reader took in behind the headers, without waiting for more."""
    sock.settimeout(0)
    try:
        buffered: bytes = reader.peek()
    except (BlockingIOError, ssl.SSLWantReadError):
        return b""
    except OSError as error:
        raise StreamBrokenError from error
    return buffered


def _visible_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The allow-list: when to retry, and the limits' state. Cookies, cf-* and CORS headers stay here.

    A value with anything but visible ASCII is left out: the server would refuse the whole response, and
    drop it without closing its stream.
    """
    visible = {}
    for name, value in headers.items():
        name = name.lower()
        if not (value.isascii() and value.isprintable()):
            continue
        if name in _RESPONSE_HEADERS or name.startswith("x-ratelimit-"):
            visible[name] = value
        elif name == "x-request-id":
            visible["x-upstream-request-id"] = value
    return visible
