"""The hooks, called as gunicorn's master calls them."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from grokflask.server.metric_slots import child_exit, on_exit, pre_fork


class Master:
    """What the hooks use of gunicorn's master."""

    def __init__(self, folder: Path) -> None:
        self.cfg = Config()
        self.cfg.set("worker_tmp_dir", str(folder))
        self.lines = io.StringIO()
        self.log = logging.Logger("master")
        self.log.addHandler(logging.StreamHandler(self.lines))
        self.WORKERS: dict[int, Any] = {}

    def fork(self) -> Any:
        """Another worker."""
        worker = SimpleNamespace()
        pre_fork(self, worker)
        self.WORKERS[id(worker)] = worker
        return worker

    def bury(self, worker: Any) -> None:
        """The worker has ended. gunicorn forgets it before it calls the hook."""
        del self.WORKERS[id(worker)]
        child_exit(self, worker)


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


def test_slots_are_used_again(master: Master) -> None:
    """Each living worker has a number of its own, the lowest that is free."""
    first, second, third = (master.fork() for _ in range(3))
    assert [worker.metrics_slot[1] for worker in (first, second, third)] == [0, 1, 2]
    assert len({worker.metrics_slot[0] for worker in (first, second, third)}) == 1
    master.bury(second)
    assert master.fork().metrics_slot[1] == 1
    master.bury(first)
    master.bury(third)
    assert [master.fork().metrics_slot[1] for _ in range(2)] == [0, 2]


def test_gauges_go_with_their_worker(master: Master) -> None:
    """Counters stay for the next owner of the slot, and files of other slots are not touched."""
    first = master.fork()
    folder = Path(first.metrics_slot[0])
    kept = ["counter_0.db", "histogram_0.db", "gauge_livesum_1.db", "gauge_livesum_10.db"]
    for name in [*kept, "gauge_livesum_0.db", "gauge_livemax_0.db"]:
        (folder / name).touch()
    master.bury(first)
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_the_directory_goes_with_the_master(master: Master, tmp_path: Path) -> None:
    worker = master.fork()
    (folder,) = tmp_path.iterdir()
    assert worker.metrics_slot == (str(folder), 0)
    (folder / "counter_0.db").touch()
    on_exit(master)
    assert list(tmp_path.iterdir()) == []
    on_exit(master)  # it may be gone already


def test_no_directory_before_the_first_worker(master: Master, tmp_path: Path) -> None:
    """A master that never started a worker has none to remove."""
    on_exit(master)
    assert list(tmp_path.iterdir()) == []


def test_no_place_for_a_directory(tmp_path: Path) -> None:
    """It is logged once. Workers have no slot, and end without one."""
    master = Master(tmp_path / "missing")
    workers = [master.fork() for _ in range(2)]
    assert not any(hasattr(worker, "metrics_slot") for worker in workers)
    master.bury(workers[0])
    on_exit(master)
    assert master.lines.getvalue().count("no directory for the metrics") == 1
