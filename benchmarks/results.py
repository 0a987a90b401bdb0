"""The file with all figures of a run, `.bench/results.json`: written while measuring, read by report.py.

Each kind of measurement is a section with its own date, commit and command: one that is measured again alone
replaces its own section, and the page says of each when it was measured.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from peers import BENCH

PATH = BENCH / "results.json"
PACKAGES = ("gunicorn", "gevent", "flask", "requests", "sqlalchemy")


class Results:
    """The figures, kept in the file. With `path` None nothing is written."""

    def __init__(self, path: Path | None, *, fresh: bool = False) -> None:
        self._path = path
        keeps = path is not None and path.exists() and not fresh
        self.sections: dict[str, Any] = json.loads(path.read_text()) if keeps and path else {}

    def put(self, name: str, commit: str, figures: dict[str, Any]) -> None:
        """Replaces a section, and saves."""
        self.sections[name] = {"stamp": make_stamp(commit), **figures}
        self.save()

    def save(self) -> None:
        """Writes the file as a whole, so that it is never half there."""
        if self._path is None:
            return
        self._path.parent.mkdir(exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.sections, indent=1))
        part.replace(self._path)


def make_stamp(commit: str) -> dict[str, Any]:
    """When, where, with what."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "cpu": find_cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def find_cpu() -> str:
    """The processor's name, as the kernel knows it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
