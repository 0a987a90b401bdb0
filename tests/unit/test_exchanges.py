"""How many exchanges there may be, exactly; and how a shutdown ends them."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.errors import (
    BodiesFullError,
    GatewayFullError,
    GrokflaskError,
    ShuttingDownError,
    StreamStoppedError,
)
from grokflask.ledger.row import LedgerRow
from grokflask.register import SMALL_BODY_BYTES, HeldBody, OpenExchanges, OpenStream

MIB = 2**20
MEMORY = 16 * MIB


class Call:
    """A call that only notes why it was cancelled."""

    def __init__(self) -> None:
        self.cancelled: GrokflaskError | None = None

    def cancel(self, reason: GrokflaskError) -> None:
        self.cancelled = reason


def test_capacity_is_exact_under_parallel_starts() -> None:
    """200 starts at once against room for 5: exactly 5 begin."""
    exchanges = OpenExchanges(5, MEMORY)
    barrier = threading.Barrier(200)
    begun: list[Call] = []

    def start(_: int) -> bool:
        barrier.wait(WAIT_S)
        try:
            begun.append(exchanges.start(Call))  # type: ignore[arg-type]
        except GatewayFullError:
            return False
        return True

    with ThreadPoolExecutor(200) as pool:
        assert sum(pool.map(start, range(200))) == 5
    assert len(exchanges) == 5
    for call in begun:
        exchanges.end(call)  # type: ignore[arg-type]
        exchanges.end(call)  # type: ignore[arg-type]
    assert len(exchanges) == 0


def test_a_start_that_fails_holds_no_place() -> None:
    """What could not begin is not counted."""
    exchanges = OpenExchanges(1, MEMORY)

    def fail() -> Call:
        raise RuntimeError("no thread")

    with pytest.raises(RuntimeError):
        exchanges.start(fail)  # type: ignore[arg-type]
    exchanges.check()
    assert len(exchanges) == 0


def test_streams_are_shown_and_stopped_by_their_rows_id() -> None:
    """Only what was shown is listed, until its end; only the streams asked for are ended, with the reason."""
    exchanges = OpenExchanges(10, MEMORY)
    calls: list[Any] = [exchanges.start(Call) for _ in range(3)]  # type: ignore[arg-type]
    for number, call in enumerate(calls[:2]):
        row = LedgerRow(f"id{number}", "asked", "alice", "chat", "grok-4.3", 0.0)
        exchanges.show(call, OpenStream(row, lambda number=number: (number, 10 * number)))
    assert [(each.row.id, each.count_sent()) for each in exchanges.streams] == [
        ("id0", (0, 0)),
        ("id1", (1, 10)),
    ]
    assert exchanges.stop(["id1", "id2"]) == 1
    assert [type(call.cancelled) for call in calls] == [type(None), StreamStoppedError, type(None)]
    exchanges.end(calls[0])
    exchanges.end(calls[1])
    exchanges.show(calls[0], OpenStream(row, lambda: (0, 0)))
    assert exchanges.streams == []
    assert exchanges.stop(["id0", "id1"]) == 0


def test_drain_refuses_and_then_ends() -> None:
    """After the lead new work is refused; near the end open calls are cancelled with the reason."""
    exchanges = OpenExchanges(10, MEMORY)
    call: Call = exchanges.start(Call)  # type: ignore[arg-type,assignment]
    exchanges.drain(grace_s=5.2, lead_s=0.05)
    exchanges.drain(grace_s=99)
    assert exchanges.draining
    exchanges.check()  # within the lead new work is still taken
    wait_for(lambda: call.cancelled is not None, "the end")
    assert isinstance(call.cancelled, ShuttingDownError)
    with pytest.raises(ShuttingDownError):
        exchanges.start(Call)  # type: ignore[arg-type]
    exchanges.end(call)  # type: ignore[arg-type]


def test_bodies_hold_what_has_arrived() -> None:
    """Until the request is done with, whatever its end; a body may also leave memory before that."""
    exchanges = OpenExchanges(5, MEMORY)
    with HeldBody(exchanges, "a") as first, pytest.raises(RuntimeError), HeldBody(exchanges, "b") as second:
        first.resize(100_000)
        second.resize(SMALL_BODY_BYTES)
        assert exchanges.held_bytes == 100_000
        second.resize(70_000)
        assert exchanges.held_bytes == 170_000
        second.resize(0)
        assert exchanges.held_bytes == 100_000
        second.resize(20_000)
        raise RuntimeError
    assert exchanges.held_bytes == 0


def test_memory_for_bodies_ends() -> None:
    """Each needs its size again for a copy, so large ones are refused first, and small ones never."""
    exchanges = OpenExchanges(5, MEMORY)
    with (
        HeldBody(exchanges, "first") as first,
        HeldBody(exchanges, "second") as second,
        HeldBody(exchanges, "third") as third,
        HeldBody(exchanges, "small") as small,
    ):
        first.resize(5 * MIB)
        second.resize(5 * MIB)
        with pytest.raises(BodiesFullError):
            third.resize(3 * MIB + 1)
        third.resize(3 * MIB)
        assert exchanges.held_bytes == 13 * MIB
        first.resize(4 * MIB)  # one that shrinks is never refused
        third.resize(0)
        second.resize(6 * MIB)
        with pytest.raises(BodiesFullError):
            second.resize(6 * MIB + 1)
        small.resize(SMALL_BODY_BYTES)
    assert exchanges.held_bytes == 0


def test_a_caller_has_half_of_the_memory_and_places() -> None:
    """But always a few places; what it has given back it may take again."""
    exchanges = OpenExchanges(20, MEMORY)
    with (
        HeldBody(exchanges, "a") as first,
        HeldBody(exchanges, "a") as second,
        HeldBody(exchanges, "b") as bob,
    ):
        first.resize(6 * MIB)
        second.resize(2 * MIB)
        with pytest.raises(BodiesFullError):
            second.resize(2 * MIB + 1)
        bob.resize(4 * MIB)
        first.resize(0)
        second.resize(6 * MIB)
    for capacity, share in ((20, 10), (4, 8)):
        exchanges = OpenExchanges(capacity, MEMORY)
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                for _ in range(share):
                    stack.enter_context(exchanges.upload("a"))
                with pytest.raises(GatewayFullError):
                    stack.enter_context(exchanges.upload("a"))
                stack.enter_context(exchanges.upload("b"))


def test_memory_for_bodies_is_exact_in_parallel() -> None:
    """50 threads that grow, shrink and fail leave nothing behind, and never take more than there is."""
    exchanges = OpenExchanges(5, MEMORY)
    barrier = threading.Barrier(50)
    seen: list[int] = []

    def hold(number: int) -> None:
        barrier.wait(WAIT_S)
        for turn in range(20):
            with contextlib.suppress(BodiesFullError), HeldBody(exchanges, str(number)) as body:
                for size in range(0, 2 * MIB, 100_000 + 1000 * ((number * turn) % 7)):
                    body.resize(size)
                    seen.append(exchanges.held_bytes)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(hold, range(50)))
    assert 0 < max(seen) <= MEMORY
    assert exchanges.held_bytes == 0
