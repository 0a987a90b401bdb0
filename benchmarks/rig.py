"""The rig that gateways are measured on: an upstream and a load generator in C, compiled when they are used.

Needs gcc (or what CC names). Upstream and load are on one core and the gateway on another, where there are
two: then neither takes the gateway's time, and the gateway's own CPU time is what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

SOURCES = Path(__file__).parent / "rig"
PATH = "/v1/chat/completions"
START_DEADLINE_S = 120.0


class RigError(Exception):
    """The rig cannot be built, or one of its programs failed."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. One core is all there is on some machines: then all share it."""

    gateway: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def divide(cls) -> Cores:
        """The first core is the gateway's, the others are everybody else's."""
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(others or {first}))


@dataclass(frozen=True)
class Load:
    """What the clients do; see rig/load.c."""

    model: str
    connections: int
    replies: int
    stream: bool
    ramp_us: int = 0
    deadline_s: float = 300.0


@dataclass(frozen=True)
class Target:
    """Where the clients send their requests, and with what."""

    port: int
    path: str = PATH
    keys_file: Path | None = None
    headers: tuple[str, ...] = ()


def build(folder: Path) -> str:
    """Compiles both programs into `folder`; what the compiler had to say. Raises RigError."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise RigError("the benchmarks need gcc (on Debian and Ubuntu: apt install build-essential)")
    warnings = ""
    for name in ("upstream", "load"):
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(folder / name), str(SOURCES / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RigError(done.stderr)
        warnings += done.stderr
    return warnings


def start_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cores: Iterable[int] | None = None,
    cwd: Path | None = None,
    log: IO[Any] | int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process in a session of its own (Ctrl-C is for the harness, which then ends it), on these cores."""
    chosen = set(cores or os.sched_getaffinity(0))
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
        pass_fds=pass_fds,
    )


def wait_until_answering(url: str, process: subprocess.Popen[bytes], pause_s: float = 0.01) -> None:
    """Returns when `url` answers 200. Raises RigError when the process ends before, or never answers."""
    end = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RigError(f"it ended with code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):  # noqa: S310 - a http URL
            return
        time.sleep(pause_s)
    raise RigError(f"{url} did not answer within {START_DEADLINE_S:g} s")


class Upstream:
    """The upstream, in a process of its own until `close`."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=8192) as listener:
            listener.setblocking(False)
            self.port: int = listener.getsockname()[1]
            fd = listener.fileno()
            self._process = start_process([str(folder / "upstream"), str(fd)], pass_fds=[fd])
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            wait_until_answering(f"{self.url}/stats", self._process)
        except BaseException:
            self.close()
            raise

    def read_stats(self) -> dict[str, int]:
        """Counts since the start: requests, streams, events, early_closes; and `open` streams now."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=30) as reply:  # noqa: S310 - a http URL
            stats: dict[str, int] = json.load(reply)
        return stats

    def close(self) -> None:
        """Ends it. Idempotent."""
        self._process.kill()
        self._process.wait()


class Clients:
    """The load generator at work. `wait` gives what it found; leaving the `with` block ends it early."""

    def __init__(self, folder: Path, target: Target, load: Load) -> None:
        words = {
            "port": target.port,
            "path": target.path,
            "connections": load.connections,
            "replies": load.replies,
            "model": load.model,
            "ramp-us": load.ramp_us,
            "deadline-s": load.deadline_s,
        }
        command = [str(folder / "load")]
        command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
        command += ["--stream"] if load.stream else []
        command += ["--keys", str(target.keys_file)] if target.keys_file else []
        command += [word for header in target.headers for word in ("--header", header)]
        self._process = start_process(command, log=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """They have not got all their replies yet."""
        return self._process.poll() is None

    def wait(self) -> dict[str, Any]:
        """What load.c printed, and under `faults` its first complaints. Raises RigError when it failed."""
        try:
            out, complaints = self._process.communicate()
        except BaseException:
            self.close()
            raise
        if self._process.returncode not in (0, 1):
            raise RigError(f"the load generator failed: {complaints.decode(errors='replace')}")
        found: dict[str, Any] = json.loads(out)
        if complaints:
            found["faults"] = complaints.decode(errors="replace")[:1000]
        return found

    def close(self) -> None:
        """Ends them. Idempotent."""
        self._process.kill()
        self._process.wait()
