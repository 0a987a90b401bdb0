"""The services beside the requests: started once in each process, closed in their order."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.scripted import WAIT_S

from grokflask import runtime
from grokflask.runtime import CLOSE_S, Background


class Service:
    """Notes what is asked of it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self._name = name
        self._notes = notes

    def start(self) -> None:
        self._notes.append(f"start {self._name}")

    def close(self, timeout_s: float) -> None:
        assert timeout_s == CLOSE_S
        self._notes.append(f"close {self._name}")


def test_started_once_and_closed_in_order() -> None:
    """However many requests come first at the same moment, each service starts once; closing may repeat."""
    notes: list[str] = []
    background = Background(Service("limits", notes), Service("ledger", notes))
    barrier = threading.Barrier(20)

    def start(_number: int) -> None:
        barrier.wait(WAIT_S)
        background.start()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(start, range(20)))
    assert notes == ["start limits", "start ledger"]
    background.close()
    background.close()
    assert notes[2:] == ["close limits", "close ledger"]
    background.start()
    background.close()
    assert len(notes) == 8


def test_never_started_is_never_closed() -> None:
    """A process that only made the app has nothing to bring to an end."""
    notes: list[str] = []
    Background(Service("ledger", notes)).close()
    assert notes == []


def test_after_a_fork() -> None:
    """A child starts services of its own, and does not close its parent's."""
    notes: list[str] = []
    background = Background(Service("ledger", notes))
    background.start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        background.close()
        background.start()
        os.write(writer, ",".join(notes).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() == "start ledger,start ledger"
    os.close(reader)
    background.close()
    assert notes == ["start ledger", "close ledger"]


def test_no_module_sleeps_for_nothing() -> None:
    """Under gevent that lets nobody read; `step_aside` does (tests/unit/server/test_waits.py)."""
    package = Path(runtime.__file__).parent
    wrong = [path for path in package.rglob("*.py") if re.search(r"\bsleep\(0(\.0*)?\)", path.read_text())]
    assert wrong == [package / "runtime.py"]  # where it is explained
