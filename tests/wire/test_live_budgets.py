"""Budgets that are metered while answers flow: over gunicorn, in memory and with Redis and two workers."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import pytest
import requests
from support.charging import MODEL, ChargingUpstream
from support.processes import UPSTREAM_KEY, RedisServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.stores import KeyedGateway

from grokflask.billing.money import TICKS_PER_USD
from grokflask.billing.prices import price_tokens
from grokflask.limits.metering import STEP_TOKENS
from grokflask.sandbox import Sandbox

PARALLEL = 200
BUDGET = 4
STEP_TICKS = STEP_TOKENS * price_tokens(MODEL, 0, 1)

Gateways = Callable[..., KeyedGateway]


@pytest.fixture
def charging() -> Iterator[ChargingUpstream]:
    """A fast model: much may pass before anyone looks."""
    server = ChargingUpstream(pace=400)
    yield server
    server.close()


@pytest.fixture
def gateway(make_keyed: Gateways, stores: dict[str, str], charging: ChargingUpstream) -> KeyedGateway:
    """A gateway in front of it, over each pair of stores."""
    return make_keyed(**stores, XAI_API_BASE=charging.base_url, GROKFLASK_RATE_LIMIT="1000000/hour")


def make_body(name: str, visible: int, reasoning: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": MODEL, "messages": messages, "user": f"{name} {visible} {reasoning}", **fields}


def ask(gateway: KeyedGateway, key: dict[str, str], body: dict[str, Any]) -> requests.Response:
    url = f"{gateway.url}/v1/chat/completions"
    with requests.post(url, json=body, headers=key, stream=body.get("stream"), timeout=WAIT_S) as reply:
        assert reply.content
    return reply


def wait_until_free(gateway: KeyedGateway, key: dict[str, str], budget: float) -> int:
    """The ticks that the key has spent, once nothing is reserved for it any more."""

    def is_free() -> bool:
        usage = gateway.show_usage(key)
        left = usage["remaining"]["budget_day_ticks"]
        return bool(left == max(0, int(budget * TICKS_PER_USD) - usage["spent"]["day_ticks"]))

    wait_for(is_free, "nothing to be reserved")
    ticks: int = gateway.show_usage(key)["spent"]["day_ticks"]
    return ticks


def draw(rng: random.Random, name: str) -> dict[str, Any]:
    """A request of any kind."""
    visible, reasoning = rng.choice([20, 100, 300, 900]), rng.choice([0, 0, 200, 1000, 5000])
    fields: dict[str, Any] = {"stream": rng.random() < 0.85}
    if rng.random() < 0.5:
        fields["max_tokens"] = rng.choice([50, 400, 4000])
    return make_body(name, visible, reasoning, **fields)


def test_a_budget_is_used_and_not_overspent(gateway: KeyedGateway, charging: ChargingUpstream) -> None:
    """200 clients that never stop asking use nearly all of it, and no more than a step each beyond."""
    warm = gateway.make_key("warm")
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda n: ask(gateway, warm, draw(random.Random(n), "warm")), range(30)))
    key = gateway.make_key("busy", budget_day=BUDGET)
    nearly_used = threading.Event()
    failures: list[str] = []

    def insist(number: int) -> None:
        rng, refused = random.Random(number), 0
        while refused < 3:
            reply = ask(gateway, key, draw(rng, "busy"))
            if reply.status_code == 429:
                refused += nearly_used.is_set()
                nearly_used.wait(0.3)
            elif reply.status_code != 200:
                failures.append(reply.text)

    budget_ticks = BUDGET * TICKS_PER_USD
    with ThreadPoolExecutor(PARALLEL) as pool:
        clients = [pool.submit(insist, number) for number in range(PARALLEL)]
        wait_for(lambda: charging.charged["busy"] >= 0.8 * budget_ticks, "the budget to be used")
        nearly_used.set()
        for client in clients:
            client.result()
    assert not failures
    booked = wait_until_free(gateway, key, BUDGET)
    charged = charging.charged["busy"]
    print(f"\nof the budget: {charged / budget_ticks:.3f} charged, {booked / budget_ticks:.3f} booked")
    assert 0.8 * budget_ticks <= charged <= max(1.05 * budget_ticks, budget_ticks + PARALLEL * STEP_TICKS)
    assert 0.8 <= booked / charged <= 1.25
    rows = gateway.find_rows(key="busy")
    assert {(row["outcome"], row["code"]) for row in rows} <= {
        ("complete", None),
        ("limit", "insufficient_quota"),
    }
    assert gateway.run("usage", "check")["drift"] == []


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 100}, {"stream": True}])
@pytest.mark.parametrize("limits", [{"tokens_per_minute": 4000}, {"budget_day": 0.01}])
def test_a_small_limit_has_room_for_a_short_question(
    gateway: KeyedGateway, limits: dict[str, float], fields: dict[str, Any]
) -> None:
    """What nobody can know refuses no key its only request."""
    key = gateway.make_key("small", **limits)
    for _ in range(3):
        reply = ask(gateway, key, make_body("small", 20, 30, **fields))
        assert reply.status_code == 200, reply.text


def test_a_stream_ends_when_its_budget_does(gateway: KeyedGateway, charging: ChargingUpstream) -> None:
    """With an error event and without [DONE]; upstream is closed, the row says why, and the rest is free."""
    key = gateway.make_key("spender", budget_day=0.02)
    reply = ask(gateway, key, make_body("spender", 50_000, 0, stream=True))
    events = reply.text.split("\n\n")[:-1]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert len(events) > 10
    assert "[DONE]" not in reply.text
    (row,) = gateway.wait_for_rows(1, key="spender")
    assert (row["outcome"], row["status"], row["code"]) == ("limit", 200, "insufficient_quota")
    assert row["estimated"]
    wait_for(lambda: charging.charged["spender"] > 0, "upstream to be closed")
    spent = wait_until_free(gateway, key, 0.02)
    assert spent == row["cost_ticks"]
    assert 0.5 <= spent / charging.charged["spender"] <= 2
    for ticks in (spent, charging.charged["spender"]):
        assert abs(ticks - 0.02 * TICKS_PER_USD) <= STEP_TICKS


def test_silence_is_metered(make_keyed: Gateways, charging: ChargingUpstream) -> None:
    """A model that reasons in silence uses up the budget as well, at the pace that it is known for."""
    gateway = make_keyed(XAI_API_BASE=charging.base_url)
    warm = gateway.make_key("warm")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(gateway, warm, make_body("warm", 1500, 500, stream=True)), range(8)))
    key = gateway.make_key("thinker", budget_day=0.04)
    reply = ask(gateway, key, make_body("thinker", 10, 200_000, stream=True))
    assert json.loads(reply.text.split("data: ")[-1])["error"]["code"] == "insufficient_quota"
    (row,) = gateway.wait_for_rows(1, key="thinker")
    assert (row["outcome"], row["completion_tokens"]) == ("limit", 0)
    wait_for(lambda: charging.charged["thinker"] > 0, "upstream to be closed")
    assert 0.5 <= row["cost_ticks"] / charging.charged["thinker"] <= 2


def test_a_whole_answer_is_capped_by_what_is_left(gateway: KeyedGateway, charging: ChargingUpstream) -> None:
    """Nobody sees it grow, so upstream is asked for no more; a header says so. A client's own cap stays."""
    key = gateway.make_key("whole", budget_day=0.01)
    reply = ask(gateway, key, make_body("whole", 5000, 0))
    (cap,) = charging.caps["whole"]
    assert reply.headers["X-Output-Cap"] == f"max_completion_tokens={cap}"
    assert 16 <= cap <= 0.01 * TICKS_PER_USD / price_tokens(MODEL, 0, 1)
    other = gateway.make_key("capped", budget_day=0.01)
    assert "X-Output-Cap" not in ask(gateway, other, make_body("capped", 10, 0, max_tokens=3000)).headers
    assert charging.caps["capped"] == [3000]


