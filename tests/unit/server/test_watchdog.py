"""The watchdog on gevent's real hub. This process is not patched, so `time.sleep` holds up the loop."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from grokflask.runtime import STALL_S
from grokflask.server import watchdog as module
from grokflask.server.watchdog import Watchdog

WAIT_S = 60.0


@pytest.fixture
def delays() -> list[float]:
    return []


@pytest.fixture
def watchdog(delays: list[float]) -> Iterator[Watchdog]:
    """Watches this thread, and notes the delays."""
    watchdog = Watchdog(delays.append)
    watchdog.start()
    yield watchdog
    watchdog.stop()
    gevent.sleep(0)


def wait_for(condition: Callable[[], Any]) -> None:
    """Lets the loop turn until `condition` holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        gevent.sleep(0.01)


def block(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.usefixtures("watchdog")
def test_one_stall_is_one_sample(delays: list[float], logged: io.StringIO) -> None:
    """Its length is that of the turn, not of the wait since the last question."""
    wait_for(lambda: len(delays) > 2)
    number = len([each for each in delays if each > STALL_S])
    gevent.spawn(block, 0.8)
    wait_for(lambda: "the event loop stalled" in logged.getvalue())
    stalls = [each for each in delays if each > STALL_S]
    assert len(stalls) > number
    assert max(stalls) >= 0.8
    lines = [line for line in logged.getvalue().splitlines() if " block" in line]
    assert len(lines) == 1
    assert f'line="{__file__}:' in lines[0]
    assert "request_id" not in lines[0]


@pytest.mark.usefixtures("watchdog")
def test_many_that_stall_together(delays: list[float], logged: io.StringIO) -> None:
    """Each is short, but they run in one turn: an event has to wait for all of them."""
    wait_for(lambda: len(delays) > 2)

    def start_all() -> None:
        for _ in range(16):
            block(0.05)

    gevent.get_hub().loop.run_callback(start_all)
    wait_for(lambda: "the event loop stalled" in logged.getvalue())
    assert max(delays) >= 0.8


@pytest.mark.usefixtures("watchdog")
def test_a_long_stall(monkeypatch: pytest.MonkeyPatch, capfd: Any, logged: io.StringIO) -> None:
    """It has a line of its own on standard error, once and before its end."""
    monkeypatch.setattr(module, "LONG_S", 0.3)
    block(1.2)
    told = capfd.readouterr().err
    assert "level=error logger=grokflask.loop" in told
    assert told.count("the event loop is stalled") == 1
    wait_for(lambda: "the event loop stalled" in logged.getvalue())


def test_an_error_in_the_watchdog(
    watchdog: Watchdog, delays: list[float], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It is told, and the watchdog continues."""
    look, failed = watchdog._look, []

    def fail() -> None:
        if not failed:
            failed.append(True)
            raise MemoryError
        look()

    monkeypatch.setattr(watchdog, "_look", fail)
    wait_for(lambda: failed)
    number = len(delays)
    wait_for(lambda: len(delays) > number + 2)
    assert "the watchdog failed, and continues" in capfd.readouterr().err
