"""Which process this is, told without a system call: what a fork has inherited is made anew there."""

from __future__ import annotations

import os

VERSION = "0.1.0"
"""grokflask's own."""

_pid = os.getpid()


def get_pid() -> int:
    """As os.getpid."""
    return _pid


def _note() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_note)
