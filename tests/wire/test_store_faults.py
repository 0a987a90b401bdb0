"""Databases and Redis that go away, hang and come back, under requests: nothing hangs, nothing is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
import requests
from support.databases import PostgresServer
from support.lines import PGBOUNCER, LongLine, PgBouncer
from support.processes import CLIENT_KEY, RedisServer, wait_for
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, answer_chat
from support.stores import KeyedGateway

from grokflask.keys.cache import UNKNOWN_S
from grokflask.storage.database import Database

BODY = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


def ask(gateway: KeyedGateway, key: dict[str, str], request_id: str = "") -> tuple[int, str | None]:
    """The status, and an error's code."""
    reply = requests.post(
        f"{gateway.url}/api/v1/chat/completions",
        json={**BODY, "stream": len(request_id) % 2 == 0},
        headers={**key, "X-Request-ID": request_id or "x"},
        timeout=WAIT_S,
    )
    return reply.status_code, None if reply.ok else reply.json()["error"]["code"]


class Flow:
    """Requests from four threads, one behind the other, until it is ended."""

    def __init__(self, gateway: KeyedGateway, key: dict[str, str]) -> None:
        self.answers: dict[str, tuple[int, str | None]] = {}
        self._gateway = gateway
        self._key = key
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, thread: int) -> None:
        number = 0
        while not self._stop.is_set():
            request_id = f"flow-{thread}-{number}"
            try:
                self.answers[request_id] = ask(self._gateway, self._key, request_id)
            except requests.RequestException as error:
                self.answers[request_id] = (0, repr(error))
            number += 1

    def wait_for_more(self, count: int = 40) -> None:
        """So many further requests have been answered."""
        goal = len(self.answers) + count
        wait_for(lambda: len(self.answers) >= goal, f"{count} more answers")

    def end(self) -> Counter[tuple[int, str | None]]:
        """All answers, by kind."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return Counter(self.answers.values())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else is writing to the SQLite file, and does not end."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def killed(server: PostgresServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def paused(server: PostgresServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


FAULTS = ["sqlite locked", "postgresql killed", "postgresql paused"]


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[], object]]:
    """A database's URL, and a context in which it is away."""
    if request.param == "sqlite locked":
        path = tmp_path / "ledger.db"
        return f"sqlite:///{path}", lambda: locked(path)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    ways = {"killed": killed, "paused": paused}
    return server.make_database(), lambda: ways[request.param.split()[1]](server)


def test_database_away_under_load(
    make_keyed: Callable[..., KeyedGateway],
    fault: tuple[str, Callable[[], object]],
    upstream: ScriptedUpstream,
) -> None:
    """A known key notices nothing; each of its requests has one row in the end, and the sums are right."""
    upstream.handler = answer_chat
    url, away = fault
    gateway = make_keyed(hasty=True, DATABASE_URL=url)
    key = gateway.make_key("flow", budget_day=100)
    wait_for(lambda: ask(gateway, key, "flow-first") == (200, None), "the key to be known")
    flow = Flow(gateway, key)
    flow.wait_for_more()
    with away():  # type: ignore[attr-defined]
        gateway.server.wait_for_line("the ledger cannot be written")
        flow.wait_for_more(200)
        assert gateway.read_ready()["ledger"]["waiting"] > 200
    wait_for(lambda: gateway.read_ready()["ledger"]["waiting"] < 100, "the rows to be delivered")
    flow.wait_for_more()
    kinds = flow.end()
    assert kinds == {(200, None): len(flow.answers)}
    flow.answers["flow-first"] = (200, None)
    wait_for(lambda: gateway.read_ready()["ledger"]["waiting"] == 0, "the last rows")
    rows: list[dict[str, object]] = gateway.run("usage", "rows", "--key", "flow")
    assert sorted(str(row["request_id"]) for row in rows) == sorted(flow.answers)
    assert {(row["outcome"], row["cost_ticks"]) for row in rows} == {("complete", USAGE["cost_in_usd_ticks"])}
    assert gateway.run("usage", "check")["drift"] == []
    spent = len(rows) * USAGE["cost_in_usd_ticks"]
    assert gateway.show_usage(key)["spent"] == {"day_ticks": spent, "month_ticks": spent}
    gateway.server.wait_for_line("the ledger can be written again")


