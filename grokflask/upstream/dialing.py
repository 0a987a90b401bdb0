"""TCP connections to a host by its name: looked up once for many, to whichever address answers first."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from grokflask.sockets import keep_alive

NAME_S = 5.0
"""How long the addresses of a name are used before it is looked up again, unless a connection fails."""

STEP_S = 0.25
"""How long an address may be silent before the next one is tried beside it (RFC 8305, section 5)."""

Address = tuple[int, Any]
"""A socket's family, and what its `connect` takes."""

Hold = Callable[..., None]
"""Is told which sockets are waited for, so that another thread can end the wait. Raises OSError to stop."""


class Dialer:
    """Makes TCP connections to one host. Thread-safe."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._addresses: list[Address] = []  # of the last look-up that succeeded
        self._look_up_at = 0.0  # monotonic
        self._looking: _LookUp | None = None
        self._lock = threading.Lock()

    def connect(self, hold: Hold, timeout_s: float) -> socket.socket:
        """A connection to the first address that takes one. Its look-up and each address have `timeout_s`.

        Addresses are tried in turns of both families, each STEP_S after the one before or when that fails
        (happy eyeballs, RFC 8305). Raises OSError.
        """
        waiting = self._find_addresses(timeout_s)[::-1]
        race = _Race(hold)
        try:
            while waiting or race.runners:
                if waiting and (not race.runners or race.is_silent):
                    race.start(waiting.pop(), timeout_s)
                elif (found := race.wait(or_step=bool(waiting))) is not None:
                    sock, address = found
                    self._prefer(address)
                    sock.settimeout(timeout_s)
                    return sock
        finally:
            race.close()
        raise race.error

    def forget(self) -> None:
        """The addresses may be wrong: the next connection waits for a look-up."""
        self._look_up_at = 0.0

    def _find_addresses(self, timeout_s: float) -> list[Address]:
        """The host's addresses; the last ones that were found, if they cannot be looked up now."""
        if time.monotonic() < self._look_up_at:
            return self._addresses
        with self._lock:  # one look-up for all connections: a resolver that hangs takes one thread
            looking = self._looking
            if looking is None:
                looking = _LookUp(self._host, self._port)
                threading.Thread(target=self._look_up, args=(looking,), name="look-up", daemon=True).start()
                self._looking = looking
        is_done = looking.done.wait(STEP_S if self._addresses else timeout_s)
        if not self._addresses:
            raise looking.error if is_done and looking.error else TimeoutError("the look-up timed out")
        return self._addresses

    def _look_up(self, looking: _LookUp) -> None:
        try:
            looking.run()
            with self._lock:
                if looking.found:
                    first, self._addresses = self._addresses[:1], looking.found
                    if first and first[0] in looking.found:
                        self._put_first(first[0])
                    self._look_up_at = time.monotonic() + NAME_S
        finally:
            with self._lock:
                self._looking = None
            looking.done.set()

    def _prefer(self, address: Address) -> None:
        """Tries this address first from now on: it works."""
        if self._addresses[:1] != [address]:
            with self._lock:
                self._put_first(address)

    def _put_first(self, address: Address) -> None:
        self._addresses = [address, *(each for each in self._addresses if each != address)]


class _LookUp:
    """One look-up of a name."""

    def __init__(self, host: str, port: int) -> None:
        self.done = threading.Event()
        self.found: list[Address] = []
        self.error: OSError | None = None
        self._name = (host, port)

    def run(self) -> None:
        """Sets `found`, with the families in turns, or `error`."""
        try:
            answers = socket.getaddrinfo(*self._name, type=socket.SOCK_STREAM)
            found = [(family, address) for family, _, _, _, address in answers]
            families = dict.fromkeys(family for family, _ in found)
            lists = [[each for each in found if each[0] == family] for family in families]
            self.found = [each for each in chain(*zip_longest(*lists)) if each is not None]
        except OSError as error:
            self.error = error
        except UnicodeError as error:  # no such name can be
            self.error = OSError(str(error))


class _Race:
    """Connections that are being made at once. Exactly one wins; `close` ends the others."""

    def __init__(self, hold: Hold) -> None:
        self.runners: dict[int, tuple[socket.socket, Address]] = {}
        self.error = OSError("the name has no address")
        self.is_silent = False  # the last one to start has not answered within STEP_S
        self._hold = hold
        self._poll = select.poll()
        self._ends_at = 0.0  # monotonic

    def start(self, address: Address, timeout_s: float) -> None:
        """Begins to connect to `address`."""
        self._ends_at = time.monotonic() + timeout_s
        self.is_silent = False
        family, target = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
            sock.setblocking(False)
            self._hold(*self._socks, sock)  # a cancelled attempt begins no handshake
            with suppress(BlockingIOError):
                sock.connect(target)
        except OSError as failure:
            sock.close()
            self._hold(*self._socks)
            self.error = failure
            return
        self.runners[sock.fileno()] = (sock, address)
        self._poll.register(sock.fileno(), select.POLLOUT)

    def wait(self, *, or_step: bool) -> tuple[socket.socket, Address] | None:
        """The connection that is made; None if one has failed, or after STEP_S. Raises OSError."""
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        ready = self._poll.poll(1000 * (min(left_s, STEP_S) if or_step else left_s))
        self._hold(*self._socks)  # whoever cancels has shut them down, which looks like a connection
        self.is_silent = not ready
        for number, _ in ready:
            self._poll.unregister(number)
            sock, address = self.runners.pop(number)
            problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not problem:
                self._hold(sock)
                return sock, address
            self.error = OSError(problem, os.strerror(problem))
            sock.close()
        return None

    def close(self) -> None:
        """Ends the connections that have not won."""
        for sock in self._socks:
            sock.close()
        self.runners.clear()

    @property
    def _socks(self) -> list[socket.socket]:
        return [sock for sock, _ in self.runners.values()]
