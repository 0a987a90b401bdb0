"""Metrics: what is counted, what /metrics shows of it, and how workers answer for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.values import close_all_multiprocess_files
from support.figures import Samples, parse_figures

from grokflask.errors import Outcome
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.metrics import families
from grokflask.metrics.exposition import Metrics
from grokflask.metrics.families import CODES, FAMILIES, LIMIT_CODES, States
from grokflask.metrics.tallies import (
    BATCH_WRITES,
    MAX_KEYS,
    MAX_MODELS,
    Deliveries,
    Tallies,
)

NO_STATES: States = {}


def make_row(outcome: str = "complete", **fields: object) -> LedgerRow:
    row = LedgerRow(make_id(), "r1", "alice", "chat", "grok-4.3", 1000.0, outcome=outcome, status=200)
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def read(metrics: Metrics | Tallies) -> Samples:
    """The samples of a process; with tallies alone, of one that shares nothing."""
    if isinstance(metrics, Tallies):
        metrics = Metrics(metrics, lambda: NO_STATES)
    return parse_figures(metrics.render().decode())


def test_an_exchange_is_counted() -> None:
    """By outcome, tokens, cost in USD and duration; unknown values add nothing."""
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


def test_each_note_is_counted_once() -> None:
    """Counts continue after a scrape, and a scrape adds nothing to them."""
    tallies = Tallies()
    metrics = Metrics(tallies, lambda: NO_STATES)
    name = "grokflask_requests_total{route=chat,status=200}"
    for number in (1, 2, 3):
        tallies.answered.append(("chat", 200, None))
        assert read(metrics)[name] == number
    assert read(metrics)[name] == 3


def test_counts_kept_elsewhere() -> None:
    """A counter among the states is set, not added up; a gauge follows its state."""
    states: States = {families.OUTAGES: {("redis",): 0}, families.LEDGER_QUEUED: {(): 7}}
    metrics = Metrics(Tallies(), lambda: states)
    for outages, queued in ((0, 7), (2, 0), (2, 3)):
        states[families.OUTAGES]["redis",] = outages
        states[families.LEDGER_QUEUED][()] = queued
        figures = read(metrics)
        assert figures["grokflask_outages_total{store=redis}"] == outages
        assert figures["grokflask_ledger_queued_rows"] == queued


def test_refusals_are_counted_by_code() -> None:
    """By the gateway's own codes; limits start at 0, and any other code is `other`."""
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
    """By the gateway's own name or upstream's status, because upstream's codes can be any text."""
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
def test_whether_upstream_can_be_reached(rows: list[tuple[str, str | None]], up: int | None) -> None:
    """The last exchange that shows it decides; before that the gauge is missing."""
    tallies = Tallies()
    for number, (outcome, code) in enumerate(rows):
        tallies.settled.append(make_row(outcome, code=code, started_at=1000.0 + number, duration_ms=1))
    assert read(tallies).get("grokflask_upstream_up") == up


def test_names_from_outside_are_bounded() -> None:
    """Only a bounded number of models and keys get a series of their own, and any name can be parsed."""
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
    """Each write counts once; prompt ones are counted in batches, the last when the stream ends."""
    tallies = Tallies()
    metrics = Metrics(tallies, lambda: NO_STATES)
    deliveries = Deliveries(tallies)
    for _ in range(BATCH_WRITES + 1):
        deliveries.note(0.0005)
    deliveries.note(0.3)
    deliveries.note_heartbeat()
    figures = read(metrics)
    assert figures["grokflask_event_delay_seconds_bucket{le=0.001}"] == BATCH_WRITES
    assert figures["grokflask_event_delay_seconds_bucket{le=0.5}"] == BATCH_WRITES + 1
    assert figures["grokflask_heartbeats_total"] == 1
    deliveries.report()
    deliveries.report()
    figures = read(metrics)
    assert figures["grokflask_event_delay_seconds_count"] == BATCH_WRITES + 2
    assert figures["grokflask_event_delay_seconds_sum"] == pytest.approx((BATCH_WRITES + 1) * 0.0005 + 0.3)


