"""Sends the rest of a large request, and listens meanwhile: upstream may answer before it has it all."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from grokflask.sockets import count_unsent
from grokflask.upstream.connections import Attempt, poll
from grokflask.upstream.parser import AnswerHead

PIECE_BYTES = 256 * 1024
RECEIVE_BYTES = 64 * 1024

Take = Callable[[bytes], AnswerHead | None]
"""Takes bytes of an answer. Returns its head once that is complete."""


def send_and_listen(
    sock: Any, pieces: Iterable[bytes], attempt: Attempt, take: Take, timeout_s: float
) -> AnswerHead | None:
    """Sends `pieces` until all of them went out (None), or until an answer has come (its head).

    `timeout_s` limits each wait for upstream to take more. Raises OSError: TimeoutError when it does not,
    ConnectionError when it has hung up without an answer.
    """
    sock.settimeout(0)
    with suppress(AttributeError, OSError):  # a system without it
        # Writable now means that everything so far was sent, not that the kernel has room to store megabytes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                if head := _wait_until_sent(sock, take, timeout_s):
                    return head
                rest = rest[_send(sock, rest[:PIECE_BYTES]) :]
        head = _wait_until_sent(sock, take, timeout_s) if count_unsent(sock) else None
        attempt.sent_at = time.monotonic()
        attempt.check_sent()  # the head may have come first
        return head
    except (ConnectionError, ssl.SSLError):
        with suppress(OSError):  # upstream has hung up, but may have said why
            if head := _listen(sock, take):
                return head
        raise


def _send(sock: Any, data: memoryview) -> int:
    with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        sent: int = sock.send(data)
        return sent
    return 0


def _wait_until_sent(sock: Any, take: Take, timeout_s: float) -> AnswerHead | None:
    """Waits until the kernel has sent what it was given, or until an answer has come (its head)."""
    while True:
        ready = poll(sock, select.POLLIN | select.POLLOUT, timeout_s)
        if ready != select.POLLOUT and (head := _listen(sock, take)):
            return head
        if ready & select.POLLOUT:
            return None


def _listen(sock: Any, take: Take) -> AnswerHead | None:
    """The head of an answer, if what has come completes one. Raises ConnectionError if nothing more can."""
    with suppress(BlockingIOError, ssl.SSLWantReadError):
        while data := sock.recv(RECEIVE_BYTES):
            if head := take(data):
                return head
        raise ConnectionResetError("closed before the end of a head")
    return None
