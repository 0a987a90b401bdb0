"""Finds out what holds up the event loop: the request and the line of code of a turn that takes too long.

A thread of the operating system asks the loop ten times a second to answer. While an answer is due, the
thread looks at the stack of the loop's own thread. Greenlets and events cost nothing more for that. gevent's
monitor would trace each switch, and sees no stall that many greenlets cause together.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import gevent
from gevent import monkey

from grokflask.log import write_at_once
from grokflask.runtime import STALL_S
from grokflask.server import private

PERIOD_S = 0.1
SETTLED_S = STALL_S + PERIOD_S  # the line that runs this long after the beginning stands for the stall
LONG_S = 10.0
"""A stall of this length is logged while it lasts. gunicorn's master kills the worker after a minute."""

_FOLDER = str(Path(__file__).parents[1]) + "/"

_log = logging.getLogger("grokflask.loop")
_sleep = monkey.get_original("time", "sleep")
_start_thread = monkey.get_original("_thread", "start_new_thread")
_get_ident = monkey.get_original("_thread", "get_ident")


class _Question:
    """One answer that the loop owes."""

    __slots__ = ("cpu_s", "place", "since", "told")

    def __init__(self, since: float, cpu_s: float) -> None:
        self.since = since  # monotonic: when it was asked, or before that when the loop's turn began
        self.cpu_s = cpu_s  # CPU time of the loop's thread when it was asked
        self.place: dict[str, object] | None = None  # fields of the log; None if the loop or the CPU waits
        self.told = False


class Watchdog:
    """Watches the event loop of the thread that makes it.

    Args:
        note_delay: called in the loop with each sample of how long an event had to wait for it, in seconds.
    """

    def __init__(self, note_delay: Callable[[float], None]) -> None:
        self._note_delay = note_delay
        self._loop = gevent.get_hub().loop
        self._thread = _get_ident()
        #: CPU time of the loop's thread; always 0 on a system that does not tell another thread's.
        self._read_cpu_s: Callable[[], float] = lambda: 0.0
        if hasattr(time, "pthread_getcpuclockid"):
            self._read_cpu_s = partial(time.clock_gettime, time.pthread_getcpuclockid(self._thread))
        self._question: _Question | None = None
        self._answered_at = self._looked_at = time.monotonic()
        self._stopped = False
        self._ask = self._loop.async_(ref=False, priority=self._loop.MAXPRI)

    def start(self) -> None:
        """Starts the thread. If the master aborts the worker, Python writes the stack to standard error.

        That needs no turn of the interpreter, which a function in C may hold.
        """
        faulthandler.enable(2, all_threads=False)
        self._ask.start(self._answer)
        _start_thread(self._run, ())

    def stop(self) -> None:
        """Ends the thread. Idempotent."""
        self._stopped = True
        self._ask.stop()

    def _run(self) -> None:
        while not self._stopped:
            _sleep(PERIOD_S)
            try:
                self._look()
            except Exception:
                fields: dict[str, object] = {"trace": traceback.format_exc()}
                write_at_once(_log.name, logging.ERROR, "the watchdog failed, and continues", fields)
                _sleep(1.0)

    def _look(self) -> None:
        question, now = self._question, time.monotonic()
        if question is None:
            question = self._question = _Question(now, self._read_cpu_s())
            self._ask.send()
            if time.monotonic() - self._looked_at > 2 * PERIOD_S:
                self._inspect(question)  # this thread was late: a function in C may hold the interpreter
            self._looked_at = now
            return
        self._looked_at = now
        waited_s = now - question.since
        is_long = waited_s > LONG_S and not question.told
        if waited_s < SETTLED_S or is_long:
            self._inspect(question)
        if question.place and is_long:
            question.told = True
            fields = {"seconds": round(waited_s, 1), **question.place}
            write_at_once(_log.name, logging.ERROR, "the event loop is stalled", fields)

    def _inspect(self, question: _Question) -> None:
        """Notes where the loop's thread is, unless it waits in the loop itself."""
        frame = sys._current_frames().get(self._thread)
        if frame is None or private.is_waiting(frame):
            return
        if question.place is None:
            # The loop reads its clock when it wakes up. It may have woken up before it was asked.
            woken_at = time.monotonic() - max(0.0, time.time() - self._loop.now())
            question.since = min(question.since, max(self._answered_at, woken_at))
        question.place = _describe(frame)

    def _answer(self) -> None:
        """Runs in the loop."""
        question, self._question = self._question, None
        self._answered_at = now = time.monotonic()
        if question is None:
            return
        seconds = now - question.since
        self._note_delay(seconds)
        if seconds > STALL_S:
            cpu_ms = round(1000 * (self._read_cpu_s() - question.cpu_s))
            fields = {"ms": round(1000 * seconds), "cpu_ms": cpu_ms, **(question.place or {})}
            message = "the event loop stalled" if question.place else "the event loop waited for the CPU"
            level = logging.WARNING if question.place else logging.INFO
            gevent.spawn(_log.log, level, message, extra={"fields": fields})


def _describe(frame: FrameType) -> dict[str, object]:
    """The line of code that runs in `frame`, the innermost line of ours that led to it, and the request."""
    frames = [each for each, _ in traceback.walk_stack(frame)]
    via = next((each for each in frames if each.f_code.co_filename.startswith(_FOLDER)), frame)
    return {
        "request_id": next(filter(None, map(private.find_request_id, frames)), None),
        "line": _name_line(frame),
        "via": None if via is frame else _name_line(via),
    }


def _name_line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
