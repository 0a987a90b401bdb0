"""The client of the upstream API: sends requests, and turns every failure into an UpstreamError."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable

import requests

from grokflask.errors import ForeignAnswerError, GrokflaskError, UpstreamProtocolError
from grokflask.protocol.upstream_errors import parse_error
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.connections import Attempt, Reached
from grokflask.upstream.stream import UpstreamStream
from grokflask.upstream.transport import Adapter, OutgoingRequest, StaleConnectionError

MAX_ERROR_BYTES = 256 * 1024
ERROR_BODY_S = 5.0
"""Limits for reading the body of an error. Its status and headers are enough if more does not come."""

USER_AGENT = "grokflask"


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follows no redirect, which would send the key elsewhere."""


class UpstreamClient:
    """Sends requests to one upstream, over connections that it keeps.

    Args:
        base_url: without a trailing slash.
        connect_timeout_s: for each step of connecting, TLS included.
        header_timeout_s: for each wait between the request and the end of the answer's head.
        pool_size: the maximum of idle connections.
    """

    def __init__(
        self, base_url: str, *, connect_timeout_s: float, header_timeout_s: float, pool_size: int
    ) -> None:
        self._base_url = base_url
        self._timeouts_s = (connect_timeout_s, header_timeout_s)
        self._session = _Session()
        self._session.trust_env = False
        self._session.adapters.clear()  # no other server can be reached
        adapter = Adapter(base_url, pool_size=pool_size)
        #: Makes the connections.
        self.connector = adapter.connector
        self._session.mount(base_url, adapter)

    def call(
        self,
        request: UpstreamRequest,
        key: str | None,
        *,
        once: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> UpstreamCall:
        """Sends `request` in a thread of its own (a greenlet if gevent has patched threads).

        With `once` it is never sent again if upstream may have had all of it. `on_sent` is called when its
        body is no longer needed.
        """
        return UpstreamCall(lambda attempt: self.send(request, key, attempt), once=once, on_sent=on_sent)

    def send(self, request: UpstreamRequest, key: str | None, attempt: Attempt) -> UpstreamStream:
        """The successful answer to `request`, with its body unread. It is a stream if requested.

        Raises UpstreamStatusError for an error that upstream sent, and other UpstreamErrors.
        """
        outgoing = self._prepare(request, key, attempt)
        try:
            response = self._send(outgoing)
        except StaleConnectionError:
            # Only once, and over a new connection.
            outgoing.fresh = True
            response = self._send(outgoing)
        stream = UpstreamStream(response, attempt, retried=outgoing.fresh)
        if stream.is_answer_to(request):
            return stream
        with stream:
            body = stream.read_what_comes(ERROR_BODY_S, MAX_ERROR_BYTES)
        is_success = stream.status < 300
        if 300 <= stream.status < 400 or (is_success and stream.media_type == "text/html"):
            raise ForeignAnswerError
        if is_success and not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        # xAI reports some failures as a 200 with JSON where the request asked for events.
        status = stream.status if stream.status >= 400 else 502
        error = parse_error(body, status=status, headers=stream.headers, secrets=(key,) if key else ())
        if is_success and not error.has_message:
            raise UpstreamProtocolError("The upstream API answered with a whole reply instead of a stream.")
        raise error

    def close(self) -> None:
        """Closes the idle connections."""
        self._session.close()

    def _send(self, outgoing: OutgoingRequest) -> requests.Response:
        # Session.request would use proxies of the environment, .netrc and cookies. A gateway must not.
        return self._session.send(outgoing, stream=True, timeout=self._timeouts_s, allow_redirects=False)

    def _prepare(self, request: UpstreamRequest, key: str | None, attempt: Attempt) -> OutgoingRequest:
        headers = dict(request.headers)
        headers["User-Agent"] = USER_AGENT
        headers.setdefault("Accept", "text/event-stream" if request.stream else "application/json")
        headers["Accept-Encoding"] = "identity"  # a compressor may hold an event back
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if request.body is not None:
            headers.setdefault("Content-Type", "application/json")
            headers["Content-Length"] = str(len(request.body))
        return OutgoingRequest(request.method, self._base_url + request.path, headers, request.body, attempt)


class UpstreamCall:
    """A request on its way. One thread waits for it; any thread may cancel it."""

    def __init__(
        self,
        send: Callable[[Attempt], UpstreamStream],
        *,
        once: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        #: The reason given to `cancel`.
        self.cancelled: GrokflaskError | None = None
        self._attempt = Attempt(once=once)
        self._stream: UpstreamStream | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._decided = threading.Event()
        # `send` holds the request's body, so it is not kept: the call may live for an hour.
        # A Thread would wait until it has started, which costs two more switches for each request.
        start_new_thread(self._run, (send, on_sent))

    @property
    def reached(self) -> Reached:
        """Whether upstream has had the request."""
        return self._attempt.reached

    def wait(self, timeout_s: float) -> UpstreamStream | None:
        """The answer, which the caller closes; None if it does not come within `timeout_s`.

        Raises the error of the request, or the reason given to `cancel`.
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
        """Ends the call in any phase, and the wait of a thread that waits for it or reads its answer.

        The connection is closed, not kept. Idempotent.
        """
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = reason
            unread, self._stream = self._stream, None
        try:
            self._attempt.cancel()
            if unread is not None:
                unread.close()
        finally:
            self._decided.set()

    def _run(self, send: Callable[[Attempt], UpstreamStream], on_sent: Callable[[], None] | None) -> None:
        stream: UpstreamStream | None = None
        try:
            stream = send(self._attempt)
        except Exception as error:
            self._error = error
            if isinstance(error, GrokflaskError):
                # It is kept; the frames below, which hold the request's body, must not be.
                error.__traceback__ = error.__cause__ = error.__context__ = None
        except BaseException:
            self._error = GrokflaskError()
            raise
        finally:
            if on_sent:
                on_sent()
            self._decide(stream)

    def _decide(self, stream: UpstreamStream | None) -> None:
        """Hands the stream over, unless the call was cancelled meanwhile, and ends the wait for it."""
        try:
            with self._lock:
                if self.cancelled is None:
                    self._stream, stream = stream, None
            if stream is not None:
                stream.close()
        finally:
            self._decided.set()
