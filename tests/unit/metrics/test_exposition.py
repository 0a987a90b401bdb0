"""Metrics: what is counted, what is told of it, and how workers tell of each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.figures import Samples, parse_figures

from grokflask.errors import Outcome
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.metrics import families
from grokflask.metrics.exposition import Metrics
from grokflask.metrics.families import Dated, Figures
from grokflask.metrics.tallies import (
    BATCH_WRITES,
    CODES,
    LIMIT_CODES,
    MAX_KEYS,
    MAX_MODELS,
    Deliveries,
    Tallies,
)

NO_STATES: Figures = {}


def make_row(outcome: str = "complete", **fields: object) -> LedgerRow:
    row = LedgerRow(make_id(), "r1", "alice", "chat", "grok-4.3", 1000.0, outcome=outcome, status=200)
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def read(tallies: Tallies, states: Figures = NO_STATES) -> Samples:
    """What a process that shares nothing tells."""
    return parse_figures(Metrics(tallies, lambda: states).render().decode())


def test_an_exchange_is_counted() -> None:
    """Outcome, tokens by kind, cost in USD, times; what is not known of it adds nothing."""
    tallies = Tallies()
    tallies.settled.append(
        make_row(
            stream=True,
            model_served="grok-4.3",
            prompt_tokens=12,
            cached_tokens=4,
            completion_tokens=64,
            reasoning_tokens=8,
            total_tokens=84,
            cost_ticks=12_345_678_901,
            ttft_ms=300,
            duration_ms=2_000,
        )
    )
    tallies.settled.append(make_row("client_abort", model_served=None, duration_ms=10))
    figures = read(tallies)
    assert figures["grokflask_exchanges_total{outcome=complete,route=chat}"] == 1
    assert figures["grokflask_exchanges_total{outcome=client_abort,route=chat}"] == 1
    for kind, number in (("prompt", 12), ("cached", 4), ("completion", 64), ("reasoning", 8)):
        assert figures[f"grokflask_tokens_total{{kind={kind},model=grok-4.3}}"] == number
    assert figures["grokflask_cost_usd_total{model=grok-4.3}"] == 1.2345678901
    assert figures["grokflask_time_to_first_event_seconds_bucket{le=0.25}"] == 0
    assert figures["grokflask_time_to_first_event_seconds_bucket{le=0.5}"] == 1
    assert figures["grokflask_time_to_first_event_seconds_count"] == 1
    assert figures["grokflask_exchange_duration_seconds_sum{stream=true}"] == 2
    assert figures["grokflask_exchange_duration_seconds_count{stream=false}"] == 1
    assert not any(name.startswith("grokflask_key_") for name in figures)


def test_figures_go_on() -> None:
    """What has been told is counted further, not anew; nothing is counted twice by being told."""
    tallies = Tallies()
    name = "grokflask_requests_total{route=chat,status=200}"
    for number in (1, 2, 3):
        tallies.answered.append(("chat", 200, None))
        assert read(tallies)[name] == number
    assert read(tallies)[name] == 3


def test_refusals_are_counted_by_code() -> None:
    """The gateway's own codes, limits among them from the start; anything else is `other`."""
    tallies = Tallies()
    tallies.answered.extend([("chat", 429, "rate_limit_exceeded")] * 3)
    tallies.answered.extend([("none", 404, "not_found"), ("chat", 400, "made-up"), ("chat", 502, None)])
    figures = read(tallies)
    assert figures["grokflask_refused_total{code=rate_limit_exceeded}"] == 3
    assert figures["grokflask_refused_total{code=not_found}"] == 1
    assert figures["grokflask_refused_total{code=other}"] == 1
    assert figures["grokflask_requests_total{route=chat,status=429}"] == 3
    assert figures["grokflask_refused_total{code=too_many_streams}"] == 0
    assert set(LIMIT_CODES) <= CODES


@pytest.mark.parametrize(
    ("outcome", "code", "status", "kind"),
    [
        ("upstream_error", "upstream_unreachable", 502, "upstream_unreachable"),
        ("truncated", "stream_broken", 200, "stream_broken"),
        ("timeout", "idle_timeout", 200, "idle_timeout"),
        ("upstream_error", "rate_limit_exceeded", 429, "status_429"),
        ("upstream_error", "upstream_error", 503, "status_503"),
        ("upstream_error", 'odd"code\n', 200, "in_stream"),
        ("upstream_error", "x", 99, "in_stream"),
    ],
)
def test_upstream_errors_are_counted_by_kind(outcome: str, code: str, status: int, kind: str) -> None:
    """By the gateway's own name for them or upstream's status: its codes are any text."""
    tallies = Tallies()
    tallies.settled.append(make_row(outcome, code=code, status=status))
    figures = read(tallies)
    assert figures[f"grokflask_upstream_errors_total{{kind={kind}}}"] == 1
    assert sum(value for name, value in figures.items() if "upstream_errors_total" in name) == 1