def test_redis_dies_while_streams_take_steps(
    make_keyed: Gateways, redis_server: RedisServer, charging: ChargingUpstream
) -> None:
    """They go on by the outage's rule, nothing hangs, and afterwards nothing is reserved."""
    gateway = make_keyed(XAI_API_BASE=charging.base_url, REDIS_URL=redis_server.url)
    key = gateway.make_key("lucky", budget_day=5)
    started = threading.Barrier(9)

    def stream(_: int) -> str:
        body = make_body("lucky", 9000, 0, stream=True)
        url = f"{gateway.url}/v1/chat/completions"
        with requests.post(url, json=body, headers=key, stream=True, timeout=WAIT_S) as reply:
            begin = reply.raw.read1(100)
            started.wait(WAIT_S)
            return (begin + reply.raw.read()).decode()

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, number) for number in range(8)]
        started.wait(WAIT_S)
        redis_server.kill()
        assert all(each.result().endswith("data: [DONE]\n\n") for each in streams)
    again = RedisServer(gateway.server.log_path.parent, redis_server.port)
    try:
        wait_for(lambda: gateway.read_ready()["limits"]["store"] == "redis", "Redis to be used again")
        assert wait_until_free(gateway, key, 5) == charging.charged["lucky"]
    finally:
        again.kill()


# What is booked for an answer that was cut


