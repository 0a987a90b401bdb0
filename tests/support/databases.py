"""Real databases for tests: SQLite files, and a PostgreSQL server that can be stopped, killed and paused.

The fixtures here are for conftest files to import: `postgres_server` (one for the session), `database_kind`,
`database_url` (fresh and empty, SQLite and PostgreSQL in turn) and `database` (a Database on it).
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from grokflask.storage.database import Database
from support.ports import reserve_port
from support.processes import wait_for
from support.scripted import WAIT_S

POSTGRES_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "warning",
    "shared_preload_libraries": "",
}


class PostgresServer:
    """A PostgreSQL of its own, on a free port of the loopback, with all its data in a temporary folder.

    It refuses to run as root: then it runs as another user. `close` removes everything.
    """

    def __init__(self) -> None:
        self.port = reserve_port()
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"
        self._folder = Path(tempfile.mkdtemp(prefix="grokflask-postgres-"))
        self._log_path = self._folder / "server.log"
        self._as_user = find_user()
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []
        if "user" in self._as_user:
            os.chown(self._folder, self._as_user["user"], self._as_user["group"])
        try:
            self._programs = find_postgres(self._folder, self._as_user)
            self._make_cluster()
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it and waits until it answers. Nothing when it runs; when it is paused, it goes on."""
        self.resume()
        if self.running:
            return
        options = [word for name, value in POSTGRES_OPTIONS.items() for word in ("-c", f"{name}={value}")]
        data = str(self._folder / "data")
        command = [str(self._programs / "postgres"), "-D", data, "-p", str(self.port), *options]
        with self._log_path.open("ab") as log:
            self._process = self._popen(command, log)
        wait_for(self._answers_or_dead, "PostgreSQL to start")

    def stop(self) -> None:
        """Ends it tidily, connections and all; the data stay for `start`."""
        self.resume()
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGINT)  # "fast": SIGTERM would wait for the clients to leave
            self._process.wait(WAIT_S)

    def kill(self) -> None:
        """Ends all its processes at once, as a crash or the kernel would."""
        if self._process is None or not self.running:
            return
        for pid in [self._process.pid, *self._list_children()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(WAIT_S)
        self._paused = []

    def pause(self) -> None:
        """Stands still: connections stay open, and nobody answers."""
        assert self._process is not None
        # The parent first, so that it makes no more children.
        for pid in [self._process.pid, *self._list_children()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._paused.append(pid)

    def resume(self) -> None:
        """Goes on after `pause`."""
        paused, self._paused = self._paused, []
        for pid in paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def make_database(self, name: str | None = None) -> str:
        """The URL of a new, empty database."""
        name = name or f"test_{next(self._numbers)}"
        self.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url.rpartition("/")[0] + "/" + name

    def drop_database(self, url: str) -> None:
        """Removes what `make_database` made, whoever is connected to it."""
        name = url.rpartition("/")[2]
        self.run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def run(self, statement: sql.Composed | sql.SQL, url: str | None = None) -> list[Any]:
        """Runs a statement past grokflask; its rows, if it gives any."""
        with psycopg.connect(url or self.url, autocommit=True, connect_timeout=int(WAIT_S)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Ends it and removes its data. Idempotent."""
        self.resume()
        try:
            self.stop()
        finally:
            self.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make_cluster(self) -> None:
        with self._log_path.open("ab") as log:
            command = [str(self._programs / "initdb"), "-D", str(self._folder / "data"), "-U", "tester"]
            command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
            code = self._popen(command, log).wait(WAIT_S)
        assert code == 0, f"initdb ended with {code}:\n{self.log}"

    def _popen(self, command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._as_user,
        )

    def _answers_or_dead(self) -> bool:
        assert self.running, f"PostgreSQL has ended:\n{self.log}"
        try:
            self.run(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True

    def _list_children(self) -> list[int]:
        """Its processes; each is in a session of its own, so that its group does not tell."""
        assert self._process is not None
        parent = str(self._process.pid)
        children = []
        for path in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError):
                words = Path(path).read_text().rpartition(")")[2].split()
                if words[1] == parent:
                    children.append(int(path.split("/")[2]))
        return children


def find_user() -> dict[str, Any]:
    """How `Popen` starts a process as somebody who is not root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return {"user": 65534, "group": 65534, "extra_groups": []}


def find_postgres(folder: Path, as_user: dict[str, Any]) -> Path:
    """The folder with PostgreSQL's programs: the pgserver wheel's (none for Python 3.13), or the system's.

    The wheel's package starts servers when it is imported, so only its files are used. They are copied into
    `folder` when the server's user cannot read them where they are.
    """
    tried = []
    for programs in list_candidates():
        if not (programs / "initdb").exists() or not (programs / "postgres").exists():
            continue
        tried.append(str(programs))
        if runs(programs, folder, as_user):
            return programs
        if programs.parent.name == "pginstall":
            shutil.copytree(programs.parent, folder / "pginstall", symlinks=True)
            if runs(folder / "pginstall" / "bin", folder, as_user):
                return folder / "pginstall" / "bin"
    raise AssertionError(
        "the tests need PostgreSQL: the pgserver wheel, or postgres and initdb on PATH "
        f"(on Debian and Ubuntu: apt install postgresql); found, but not usable: {tried or 'nothing'}"
    )


def list_candidates() -> Iterator[Path]:
    found = importlib.util.find_spec("pgserver")  # does not import it
    for place in found.submodule_search_locations or [] if found else []:
        yield Path(place) / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    yield from (Path(place) for place in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True))


def runs(programs: Path, folder: Path, as_user: dict[str, Any]) -> bool:
    """The server's user may start the programs there, and they find their libraries."""
    try:
        command = [str(programs / "postgres"), "--version"]
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=WAIT_S, **as_user)
    except PermissionError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL, one for the whole session. A test that stops it need not start it again."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """The kind of database that a test runs over."""
    kind: str = request.param
    return kind


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh and empty database, of each kind in turn."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger/test.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    server.start()
    url = server.make_database()
    yield url
    server.start()
    server.drop_database(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A Database on `database_url`, closed at the end."""
    database = Database(database_url)
    yield database
    database.close()
