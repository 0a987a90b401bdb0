"""gunicorn's hooks that give each worker a slot in a shared directory of metrics."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

MetricsSlot = tuple[str, int]
"""The directory of the metrics, and a worker's number in it."""


def pre_fork(server: Any, worker: Any) -> None:
    """Gives the new worker the lowest free slot; its counters continue those of the slot's last owner."""
    # Made here and not in `on_starting`: after a start that fails for its port gunicorn calls no `on_exit`.
    if not hasattr(server, "metrics_dir"):
        server.metrics_dir = _make_directory(server)
    if server.metrics_dir is not None:
        slots = [getattr(each, "metrics_slot", None) for each in server.WORKERS.values()]
        taken = [slot[1] for slot in slots if slot]
        number = next(number for number in itertools.count() if number not in taken)
        worker.metrics_slot = (server.metrics_dir, number)


def child_exit(server: Any, worker: Any) -> None:
    """Removes the worker's live gauges; its counters stay."""
    slot = getattr(worker, "metrics_slot", None)
    if slot is not None:
        directory, number = slot
        for path in Path(directory).glob(f"gauge_live*_{number}.db"):
            path.unlink(missing_ok=True)


def on_exit(server: Any) -> None:
    """Removes the directory of the metrics."""
    if getattr(server, "metrics_dir", None) is not None:
        shutil.rmtree(server.metrics_dir, ignore_errors=True)


def _make_directory(server: Any) -> str | None:
    """A new, empty directory that the workers' user may write to; None when there is no room for one.

    One worker has it too: its counters continue in the worker that replaces it, which may run beside it.
    """
    try:
        path = tempfile.mkdtemp(prefix="grokflask-metrics-", dir=server.cfg.worker_tmp_dir)
        if os.geteuid() == 0:
            os.chown(path, server.cfg.uid, server.cfg.gid)
    except OSError as error:
        server.log.warning("no directory for the metrics, so each worker reports only its own: %s", error)
        return None
    return path
