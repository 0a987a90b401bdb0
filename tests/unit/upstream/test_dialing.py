"""Dialing: which addresses a host has, and which of them gets the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.ports import black_hole, refuse_port
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.upstream.connections import Attempt
from grokflask.upstream.dialing import Dialer

LONG_S = 600.0
"""Far more than a test may take: what waits for it to pass has failed."""

HOST = "upstream.example"

Answer = list[tuple[Any, ...]]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A host that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Answer]], list[str]]:
    """Sets what look-ups answer; returns the list of those that were made."""

    def use(answer: Callable[[], Answer]) -> list[str]:
        asked: list[str] = []

        def look_up(host: str, *_: object, **__: object) -> Answer:
            asked.append(host)
            return answer()

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        return asked

    return use


def describe(*ports: int, family: int = socket.AF_INET) -> Answer:
    """What a look-up says of addresses on this machine."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    return [(family, socket.SOCK_STREAM, 6, "", (host, port)) for port in ports]


def connect(dialer: Dialer, timeout_s: float = LONG_S) -> int:
    """The port that the connection goes to."""
    with dialer.connect(Attempt().hold, timeout_s) as sock:
        port: int = sock.getpeername()[1]
    return port


def test_a_silent_address_holds_up_nothing(listener: socket.socket, resolve: Any) -> None:
    """The next one is tried beside it, and is the first from then on."""
    port = listener.getsockname()[1]
    with black_hole() as silent:
        resolve(lambda: describe(silent, port))
        dialer = Dialer(HOST, 443)
        assert connect(dialer) == port
        assert [address[1] for _, address in dialer._addresses] == [port, silent]
        dialer.forget()
        assert connect(dialer) == port
        assert [address[1] for _, address in dialer._addresses] == [port, silent]


def test_addresses_that_refuse(listener: socket.socket, resolve: Any) -> None:
    """Each is tried; the error of the last one is told."""
    port, refusing = listener.getsockname()[1], [refuse_port() for _ in range(3)]
    resolve(lambda: describe(*refusing, port))
    assert connect(Dialer(HOST, 443)) == port
    resolve(lambda: describe(*refusing))
    with pytest.raises(ConnectionRefusedError):
        connect(Dialer(HOST, 443))


def test_all_addresses_are_silent(resolve: Any) -> None:
    """It takes no longer than its time."""
    with black_hole() as silent, black_hole() as other:
        resolve(lambda: describe(silent, other))
        with pytest.raises(TimeoutError):
            connect(Dialer(HOST, 443), 0.3)


def test_families_take_turns(listener: socket.socket, resolve: Any) -> None:
    """A family without a route costs one attempt, not one for each of its addresses."""
    six, four = describe(1, 2, 3, family=socket.AF_INET6), describe(listener.getsockname()[1], 5)
    resolve(lambda: six + four)
    dialer = Dialer(HOST, 443)
    connect(dialer)
    families = [family for family, _ in dialer._addresses]
    assert families[:1] == [socket.AF_INET]  # it has won
    dialer._addresses = []
    dialer._look_up_at = 0.0
    found = [family for family, _ in dialer._find_addresses(LONG_S)]
    assert found == [socket.AF_INET6, socket.AF_INET] * 2 + [socket.AF_INET6]


def test_the_last_good_addresses_bridge_a_failure(listener: socket.socket, resolve: Any) -> None:
    """A resolver that fails or hangs stops nothing that has worked."""
    port = listener.getsockname()[1]
    resolve(lambda: describe(port))
    dialer = Dialer(HOST, 443)
    assert connect(dialer) == port

    def fail() -> Answer:
        raise socket.gaierror("temporary failure in name resolution")

    resolve(fail)
    dialer.forget()
    assert connect(dialer) == port

    go = threading.Event()

    def hang() -> Answer:
        go.wait(WAIT_S)
        return describe(port)

    asked = resolve(hang)
    dialer.forget()
    for _ in range(5):
        assert connect(dialer) == port
    assert asked == [HOST]  # one look-up at a time, however many wait
    go.set()
    wait_for(lambda: dialer._looking is None, "the look-up's end")


def test_a_name_that_is_not_found(resolve: Any) -> None:
    """The resolver's error, and a timeout where it hangs; the next connection asks again."""

    def fail() -> Answer:
        raise socket.gaierror("no such name")

    asked = resolve(fail)
    dialer = Dialer(HOST, 443)
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            connect(dialer)
    assert len(asked) == 2

    go = threading.Event()
    resolve(lambda: describe(1) if go.wait(WAIT_S) else [])
    with pytest.raises(TimeoutError):
        connect(Dialer(HOST, 443), 0.05)
    go.set()


def test_a_cancelled_race(resolve: Any) -> None:
    """All its handshakes end at once, and no other begins."""
    with black_hole() as silent, black_hole() as other:
        resolve(lambda: describe(silent, other, silent, other))
        attempt = Attempt()
        errors: list[BaseException] = []

        def dial() -> None:
            try:
                Dialer(HOST, 443).connect(attempt.hold, LONG_S)
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=dial)
        thread.start()
        wait_for(lambda: len(attempt._socks) >= 2, "two handshakes")
        attempt.cancel()
        thread.join(WAIT_S)
        assert [type(error) for error in errors] == [ConnectionAbortedError]
