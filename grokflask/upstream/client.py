"""The way to xAI: requests go out, answers are read as they come.

Owns the session and the sockets while an answer is read. A request goes through the session's adapter as
it was prepared, for the session's own steps (environment proxies, .netrc, cookies, redirects) are what a
gateway must not do. Whatever goes wrong leaves as an UpstreamError.

`UpstreamClient` sends; `UpstreamCall` is a request on its way, which can be waited for and cancelled; what it
gives is an `UpstreamStream`.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable

import requests

from grokflask.errors import GrokflaskError, UpstreamProtocolError
from grokflask.protocol.upstream_errors import parse_error
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.connections import Attempt
from grokflask.upstream.stream import UpstreamStream
from grokflask.upstream.transport import Adapter, OutgoingRequest, StaleConnectionError

MAX_ERROR_BYTES = 256 * 1024
ERROR_BODY_S = 5.0
"""How much of an error's body is read, and for how long: its status and headers are known already."""

USER_AGENT = "grokflask"


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """There is none: to follow one would carry the key elsewhere."""


class UpstreamClient:
    """Sends requests to one upstream, over connections that it keeps.

    Args:
        base_url: without a slash at its end.
        connect_timeout_s: to connect, TLS included.
        header_timeout_s: from the request to the headers of the answer.
        pool_size: idle connections kept at the most.

    Attributes:
        connector: makes them.
    """

    def __init__(
        self, base_url: str, *, connect_timeout_s: float, header_timeout_s: float, pool_size: int
    ) -> None:
        self._base_url = base_url
        self._timeouts_s = (connect_timeout_s, header_timeout_s)
        self._session = _Session()
        self._session.trust_env = False
        self._session.adapters.clear()  # there is one way out of here
        adapter = Adapter(base_url, pool_size=pool_size)
        self.connector = adapter.connector
        self._session.mount(base_url, adapter)

    def call(self, request: UpstreamRequest, key: str | None) -> UpstreamCall:
        """Sends `request` in a thread of its own (a greenlet, where gevent has patched threads)."""
        return UpstreamCall(lambda attempt: self.send(request, key, attempt))

    def send(self, request: UpstreamRequest, key: str | None, attempt: Attempt) -> UpstreamStream:
        """The answer to `request`: its headers read, its body not; events, if it asks for a stream.

        Raises UpstreamError, and as UpstreamStatusError what upstream answered with an error.
        """
        outgoing = self._prepare(request, key, attempt)
        try:
            response = self._send(outgoing)
        except StaleConnectionError:
            # Once more, and only once: upstream has not seen a byte of the request that it could answer.
            outgoing.fresh = True
            response = self._send(outgoing)
        stream = UpstreamStream(response, attempt, retried=outgoing.fresh)
        if stream.is_answer_to(request):
            return stream
        with stream:
            body = stream.read_what_comes(ERROR_BODY_S, MAX_ERROR_BYTES)
        if stream.status < 300 and not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        if 300 <= stream.status < 400:
            raise UpstreamProtocolError
        # Also a 200 with JSON where events were asked for: xAI reports some failures that way.
        status = stream.status if stream.status >= 400 else 502
        error = parse_error(body, status=status, headers=stream.headers, secrets=(key,) if key else ())
        if stream.status < 300 and not error.has_message:
            raise UpstreamProtocolError("The upstream API answered with a whole reply instead of a stream.")
        raise error

    def close(self) -> None:
        """Closes the idle connections."""
        self._session.close()

    def _send(self, outgoing: OutgoingRequest) -> requests.Response:
        # Not by Session.request: environment proxies, .netrc and cookies are what a gateway must not use.
        return self._session.send(outgoing, stream=True, timeout=self._timeouts_s, allow_redirects=False)

    def _prepare(self, request: UpstreamRequest, key: str | None, attempt: Attempt) -> OutgoingRequest:
        headers = dict(request.headers)
        headers["User-Agent"] = USER_AGENT
        headers.setdefault("Accept", "text/event-stream" if request.stream else "application/json")
        headers["Accept-Encoding"] = "identity"  # a compressor may sit on an event
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if request.body is not None:
            headers.setdefault("Content-Type", "application/json")
            headers["Content-Length"] = str(len(request.body))
        return OutgoingRequest(request.method, self._base_url + request.path, headers, request.body, attempt)


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
        # A bare thread: Thread would wait for it to begin, which is two more switches for each request.
        start_new_thread(self._run, (send,))

    @property
    def reached(self) -> bool:
        """Upstream may have had the request: there was a connection to send it on."""
        return self._attempt.phase != "connecting"

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
            if isinstance(error, GrokflaskError):
                # What is kept of it must not keep the frames below, and in them the request's body.
                error.__traceback__ = error.__cause__ = error.__context__ = None
        with self._lock:
            if self.cancelled is None:
                self._stream, stream = stream, None
        if stream is not None:
            stream.close()  # nobody will ask for it
        self._decided.set()
