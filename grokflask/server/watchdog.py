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
from pathlib import Path
from types import FrameType

import gevent
from gevent import monkey

from grokflask.log import write_at_once
from grokflask.runtime import STALL_S
from grokflask.server import private

PERIOD_S = 0.1
SETTLED_S = STALL_S + PERIOD_S
"""The line of code that runs this long after the beginning of a stall stands for it."""
LONG_S = 10.0
"""A stall of this length is logged while it lasts. gunicorn's master kills the worker after a minute."""

_FOLDER = str(Path(__file__).parents[1]) + "/"

_log = logging.getLogger("grokflask.loop")
_sleep = monkey.get_original("time", "sleep")
_start_thread = monkey.get_original("_thread", "start_new_thread")
_get_ident = monkey.get_original("_thread", "get_ident")


class _Question:
    """One answer that the loop owes.

    Attributes:
        since: when the wait for the loop began, in monotonic seconds: at the latest when it was asked.
        cpu_s: the CPU time of the loop's thread when it was asked.
        fields: where the loop's thread is in the meantime; None if it waits, or waits for the CPU.
        told: a line about it has been written.
    """

    __slots__ = ("cpu_s", "fields", "since", "told")

    def __init__(self, since: float, cpu_s: float) -> None:
        self.since, self.cpu_s = since, cpu_s
        self.fields: dict[str, object] | None = None
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
        self._clock = time.pthread_getcpuclockid(self._thread)
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
        now = time.monotonic()
        was_late = now - self._looked_at > 2 * PERIOD_S  # a function in C held the interpreter, or no CPU
        self._looked_at = now
        question = self._question
        if question is not None:
            waited_s = now - question.since
            is_long = waited_s > LONG_S and not question.told
            if waited_s < SETTLED_S or is_long:
                self._inspect(question, now)
            if question.fields and is_long:
                question.told = True
                fields = {"seconds": round(waited_s, 1), **question.fields}
                write_at_once(_log.name, logging.ERROR, "the event loop is stalled", fields)
            return
        question = _Question(now, time.clock_gettime(self._clock))
        if was_late:
            self._inspect(question, now)
        self._question = question
        self._ask.send()

    def _inspect(self, question: _Question, now: float) -> None:
        """Notes where the loop's thread is, unless it waits in the loop itself."""
        frame = sys._current_frames().get(self._thread)
        if frame is None or private.is_waiting(frame):
            return
        if question.fields is None:
            # The loop reads its clock when it wakes up. It may have woken up before it was asked.
            woken_at = now - max(0.0, time.time() - self._loop.now())
            question.since = min(question.since, max(self._answered_at, woken_at))
        question.fields = describe(frame)

    def _answer(self) -> None:
        """Runs in the loop."""
        question, self._question = self._question, None
        self._answered_at = now = time.monotonic()
        if question is None:
            return
        seconds = now - question.since
        self._note_delay(seconds)
        if seconds > STALL_S:
            cpu_ms = round(1000 * (time.thread_time() - question.cpu_s))
            gevent.spawn(_report, {"ms": round(1000 * seconds), "cpu_ms": cpu_ms}, question.fields)


def _report(times: dict[str, object], place: dict[str, object] | None) -> None:
    if place is None:
        _log.info("the event loop waited for the CPU", extra={"fields": times})
    else:
        _log.warning("the event loop stalled", extra={"fields": {**times, **place}})


def describe(frame: FrameType) -> dict[str, object]:
    """The line of code that runs in `frame`, the innermost line of ours that led to it, and the request."""
    fields: dict[str, object] = {"request_id": None, "line": _name_line(frame), "via": None}
    is_ours = False
    each: FrameType | None = frame
    while each is not None:
        if not is_ours and each.f_code.co_filename.startswith(_FOLDER):
            is_ours = True
            fields["via"] = None if each is frame else _name_line(each)
        request_id = private.find_request_id(each)
        if request_id is not None:
            fields["request_id"] = request_id
            break
        each = each.f_back
    return fields


def _name_line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
