"""Fixtures for all tests. Network tests talk to 127.0.0.1 only."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.databases import database, database_kind, database_url, postgres_server
from support.patient import HASTY, be_patient, set_times
from support.processes import CLIENT_KEY, UPSTREAM_KEY, GatewayServer, check_left, start_gateway
from support.scripted import ScriptedUpstream, answer_chat
from support.stores import keyed, make_keyed, module_keyed, redis_server, stores

from grokflask import create_app
from grokflask.config import load_settings
from grokflask.limits.request_storage import RequestStorage
from grokflask.log import LineFormatter

__all__ = ["database", "database_kind", "database_url", "postgres_server"]
__all__ += ["keyed", "make_keyed", "module_keyed", "redis_server", "stores"]  # pytest finds them here

# No test may fail because the machine is slow.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")

# Nor its stores.
be_patient()

# Nor because its programs go through a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


@pytest.fixture(scope="session", autouse=True)
def _left_servers() -> Iterator[None]:
    """The servers that tests have left end well."""
    yield
    check_left()


@pytest.fixture
def hasty() -> Iterator[None]:
    """The stores of this process have the time that users' have."""
    set_times(HASTY)
    yield
    be_patient()


@pytest.fixture
def standing_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process counts in memory is counted in one window, however long the test takes."""
    now = 1_800_000_010.0
    monkeypatch.setattr(RequestStorage.__init__, "__defaults__", (None, lambda: now))


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """A scripted upstream that answers chats with a short story until a test says otherwise."""
    server = ScriptedUpstream(answer_chat)
    yield server
    server.close()


@pytest.fixture
def make_client(upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Callable[..., FlaskClient]]:
    """The app in this process, in front of `upstream`, with one key for alice and an empty ledger."""
    apps: list[Flask] = []

    def make(**environ: str) -> FlaskClient:
        defaults = {
            "XAI_API_KEY": UPSTREAM_KEY,
            "XAI_API_BASE": upstream.base_url,
            "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
            "DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
        }
        apps.append(create_app(load_settings({**defaults, **environ}, dotenv=None)))
        if "DATABASE_URL" not in environ:
            apps[-1].extensions["database"].upgrade()  # a request waits half a second for that, not longer
        return apps[-1].test_client()

    yield make
    for app in apps:
        app.extensions["background"].close()
        app.extensions["database"].close()


@pytest.fixture
def client(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """`make_client` with its defaults."""
    return make_client()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What this process logs during the test, as lines."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(LineFormatter())
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[ScriptedUpstream]:
    """The upstream of `shared_gateway`."""
    server = ScriptedUpstream()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_gateway(
    shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """Real gunicorn in front of `shared_upstream`, one for the whole session."""
    server = start_gateway(tmp_path_factory.mktemp("gateway"), shared_upstream)
    yield server
    server.leave()


@pytest.fixture
def clean_upstream(shared_upstream: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """`shared_upstream`, which remembers nothing of other tests."""
    shared_upstream.forget()
    shared_upstream.handler = answer_chat
    yield shared_upstream
    shared_upstream.check()
    shared_upstream.forget()


@pytest.fixture
def gateway(shared_gateway: GatewayServer, clean_upstream: ScriptedUpstream) -> GatewayServer:
    """Real gunicorn; the test says what upstream does by `shared_upstream.handler`."""
    return shared_gateway


@pytest.fixture(scope="session")
def sandbox_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """Real gunicorn on the built-in sandbox, as a newcomer starts it, without pauses between events."""
    server = GatewayServer(tmp_path_factory.mktemp("sandbox"), {"GROKFLASK_SANDBOX_EVENTS_PER_S": "0"})
    yield server
    server.leave()


@pytest.fixture(scope="session")
def impatient_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """As `sandbox_gateway`, for faults that are a silence: half a second is too long for it."""
    env = {
        "GROKFLASK_SANDBOX_EVENTS_PER_S": "0",
        "GROKFLASK_FIRST_EVENT_TIMEOUT_S": "0.5",
        "GROKFLASK_IDLE_TIMEOUT_S": "0.5",
    }
    server = GatewayServer(tmp_path_factory.mktemp("impatient"), env)
    yield server
    server.leave()


@pytest.fixture
def make_gateway(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Callable[..., GatewayServer]]:
    """Real gunicorn in front of `upstream`, with the settings that the test gives; stopped at its end."""
    servers: list[GatewayServer] = []

    def start(**env: str) -> GatewayServer:
        servers.append(start_gateway(tmp_path, upstream, **env))
        return servers[-1]

    yield start
    for server in servers:
        server.leave()
