"""Request limits, counted in memory and in a real Redis, by one worker and by two."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, RedisServer, start_gateway, wait_for
from support.scripted import WAIT_S, ScriptedUpstream
from support.stores import ADMIN, ADMIN_TOKEN

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


def ask(gateway: GatewayServer, headers: dict[str, str] = AUTH, **extra: object) -> requests.Response:
    return requests.post(
        f"{gateway.url}/api/v1/chat/completions", json={**BODY, **extra}, headers=headers, timeout=WAIT_S
    )


def read_store(gateway: GatewayServer) -> tuple[str, int]:
    reply = requests.get(f"{gateway.url}/ready", headers=ADMIN, timeout=WAIT_S)
    limits = reply.json()["rate_limits"]
    return limits["store"], limits["outages"]


@pytest.fixture(params=["memory", "redis"])
def limited(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, redis: RedisServer, tmp_path: Path
) -> Iterator[GatewayServer]:
    """A gateway with 5 requests a day for alice and for bob, over each store."""
    env = {"GROKFLASK_RATE_LIMIT": "5/day", "GROKFLASK_KEYS": f"alice:{CLIENT_KEY},bob:bob-secret-key"}
    if request.param == "redis":
        env["REDIS_URL"] = redis.url
    server = start_gateway(tmp_path, upstream, **env)
    yield server
    server.leave()


def test_limit(limited: GatewayServer, upstream: ScriptedUpstream) -> None:
    """Five pass, streamed or not; the sixth is a 429 that costs nothing upstream; another key is free."""
    left = []
    for number in range(5):
        reply = ask(limited, stream=number % 2 == 0)
        assert reply.status_code == 200
        assert reply.headers["X-RateLimit-Limit"] == "5"
        assert int(reply.headers["X-RateLimit-Reset"]) > 1_700_000_000
        assert "Retry-After" not in reply.headers
        left.append(int(reply.headers["X-RateLimit-Remaining"]))
    assert left == [4, 3, 2, 1, 0]
    refused = ask(limited)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["Retry-After"]) <= 86400
    assert refused.headers["X-RateLimit-Remaining"] == "0"
    assert len(upstream.exchanges) == 5
    assert ask(limited, {"Authorization": "Bearer bob-secret-key"}).status_code == 200


def test_limit_in_the_guides_shape(limited: GatewayServer) -> None:
    """A streaming client is refused in its own shape."""
    for _ in range(5):
        ask(limited)
    refused = ask(limited, {**AUTH, "Accept": "text/event-stream"}, stream=True)
    assert refused.status_code == 429
    assert refused.text.startswith('data: {"error":"API error: Too many requests')


def test_routes_share_the_limit_and_health_is_free(limited: GatewayServer) -> None:
    """Both prefixes and all routes count together; health checks do not count; nor do bad keys."""
    for _ in range(10):
        requests.get(f"{limited.url}/health", timeout=WAIT_S)
        requests.get(f"{limited.url}/ready", timeout=WAIT_S)
        assert ask(limited, {"Authorization": "Bearer wrong-key"}).status_code == 401
    assert ask(limited).headers["X-RateLimit-Remaining"] == "4"
    reply = requests.post(f"{limited.url}/v1/chat/completions", json=BODY, headers=AUTH, timeout=WAIT_S)
    assert reply.headers["X-RateLimit-Remaining"] == "3"


def test_exactly_the_limit_in_parallel(limited: GatewayServer, upstream: ScriptedUpstream) -> None:
    """100 requests at once against room for 5 admit exactly 5."""
    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(lambda _: ask(limited).status_code, range(100)))
    assert (statuses.count(200), statuses.count(429)) == (5, 95)
    assert len(upstream.exchanges) == 5


def test_two_workers_share_the_limit(upstream: ScriptedUpstream, redis: RedisServer, tmp_path: Path) -> None:
    """Through two workers on one Redis the limit is still one limit."""
    server = start_gateway(
        tmp_path, upstream, GROKFLASK_RATE_LIMIT="20/day", REDIS_URL=redis.url, WEB_CONCURRENCY="2"
    )
    try:
        with ThreadPoolExecutor(50) as pool:
            statuses = list(pool.map(lambda _: ask(server).status_code, range(200)))
        assert (statuses.count(200), statuses.count(429)) == (20, 180)
        assert len(upstream.exchanges) == 20
    finally:
        server.leave()


def test_redis_goes_away_and_comes_back(
    upstream: ScriptedUpstream, redis: RedisServer, tmp_path: Path
) -> None:
    """Without Redis the limit is kept locally, it is logged and counted, and Redis is used again later."""
    env = {"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "REDIS_URL": redis.url}
    server = start_gateway(tmp_path, upstream, GROKFLASK_RATE_LIMIT="5/hour", **env)
    try:
        assert ask(server).status_code == 200
        assert read_store(server) == ("redis", 0)
        redis.kill()
        statuses = [ask(server).status_code for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        assert read_store(server) == ("local", 1)
        assert len(server.find_lines("Redis is unreachable: requests", "Connection refused")) == 1
        back = RedisServer(tmp_path, redis.port)
        try:
            wait_for(
                lambda: ask(server).status_code == 200 and read_store(server)[0] == "redis",
                "Redis to be used",
            )
            assert len(server.find_lines("Redis is reachable again: requests")) == 1
        finally:
            back.kill()
    finally:
        server.leave()


def test_starting_without_redis(upstream: ScriptedUpstream, redis: RedisServer, tmp_path: Path) -> None:
    """A Redis that is not there neither stops the start nor slows requests down to a hang."""
    redis.kill()
    server = start_gateway(tmp_path, upstream, GROKFLASK_RATE_LIMIT="2/hour", REDIS_URL=redis.url)
    try:
        assert [ask(server).status_code for _ in range(3)] == [200, 200, 429]
    finally:
        server.leave()


def test_redis_that_hangs(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A Redis that takes connections and never answers costs a timeout once, not on each request."""
    import socket

    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        env = {"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "REDIS_URL": url}
        server = start_gateway(tmp_path, upstream, hasty=True, GROKFLASK_RATE_LIMIT="3/hour", **env)
        try:
            assert [ask(server).status_code for _ in range(4)] == [200, 200, 200, 429]
            assert read_store(server) == ("local", 1)
        finally:
            server.leave()