@pytest.mark.parametrize(
    ("rows", "up"),
    [
        ([("client_abort", None)], None),
        ([("timeout", "first_event_timeout")], None),
        ([("complete", None)], 1),
        ([("upstream_error", "upstream_error")], 1),
        ([("complete", None), ("upstream_error", "upstream_unreachable")], 0),
        ([("timeout", "connect_timeout"), ("client_abort", None)], 0),
        ([("upstream_error", "upstream_unreachable"), ("complete", None)], 1),
    ],
)
def test_whether_upstream_is_there(rows: list[tuple[str, str | None]], up: int | None) -> None:
    """As the last exchange has found it that could tell; unknown before that."""
    tallies = Tallies()
    for number, (outcome, code) in enumerate(rows):
        tallies.settled.append(make_row(outcome, code=code, started_at=1000.0 + number, duration_ms=1))
    assert read(tallies).get("grokflask_upstream_up") == up


def test_names_from_outside_are_bounded() -> None:
    """So many models and keys have a series of their own; however they are called, they can be read."""
    tallies = Tallies(by_key=True)
    for number in range(500):
        name = f'm{number}"\\\n{{}}é'
        tallies.settled.append(
            make_row(key=f"k{number}", model_served=name, prompt_tokens=1, cost_ticks=10**10)
        )
    text = Metrics(tallies, lambda: NO_STATES).render().decode()
    figures = parse_figures(text)
    costs = {name: value for name, value in figures.items() if name.startswith("grokflask_cost_usd_total")}
    assert len(costs) == MAX_MODELS + 1
    assert costs["grokflask_cost_usd_total{model=other}"] == 500 - MAX_MODELS
    keys = [value for name, value in figures.items() if name.startswith("grokflask_key_cost_usd_total")]
    assert (len(keys), sum(keys)) == (MAX_KEYS + 1, 500)
    assert figures["grokflask_key_exchanges_total{key=k0,outcome=complete}"] == 1


def test_delays_of_a_stream() -> None:
    """Each write counts once; prompt ones are told together, at the end at the latest."""
    tallies = Tallies()
    deliveries = Deliveries(tallies)
    for _ in range(BATCH_WRITES + 1):
        deliveries.note(0.0005)
    deliveries.note(0.3)
    deliveries.note_heartbeat()
    figures = read(tallies)
    assert figures["grokflask_event_delay_seconds_bucket{le=0.001}"] == BATCH_WRITES
    assert figures["grokflask_event_delay_seconds_bucket{le=0.5}"] == BATCH_WRITES + 1
    assert figures["grokflask_heartbeats_total"] == 1
    deliveries.report()
    deliveries.report()
    figures = read(tallies)
    assert figures["grokflask_event_delay_seconds_count"] == BATCH_WRITES + 2
    assert figures["grokflask_event_delay_seconds_sum"] == pytest.approx((BATCH_WRITES + 1) * 0.0005 + 0.3)


