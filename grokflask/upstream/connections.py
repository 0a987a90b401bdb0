"""Connections to upstream, each within reach of the thread that may cancel the attempt it is made for."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import certifi
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.sockets import shut_down

NAME_S = 5.0
"""How long the addresses of a name are used, unless a connection fails."""


class Attempt:
    """One attempt at sending a request. Another thread can see how far it has come, and cancel it."""

    def __init__(self) -> None:
        #: "reused" (a kept connection, no byte of an answer yet), "connecting", "connected", or "answering".
        self.phase = "reused"
        self._sock: socket.socket | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Ends the wait of the attempt. Nothing is sent afterwards. Idempotent and thread-safe."""
        with self._lock:
            self._cancelled = True
            shut_down(self._sock, socket.SHUT_RDWR)

    def hold(self, sock: socket.socket | None) -> None:
        """From now on `cancel` ends waits on `sock`. Raises ConnectionAbortedError once it was called."""
        with self._lock:
            self._sock = sock
            if self._cancelled:
                raise ConnectionAbortedError

    def release(self) -> bool:
        """From now on `cancel` leaves the connection alone. False once it was called."""
        with self._lock:
            self._sock = None
            return not self._cancelled


Wait = Callable[[float], bool]
"""Waits for up to that many seconds until a connection has something to read. False if nothing came."""


class Connection:
    """A TCP connection to upstream, with TLS where its URL says so."""

    def __init__(self, sock: socket.socket, wait: Wait | None) -> None:
        self.sock: Any = sock
        #: Waits more cheaply than the socket's own timeout; None to use that.
        self.wait = wait

    def close(self) -> None:
        """Closes the socket."""
        self.sock.close()


class Connector:
    """Makes TCP and TLS connections to the server at `base_url`. Thread-safe."""

    def __init__(self, base_url: str) -> None:
        #: Makes the `wait` of each connection; None for sockets that wait well by themselves. gevent's try to
        #: read first, and make a timer each time.
        self.make_wait: Callable[[Any], Wait] | None = None
        url = urlsplit(base_url)
        #: The value of the Host header.
        self.host = url.netloc.rpartition("@")[2]
        self._name = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._context = make_context() if url.scheme == "https" else None
        self._addresses: list[tuple[int, Any]] = []  # a socket's family, and what its `connect` takes
        self._look_up_at = 0.0  # monotonic

    def open(self, attempt: Attempt, timeout_s: float) -> Connection:
        """A new connection, held by `attempt`. Each step of making it takes up to `timeout_s`.

        Raises OSError.
        """
        attempt.phase = "connecting"
        sock: socket.socket | None = None
        try:
            sock = self._connect(timeout_s)
            if self._context is None:
                attempt.hold(sock)
            else:
                sock = secured = self._context.wrap_socket(
                    sock, server_hostname=self._name.rstrip("."), do_handshake_on_connect=False
                )
                attempt.hold(sock)  # before the handshake, which can take long
                secured.do_handshake()
        except BaseException:
            self._look_up_at = 0.0
            if sock is not None:
                sock.close()
            raise
        attempt.phase = "connected"
        return Connection(sock, self.make_wait(sock) if self.make_wait else None)

    def _connect(self, timeout_s: float) -> socket.socket:
        """A TCP connection to the first address that accepts one, in up to `timeout_s` for each."""
        error = OSError("the name has no address")
        for family, address in self._look_up():
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(timeout_s)
                sock.connect(address)
            except OSError as failure:
                sock.close()
                error = failure
            else:
                return sock
        raise error

    def _look_up(self) -> list[tuple[int, Any]]:
        """The server's addresses. gevent looks up in a thread, so many connections share one look-up."""
        now = time.monotonic()
        if now >= self._look_up_at:
            found = socket.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(family, address) for family, _, _, _, address in found]
            self._look_up_at = now + NAME_S
        return self._addresses


def make_context() -> ssl.SSLContext:
    """A TLS context that trusts certifi's authorities, and those of the system or of SSL_CERT_FILE.

    All connections share one: to load the file takes about 15 ms of CPU in which no stream moves.
    """
    context = create_urllib3_context()
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(certifi.where())
    context.load_default_certs()
    return context
