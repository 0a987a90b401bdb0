"""A command in a terminal of its own, as somebody sits before it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from support.processes import ROOT, wait_for
from support.scripted import WAIT_S

CTRL_C = "\x03"
CTRL_D = "\x04"


class Terminal:
    """`flask --app wsgi …` on a pseudo terminal: what it shows is read, and what is typed it gets."""

    def __init__(self, cwd: Path, *words: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        base = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "wsgi", *words],
            cwd=cwd,
            env={**base, **env},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` has been shown behind what was waited for before."""
        end = time.monotonic() + WAIT_S
        while (found := self.shown.find(text, self._seen)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"waited for {text!r}, saw {self.shown!r}"
            assert self._read(left), f"it ended before {text!r}: {self.shown!r}"
        self._seen = found + len(text)

    def wait_for_end(self) -> int:
        """Reads to the end; the exit code."""
        while self._read(WAIT_S):
            pass
        return self.process.wait(WAIT_S)

    def interrupt(self) -> int:
        """Ctrl-C at the prompt, which ends it; the exit code.

        Readline loses one that comes while it makes its prompt, so it must sleep, waiting for a line.
        """
        state = Path(f"/proc/{self.process.pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "it to wait for a line")
        self.type(CTRL_C)
        return self.wait_for_end()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            raise AssertionError(f"nothing more is shown: {self.shown!r}")
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    """Makes standard input the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
