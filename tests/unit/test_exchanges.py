"""How many exchanges there may be, exactly; and how a shutdown ends them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.processes import wait_for

from grokflask.errors import GatewayFullError, GrokflaskError, ShuttingDownError
from grokflask.exchanges import OpenExchanges


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
        barrier.wait(20)
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


def test_drain_refuses_and_then_ends() -> None:
    """After the lead new work is refused; near the end open calls are cancelled with the reason."""
    exchanges = OpenExchanges(10)
    call: Call = exchanges.start(Call)  # type: ignore[arg-type,assignment]
    exchanges.drain(grace_s=5.2, lead_s=0.05)
    exchanges.drain(grace_s=99)
    assert exchanges.draining
    exchanges.check()  # within the lead new work is still taken
    wait_for(lambda: call.cancelled is not None, "the end", 10)
    assert isinstance(call.cancelled, ShuttingDownError)
    with pytest.raises(ShuttingDownError):
        exchanges.start(Call)  # type: ignore[arg-type]
    exchanges.end(call)  # type: ignore[arg-type]
