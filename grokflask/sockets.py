"""What the kernel knows of a connection, and how to end one under whoever waits on it."""

from __future__ import annotations

import contextlib
import os
import socket

# linux/tcp_states.h: the peer has sent FIN or RST, or all is over.
_GONE_STATES = frozenset((7, 8, 9))  # CLOSE, CLOSE_WAIT, LAST_ACK


def is_gone(sock: socket.socket) -> bool:
    """The peer of `sock` has closed, half-closed or reset its side."""
    try:
        if sock.family == socket.AF_UNIX:
            return _has_ended(sock)
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _GONE_STATES
    except AttributeError:
        return False  # this system has no TCP_INFO
    except OSError:
        return True  # closed on this side


def _has_ended(sock: socket.socket) -> bool:
    """A Unix socket's end, which data that wait unread would hide."""
    with socket.socket(fileno=os.dup(sock.fileno())) as twin:
        if not os.get_blocking(twin.fileno()):
            twin.setblocking(False)
        try:
            return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False


def limit_sending(sock: socket.socket | None, seconds: float) -> None:
    """Lets the kernel end the connection once the peer has taken nothing for `seconds`.

    TCP_USER_TIMEOUT covers a reader that stands still (its window is closed) as well as one whose machine
    has gone. A no-op without such a socket.
    """
    if sock is None or sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def shut_down(sock: socket.socket | None, how: int) -> None:
    """Shuts the connection down under whoever waits on it, who sees an end rather than an error.

    It goes through a duplicate: gevent's own socket would raise in the greenlet that waits on it, and an
    SSLSocket would drop its TLS state under the reader.
    """
    if sock is None:
        return
    with contextlib.suppress(OSError):
        twin = socket.socket(fileno=os.dup(sock.fileno()))
        with twin:
            twin.shutdown(how)
