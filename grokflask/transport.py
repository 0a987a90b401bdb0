"""The transport below the requests session: one exchange over a kept connection, and nothing around it.

urllib3 makes the connections (names, TCP, TLS); what goes over one is written and read here, for
http.client's buffers and e-mail parser and urllib3's queue cost more than all else that a request needs.
An `Attempt` is the handle by which another thread sees how far a request has come, and ends it.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import BaseAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.answer_head import AnswerHead, parse_head
from grokflask.clients import shut_down
from grokflask.errors import (
    ConnectTimeoutError,
    NoAnswerError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamTimeoutError,
)
from grokflask.upstream_errors import clean_message

RECEIVE_BYTES = 64 * 1024
JOINED_BYTES = 64 * 1024
"""Up to this size a body goes out in one piece with its head."""

NAME_S = 5.0
"""How long the addresses of a name are good for, unless a connection fails."""

_FORGED = re.compile(r"[\x00-\x20\x7f]")  # in a path
_BROKEN = re.compile(r"[\r\n\x00]")  # in a header


class StaleConnectionError(Exception):
    """A kept connection was dead before a byte of the answer: upstream has not worked on the request."""


class Attempt:
    """One try at sending a request.

    Attributes:
        phase: "reused" (a kept connection, and not a byte of an answer), "connecting", "connected", or
            "answering".
    """

    def __init__(self) -> None:
        self.phase = "reused"
        self._sock: socket.socket | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Ends whatever the attempt waits for; nothing is sent after it. Idempotent, from any thread."""
        with self._lock:
            self._cancelled = True
            shut_down(self._sock, socket.SHUT_RDWR)

    def hold(self, sock: socket.socket | None) -> None:
        """The attempt now waits on `sock`. Raises ConnectionAbortedError when it has been cancelled."""
        with self._lock:
            self._sock = sock
            if self._cancelled:
                raise ConnectionAbortedError

    def release(self) -> bool:
        """The connection is out of reach for `cancel` from now on. False when that had come first."""
        with self._lock:
            self._sock = None
            return not self._cancelled


class OutgoingRequest(requests.PreparedRequest):
    """A request as requests sends it, and the attempt at it.

    Attributes:
        fresh: it goes over a new connection.
    """

    body: bytes | None

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, attempt: Attempt
    ) -> None:
        super().__init__()
        self.method = method
        self.url = url
        self.headers = headers  # type: ignore[assignment]  # any mapping does for what is sent once
        self.body = body
        self.attempt = attempt
        self.fresh = False


class Answer:
    """What is left of an exchange once its head has been read: the body, on its connection.

    It is the `raw` of a requests.Response. `sock` is read by its owner; `close` ends it.
    """

    def __init__(
        self, adapter: Adapter, connection: HTTPConnection, head: AnswerHead, received: bytes
    ) -> None:
        self.sock: Any = connection.sock
        self.framing = head.framing
        self.received = received
        self._keeps = head.keeps
        self._adapter = adapter
        self._connection = connection

    def close(self, *, keep: bool = False) -> None:
        """Closes the connection; or keeps it for the next request, if the body came whole."""
        fit = self.framing.ended and not self.framing.surplus and not self.received
        if keep and fit and self._keeps:
            self._adapter.keep(self._connection)
        else:
            self._connection.close()


_Address = tuple[int, Any]
"""A socket's family, and what its `connect` takes."""


class _Phases:
    """Tells the attempt, around what urllib3 does by itself, how far it has come."""

    sock: Any
    timeout: Any
    attempt: Attempt
    addresses: list[_Address]

    def _new_conn(self) -> socket.socket:
        """A TCP connection to the first address that takes one, in `timeout` seconds each."""
        error = OSError("the name has no address")
        for family, address in self.addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.timeout)
                sock.connect(address)
            except OSError as failure:
                sock.close()
                error = failure
            else:
                return sock
        raise error

    def connect(self) -> None:
        attempt = self.attempt
        super().connect()  # type: ignore[misc]
        attempt.phase = "connected"
        attempt.hold(self.sock)


class _Connection(_Phases, HTTPConnection):
    pass


class _SecureConnection(_Phases, HTTPSConnection):
    _twin: socket.socket | None = None

    def connect(self) -> None:
        try:
            super().connect()
        finally:
            if self._twin is not None:
                self._twin.close()
                self._twin = None

    def _new_conn(self) -> socket.socket:
        # The TLS handshake can take long, and wrapping takes the descriptor away from this object: a
        # duplicate stays within the attempt's reach until `connect` is through.
        sock = super()._new_conn()
        self._twin = socket.socket(fileno=os.dup(sock.fileno()))
        self.attempt.hold(self._twin)
        return sock