def test_nothing_is_lost_among_threads() -> None:
    """Notes from many threads are counted exactly once, also while other threads scrape."""
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
def share(monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    """Makes workers' metrics that share a directory."""
    made: list[Metrics] = []
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nonexistent")  # what sharing sets ends with the test

    def make(directory: Path, slot: int, tallies: Tallies, states: States = NO_STATES) -> Metrics:
        made.append(Metrics(tallies, lambda: states))
        made[-1].share(str(directory), slot)
        return made[-1]

    yield make
    for metrics in made:
        metrics.close(5)
    close_all_multiprocess_files()  # type: ignore[no-untyped-call]


def test_workers_answer_for_each_other(tmp_path: Path, share: Share) -> None:
    """Any worker returns the sums of all; gauges are combined by their family's mode."""
    tallies = [Tallies(), Tallies()]
    states: list[States] = [
        {
            families.OPEN_STREAMS: {(): 3},
            families.DATABASE_UP: {(): 1},
        },
        {
            families.OPEN_STREAMS: {(): 4},
            families.DATABASE_UP: {(): 0},
        },
    ]
    workers = [share(tmp_path, number, tallies[number], states[number]) for number in (0, 1)]
    for number in (0, 1):
        row = make_row(duration_ms=700, cost_ticks=10**10, model_served="m", started_at=1000.0 + number)
        tallies[number].settled.extend([row] * 2)
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
    row = make_row("upstream_error", code="upstream_unreachable", started_at=1002.0)
    tallies[0].settled.append(row)
    workers[0].render()
    assert read(workers[1])["grokflask_upstream_up"] == 0


def test_one_worker_shows_the_same_shared_or_not(tmp_path: Path, share: Share) -> None:
    """One worker's text is the same with a directory and without, to the last sample."""
    states: States = {families.OPEN_STREAMS: {(): 1}, families.BUILD: {("1", "3.11"): 1}}
    tallies = [Tallies(by_key=True), Tallies(by_key=True)]
    for each in tallies:
        each.settled.append(
            make_row(duration_ms=700, ttft_ms=20, cost_ticks=5, model_served="m", total_tokens=2)
        )
        each.answered.append(("chat", 200, None))
    alone = Metrics(tallies[0], lambda: states).render().decode()
    shared = share(tmp_path, 0, tallies[1], states).render().decode()
    assert parse_figures(shared) == parse_figures(alone)
    heads = [[line for line in text.splitlines() if line.startswith("# ")] for text in (shared, alone)]
    assert heads[0] == heads[1]


def test_apps_in_one_process_are_apart(tmp_path: Path, share: Share) -> None:
    """Each app counts for itself, in its memory or in its own server's directory."""
    tallies = [Tallies() for _ in range(4)]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    apps = [
        *(Metrics(each, lambda: NO_STATES) for each in tallies[:2]),
        *(share(folder, 0, each) for folder, each in zip(folders, tallies[2:], strict=True)),
    ]
    for number, each in enumerate(tallies, start=1):
        each.answered.extend([("chat", 200, None)] * number)
        each.settled.append(make_row())
    name = "grokflask_requests_total{route=chat,status=200}"
    assert [read(app)[name] for app in apps] == [1, 2, 3, 4]
    assert [read(app)["grokflask_upstream_up"] for app in apps] == [1] * 4


def test_files_are_allocated_ahead(tmp_path: Path, share: Share) -> None:
    """The disk has room for all counters when the worker starts, and no file is added or grows."""

    def measure() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_size, path.stat().st_blocks * 512) for path in tmp_path.iterdir()}

    tallies = Tallies(by_key=True)
    states: States = {family: {(): 1} for family in FAMILIES if family.kind == "gauge" and not family.labels}
    metrics = share(tmp_path, 3, tallies, states)
    allocated = measure()
    assert all(size > 0 and room >= size for size, room in allocated.values())
    for number in range(2 * MAX_KEYS):
        name = f"{number:04d}".ljust(64, "x")  # as long as a key's name may be
        for outcome in Outcome:
            tallies.settled.append(
                make_row(outcome.value, key=name, model_served=name, cost_ticks=1, prompt_tokens=1, ttft_ms=1)
            )
    metrics.render()
    assert measure().keys() == allocated.keys(), "prometheus_client names its files in another way now"
    assert {name: size for name, (size, _) in measure().items()} == {
        name: size for name, (size, _) in allocated.items()
    }


def test_the_next_worker_of_a_slot_continues_its_counts(tmp_path: Path, share: Share) -> None:
    """Counts outlive their worker, in the same files; only gauges start anew."""
    for number in (1, 2, 3):
        tallies = Tallies()
        tallies.settled.append(make_row(duration_ms=5, cost_ticks=3, model_served="m"))
        states: States = {families.OPEN_STREAMS: {(): 2}, families.OUTAGES: {("redis",): 1}}
        metrics = share(tmp_path, 0, tallies, states)
        metrics.render()
        figures = parse_figures(metrics.render().decode())
        assert figures["grokflask_exchanges_total{outcome=complete,route=chat}"] == number
        assert figures["grokflask_exchange_duration_seconds_count{stream=false}"] == number
        assert figures["grokflask_cost_usd_total{model=m}"] == pytest.approx(3e-10 * number)
        assert figures["grokflask_outages_total{store=redis}"] == number
        assert figures["grokflask_open_streams"] == 2
        files = {path.name for path in tmp_path.iterdir()}
    assert {name.rpartition("_")[2] for name in files} == {"0.db"}


def test_without_a_directory_a_worker_shows_its_own(tmp_path: Path, share: Share) -> None:
    """Without a usable directory the worker still answers, with its own counts."""
    tallies = Tallies()
    tallies.answered.append(("chat", 200, None))
    figures = parse_figures(share(tmp_path / "gone", 0, tallies).render().decode())
    assert figures["grokflask_requests_total{route=chat,status=200}"] == 1


def test_closing_updates_the_files(tmp_path: Path, share: Share) -> None:
    """Counts from just before the end are in the files, where other workers find them."""
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


def test_stalls_of_the_last_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones are forgotten; without a watchdog nothing is said."""
    tallies = Tallies()
    assert tallies.sum_up_stalls() is None
    tallies.note_loop_delay(0.01)
    assert tallies.sum_up_stalls() == {"stalls": 0, "worst_ms": 0}
    tallies.note_loop_delay(0.3)
    tallies.note_loop_delay(2.0)
    assert tallies.sum_up_stalls() == {"stalls": 2, "worst_ms": 2000}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    assert tallies.sum_up_stalls() == {"stalls": 0, "worst_ms": 0}