@pytest.mark.parametrize(("way", "policy"), [(stopped, "local"), (paused, "closed")])
def test_keys_while_the_database_is_away(
    make_keyed: Callable[..., KeyedGateway],
    postgres_server: PostgresServer,
    upstream: ScriptedUpstream,
    way: Callable[[PostgresServer], object],
    policy: str,
) -> None:
    """Never a 401: known keys go on or get a 503, as the setting says; unknown ones a 503, in bounded time.

    Keys of the settings work whatever happens.
    """
    upstream.handler = answer_chat
    gateway = make_keyed(
        hasty=True,
        DATABASE_URL=postgres_server.make_database(),
        GROKFLASK_KEYS=f"env:{CLIENT_KEY}",
        GROKFLASK_KEYS_OUTAGE=policy,
        GROKFLASK_KEY_CACHE_S="0",
    )
    known, unseen = gateway.make_key("known"), gateway.make_key("unseen")
    wrong = {**known, "Authorization": "Bearer gf-nobody-has-this-one"}
    fixed = {**known, "Authorization": f"Bearer {CLIENT_KEY}"}
    wait_for(lambda: ask(gateway, known) == (200, None), "the key to be known")
    wait_for(lambda: ask(gateway, wrong) == (401, "invalid_api_key"), "the other not to be")
    away = (503, "store_unavailable")
    with way(postgres_server):  # type: ignore[attr-defined]
        assert ask(gateway, fixed) == (200, None)
        assert ask(gateway, unseen) == away
        time.sleep(1.1 * UNKNOWN_S)  # that it is wrong was looked up, and asking often would be guessing
        for _ in range(5):
            assert ask(gateway, known) == ((200, None) if policy == "local" else away)
            assert ask(gateway, wrong) == away
            assert ask(gateway, unseen) == away
            assert ask(gateway, fixed) == (200, None)
    wait_for(lambda: ask(gateway, unseen) == (200, None), "the database to be asked again")
    wait_for(lambda: ask(gateway, wrong) == (401, "invalid_api_key"), "wrong keys to be known as such")
    gateway.server.wait_for_line("the database is unavailable")
    gateway.server.wait_for_line("the database is available again")


def test_starting_without_a_database(
    make_keyed: Callable[..., KeyedGateway], postgres_server: PostgresServer, upstream: ScriptedUpstream
) -> None:
    """The start does not need it: keys of the settings work at once, and all is written when it is there."""
    upstream.handler = answer_chat
    url = postgres_server.make_database()
    with stopped(postgres_server):
        gateway = make_keyed(DATABASE_URL=url, GROKFLASK_KEYS=f"env:{CLIENT_KEY}")
        key = {"Authorization": f"Bearer {CLIENT_KEY}"}
        for _ in range(3):
            assert ask(gateway, key) == (200, None)
        assert requests.get(f"{gateway.url}/ready", timeout=WAIT_S).status_code == 200
        assert requests.get(f"{gateway.url}/v1/usage", headers=key, timeout=WAIT_S).status_code == 503
    wait_for(lambda: gateway.read_ready()["ledger"]["waiting"] == 0, "the rows to be written")
    assert len(gateway.wait_for_rows(3, key="env")) == 3


