"""Ports that no other process can take between their choice and their use.

A server that can be given a listening socket gets one from `listen`. For the others `reserve_port` chooses a
port below those that the kernel hands out by itself, and holds its UDP twin, which no server here uses, as a
lock against other test processes. So a server may also be started again on its port.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

FIRST, LAST = 10_000, 32_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_held: list[socket.socket] = []


def listen() -> socket.socket:
    """A listening socket on a port that the kernel chooses."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def reserve_port() -> int:
    """A TCP port of the loopback that is this process's until it ends. Raises RuntimeError."""
    # The kernel's own range begins at 32,768 on most machines; macOS has it higher up.
    last = min(LAST, int(_RANGE.read_text().split()[0]) - 1) if _RANGE.exists() else LAST
    ports = range(FIRST, max(last, FIRST + 1000))
    for port in random.sample(ports, len(ports)):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError("every port is in use")


def refuse_port() -> int:
    """A TCP port of the loopback that refuses connections until this process ends: it is bound."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    _held.append(sock)
    port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A TCP port of the loopback on which connections are never made: what comes is dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        while True:  # until its queue is full
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.5)
            try:
                sock.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield port


def count_connecting(port: int) -> int:
    """Sockets that try to connect to a port of the loopback (the kernel's proc_net_tcp.txt)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(theirs.endswith(f":{port:04X}") and state == "02" for _, _, theirs, state, *_ in lines)
