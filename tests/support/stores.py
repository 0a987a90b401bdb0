"""Gateways over each pair of stores, with keys made as an operator makes them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from support.databases import PostgresServer
from support.processes import ROOT, GatewayServer, RedisServer, start_gateway, wait_for
from support.scripted import WAIT_S, ScriptedUpstream

ADMIN_TOKEN = "admin-token-0123456789"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


class KeyedGateway:
    """A gateway, and what its operator does with it."""

    def __init__(self, server: GatewayServer, env: dict[str, str]) -> None:
        self.server = server
        self.env = env

    @property
    def url(self) -> str:
        return self.server.url

    def run(self, *words: str) -> Any:
        """What a command prints as JSON."""
        done = run_command(self.server.log_path.parent, self.env, *words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def make_key(self, name: str, **fields: Any) -> dict[str, str]:
        """A new key by the admin API; the header that sends it."""
        reply = requests.post(
            f"{self.url}/admin/api/keys", json={"name": name, **fields}, headers=ADMIN, timeout=WAIT_S
        )
        assert reply.status_code == 201, reply.text
        return {"Authorization": f"Bearer {reply.json()['secret']}", "Accept": "application/json"}

    def find_rows(self, **filters: str) -> list[dict[str, Any]]:
        """The ledger's rows by the admin API, the newest first."""
        reply = requests.get(
            f"{self.url}/admin/api/ledger", params={"limit": "1000", **filters}, headers=ADMIN, timeout=WAIT_S
        )
        assert reply.status_code == 200, reply.text
        rows: list[dict[str, Any]] = reply.json()["rows"]
        return rows

    def wait_for_rows(self, count: int, **filters: str) -> list[dict[str, Any]]:
        """As `find_rows`, once there are so many and all are settled."""

        def complete() -> bool:
            rows = self.find_rows(**filters)
            return len(rows) >= count and all(row["outcome"] for row in rows)

        wait_for(complete, f"{count} settled rows")
        return self.find_rows(**filters)

    def show_usage(self, key: dict[str, str]) -> dict[str, Any]:
        """What the key's holder sees."""
        reply = requests.get(f"{self.url}/api/v1/usage", headers=key, timeout=WAIT_S)
        assert reply.status_code == 200, reply.text
        document: dict[str, Any] = reply.json()
        return document

    def read_ready(self) -> dict[str, Any]:
        document: dict[str, Any] = requests.get(f"{self.url}/ready", headers=ADMIN, timeout=WAIT_S).json()
        return document


def run_command(cwd: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`flask --app wsgi …`, with a gateway's settings."""
    command = [sys.executable, "-m", "flask", "--app", "support.patient_wsgi", *words]
    base = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=cwd, env={**base, **env}, capture_output=True, text=True, timeout=WAIT_S
    )


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def make_keyed(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Callable[..., KeyedGateway]]:
    """Starts gateways in front of `upstream`, with the admin API on."""
    servers: list[GatewayServer] = []

    def start(*, hasty: bool = False, **env: str) -> KeyedGateway:
        settings = {"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "GROKFLASK_KEYS": "", **env}
        settings.setdefault("DATABASE_URL", f"sqlite:///{tmp_path}/ledger.db")
        servers.append(start_gateway(tmp_path, upstream, hasty=hasty, **settings))
        return KeyedGateway(servers[-1], {**settings, "XAI_API_KEY": "xai-unused", "GROKFLASK_AUTH": "keys"})

    yield start
    for server in servers:
        server.leave()


PAIRS = ["sqlite, memory", "postgresql, redis, 2 workers"]


@pytest.fixture(params=PAIRS)
def stores(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of each pair of stores: a newcomer's, and a larger installation's."""
    if request.param == "sqlite, memory":
        return {}
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    redis: RedisServer = request.getfixturevalue("redis_server")
    return {"DATABASE_URL": postgres.make_database(), "REDIS_URL": redis.url, "WEB_CONCURRENCY": "2"}


@pytest.fixture
def keyed(make_keyed: Callable[..., KeyedGateway], stores: dict[str, str]) -> KeyedGateway:
    """A gateway over each pair of stores."""
    return make_keyed(**stores)


@pytest.fixture(scope="module", params=PAIRS)
def module_keyed(
    request: pytest.FixtureRequest,
    shared_upstream: ScriptedUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[KeyedGateway]:
    """A gateway over each pair of stores, for all tests of a module."""
    folder = tmp_path_factory.mktemp("keyed")
    settings = {"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "GROKFLASK_KEYS": ""}
    with contextlib.ExitStack() as stack:
        if request.param == PAIRS[0]:
            settings["DATABASE_URL"] = f"sqlite:///{folder}/ledger.db"
        else:
            postgres: PostgresServer = request.getfixturevalue("postgres_server")
            redis = RedisServer(folder)
            stack.callback(redis.kill)
            settings |= {"DATABASE_URL": postgres.make_database(), "REDIS_URL": redis.url}
            settings["WEB_CONCURRENCY"] = "2"
        server = start_gateway(folder, shared_upstream, **settings)
        stack.callback(server.stop)
        yield KeyedGateway(server, {**settings, "XAI_API_KEY": "xai-unused", "GROKFLASK_AUTH": "keys"})
    assert "Traceback" not in server.log, server.log
