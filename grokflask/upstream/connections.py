"""Connections to upstream, each within reach of the thread that may cancel the attempt it is made for."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import certifi
from urllib3.util.ssl_ import create_urllib3_context

from grokflask.sockets import count_unsent, reset_on_close, shut_down
from grokflask.upstream.dialing import Dialer

RESEND_S = 1.0
"""A kept connection that closes later than this after a request was not idle: upstream has worked on it."""

Reached = Literal["no", "sent", "answered"]
"""Whether upstream had a request: not all of it, all of it, or all of it and it has begun to answer."""


class Attempt:
    """One attempt at sending a request. It knows how far the request has come, and can be cancelled.

    Args:
        once: the request must not run twice, so it is not sent again once upstream may have all of it.
    """

    def __init__(self, *, once: bool = False) -> None:
        #: There is a connection to send on.
        self.connected = False
        #: It had an earlier exchange. Upstream may have closed it just before this request.
        self.reused = False
        #: When the last byte of the request was sent (monotonic); None before.
        self.sent_at: float | None = None
        #: The first byte of an answer has come.
        self.answered = False
        self._once = once
        self._socks: list[socket.socket] = []
        self._cancelled = False
        self._lock = threading.Lock()

    @property
    def reached(self) -> Reached:
        """Whether upstream had the request."""
        if self.sent_at is None:
            return "no"
        return "answered" if self.answered else "sent"

    @property
    def may_be_resent(self) -> bool:
        """Upstream closed a kept connection before it could take the request, or looks as if it had."""
        if self._cancelled or self.answered or not self.reused:
            return False
        if self.sent_at is None:
            return True
        return not self._once and time.monotonic() - self.sent_at <= RESEND_S

    def begin(self, *, reused: bool) -> None:
        """There is a connection now, and nothing has been sent on it."""
        self.connected, self.reused, self.sent_at = True, reused, None

    def cancel(self) -> None:
        """Ends the wait of the attempt. Nothing is sent afterwards. Idempotent and thread-safe."""
        with self._lock:
            self._cancelled = True
            self.check_sent()
            for sock in self._socks:
                shut_down(sock, socket.SHUT_RDWR)

    def check_sent(self) -> bool:
        """Whether all of the request went out. Bytes that still wait in the kernel did not."""
        if any(map(count_unsent, self._socks)):
            self.sent_at = None
        return self.sent_at is not None

    def hold(self, *socks: socket.socket) -> None:
        """From now on `cancel` ends waits on these. Raises ConnectionAbortedError once it was called."""
        with self._lock:
            self._socks = list(socks)
            if self._cancelled:
                raise ConnectionAbortedError

    def release(self) -> bool:
        """From now on `cancel` leaves the connection alone. False once it was called."""
        with self._lock:
            self._socks = []
            return not self._cancelled


Wait = Callable[[float], bool]
"""Waits for up to that many seconds until a connection has something to read. False if nothing came."""


class Connection:
    """A TCP connection to upstream, with TLS where its URL says so."""

    def __init__(self, sock: socket.socket, wait: Wait | None) -> None:
        self.sock: Any = sock
        #: Waits more cheaply than the socket's own timeout; None to use that.
        self.wait = wait
        #: All of the last request was sent.
        self.is_sent = True

    def close(self) -> None:
        """Closes the socket. If something is unsent, drops it, and upstream learns of it at once."""
        if not self.is_sent:
            reset_on_close(self.sock)
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
        self._dialer = Dialer(self._name, url.port or (443 if url.scheme == "https" else 80))
        self._context = make_context() if url.scheme == "https" else None

    def open(self, attempt: Attempt, timeout_s: float) -> Connection:
        """A new connection, held by `attempt`. Each step of making it takes up to `timeout_s`.

        Raises OSError.
        """
        attempt.connected, attempt.sent_at = False, None
        sock: socket.socket | None = None
        try:
            sock = self._dialer.connect(attempt.hold, timeout_s)
            if self._context is not None:
                sock = secured = self._context.wrap_socket(
                    sock, server_hostname=self._name.rstrip("."), do_handshake_on_connect=False
                )
                attempt.hold(sock)
                secured.do_handshake()
        except BaseException:
            self._dialer.forget()
            if sock is not None:
                sock.close()
            raise
        attempt.begin(reused=False)
        return Connection(sock, self.make_wait(sock) if self.make_wait else None)


def poll(sock: Any, events: int, timeout_s: float) -> int:
    """Those of `events` (POLLIN, POLLOUT) that `sock` is ready for, or its errors. Raises TimeoutError."""
    poll = select.poll()
    poll.register(sock.fileno(), events)
    for _, ready in poll.poll(timeout_s * 1000):
        return ready
    raise TimeoutError("timed out")


def make_context() -> ssl.SSLContext:
    """A TLS context that trusts certifi's authorities, and those of the system or of SSL_CERT_FILE.

    All connections share one: to load the file takes about 15 ms of CPU in which no stream moves.
    """
    context = create_urllib3_context()
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(certifi.where())
    context.load_default_certs()
    return context
