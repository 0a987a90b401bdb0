"""The app of `patient_wsgi`, with paths that do to its worker what a bug might do."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from typing import Any

from flask import request

from support.patient_wsgi import app

__all__ = ["app"]

watchdog: Any = __import__("grokflask.server.watchdog").server.watchdog
watchdog.LONG_S = 3.0

_eaten: list[int] = []
_hungry = threading.Event()


def spin(seconds: float) -> None:
    """Computes, and lets no other greenlet run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def sleep(seconds: float) -> None:
    """Waits in a function that gevent does not know."""
    ctypes.CDLL(None).usleep(int(seconds * 1_000_000))


def hold(seconds: float) -> None:
    """As `sleep`, and no thread of Python can run meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


def wait_for_file(path: str) -> None:
    """Computes until there is that file."""
    while not os.access(path, os.F_OK):
        pass


@app.get("/trouble/block/<how>")
def block(how: str) -> dict[str, str]:
    """Holds up the event loop."""
    {"spin": spin, "sleep": sleep, "hold": hold}[how](float(request.args["seconds"]))
    return {}


@app.get("/trouble/until")
def block_until() -> dict[str, str]:
    """Holds up the event loop until there is a file."""
    wait_for_file(request.args["path"])
    return {}


@app.get("/trouble/hunger")
def start_hunger() -> dict[str, int]:
    """From now on this process has no free descriptor: each that is freed is taken at once."""
    _hungry.set()
    _eat()
    threading.Thread(target=_run, daemon=True).start()
    return {"taken": len(_eaten)}


@app.get("/trouble/end-of-hunger")
def end_hunger() -> dict[str, int]:
    """Frees what was taken."""
    _hungry.clear()
    while _eaten:
        os.close(_eaten.pop())
    return {}


def _run() -> None:
    while _hungry.is_set():
        _eat()
        time.sleep(0.005)


def _eat() -> None:
    with suppress(OSError):
        while _hungry.is_set():
            _eaten.append(os.open("/dev/null", os.O_RDONLY))