def test_nothing_is_lost_among_threads() -> None:
    """Notes from many threads, while others read, are all counted, once."""
    tallies = Tallies()
    metrics = Metrics(tallies, lambda: NO_STATES)

    def note() -> None:
        for _ in range(2_000):
            tallies.answered.append(("chat", 200, None))
            tallies.note_heartbeat()

    def look() -> None:
        for _ in range(20):
            metrics.render()

    threads = [threading.Thread(target=target) for target in (note, look) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = parse_figures(metrics.render().decode())
    assert figures["grokflask_requests_total{route=chat,status=200}"] == 8_000
    assert figures["grokflask_heartbeats_total"] == 8_000


Share = Callable[..., Metrics]


@pytest.fixture
def share() -> Iterator[Share]:
    """Makes workers' metrics that share a directory."""
    made: list[Metrics] = []

    def make(directory: Path, slot: int, tallies: Tallies, states: Figures = NO_STATES) -> Metrics:
        made.append(Metrics(tallies, lambda: states))
        made[-1].share(str(directory), slot)
        return made[-1]

    yield make
    for metrics in made:
        metrics.close(5)


def test_workers_tell_of_each_other(tmp_path: Path, share: Share) -> None:
    """Any of them tells the sums of counts, histograms and gauges; states as each family's mode says."""
    tallies = [Tallies(), Tallies()]
    states: list[Figures] = [
        {
            families.OPEN_STREAMS: {(): 3},
            families.DATABASE_UP: {(): 1},
            families.UPSTREAM_UP: {(): Dated(0, 5)},
        },
        {
            families.OPEN_STREAMS: {(): 4},
            families.DATABASE_UP: {(): 0},
            families.UPSTREAM_UP: {(): Dated(1, 6)},
        },
    ]
    workers = [share(tmp_path, number, tallies[number], states[number]) for number in (0, 1)]
    for number in (0, 1):
        tallies[number].settled.extend([make_row(duration_ms=700, cost_ticks=10**10, model_served="m")] * 2)
        workers[number].render()
    seen = [parse_figures(worker.render().decode()) for worker in workers]
    assert seen[0] == seen[1]
    assert seen[0]["grokflask_exchanges_total{outcome=complete,route=chat}"] == 4
    assert seen[0]["grokflask_exchange_duration_seconds_bucket{le=1.0,stream=false}"] == 4
    assert seen[0]["grokflask_exchange_duration_seconds_bucket{le=0.5,stream=false}"] == 0
    assert seen[0]["grokflask_exchange_duration_seconds_count{stream=false}"] == 4
    assert seen[0]["grokflask_cost_usd_total{model=m}"] == 4
    assert seen[0]["grokflask_open_streams"] == 7
    assert seen[0]["grokflask_database_up"] == 0
    assert seen[0]["grokflask_upstream_up"] == 1


def test_shared_or_not_it_says_the_same(tmp_path: Path, share: Share) -> None:
    """One worker's text is the same with a directory and without, to the last sample."""
    tallies = Tallies(by_key=True)
    tallies.settled.append(
        make_row(duration_ms=700, ttft_ms=20, cost_ticks=5, model_served="m", total_tokens=2)
    )
    tallies.answered.append(("chat", 200, None))
    states: Figures = {families.OPEN_STREAMS: {(): 1}, families.BUILD: {("1", "3.11"): 1}}
    alone = parse_figures(Metrics(tallies, lambda: states).render().decode())
    assert parse_figures(share(tmp_path, 0, tallies, states).render().decode()) == alone


def test_the_next_worker_of_a_slot_counts_on(tmp_path: Path, share: Share) -> None:
    """Counts outlive their worker, in as many files as before; only gauges begin anew."""
    for number in (1, 2, 3):
        tallies = Tallies()
        tallies.settled.append(make_row(duration_ms=5))
        metrics = share(tmp_path, 0, tallies, {families.OPEN_STREAMS: {(): 2}})
        figures = parse_figures(metrics.render().decode())
        assert figures["grokflask_exchanges_total{outcome=complete,route=chat}"] == number
        assert figures["grokflask_exchange_duration_seconds_count{stream=false}"] == number
        assert figures["grokflask_open_streams"] == 2
        files = {path.name for path in tmp_path.iterdir()}
    assert {name.rpartition("_")[2] for name in files} == {"0.db"}


def test_without_a_directory_it_tells_of_itself(tmp_path: Path, share: Share) -> None:
    """A directory that has gone, or cannot be written, costs the sums, not the answer."""
    tallies = Tallies()
    tallies.answered.append(("chat", 200, None))
    figures = parse_figures(share(tmp_path / "gone", 0, tallies).render().decode())
    assert figures["grokflask_requests_total{route=chat,status=200}"] == 1


def test_the_last_figures_are_brought_when_it_closes(tmp_path: Path, share: Share) -> None:
    """What was counted just before the end is in the files, for others to tell."""
    tallies = Tallies()
    metrics = share(tmp_path, 0, tallies)
    metrics.start()
    metrics.start()
    tallies.answered.append(("chat", 200, None))
    metrics.close(5)
    metrics.close(5)
    other = parse_figures(share(tmp_path, 1, Tallies()).render().decode())
    assert other["grokflask_requests_total{route=chat,status=200}"] == 1


def test_outcomes_begin_at_zero() -> None:
    """An alert on a rate sees the first step as well."""
    figures = read(Tallies())
    for outcome in set(Outcome) - {Outcome.LOST, Outcome.REFUSED}:
        assert figures[f"grokflask_exchanges_total{{outcome={outcome.value},route=chat}}"] == 0