def test_cut_answers_are_booked_at_about_what_they_cost(make_keyed: Gateways) -> None:
    """In the median over the models, those with reasoning among them, within half and twice."""
    ratios = {}
    with Sandbox(events_per_s=60, key=UPSTREAM_KEY) as sandbox:
        gateway = make_keyed(XAI_API_BASE=sandbox.base_url)
        key = gateway.make_key("leaver")
        models = [
            "grok-4.7",
            "grok-4.6",
            "grok-4.5",
            "grok-4.3",
            "grok-4.20-0309-reasoning",
            "grok-build-0.1",
        ]
        models += ["grok-4.20-0309-non-reasoning", "grok-4.20-multi-agent-0309", "grok-3-mini"]

        def leave(model: str) -> None:
            text = "Tell me a long story about a lighthouse and its keeper, please. " * 3
            body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
            url = f"{gateway.url}/v1/chat/completions"
            with requests.post(url, json=body, headers=key, stream=True, timeout=WAIT_S) as reply:
                for number, line in enumerate(reply.iter_lines()):
                    if number > 120 or line == b"data: [DONE]":
                        break

        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(leave, models))
        rows = {row["model"]: row for row in gateway.wait_for_rows(len(models))}
        noted = {each.model: each for each in sandbox.journal.wait_until_idle() if each.model in rows}
    for model, row in rows.items():
        ratios[model] = row["cost_ticks"] / noted[model].cost_ticks
    print("\n", {model: round(ratio, 2) for model, ratio in ratios.items()})
    assert 0.5 <= median(ratios.values()) <= 2
    assert all(row["estimated"] for row in rows.values())


def test_hidden_reasoning_and_large_events_of_cut_answers(
    make_keyed: Gateways, charging: ChargingUpstream
) -> None:
    """Clients that leave in silence, or in text of five tokens an event: booked within half and twice."""
    gateway = make_keyed(XAI_API_BASE=charging.base_url)
    key = gateway.make_key("leaver")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(gateway, key, make_body("warm", 1000, 500, stream=True)), range(8)))

    def leave(number: int) -> None:
        name, reasoning = f"leaver-{number}", 400 * (number % 4)
        body = make_body(name, 4000, 10**6 if number % 3 == 0 else reasoning, stream=True)
        body["messages"][0]["content"] = name
        url = f"{gateway.url}/v1/chat/completions"
        with requests.post(url, json=body, headers=key, stream=True, timeout=WAIT_S) as reply:
            threading.Timer(2 + number % 4, reply.raw._fp.fp.raw._sock.shutdown, (2,)).start()
            with contextlib.suppress(requests.RequestException):
                assert reply.content is not None

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(leave, range(12)))
    wait_for(lambda: len(charging.charged) == 13, "upstream to be closed")
    rows = gateway.wait_for_rows(12, outcome="client_abort")
    assert len(rows) == 12
    booked, charged = sorted(row["cost_ticks"] for row in rows), charging.charged.copy()
    del charged["warm"]
    ratios = [ticks / true for ticks, true in zip(booked, sorted(charged.values()), strict=True)]
    print("\n", [round(ratio, 2) for ratio in ratios])
    assert 0.5 <= median(ratios) <= 2


def test_who_leaves_after_the_last_word_pays_what_it_cost(
    make_keyed: Gateways, upstream: ScriptedUpstream
) -> None:
    """Nothing more is generated then, so upstream's usage is waited for, a moment."""
    left = threading.Event()
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 5013,
        "cost_in_usd_ticks": 2_550_000_000,
    }

    def handle(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Done."))
        exchange.event(chat_chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        left.wait(WAIT_S)
        exchange.event(chat_chunk("", choices=[], usage=usage))
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = handle
    gateway = make_keyed()
    key = gateway.make_key("hasty")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with requests.post(f"{gateway.url}/v1/chat/completions", json=body, headers=key, stream=True) as reply:
        for line in reply.iter_lines():
            if b"finish_reason" in line:
                break
    threading.Timer(0.6, left.set).start()  # the watcher has seen it go, and the two seconds are not over
    (row,) = gateway.wait_for_rows(1, key="hasty")
    assert (row["outcome"], row["cost_ticks"], row["estimated"]) == ("client_abort", 2_550_000_000, False)


def test_readers_of_one_answer_see_the_same_end(make_keyed: Gateways, charging: ChargingUpstream) -> None:
    """A kept stream whose budget is used up is not run a second time, and ends alike for all."""
    gateway = make_keyed(XAI_API_BASE=charging.base_url)
    key = gateway.make_key("sharer", budget_day=0.02) | {"Idempotency-Key": "one"}
    body = make_body("sharer", 50_000, 0, stream=True)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: ask(gateway, key, body).text, range(2))
    assert one == two
    assert "insufficient_quota" in one.split("data: ")[-1]
    assert len(gateway.wait_for_rows(1, key="sharer")) == 1