class Adapter(BaseAdapter):
    """The session's way to the one server at `base_url`, over connections that it keeps.

    Args:
        pool_size: idle connections kept at the most.
    """

    def __init__(self, base_url: str, *, pool_size: int) -> None:
        super().__init__()
        url = urlsplit(base_url)
        self._address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        self._host = url.netloc.rpartition("@")[2]
        self._context = _make_context() if url.scheme == "https" else None
        self._found: list[_Address] = []
        self._look_up_at = 0.0  # monotonic
        self._pool_size = pool_size
        self._idle: list[HTTPConnection] = []  # the last one used goes out first, so the others may age
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
        """Sends an OutgoingRequest and reads the head of its answer. The body is the caller's to read.

        Args:
            request: what to send, by which attempt.
            stream: always so.
            timeout: seconds to connect (TLS included), and to wait for the next bytes of the head.
            verify: certificates always are.
            cert: there are none of ours.
            proxies: there are none.

        Raises UpstreamError, or StaleConnectionError when the request may be sent again.
        """
        assert isinstance(request, OutgoingRequest)
        attempt = request.attempt
        try:
            attempt.hold(None)
            connection = self._connect(request, timeout[0])
            try:
                head, received = self._exchange(connection, request, timeout[1])
            except BaseException:
                connection.close()
                raise
        except (OSError, HTTPError) as error:  # urllib3's are no OSErrors
            failure = _explain(error, attempt.phase)
            _drop_frames(error)
            raise failure from None
        response = requests.Response()
        response.status_code = head.status
        response.headers.update(head.headers)
        response.raw = Answer(self, connection, head, received)
        return response

    def keep(self, connection: HTTPConnection) -> None:
        """Takes a connection back whose last answer has come whole."""
        if len(self._idle) < self._pool_size:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes the idle connections."""
        _close_all(self._idle)

    def _connect(self, request: OutgoingRequest, timeout_s: float) -> HTTPConnection:
        """A kept connection that is still good, or a new one."""
        while not request.fresh:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if _is_quiet(connection.sock):
                request.attempt.phase = "reused"
                request.attempt.hold(connection.sock)
                return connection
            connection.close()
        return self._open(request.attempt, timeout_s)

    def _open(self, attempt: Attempt, timeout_s: float) -> HTTPConnection:
        host, port = self._address
        connection: _Connection | _SecureConnection
        if self._context is None:
            connection = _Connection(host, port, timeout=timeout_s)
        else:
            connection = _SecureConnection(
                host, port, timeout=timeout_s, ssl_context=self._context, cert_reqs="CERT_REQUIRED"
            )
        connection.attempt = attempt
        attempt.phase = "connecting"
        connection.addresses = self._look_up()
        try:
            connection.connect()
        except BaseException:
            self._look_up_at = 0.0
            connection.close()
            raise
        del connection.attempt  # it may be long over while the connection is kept
        return connection

    def _look_up(self) -> list[_Address]:
        """The server's addresses. A look-up takes a thread of its own under gevent, so many share one."""
        now = time.monotonic()
        if now >= self._look_up_at:
            host, port = self._address
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._found = [(family, address) for family, _, _, _, address in found]
            self._look_up_at = now + NAME_S
        return self._found

    def _exchange(
        self, connection: HTTPConnection, request: OutgoingRequest, timeout_s: float
    ) -> tuple[AnswerHead, bytes]:
        sock: Any = connection.sock
        sock.settimeout(timeout_s)
        head, body = self._write_head(request), request.body or b""
        # Upstream may refuse, and close, before it has taken all: then its answer is there to be read.
        with suppress(BrokenPipeError):
            if len(body) <= JOINED_BYTES:
                sock.sendall(head + body)
            else:
                sock.sendall(head)
                sock.sendall(body)
        received = b""
        while True:
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("closed before the end of a head")
            request.attempt.phase = "answering"
            received += data
            parsed = parse_head(received)
            if parsed is not None:
                return parsed

    def _write_head(self, request: OutgoingRequest) -> bytes:
        target = request.path_url
        lines = [f"{request.method} {target} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if _FORGED.search(target) or any(map(_BROKEN.search, lines)):
            raise ValueError("a path or header that would not stay one line")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _make_context() -> ssl.SSLContext:
    """One for all connections: to load the CA file takes some 15 ms of CPU in which no stream moves."""
    context = create_urllib3_context()
    context.load_verify_locations(certifi.where())
    context.load_default_certs()  # and what the system, or SSL_CERT_FILE, trusts besides
    return context


def _close_all(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _is_quiet(sock: Any) -> bool:
    """Nothing has come on a kept connection: neither its end, nor bytes that nobody asked for."""
    try:
        sock.settimeout(0)
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except (OSError, ValueError):
        pass
    return False


def _drop_frames(error: BaseException) -> None:
    """urllib3's frames hold errors that hold the frames: a cycle, and in it the request with its body."""
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__


def _explain(error: Exception, phase: str) -> Exception:
    """What a failed attempt means to the client, with the system's own error as its detail."""
    causes = [error]
    while isinstance(cause := causes[-1].__cause__ or causes[-1].__context__, Exception):
        causes.append(cause)
    failure = _choose_failure(causes, phase)
    if isinstance(failure, UpstreamError):
        failure.detail = clean_message(repr(causes[-1]))[:200]  # it may quote what upstream sent
    return failure


def _choose_failure(causes: list[Exception], phase: str) -> Exception:
    timed_out = any(isinstance(cause, TimeoutError) for cause in causes)
    if phase == "connecting":
        return ConnectTimeoutError() if timed_out else UpstreamConnectError()
    if timed_out:
        return UpstreamTimeoutError()
    return StaleConnectionError() if phase == "reused" else NoAnswerError()
