"""The adapter below the requests session: sends a request over a kept connection, and reads the head.

It replaces http.client and urllib3's pool. Their buffers, queue and e-mail parser took 17 to 29 % of the CPU
time of a reply, and 12 KiB of an open stream.
"""

from __future__ import annotations

import re
import ssl
import time
import weakref
from collections.abc import Mapping
from itertools import chain
from typing import Any

import requests
from requests.adapters import BaseAdapter

from grokflask.errors import ConnectTimeoutError, NoAnswerError, UpstreamConnectError, UpstreamTimeoutError
from grokflask.protocol.upstream_errors import clean_message
from grokflask.shaping.request import Upload
from grokflask.upstream.connections import Attempt, Connection, Connector
from grokflask.upstream.parser import AnswerHead, AnswerParser
from grokflask.upstream.sending import RECEIVE_BYTES, send_and_listen

JOINED_BYTES = 64 * 1024
"""A body up to this size is sent in one piece with its head."""

_FORGED = re.compile(r"[\x00-\x20\x7f]")  # in a path
_BROKEN = re.compile(r"[\r\n\x00]")  # in a header


class StaleConnectionError(Exception):
    """A kept connection was dead before it could bring the request to upstream: it can be sent again."""


class OutgoingRequest(requests.PreparedRequest):
    """A request as requests sends it, and the attempt at sending it."""

    body: bytes | Upload | None  # type: ignore[assignment]

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Upload | None, attempt: Attempt
    ) -> None:
        super().__init__()
        self.method = method
        self.url = url
        self.headers = headers  # type: ignore[assignment]  # they are read once, in order
        self.body = body
        self.attempt = attempt
        #: Send it over a new connection.
        self.fresh = False


class Answer:
    """The body of an answer whose head has been read, on its connection.

    It is the `raw` of a requests.Response. Its owner reads `sock`, after a `wait` if there is one, and calls
    `close`.
    """

    def __init__(
        self, adapter: Adapter, connection: Connection, parser: AnswerParser, head: AnswerHead
    ) -> None:
        self.sock: Any = connection.sock
        self.wait = connection.wait
        self.parser = parser
        #: Bytes that came with the head and have not been parsed yet.
        self.received = head.rest
        self._keeps = head.keeps and connection.is_sent
        self._adapter = adapter
        self._connection = connection

    def close(self, *, keep: bool = False) -> None:
        """Closes the connection; with `keep`, keeps it for the next request if the body came whole."""
        is_reusable = self._keeps and self.parser.ended and not self.parser.surplus and not self.received
        if keep and is_reusable:
            self._adapter.keep(self._connection)
        else:
            self._connection.close()


class Adapter(BaseAdapter):
    """Sends requests to the server at `base_url`, and keeps up to `pool_size` idle connections."""

    def __init__(self, base_url: str, *, pool_size: int) -> None:
        super().__init__()
        self.connector = Connector(base_url)
        self._pool_size = pool_size
        self._idle: list[Connection] = []  # last in, first out, so that those not needed grow old
        weakref.finalize(self, _close_all, self._idle)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Sends an OutgoingRequest and reads the head of its answer. The caller reads the body.

        `timeout` has the seconds for each step of connecting, and for each wait until upstream takes more of
        the request or sends more of the head. The other arguments are ignored: the body is never read here,
        and certificates are always verified.

        Raises UpstreamError, or StaleConnectionError if the request can be sent again.
        """
        assert isinstance(request, OutgoingRequest)
        attempt = request.attempt
        try:
            attempt.hold()
            connection = self._connect(request, timeout[0])
            try:
                attempt.hold(connection.sock)
                return self._exchange(connection, request, timeout[1])
            except BaseException:
                connection.is_sent = attempt.check_sent()
                connection.close()
                raise
        except OSError as error:
            failure = _explain(error, attempt)
            error.__traceback__ = None  # its frames hold it and the request's body: a cycle
            raise failure from None

    def keep(self, connection: Connection) -> None:
        """Keeps a connection whose last answer came whole."""
        if len(self._idle) < self._pool_size:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes the idle connections."""
        _close_all(self._idle)

    def _connect(self, request: OutgoingRequest, timeout_s: float) -> Connection:
        """A kept connection that is still usable, or a new one."""
        while not request.fresh:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if _is_quiet(connection.sock):
                request.attempt.begin(reused=True)
                return connection
            connection.close()
        return self.connector.open(request.attempt, timeout_s)

    def _exchange(
        self, connection: Connection, request: OutgoingRequest, timeout_s: float
    ) -> requests.Response:
        """Sends the request and reads the head of its answer, which may come before all of it is sent."""
        sock, attempt, parser = connection.sock, request.attempt, AnswerParser()

        def take(data: bytes) -> AnswerHead | None:
            attempt.answered = True
            return parser.feed_head(data)

        head: AnswerHead | None = None
        sock.settimeout(timeout_s)
        first, rest = self._write_head(request), request.body or b""
        if isinstance(rest, bytes) and len(rest) <= JOINED_BYTES:
            first, rest = first + rest, b""
        # gevent's `sendall` asks the kernel for the size of its buffer each time; most requests fit.
        sent = sock.send(first)
        if rest or sent < len(first):
            more = (rest,) if isinstance(rest, bytes) else rest
            head = send_and_listen(sock, chain((first[sent:],), more), attempt, take, timeout_s)
            sock.settimeout(timeout_s)
            connection.is_sent = attempt.sent_at is not None
        else:
            attempt.sent_at = time.monotonic()
        while head is None:
            if connection.wait is not None and not connection.wait(timeout_s):
                raise TimeoutError
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("closed before the end of a head")
            head = take(data)
        response = requests.Response()
        response.status_code = head.status
        response.headers = head.headers  # type: ignore[assignment]  # names are in lower case already
        response.raw = Answer(self, connection, parser, head)
        return response

    def _write_head(self, request: OutgoingRequest) -> bytes:
        target = request.path_url
        lines = [f"{request.method} {target} HTTP/1.1", f"Host: {self.connector.host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if _FORGED.search(target) or any(map(_BROKEN.search, lines)):
            raise ValueError("a path or header that would not stay one line")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


def _is_quiet(sock: Any) -> bool:
    """Nothing has come on a kept connection: neither its end nor unexpected bytes."""
    try:
        sock.settimeout(0)
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except (OSError, ValueError):
        pass
    return False


def _explain(error: OSError, attempt: Attempt) -> Exception:
    """The failure of an attempt as its caller sees it, with the system's own error as its detail."""
    detail, timed_out = clean_message(repr(error))[:200], isinstance(error, TimeoutError)
    if not attempt.connected:
        return ConnectTimeoutError(detail=detail) if timed_out else UpstreamConnectError(detail=detail)
    if timed_out:
        return UpstreamTimeoutError(detail=detail)
    return StaleConnectionError() if attempt.may_be_resent else NoAnswerError(detail=detail)
