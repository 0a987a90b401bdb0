"""requests, as this gateway uses it: connections that know how far they have come, and one TLS context.

Sending a request blocks in urllib3; an `Attempt` is the handle by which another thread sees in which phase
that is, and ends it.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import certifi
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.clients import shut_down
from grokflask.errors import (
    ConnectTimeoutError,
    GrokflaskError,
    NoAnswerError,
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)


class StaleConnectionError(Exception):
    """A kept connection was dead before a byte of the answer: upstream has not worked on the request."""


class Attempt:
    """One try at sending a request.

    Attributes:
        phase: "reused" (a kept connection), "connecting" or "connected".
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


_current = threading.local()
"""`attempt`: what this thread (or greenlet) is sending."""


class _Phases:
    """Tells the attempt, around what urllib3 does by itself, how far it has come."""

    sock: Any

    def connect(self) -> None:
        attempt: Attempt = _current.attempt
        attempt.phase = "connecting"
        super().connect()  # type: ignore[misc]
        attempt.phase = "connected"
        attempt.hold(self.sock)

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _current.attempt.hold(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]


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
        _current.attempt.hold(self._twin)
        return sock


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class Adapter(HTTPAdapter):
    """requests' adapter, with one TLS context for all connections and attempts that can be ended.

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

    def attempt(
        self, prepared: requests.PreparedRequest, timeouts_s: tuple[float, float], attempt: Attempt
    ) -> requests.Response:
        """Sends `prepared` and reads the headers of its answer.

        Args:
            prepared: as requests makes them.
            timeouts_s: to connect, and to wait for the headers.
            attempt: new; can be cancelled from another thread meanwhile.

        Raises UpstreamError, or StaleConnectionError when the request may be sent again.
        """
        _current.attempt = attempt
        try:
            attempt.hold(None)
            return self.send(prepared, stream=True, timeout=timeouts_s)
        except (requests.RequestException, ConnectionAbortedError) as error:
            raise classify(error, attempt.phase) from error
        finally:
            _current.attempt = None

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Verification is on, by the context; naming a CA file here would load it again."""
        conn.cert_reqs = "CERT_REQUIRED"


def classify(error: Exception, phase: str) -> Exception:
    """What a failed attempt means to the client, with the system's own error as its detail.

    requests calls a slow TLS handshake a read timeout and a reset a connection error, so the phase and
    urllib3's cause say more than the class.
    """
    causes = _list_causes(error)
    failure = _choose_failure(causes, phase)
    if isinstance(failure, GrokflaskError) and causes:
        failure.detail = repr(causes[-1])[:200]
    return failure


def _choose_failure(causes: list[BaseException], phase: str) -> Exception:
    timed_out = any(isinstance(cause, TimeoutError) for cause in causes)
    if phase == "connecting":
        return ConnectTimeoutError() if timed_out else UpstreamConnectError()
    if timed_out:
        return UpstreamTimeoutError()
    if any(isinstance(cause, OSError) for cause in causes):
        # Also http.client's RemoteDisconnected: closed without a byte of an answer.
        return StaleConnectionError() if phase == "reused" else NoAnswerError()
    return UpstreamProtocolError()


def _list_causes(error: Exception) -> list[BaseException]:
    """The exceptions below requests' own, in urllib3's and http.client's several ways of nesting them."""
    causes: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and len(causes) < 10:
        causes.append(cause)
        nested = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = getattr(cause, "reason", None) or nested or cause.__cause__
    return causes[1:]
