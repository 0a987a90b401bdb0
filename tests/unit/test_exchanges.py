"""How many exchanges there may be, exactly; and how a shutdown ends them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.errors import GatewayFullError, GrokflaskError, ShuttingDownError, StreamStoppedError
from grokflask.exchanges import OpenExchanges, OpenStream
from grokflask.ledger.row import LedgerRow


class Call:
    """A call that only notes why it was cancelled."""

    def __init__(self) -> None:
        self.cancelled: GrokflaskError | None = None

    def cancel(self, reason: GrokflaskError) -> None:
        self.cancelled = reason


def test_capacity_is_exact_under_parallel_starts() -> None:
    """200 starts at once against room for 5: exactly 5 begin."""
    exchanges = OpenExchanges(5)
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
    exchanges = OpenExchanges(1)

    def fail() -> Call:
        raise RuntimeError("no thread")

    with pytest.raises(RuntimeError):
        exchanges.start(fail)  # type: ignore[arg-type]
    exchanges.check()
    assert len(exchanges) == 0


def test_streams_are_shown_and_stopped_by_their_rows_id() -> None:
    """Only what was shown is listed, until its end; only the streams asked for are ended, with the reason."""
    exchanges = OpenExchanges(10)
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
    exchanges = OpenExchanges(10)
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
