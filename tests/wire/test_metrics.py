"""/metrics of real workers: any worker returns the sums of all, and counts outlive their worker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
from support.figures import Samples, parse_figures
from support.processes import CLIENT_KEY, ROOT, UPSTREAM_KEY, GatewayServer, RedisServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.stores import ADMIN, ADMIN_TOKEN, KeyedGateway

ALICE = {"Authorization": f"Bearer {CLIENT_KEY}"}
CHAT = "/api/v1/chat/completions"
COUNTERS = re.compile(
    r"grokflask_(requests|refused|exchanges|tokens|cost_usd|upstream_errors|heartbeats)_total"
)


def scrape(url: str) -> Samples:
    """The samples of the worker that accepts this new connection."""
    reply = requests.get(f"{url}/metrics", headers={**ADMIN, "Connection": "close"}, timeout=WAIT_S)
    assert reply.status_code == 200, reply.text
    return parse_figures(reply.text)


def pick(figures: Samples, *, but: str = "route=metrics") -> Samples:
    """The counters, except those of the scrapes themselves."""
    return {
        name: value for name, value in figures.items() if COUNTERS.match(name) and but not in name and value
    }


def is_shown_by_all(url: str, expected: Callable[[Samples], bool]) -> bool:
    """Whether ten scrapes, spread over the workers, all are as expected."""
    return all(expected(scrape(url)) for _ in range(10))


def ask(url: str, key: dict[str, str], **body: Any) -> requests.Response:
    """One request on its own connection, read to the end."""
    return requests.post(
        f"{url}{CHAT}",
        json={"messages": [{"role": "user", "content": "hello"}], **body},
        headers={**key, "Connection": "close"},
        timeout=WAIT_S,
    )


def act(exchange: Exchange) -> None:
    """Answers as the model's name demands."""
    model = exchange.document["model"]
    if model == "busy":
        exchange.reply({"error": "too many"}, 429)
    elif model == "cut":
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.reset()
    elif model == "endless":
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.wait_until_left()
    elif model.startswith("odd"):
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost_in_usd_ticks": 10**9}
        exchange.reply({"model": model, "choices": [{"message": {"content": "x"}}], "usage": usage})
    else:
        answer_chat(exchange)


def find_workers(server: GatewayServer) -> list[int]:
    """The processes of the live workers."""
    text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_sums_of_two_workers(
    make_keyed: Callable[..., KeyedGateway], redis_server: RedisServer, upstream: ScriptedUpstream
) -> None:
    """Exact on any worker, and equal to the ledger; a killed worker's counts stay, its gauges go."""
    upstream.handler = act
    gateway = make_keyed(
        REDIS_URL=redis_server.url,
        WEB_CONCURRENCY="2",
        GROKFLASK_HEARTBEAT_S="0.2",
        GROKFLASK_METRICS_KEYS="1",
    )
    url = gateway.url
    key = gateway.make_key("bob")
    heartbeats = 0
    for _ in range(8):
        reply = ask(url, key, stream=True)
        assert reply.text.endswith("data: [DONE]\n\n")
        heartbeats += reply.text.count(": keep-alive\n")
    for number in range(30):
        assert ask(url, key, model=f'odd"{number}\\').status_code == 200
    assert [ask(url, key, model="busy").status_code for _ in range(4)] == [429] * 4
    for _ in range(3):
        heartbeats += ask(url, key, model="cut", stream=True).text.count(": keep-alive\n")
    assert [ask(url, {"Authorization": "Bearer no"}).status_code for _ in range(5)] == [401] * 5
    exchanges = {"complete": 38, "upstream_error": 4, "truncated": 3}

    def is_all(figures: Samples) -> bool:
        ended = {
            outcome: figures.get(f"grokflask_exchanges_total{{outcome={outcome},route=chat}}")
            for outcome in exchanges
        }
        return ended == exchanges and figures["grokflask_workers"] == 2

    wait_for(lambda: is_shown_by_all(url, is_all), "all workers to tell of all exchanges")
    rows = gateway.wait_for_rows(45)
    figures = scrape(url)
    assert figures["grokflask_requests_total{route=chat,status=200}"] == 41
    assert figures["grokflask_requests_total{route=chat,status=401}"] == 5
    assert figures["grokflask_refused_total{code=invalid_api_key}"] == 5
    assert figures["grokflask_upstream_errors_total{kind=status_429}"] == 4
    assert figures["grokflask_upstream_errors_total{kind=stream_broken}"] == 3
    assert figures["grokflask_heartbeats_total"] == heartbeats
    assert figures["grokflask_key_exchanges_total{key=bob,outcome=complete}"] == 38
    costs = [value for name, value in figures.items() if name.startswith("grokflask_cost_usd_total")]
    assert round(sum(costs) * 10**10) == sum(row["cost_ticks"] or 0 for row in rows)
    assert len(costs) <= 2 * 20 + 2
    prompts = [
        value for name, value in figures.items() if name.startswith("grokflask_tokens_total{kind=prompt,")
    ]
    assert sum(prompts) == sum(row["prompt_tokens"] or 0 for row in rows)
    assert figures["grokflask_exchange_duration_seconds_count{stream=false}"] == 34
    assert figures["grokflask_redis_up"] == figures["grokflask_database_up"] == 1
    _kill_workers(gateway, key)


