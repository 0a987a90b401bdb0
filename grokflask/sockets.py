"""Queries the state of a connection, and ends one that another greenlet or thread waits on."""

from __future__ import annotations

import _socket
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator

# linux/tcp_states.h: the peer has sent FIN or RST, or the connection is closed.
_GONE_STATES = frozenset((7, 8, 9))  # CLOSE, CLOSE_WAIT, LAST_ACK
_NOTSENT = slice(144, 148)  # tcpi_notsent_bytes of tcp_info in linux/tcp.h


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
    except (OSError, ValueError):
        return True  # closed on this side


def _has_ended(sock: socket.socket) -> bool:
    """The peer of a Unix socket has closed it. Unread data hide this."""
    with _borrow(sock) as twin:
        try:
            return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False


def limit_sending(sock: socket.socket, seconds: float) -> None:
    """Lets the kernel close the connection when the peer accepts no data for `seconds`.

    TCP_USER_TIMEOUT covers a peer that stopped reading (its window is closed) and one that is unreachable. It
    does nothing to a Unix socket.
    """
    if sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def keep_alive(sock: socket.socket) -> None:
    """Lets the kernel find out within a minute of silence that a peer has vanished.

    A stream's heartbeats would notice, but nothing is sent while a whole reply is awaited.
    """
    if sock.family != socket.AF_UNIX and hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def count_unsent(sock: socket.socket) -> int:
    """Bytes that the kernel has taken and not sent yet, because the peer does not read. 0 where unknown."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NOTSENT.stop)
    except (OSError, AttributeError):
        return 0
    return int.from_bytes(info[_NOTSENT], sys.byteorder)


def reset_on_close(sock: socket.socket) -> None:
    """Lets `close` drop what was not sent and reset the connection; otherwise the peer reads it all first."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def shut_down(sock: socket.socket | None, how: int) -> None:
    """Shuts the connection down; a reader that waits on it sees an end, not an error.

    Not by its own method: gevent's socket would raise in the waiting greenlet, and an SSLSocket would drop
    the TLS state that its reader needs.
    """
    if sock is None:
        return
    with contextlib.suppress(OSError, ValueError), _borrow(sock) as twin:  # ValueError: it is closed
        twin.shutdown(how)


@contextlib.contextmanager
def _borrow(sock: socket.socket) -> Iterator[_socket.socket]:
    """The plain socket behind `sock`. It takes no descriptor of its own, because there may be none left."""
    twin = _socket.socket(fileno=sock.fileno())
    try:
        yield twin
    finally:
        twin.detach()
