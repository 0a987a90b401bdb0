"""Queries the state of a connection, and ends one that another greenlet or thread waits on."""

from __future__ import annotations

import contextlib
import os
import socket

# linux/tcp_states.h: the peer has sent FIN or RST, or the connection is closed.
_GONE_STATES = frozenset((7, 8, 9))  # CLOSE, CLOSE_WAIT, LAST_ACK


class BrokenBodyError(Exception):
    """The client's body ended early, or is not valid HTTP. The message is for the client.

    It is no OSError, which Werkzeug would replace.
    """


def is_gone(sock: socket.socket) -> bool:
    """The peer of `sock` has closed, half-closed or reset the connection."""
    try:
        if sock.family == socket.AF_UNIX:
            return _has_ended(sock)
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _GONE_STATES
    except AttributeError:
        return False  # this system has no TCP_INFO
    except OSError:
        return True  # closed on this side


def _has_ended(sock: socket.socket) -> bool:
    """The peer of a Unix socket has closed it. Unread data hide this."""
    with socket.socket(fileno=os.dup(sock.fileno())) as twin:
        if not os.get_blocking(twin.fileno()):
            twin.setblocking(False)
        try:
            return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False


def limit_sending(sock: socket.socket | None, seconds: float) -> None:
    """Lets the kernel close the connection when the peer accepts no data for `seconds`.

    TCP_USER_TIMEOUT covers a peer that stopped reading (its window is closed) and one that is unreachable. It
    does nothing without a TCP socket.
    """
    if sock is None or sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def shut_down(sock: socket.socket | None, how: int) -> None:
    """Shuts the connection down; a reader that waits on it sees an end, not an error.

    It uses a duplicate: gevent's socket would raise in the waiting greenlet, and an SSLSocket would drop the
    TLS state that its reader needs.
    """
    if sock is None:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as twin:
        twin.shutdown(how)