def _kill_workers(gateway: KeyedGateway, key: dict[str, str]) -> None:
    """Kills both, one after the other, with open streams."""
    streams = [
        requests.post(
            f"{gateway.url}{CHAT}",
            json={"model": "endless", "messages": [{"role": "user", "content": "x"}], "stream": True},
            headers=key,
            timeout=WAIT_S,
            stream=True,
        )
        for _ in range(6)
    ]
    beats = [stream.iter_content(None) for stream in streams]
    for stream in beats:
        next(stream)
    wait_for(
        lambda: is_shown_by_all(gateway.url, lambda told: told["grokflask_open_streams"] == 6),
        "six open streams",
    )
    kept = {name: value for name, value in pick(scrape(gateway.url)).items() if "heartbeats" not in name}
    first, second = find_workers(gateway.server)
    for worker in (first, second):
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda gone=worker: gone not in find_workers(gateway.server), "a worker to be gone")  # type: ignore[misc]
        wait_for(
            lambda: is_shown_by_all(gateway.url, lambda told: told["grokflask_workers"] == 2),
            "another worker",
        )
    for stream in streams:
        stream.close()
    figures = scrape(gateway.url)
    assert figures["grokflask_open_streams"] == figures["grokflask_open_exchanges"] == 0
    assert {name: figures[name] for name in kept} == kept
    wait_for(lambda: ask(gateway.url, key).status_code == 200, "the new workers to serve")
    name = "grokflask_exchanges_total{outcome=complete,route=chat}"
    wait_for(
        lambda: is_shown_by_all(gateway.url, lambda told: told[name] == kept[name] + 1),
        "a count that goes on",
    )


@contextlib.contextmanager
def start_alone(tmp_path: Path, upstream: ScriptedUpstream, *options: str) -> Iterator[GatewayServer]:
    """gunicorn with one worker and options of the command line."""
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
        "GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN,
    }
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), *options, "wsgi:app"]
    server = GatewayServer(tmp_path, env, command)
    try:
        yield server
    finally:
        server.stop()


def test_workers_that_come_and_go(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With `--max-requests` counts continue in the same files; the server removes them at its end."""
    folder = tmp_path / "figures"
    folder.mkdir()
    with start_alone(tmp_path, upstream, "--max-requests", "6", "--worker-tmp-dir", str(folder)) as server:
        asked = 0

        def has_been_replaced() -> bool:
            nonlocal asked
            assert ask(server.url, ALICE).status_code == 200
            asked += 1
            return len(server.find_lines("Booting worker")) >= 4

        wait_for(has_been_replaced, "three workers to have gone")
        name = "grokflask_exchanges_total{outcome=complete,route=chat}"
        wait_for(lambda: scrape(server.url).get(name) == asked, "all exchanges to be told")
        slots = {path.stem.rpartition("_")[2] for path in folder.glob("grokflask-metrics-*/*.db")}
        assert slots <= {"0", "1"}
    assert list(folder.glob("grokflask-metrics-*")) == []


def test_without_a_place_for_the_figures(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A server without a writable temporary directory starts, and its worker shows its own counts."""
    with start_alone(tmp_path, upstream, "--config", str(_write_config(tmp_path))) as server:
        assert ask(server.url, ALICE).status_code == 200
        figures = scrape(server.url)
        assert figures["grokflask_exchanges_total{outcome=complete,route=chat}"] == 1
        assert "no directory for the metrics" in server.log


def _write_config(tmp_path: Path) -> Path:
    """The project's configuration, with a `tempfile` that finds no room."""
    path = tmp_path / "full.conf.py"
    lines = [
        f"exec(compile(open({str(ROOT / 'gunicorn.conf.py')!r}).read(), 'gunicorn.conf.py', 'exec'))",
        "from grokflask.server import metric_slots",
        "def _find_no_room(**_):",
        "    raise OSError(28, 'No space left on device')",
        "metric_slots.tempfile = type('tempfile', (), {'mkdtemp': staticmethod(_find_no_room)})",
    ]
    path.write_text("\n".join(lines))
    return path