def test_a_folder_that_cannot_be_written(
    make_keyed: Callable[..., KeyedGateway], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A database that cannot be made is away, and said to be; the gateway serves."""
    upstream.handler = answer_chat
    (tmp_path / "file").write_text("not a folder")
    gateway = make_keyed(
        DATABASE_URL=f"sqlite:///{tmp_path}/file/ledger.db", GROKFLASK_KEYS=f"env:{CLIENT_KEY}"
    )
    assert ask(gateway, {"Authorization": f"Bearer {CLIENT_KEY}"}) == (200, None)
    gateway.server.wait_for_line("the database is unavailable")
    assert gateway.read_ready()["database"]["state"] == "away"


def test_no_more_room_for_rows(
    make_keyed: Callable[..., KeyedGateway], postgres_server: PostgresServer, upstream: ScriptedUpstream
) -> None:
    """Rows that wait are written at the end of a process, or it says how many were not."""
    upstream.handler = answer_chat
    gateway = make_keyed(DATABASE_URL=postgres_server.make_database(), GROKFLASK_KEYS=f"env:{CLIENT_KEY}")
    with stopped(postgres_server):
        assert ask(gateway, {"Authorization": f"Bearer {CLIENT_KEY}"}) == (200, None)
        gateway.server.wait_for_line("the ledger cannot be written")
        started_at = time.monotonic()
        assert gateway.server.stop() == 0
        assert time.monotonic() - started_at < WAIT_S
    (line,) = gateway.server.find_lines("ledger rows were not written")
    assert "rows=1" in line


def test_redis_that_stands_still(
    make_keyed: Callable[..., KeyedGateway], redis_server: RedisServer, upstream: ScriptedUpstream
) -> None:
    """It takes connections and answers nothing: soon each worker counts alone, and later together again."""
    upstream.handler = answer_chat
    gateway = make_keyed(hasty=True, REDIS_URL=redis_server.url)
    key = gateway.make_key("flow", budget_day=100, streams=100, tokens_per_minute=10**9)
    flow = Flow(gateway, key)
    flow.wait_for_more()
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: gateway.read_ready()["limits"]["store"] == "local", "the outage to be noticed")
        flow.wait_for_more(100)
    finally:
        os.kill(redis_server.process.pid, signal.SIGCONT)
    wait_for(lambda: gateway.read_ready()["limits"]["store"] == "redis", "Redis to be used again")
    flow.wait_for_more()
    kinds = flow.end()
    assert kinds == {(200, None): len(flow.answers)}
    wait_for(lambda: gateway.read_ready()["limits"]["waiting"] == 0, "all settlements")
    gateway.wait_for_rows(min(len(flow.answers), 1000), key="flow")
    assert gateway.run("usage", "check")["drift"] == []
    usage = gateway.show_usage(key)
    assert usage["spent"]["day_ticks"] == len(flow.answers) * USAGE["cost_in_usd_ticks"]
    assert usage["remaining"]["streams"] == 100


def test_redis_comes_back_older_than_it_went(
    make_keyed: Callable[..., KeyedGateway],
    redis_server: RedisServer,
    tmp_path: Path,
    upstream: ScriptedUpstream,
) -> None:
    """A restored snapshot knows less spending than the ledger: a spent budget does not open again."""
    upstream.handler = answer_chat
    gateway = make_keyed(REDIS_URL=redis_server.url)
    cost = USAGE["cost_in_usd_ticks"]
    key = gateway.make_key("ann", budget_day=100)
    assert ask(gateway, key) == (200, None)
    wait_for(lambda: gateway.show_usage(key)["spent"]["day_ticks"] == cost, "the first to be booked")
    with redis.Redis.from_url(redis_server.url) as client:
        [name] = client.scan_iter(match="*spent:key:ann")
        snapshot = client.dump(name)
    assert ask(gateway, key) == (200, None)
    gateway.wait_for_rows(2, key="ann")
    redis_server.kill()
    wait_for(lambda: gateway.read_ready()["limits"]["store"] == "local", "the outage to be noticed")
    server = RedisServer(tmp_path, redis_server.port)
    try:
        with redis.Redis.from_url(server.url) as client:
            client.restore(name, 0, snapshot, replace=True)
        wait_for(lambda: gateway.read_ready()["limits"]["store"] == "redis", "Redis to be used again")
        wait_for(lambda: gateway.show_usage(key)["spent"]["day_ticks"] == 2 * cost, "the sum to be mended")
        gateway.server.wait_for_line("a key's spending was raised to what the ledger has", "key=ann")
        assert ask(gateway, key) == (200, None)
        wait_for(lambda: gateway.show_usage(key)["spent"]["day_ticks"] == 3 * cost, "the third to be booked")
    finally:
        server.kill()


def test_a_response_while_the_database_is_locked(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Recording its owner holds up neither its events nor its heartbeats, and it can be continued at once."""
    go_on = threading.Event()

    def act(exchange: Exchange) -> None:
        exchange.start()
        response = {"id": "resp_1", "model": "grok-4.3", "status": "in_progress"}
        exchange.event({"type": "response.created", "response": response})
        go_on.wait(WAIT_S)
        exchange.event({"type": "response.completed", "response": {**response, "status": "completed"}})
        exchange.end()

    upstream.handler = act
    gateway = make_keyed(GROKFLASK_HEARTBEAT_S="0.3")
    key = gateway.make_key("ann")
    body = {"model": "grok-4.3", "input": "hello", "stream": True}

    def ask(**more: str) -> requests.Response:
        url = f"{gateway.url}/v1/responses"
        return requests.post(url, json={**body, **more}, headers=key, timeout=WAIT_S, stream=True)

    wait_for(lambda: gateway.read_ready()["database"]["state"] == "up", "the database to be open")
    with locked(tmp_path / "ledger.db"):
        reply = ask()
        received = b""
        pieces = reply.iter_content(None)
        while b"response.created" not in received or received.count(b": keep-alive") < 2:
            received += next(pieces)
        assert not gateway.server.find_lines("the owner of a response could not be stored")
        go_on.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert ask(previous_response_id="resp_1").status_code == 200


def test_tables_of_a_later_version(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """An old process on tables that a newer one has changed is not ready, says why, and changes nothing."""
    upstream.handler = answer_chat
    path = tmp_path / "later.db"
    Database(f"sqlite:///{path}").upgrade()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("INSERT INTO schema_version VALUES (999, 0)")
    gateway = make_keyed(DATABASE_URL=f"sqlite:///{path}", GROKFLASK_KEYS=f"env:{CLIENT_KEY}")
    gateway.server.wait_for_line("cannot use a database of version 999")
    wait_for(lambda: gateway.read_ready()["status"] == "outdated", "the state to be told")
    assert requests.get(f"{gateway.url}/ready", timeout=WAIT_S).status_code == 503
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("SELECT count(*) FROM exchanges").fetchall() == [(0,)]


# --- databases that work, but not at once

DELAY_S = 0.15
"""Each way: a database on another continent, or a busy one across town."""


@pytest.fixture
def pooler(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode."""
    if not PGBOUNCER.exists() and not os.environ.get("CI"):
        pytest.skip("there is no PgBouncer: make .venv/pooler, or install the package `pgbouncer`")
    postgres_server.start()
    server = PgBouncer(tmp_path, postgres_server)
    yield server
    server.kill()


def check(gateway: KeyedGateway, answers: int) -> None:
    """All answers are in the ledger, and the database was never away."""
    rows = gateway.wait_for_rows(answers, key="flow")
    assert len(rows) == answers
    assert gateway.run("usage", "check")["drift"] == []
    assert gateway.read_ready()["database"] == {"state": "up", "outages": 0}


def test_a_database_far_away(
    make_keyed: Callable[..., KeyedGateway], postgres_server: PostgresServer, upstream: ScriptedUpstream
) -> None:
    """300 ms for each question: slow, but not away, from the first request on."""
    upstream.handler = answer_chat
    postgres_server.start()
    line = LongLine(postgres_server.port, DELAY_S)
    name = postgres_server.make_database().rpartition("/")[2]
    gateway = make_keyed(hasty=True, DATABASE_URL=f"postgresql://tester@127.0.0.1:{line.port}/{name}")
    key = gateway.make_key("flow", budget_day=100)
    assert [ask(gateway, key, f"far-{number}") for number in range(3)] == [(200, None)] * 3
    check(gateway, 3)
    line.close()


def test_behind_a_pooler(
    make_keyed: Callable[..., KeyedGateway],
    postgres_server: PostgresServer,
    pooler: PgBouncer,
    upstream: ScriptedUpstream,
) -> None:
    """Each transaction may run on another connection of the server, and no setting stays behind on one."""
    upstream.handler = answer_chat
    direct = postgres_server.make_database()
    gateway = make_keyed(hasty=True, DATABASE_URL=pooler.make_url(direct))
    key = gateway.make_key("flow", budget_day=100)
    flow = Flow(gateway, key)
    flow.wait_for_more(60)
    wait_for(lambda: len(gateway.find_rows()) > 30, "rows while requests go on")
    kinds = flow.end()
    assert kinds == {(200, None): len(flow.answers)}
    check(gateway, len(flow.answers))
