"""The way to xAI: requests go out, answers are read as they come.

Owns the session and the sockets while an answer is read. A request goes through the session's adapter as
it was prepared, for the session's own steps (environment proxies, .netrc, cookies, redirects) are what a
gateway must not do. Whatever goes wrong leaves as an UpstreamError.

Three classes: `UpstreamClient` sends, `UpstreamCall` is a request on its way that can be waited for and
cancelled, `UpstreamStream` is an answer whose headers have come.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import requests
from requests.structures import CaseInsensitiveDict

from grokflask.errors import (
    GrokflaskError,
    NoAnswerError,
    StreamBrokenError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from grokflask.framing import choose_framing
from grokflask.shaping import UpstreamRequest
from grokflask.transport import Adapter, Attempt, StaleConnectionError
from grokflask.upstream_errors import parse_error

RECEIVE_BYTES = 64 * 1024
MAX_REPLY_BYTES = 256 * 2**20
MAX_ERROR_BYTES = 256 * 1024
LINGER_S = 0.05
"""How long a finished answer's connection is waited for, so that it can be used again."""

USER_AGENT = "grokflask"

_RESPONSE_HEADERS = frozenset(("retry-after", "retry-after-ms", "x-should-retry"))


class UpstreamClient:
    """Sends requests to one upstream, over connections that it keeps.

    Args:
        base_url: without a slash at its end.
        connect_timeout_s: to connect, TLS included.
        header_timeout_s: from the request to the headers of the answer.
        pool_size: idle connections kept at the most.
    """

    def __init__(
        self, base_url: str, *, connect_timeout_s: float, header_timeout_s: float, pool_size: int
    ) -> None:
        self._base_url = base_url
        self._timeouts_s = (connect_timeout_s, header_timeout_s)
        self._session = requests.Session()
        self._session.trust_env = False
        self._adapter = Adapter(pool_connections=1, pool_maxsize=pool_size)
        self._session.mount("http://", self._adapter)
        self._session.mount("https://", self._adapter)

    def call(self, request: UpstreamRequest, key: str | None) -> UpstreamCall:
        """Sends `request` in a thread of its own (a greenlet, where gevent has patched threads)."""
        return UpstreamCall(lambda attempt: self.send(request, key, attempt))

    def send(self, request: UpstreamRequest, key: str | None, attempt: Attempt) -> UpstreamStream:
        """The answer to `request`: its headers read, its body not; events, if it asks for a stream.

        Raises UpstreamError, and as UpstreamStatusError what upstream answered with an error.
        """
        prepared = self._prepare(request, key)
        retried = False
        try:
            response = self._adapter.attempt(prepared, self._timeouts_s, attempt)
        except StaleConnectionError:
            response = self._retry(prepared, attempt)
            retried = True
        stream = UpstreamStream(response, attempt, retried=retried)
        if stream.is_answer_to(request):
            return stream
        with stream:
            body = stream.read_all(self._timeouts_s[1], MAX_ERROR_BYTES)
        if stream.status < 300 and not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        if 300 <= stream.status < 400:  # a redirect is never followed: it would carry the key elsewhere
            raise UpstreamProtocolError
        # Also a 200 with JSON where events were asked for: xAI reports some failures that way.
        status = stream.status if stream.status >= 400 else 502
        raise parse_error(body, status=status, headers=stream.headers, secrets=(key,) if key else ())

    def _retry(self, prepared: requests.PreparedRequest, attempt: Attempt) -> requests.Response:
        """Once more, and only once: upstream has not seen a byte of the request that it could answer."""
        attempt.phase = "reused"
        try:
            return self._adapter.attempt(prepared, self._timeouts_s, attempt)
        except StaleConnectionError:
            raise NoAnswerError from None

    def close(self) -> None:
        """Closes the idle connections."""
        self._session.close()

    def _prepare(self, request: UpstreamRequest, key: str | None) -> requests.PreparedRequest:
        headers = CaseInsensitiveDict(request.headers)
        headers["User-Agent"] = USER_AGENT
        headers["Accept"] = "text/event-stream" if request.stream else "application/json"
        headers["Accept-Encoding"] = "identity"  # a compressor may sit on an event
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if request.body is not None:
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(request.body))
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = self._base_url + request.path
        prepared.headers = headers
        prepared.body = request.body
        prepared.hooks = {}
        return prepared


class UpstreamCall:
    """A request on its way. One waits for it, anybody may cancel it.

    Attributes:
        cancelled: why it was cancelled, or None.
    """

    def __init__(self, send: Callable[[Attempt], UpstreamStream]) -> None:
        self.cancelled: GrokflaskError | None = None
        self._attempt = Attempt()
        self._stream: UpstreamStream | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._decided = threading.Event()
        # `send` is not kept: it holds the request's body, and the call may live for an hour.
        threading.Thread(target=self._run, args=(send,), name="upstream-call", daemon=True).start()

    def wait(self, timeout_s: float) -> UpstreamStream | None:
        """The answer, or None when it has not come within `timeout_s`. The caller closes it.

        Raises what went wrong, or the reason of `cancel`.
        """
        if not self._decided.wait(timeout_s):
            return None
        with self._lock:
            if self.cancelled:
                raise self.cancelled
            stream, self._stream = self._stream, None
        if self._error:
            raise self._error
        return stream

    def cancel(self, reason: GrokflaskError) -> None:
        """Ends the call in whatever phase it is; who waits for it, or reads its answer, wakes up.

        The connection is closed, not kept. Later calls change nothing.
        """
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = reason
            unread, self._stream = self._stream, None
        self._attempt.cancel()
        if unread is not None:
            unread.close()
        self._decided.set()

    def _run(self, send: Callable[[Attempt], UpstreamStream]) -> None:
        stream: UpstreamStream | None = None
        try:
            stream = send(self._attempt)
        except Exception as error:
            self._error = error
        with self._lock:
            if self.cancelled is None:
                self._stream, stream = stream, None
        if stream is not None:
            stream.close()  # nobody will ask for it
        self._decided.set()


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
        # buffered reader over the socket; a test holds these names against the pinned versions.
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
        if kept and self._framing.ended and not self._raw._fp.will_close:
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
            raise StreamBrokenError from error
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
