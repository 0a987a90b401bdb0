"""Connections to upstream: made by urllib3, within reach of whoever wants to end the attempt they are for.

An `Attempt` is the handle by which another thread sees how far a request has come, and ends it. A `Connector`
knows one server's names, and makes TCP and TLS connections to it.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import certifi
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.sockets import shut_down

NAME_S = 5.0
"""How long the addresses of a name are good for, unless a connection fails."""


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


Wait = Callable[[float], bool]
"""Waits, for so many seconds at the most, until a connection has something to read; whether it has."""

_Address = tuple[int, Any]
"""A socket's family, and what its `connect` takes."""


class _Phases:
    """Tells the attempt, around what urllib3 does by itself, how far it has come."""

    sock: Any
    timeout: Any
    attempt: Attempt
    addresses: list[_Address]
    wait: Wait | None = None

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


Connection = _Connection | _SecureConnection


class Connector:
    """Makes connections to the server at `base_url`. From any thread.

    Attributes:
        host: as the Host header names it.
        make_wait: makes what waits for a connection, None to leave that to the socket's own timeout. A server
            whose sockets find out by trying first, and make a timer each time, puts a cheaper way in.
    """

    def __init__(self, base_url: str) -> None:
        self.make_wait: Callable[[Any], Wait] | None = None
        url = urlsplit(base_url)
        self.host = url.netloc.rpartition("@")[2]
        self._address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        self._context = make_context() if url.scheme == "https" else None
        self._found: list[_Address] = []
        self._look_up_at = 0.0  # monotonic

    def open(self, attempt: Attempt, timeout_s: float) -> Connection:
        """A new connection, held by `attempt`; each step of making it takes `timeout_s` at the most.

        Raises OSError, and urllib3's HTTPError.
        """
        host, port = self._address
        connection: Connection
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
        if self.make_wait is not None:
            connection.wait = self.make_wait(connection.sock)
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


def make_context() -> ssl.SSLContext:
    """What TLS trusts.

    One for all connections: to load the CA file takes some 15 ms of CPU in which no stream moves.
    """
    context = create_urllib3_context()
    context.load_verify_locations(certifi.where())
    context.load_default_certs()  # and what the system, or SSL_CERT_FILE, trusts besides
    return context
