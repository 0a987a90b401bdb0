"""A key's limits on real workers: exact in parallel, given back on every path, and told to whoever asks."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import redis
import requests
from support.processes import RedisServer, wait_for
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.stores import ADMIN, KeyedGateway, run_command

PARALLEL = 200
BODY: dict[str, Any] = {
    "model": "grok-4.20-0309-non-reasoning",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 100,
}
"""Streamed it is taken to need 35 to 45 tokens of prompt and 100 of output: 2.9 to 3.1 million ticks."""


@contextmanager
def holding(upstream: ScriptedUpstream) -> Iterator[threading.Event]:
    """Upstream sends one event and then nothing, until the event is set: then the rest."""
    release = threading.Event()

    def hold(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        release.wait(WAIT_S)
        exchange.event(chat_chunk("", choices=[], usage=USAGE))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = hold
    try:
        yield release
    finally:
        release.set()


class Streams:
    """Many requests at once; those that are admitted stay open until `end`."""

    made: ClassVar[list[Streams]] = []

    def __init__(self, gateway: KeyedGateway, keys: list[dict[str, str]], body: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self.made.append(self)
        self.open: list[requests.Response] = []
        self.refused: list[requests.Response] = []

        def ask(key: dict[str, str]) -> None:
            url = f"{gateway.url}/api/v1/chat/completions"
            reply = requests.post(
                url, json={**body, "stream": True}, headers=key, stream=True, timeout=WAIT_S
            )
            if reply.status_code != 200:
                assert reply.content
                reply.close()
            with self._lock:
                (self.open if reply.status_code == 200 else self.refused).append(reply)

        with ThreadPoolExecutor(len(keys)) as pool:
            list(pool.map(ask, keys))

    @property
    def codes(self) -> Counter[str]:
        return Counter(reply.json()["error"]["code"] for reply in self.refused)

    def end(self) -> None:
        """Reads what is open to its end."""
        for reply in self.open:
            assert reply.text.endswith("data: [DONE]\n\n")
            reply.close()

    def leave(self) -> None:
        """Closes what is open, having seen that it is."""
        for reply in self.open:
            assert reply.raw.read(1)
            reply.close()


@pytest.fixture
def upstream(clean_upstream: ScriptedUpstream) -> ScriptedUpstream:
    """The one that `keyed` is in front of."""
    return clean_upstream


@pytest.fixture
def keyed(module_keyed: KeyedGateway, clean_upstream: ScriptedUpstream) -> KeyedGateway:
    """One gateway over each pair of stores for all tests, whose keys have names of their own."""
    return module_keyed


@pytest.fixture(autouse=True)
def close_streams() -> Iterator[None]:
    """A failing test leaves no sockets to the next one."""
    Streams.made.clear()
    yield
    for streams in Streams.made:
        for reply in streams.open:
            reply.close()


LIMITS: list[tuple[str, dict[str, Any], str]] = [
    ("streams", {"streams": 5}, "too_many_streams"),
    ("tokens", {"tokens_per_minute": 800}, "token_limit_exceeded"),
    ("day", {"budget_day": 0.0016}, "insufficient_quota"),
    ("month", {"budget_month": 0.0016}, "insufficient_quota"),
]


@pytest.mark.parametrize(("name", "fields", "code"), LIMITS, ids=[row[0] for row in LIMITS])
def test_exactly_as_many_as_fit(
    keyed: KeyedGateway, upstream: ScriptedUpstream, name: str, fields: dict[str, Any], code: str
) -> None:
    """200 requests at once against room for 5: 5 are admitted, the others cost nothing upstream."""
    key = keyed.make_key(name, **fields)
    body = {**BODY, "reasoning_effort": name}  # nothing is learnt of such answers yet
    with holding(upstream) as release:
        streams = Streams(keyed, [key] * PARALLEL, body)
        assert (len(streams.open), len(streams.refused)) == (5, PARALLEL - 5)
        assert streams.codes == {code: PARALLEL - 5}
        assert len(upstream.exchanges) == 5
        release.set()
        streams.end()
    rows = keyed.wait_for_rows(5, key=name)
    assert [row["outcome"] for row in rows] == ["complete"] * 5
    assert {row["cost_ticks"] for row in rows} == {USAGE["cost_in_usd_ticks"]}
    # What was reserved and not used is there again: 5 more fit.
    with holding(upstream) as release:
        again = Streams(keyed, [key] * 5, body)
        assert len(again.open) == 5
        release.set()
        again.end()


def test_a_stream_is_given_back_before_its_client_sees_the_end(
    keyed: KeyedGateway, upstream: ScriptedUpstream
) -> None:
    """With one stream at a time, one directly behind the other never finds the first one still open."""
    upstream.handler = answer_chat
    key = keyed.make_key("one", streams=1)
    for _ in range(100):
        with requests.post(
            f"{keyed.url}/v1/chat/completions",
            json={**BODY, "stream": True},
            headers=key,
            stream=True,
            timeout=WAIT_S,
        ) as reply:
            assert reply.status_code == 200
            got = b""
            while not got.endswith(b"data: [DONE]\n\n"):  # and not a byte further, as SDKs do
                got += reply.raw.read1()


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_told(keyed: KeyedGateway, upstream: ScriptedUpstream, stream: bool) -> None:
    """Headers and /usage move with each exchange, by what it really used."""
    upstream.handler = answer_chat
    name = f"teller-{stream}"
    key = keyed.make_key(name, tokens_per_minute=10_000, budget_day=1, budget_month=2, requests="50/hour")
    body = {**BODY, "stream": stream, "reasoning_effort": "told"}  # nothing is learnt of such answers yet
    for number in range(1, 4):
        reply = requests.post(f"{keyed.url}/v1/chat/completions", json=body, headers=key, timeout=WAIT_S)
        assert reply.headers["X-RateLimit-Limit-Tokens"] == "10000"
        left = int(reply.headers["X-RateLimit-Remaining-Tokens"])
        # Behind it are the earlier ones by their usage, and this one by its estimate.
        assert 10_000 - 5 * (number - 1) - 150 <= left <= 10_000 - 5 * (number - 1) - 100
        assert (reply.headers["X-RateLimit-Limit"], reply.headers["X-RateLimit-Remaining"]) == (
            "50",
            str(50 - number),
        )
        wait_for(lambda n=number: len(keyed.show_usage(key)["recent"]) == n, "its row")
        usage = keyed.show_usage(key)
        spent = number * USAGE["cost_in_usd_ticks"]
        assert usage["key"] == name
        assert usage["limits"]["budget_day"] == 1
        assert usage["limits"]["requests"] == "50/hour"
        assert usage["spent"] == {"day_ticks": spent, "month_ticks": spent}
        assert usage["remaining"] == {
            "requests": 50 - number,
            "tokens_per_minute": 10_000 - 5 * number,
            "streams": None,
            "budget_day_ticks": 10**10 - spent,
            "budget_month_ticks": 2 * 10**10 - spent,
        }
        assert {row["key"] for row in usage["recent"]} == {name}


def test_nobody_sees_anothers_usage(keyed: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """A key sees its own rows; asking needs a key, and is not counted as a request."""
    upstream.handler = answer_chat
    ann, bob = keyed.make_key("ann", requests="1/hour"), keyed.make_key("bob")
    for key in (ann, bob):
        assert requests.post(f"{keyed.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S).ok
    wait_for(lambda: len(keyed.show_usage(ann)["recent"]) == 1, "its row")
    assert [row["key"] for row in keyed.show_usage(ann)["recent"]] == ["ann"]
    assert requests.get(f"{keyed.url}/v1/usage", timeout=WAIT_S).status_code == 401


def test_nobody_is_told_of_others_where_anybody_may_call(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream
) -> None:
    """Without keys there is no telling whose an exchange was: /usage shows none."""
    upstream.handler = answer_chat
    gateway = make_keyed(GROKFLASK_AUTH="open")
    assert requests.post(f"{gateway.url}/v1/chat/completions", json=BODY, timeout=WAIT_S).ok
    gateway.wait_for_rows(1)
    assert gateway.show_usage({})["recent"] == []


def test_models_and_expiry_and_revocation(keyed: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """Another model is a 403 that names it; a revoked key is a 403 on all workers within five seconds."""
    upstream.handler = answer_chat
    key = keyed.make_key("narrow", models=["grok-4.20-*"])

    def ask(**changes: Any) -> tuple[int, str | None]:
        reply = requests.post(
            f"{keyed.url}/v1/chat/completions", json={**BODY, **changes}, headers=key, timeout=WAIT_S
        )
        return reply.status_code, None if reply.ok else reply.json()["error"]["code"]

    assert ask() == (200, None)
    assert ask(model="grok-4.7") == (403, "model_not_allowed")
    assert len(upstream.exchanges) == 1
    # SDKs and user interfaces look at the list first; it costs nothing.
    upstream.handler = lambda exchange: exchange.reply({"object": "list", "data": []})
    assert requests.get(f"{keyed.url}/v1/models", headers=key, timeout=WAIT_S).status_code == 200
    upstream.handler = answer_chat
    assert requests.delete(f"{keyed.url}/admin/api/keys/narrow", headers=ADMIN, timeout=WAIT_S).ok
    wait_for(lambda: all(ask() == (403, "key_revoked") for _ in range(10)), "the revocation")


def test_fair_share_near_capacity(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], upstream: ScriptedUpstream
) -> None:
    """Below the threshold one key may have it all; above it, it leaves room for another."""
    workers = int(stores.get("WEB_CONCURRENCY", "1"))
    gateway = make_keyed(**stores, GROKFLASK_CAPACITY="20", GROKFLASK_FAIR_SHARE=str(0.5 / workers))
    greedy = gateway.make_key("greedy")
    modest = [gateway.make_key(f"modest-{number}") for number in range(2 * workers - 1)]
    with holding(upstream) as release:
        if "REDIS_URL" in stores:
            with redis.Redis.from_url(stores["REDIS_URL"]) as client:
                wait_for(lambda: client.zcard("{grokflask}:workers") == workers, "all workers")
        first = Streams(gateway, [greedy] * 9, BODY)
        assert len(first.open) == 9  # of 20 slots a worker: below the threshold of 10
        second = Streams(gateway, modest, BODY)
        assert len(second.open) == len(modest)
        third = Streams(gateway, [greedy] * 5, BODY)  # its part is 10, and it has 9
        assert (len(third.open), third.codes) == (1, {"fair_share_exceeded": 4})
        assert third.refused[0].headers["Retry-After"] == "1"
        fourth = Streams(gateway, modest, BODY)
        assert len(fourth.open) == len(modest)
        release.set()
        for streams in (first, second, third, fourth):
            streams.end()


def test_leaving_clients_give_everything_back(keyed: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """Streams that are cut by their clients are open no more, and what they may have cost is booked."""
    key = keyed.make_key("leaver", streams=5, budget_day=1)
    with holding(upstream):
        for _ in range(3):
            streams = Streams(keyed, [key] * 5, BODY)
            assert len(streams.open) == 5
            streams.leave()
            wait_for(lambda: keyed.show_usage(key)["remaining"]["streams"] == 5, "all streams to be over")
    rows = keyed.wait_for_rows(15, key="leaver")
    assert {(row["outcome"], row["estimated"]) for row in rows} == {("client_abort", True)}
    assert all(row["cost_ticks"] > 0 for row in rows)
    spent = sum(row["cost_ticks"] for row in rows)
    assert keyed.show_usage(key)["spent"]["day_ticks"] == spent


def test_budget_is_remembered_over_a_restart(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], upstream: ScriptedUpstream
) -> None:
    """What a key has spent is in the ledger, so a new process knows it; Redis emptied, it is found again."""
    usage = {**USAGE, "cost_in_usd_ticks": 3_900_000}  # leaves less than another prompt costs
    upstream.handler = lambda exchange: exchange.reply({"id": "1", "choices": [{}], "usage": usage})
    gateway = make_keyed(**stores)
    key = gateway.make_key("saver", budget_month=0.0004)
    assert requests.post(f"{gateway.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S).ok
    assert gateway.show_usage(key)["spent"]["month_ticks"] == 3_900_000
    gateway.server.stop()
    if "REDIS_URL" in stores:
        with redis.Redis.from_url(stores["REDIS_URL"]) as client:
            client.flushall()
    gateway = make_keyed(**stores)
    refused = requests.post(f"{gateway.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert gateway.show_usage(key)["spent"]["month_ticks"] == 3_900_000


def test_killed_worker(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], upstream: ScriptedUpstream
) -> None:
    """SIGKILL with 100 open streams: the next process settles their rows as lost, once, and books them."""
    gateway = make_keyed(**stores)
    key = gateway.make_key("victim", budget_day=10)
    with holding(upstream):
        streams = Streams(gateway, [key] * 100, BODY)
        assert len(streams.open) == 100
        wait_for(lambda: len(gateway.find_rows(key="victim")) == 100, "their open rows")
        assert {row["outcome"] for row in gateway.find_rows(key="victim")} == {None}
        gateway.server.kill()
        for reply in streams.open:
            reply.close()
    gateway = make_keyed(**stores)
    rows = gateway.wait_for_rows(100, key="victim")
    assert len(rows) == 100
    assert {(row["outcome"], row["estimated"]) for row in rows} == {("lost", True)}
    spent = sum(row["cost_ticks"] for row in rows)
    assert spent > 0
    assert gateway.show_usage(key)["spent"]["day_ticks"] == spent
    assert gateway.run("usage", "check")["drift"] == []


def test_what_is_spent_beside_a_reload(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream
) -> None:
    """What the old process books while it drains counts in the new one, once the old one must have ended."""
    gateway = make_keyed(GROKFLASK_GRACE_S="10")
    key = gateway.make_key("holder", budget_day=1, budget_month=1)
    with holding(upstream) as release:
        (reply,) = Streams(gateway, [key], BODY).open
        gateway.server.process.send_signal(signal.SIGHUP)
        gateway.server.wait_for_line("msg=ready", "auth=keys")

        def has_turned() -> bool:
            try:
                return all(gateway.read_ready()["open"] == 0 for _ in range(20))
            except requests.ConnectionError:  # the old one's end
                return False

        wait_for(has_turned, "nobody but the new process to answer")
        upstream.handler = answer_chat
        assert requests.post(f"{gateway.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S).ok
        release.set()
        assert reply.content
    spent = sum(row["cost_ticks"] for row in gateway.wait_for_rows(2))
    assert spent > USAGE["cost_in_usd_ticks"]
    wait_for(lambda: gateway.show_usage(key)["spent"]["day_ticks"] == spent, "both to be counted")
    assert gateway.show_usage(key)["spent"] == {"day_ticks": spent, "month_ticks": spent}


def test_drift_is_found_and_mended(
    make_keyed: Callable[..., KeyedGateway], redis_server: RedisServer, upstream: ScriptedUpstream
) -> None:
    """A counter that differs from the ledger is found by `usage check`, and set right by --repair."""
    upstream.handler = answer_chat
    gateway = make_keyed(REDIS_URL=redis_server.url)
    key = gateway.make_key("drifter", budget_day=1)
    assert requests.post(f"{gateway.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S).ok
    gateway.wait_for_rows(1)
    assert gateway.run("usage", "check") == {"drift": [], "repaired": False}
    spent = USAGE["cost_in_usd_ticks"]
    with redis.Redis.from_url(redis_server.url) as client:
        (name,) = client.scan_iter("{grokflask}:spent:*")
        day = gateway.find_rows()[0]["started_at"][:10]
        client.hincrby(name, day, 1000)
    done = run_command(gateway.server.log_path.parent, gateway.env, "usage", "check", "--json")
    assert done.returncode == 1
    (drift,) = json.loads(done.stdout)["drift"]
    assert (drift["key"], drift["field"]) == ("drifter", "counter_day_ticks")
    assert (drift["stored"], drift["actual"]) == (spent + 1000, spent)
    assert gateway.run("usage", "check", "--repair")["repaired"]
    assert gateway.show_usage(key)["spent"]["day_ticks"] == spent
    assert gateway.run("usage", "check") == {"drift": [], "repaired": False}


def test_commands_and_admin_api_see_the_same(keyed: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """A key made on the command line works at once, and its rows are the same by either way."""
    upstream.handler = answer_chat
    made = keyed.run("keys", "create", "typed", "--streams", "3", "--budget-day", "2.5")
    assert (made["name"], made["streams"], made["budget_day"]) == ("typed", 3, 2.5)
    key = {"Authorization": f"Bearer {made['secret']}"}
    assert requests.post(f"{keyed.url}/v1/chat/completions", json=BODY, headers=key, timeout=WAIT_S).ok
    rows = keyed.wait_for_rows(1, key="typed")
    assert keyed.run("usage", "rows", "--key", "typed") == rows
    shown = requests.get(f"{keyed.url}/admin/api/keys/typed", headers=ADMIN, timeout=WAIT_S).json()
    assert keyed.run("keys", "show", "typed") == shown


def test_redis_restarts_empty_under_open_streams(
    make_keyed: Callable[..., KeyedGateway],
    redis_server: RedisServer,
    upstream: ScriptedUpstream,
    tmp_path: Any,
) -> None:
    """Redis comes back without its data: open streams count again, and budgets are loaded from the ledger."""
    gateway = make_keyed(REDIS_URL=redis_server.url)
    key = gateway.make_key("holder", streams=5, budget_day=1)
    with holding(upstream) as release:
        streams = Streams(gateway, [key] * 4, BODY)
        assert len(streams.open) == 4
        redis_server.kill()
        # On its own the worker goes on: nothing hangs, and what it admits it counts.
        during = Streams(gateway, [key] * 1, BODY)
        assert len(during.open) == 1
        wait_for(lambda: gateway.read_ready()["limits"]["store"] == "local", "the outage to be noticed")
        back = RedisServer(tmp_path, redis_server.port)
        try:
            wait_for(lambda: gateway.read_ready()["limits"]["store"] == "redis", "Redis to be used again")
            assert gateway.show_usage(key)["remaining"]["streams"] == 0
            assert Streams(gateway, [key], BODY).codes == {"too_many_streams": 1}
            release.set()
            streams.end()
            during.end()
            wait_for(lambda: gateway.show_usage(key)["remaining"]["streams"] == 5, "all to be given back")
            wait_for(lambda: len(gateway.show_usage(key)["recent"]) == 5, "their rows")
            assert gateway.show_usage(key)["spent"]["day_ticks"] == 5 * USAGE["cost_in_usd_ticks"]
        finally:
            back.kill()
    log = gateway.server
    assert log.find_lines("Redis is unreachable: streams")
    assert log.find_lines("Redis is reachable again: streams")


OUTAGES: dict[str, dict[str, Any]] = {
    "GROKFLASK_STREAMS_OUTAGE": {"streams": 2},
    "GROKFLASK_TOKENS_OUTAGE": {"tokens_per_minute": 320},
    "GROKFLASK_BUDGETS_OUTAGE": {"budget_day": 0.0007},
    "GROKFLASK_REQUESTS_OUTAGE": {"requests": "2/hour"},
}


@pytest.mark.parametrize(
    ("policy", "settings"),
    [("open", list(OUTAGES)), ("local", list(OUTAGES)), *(("closed", [setting]) for setting in OUTAGES)],
)
def test_what_each_limit_does_while_redis_is_away(
    make_keyed: Callable[..., KeyedGateway],
    redis_server: RedisServer,
    upstream: ScriptedUpstream,
    policy: str,
    settings: list[str],
) -> None:
    """`open` admits all, `local` as many as fit into this worker's part, `closed` nobody, with a 503."""
    gateway = make_keyed(REDIS_URL=redis_server.url, **dict.fromkeys(settings, policy))
    keys = [gateway.make_key(setting[10:], **OUTAGES[setting]) for setting in settings]
    redis_server.kill()
    for key in keys:
        with holding(upstream) as release:
            streams = Streams(gateway, [key] * 4, BODY)
            release.set()
            streams.end()
        assert len(streams.open) == {"open": 4, "local": 2, "closed": 0}[policy]
        if policy == "closed":
            assert {reply.status_code for reply in streams.refused} == {503}
            assert streams.codes == {"store_unavailable": 4}
        else:
            assert {reply.status_code for reply in streams.refused} <= {429}
