"""The way to xAI, and the only module that uses requests.

Owns the session, its connection pool and TLS context, and the sockets while an answer is read. A request
goes through the session's adapter as it was prepared, for the session's own steps (environment proxies,
.netrc, cookies, redirects) are what a gateway must not do. Whatever goes wrong leaves as an UpstreamError.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.errors import (
    StreamBrokenError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from grokflask.framing import choose_framing
from grokflask.shaping import UpstreamRequest
from grokflask.upstream_errors import parse_error

RECEIVE_BYTES = 64 * 1024
MAX_REPLY_BYTES = 256 * 2**20
MAX_ERROR_BYTES = 256 * 1024
LINGER_S = 0.05
"""How long a finished answer's connection is waited for, so that it can be used again."""

USER_AGENT = "grokflask"
NO_ANSWER = "The upstream API closed the connection without an answer."

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
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=pool_size)
        self._session.mount("http://", self._adapter)
        self._session.mount("https://", self._adapter)

    def send(self, request: UpstreamRequest, key: str | None) -> UpstreamStream:
        """The answer to `request`, its headers read and its body not.

        Raises UpstreamConnectError, UpstreamTimeoutError, StreamBrokenError, UpstreamProtocolError, and
        UpstreamStatusError when upstream answered with an error.
        """
        prepared = self._prepare(request, key)
        response = self._exchange(prepared)
        stream = UpstreamStream(response)
        if 200 <= response.status_code < 300:
            return stream
        secrets = (key,) if key else ()
        with stream:
            body = stream.read_all(self._timeouts_s[1], MAX_ERROR_BYTES)
        if response.status_code < 400:  # a redirect is never followed: it would carry the key elsewhere
            raise UpstreamProtocolError
        raise parse_error(body, status=response.status_code, headers=stream.headers, secrets=secrets)

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

    def _exchange(self, prepared: requests.PreparedRequest) -> requests.Response:
        """One attempt, and one more when a kept connection turned out dead before a byte of the answer."""
        try:
            return self._attempt(prepared)
        except _StaleConnectionError:
            pass
        try:
            return self._attempt(prepared)
        except _StaleConnectionError:
            raise StreamBrokenError(NO_ANSWER) from None

    def _attempt(self, prepared: requests.PreparedRequest) -> requests.Response:
        _attempt.phase = "reused"
        try:
            return self._adapter.send(prepared, stream=True, timeout=self._timeouts_s)
        except requests.RequestException as error:
            raise _classify(error, _attempt.phase) from error


class UpstreamStream:
    """An answer of upstream's, read as it comes. It owns the connection until `close`.

    After the headers it reads from the socket itself: what has come is had in one step, and a read that
    times out can be repeated. One greenlet or thread reads and closes it.

    Attributes:
        status: upstream's HTTP status.
        headers: those that a client may see, names in lower case.
        media_type: such as "text/event-stream", in lower case.
    """

    def __init__(self, response: requests.Response) -> None:
        # requests has no public way to the socket. `_fp` is http.client's response, whose `fp` is a
        # buffered reader over the socket; a test holds these names against the pinned versions.
        raw: Any = response.raw
        http_response: Any = raw._fp
        self._raw = raw
        self._closed = False
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
        if self._framing.ended and not self._raw._fp.will_close:
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
        except OSError as error:
            raise StreamBrokenError from error
        return data


class _StaleConnectionError(Exception):
    """A kept connection was dead before a byte of the answer: upstream has not worked on the request."""


_attempt = threading.local()
"""`phase` of the attempt that this thread (or greenlet) makes: "reused", "connecting" or "connected"."""


class _Phases:
    """Notes, around the connecting that urllib3 does when it must, how far an attempt has come."""

    def connect(self) -> None:
        _attempt.phase = "connecting"
        super().connect()  # type: ignore[misc]
        _attempt.phase = "connected"


class _Connection(_Phases, HTTPConnection):
    pass


class _SecureConnection(_Phases, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    """requests' adapter with one TLS context for all connections.

    requests has urllib3 load the CA file anew on each connection, some 15 ms of CPU in which no other
    stream moves.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As in requests, with our pools and context."""
        context = create_urllib3_context()
        context.load_verify_locations(certifi.where())
        context.load_default_certs()  # and what the system, or SSL_CERT_FILE, trusts besides
        super().init_poolmanager(*args, ssl_context=context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Verification is on, by the context; naming a CA file here would load it again."""
        conn.cert_reqs = "CERT_REQUIRED"


def _classify(error: requests.RequestException, phase: str) -> Exception:
    """What a failed attempt means to the client.

    requests calls a slow TLS handshake a read timeout and a reset a connection error, so the phase and
    urllib3's cause say more than the class.
    """
    causes = _list_causes(error)
    timed_out = any(isinstance(cause, TimeoutError) for cause in causes)
    if phase == "connecting":
        return UpstreamConnectError("The upstream API cannot be reached in time." if timed_out else None)
    if timed_out:
        return UpstreamTimeoutError()
    if any(isinstance(cause, OSError) for cause in causes):
        # Also http.client's RemoteDisconnected: closed without a byte of an answer.
        return _StaleConnectionError() if phase == "reused" else StreamBrokenError(NO_ANSWER)
    return UpstreamProtocolError()


def _list_causes(error: requests.RequestException) -> list[BaseException]:
    """The exceptions below requests' own, in urllib3's and http.client's several ways of nesting them."""
    causes: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and len(causes) < 10:
        causes.append(cause)
        nested = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = getattr(cause, "reason", None) or nested or cause.__cause__
    return causes[1:]


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
