"""The table of metrics: what /metrics tells, and under which names. No IO.

Labels are few, and none of them can have more than a bounded number of values, whatever clients send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WAIT_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
DELAY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


@dataclass(frozen=True, eq=False, slots=True)
class Family:
    """One metric with all its labels.

    Attributes:
        name: without the `_total` that a counter's samples have.
        labels: their names.
        bounds: of a histogram's buckets, without the last, which is infinity.
        mode: how a gauge is made of those of all workers that live, in prometheus_client's words.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    mode: Literal["livesum", "livemin", "livemax", "livemostrecent"] = "livesum"


@dataclass(slots=True)
class Distribution:
    """What a histogram has counted: one count for each bucket, not added up, and one for all beyond."""

    counts: list[int]
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Dated:
    """A gauge's figure that was known at a moment (UTC, epoch seconds): of several the latest holds."""

    value: float
    at: float


Figures = dict[Family, dict[tuple[str, ...], float | Distribution | Dated]]
"""Figures by their labels' values."""


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(f"grokflask_{name}", "counter", help, labels)


REQUESTS = _counter("requests", "Requests answered, by route and status.", "route", "status")
REFUSED = _counter("refused", "Requests that the gateway itself turned away, by its error's code.", "code")
EXCHANGES = _counter(
    "exchanges", "Exchanges with upstream that have ended, by route and outcome.", "route", "outcome"
)
UPSTREAM_ERRORS = _counter("upstream_errors", "Exchanges that upstream failed, by kind.", "kind")
TOKENS = _counter("tokens", "Tokens, by the model that served and by kind.", "model", "kind")
COST = _counter("cost_usd", "What exchanges have cost, in USD, by the model that served.", "model")
HEARTBEATS = _counter("heartbeats", "Comment lines sent to keep silent streams alive.")
OUTAGES = _counter("outages", "How often a worker has found a store away.", "store")
LEDGER_ROWS = _counter("ledger_rows", "Rows of the ledger that did not come in as they should.", "fate")
KEY_EXCHANGES = _counter(
    "key_exchanges", "Exchanges that have ended, by the key's name and outcome.", "key", "outcome"
)
KEY_TOKENS = _counter("key_tokens", "All tokens used, by the key's name.", "key")
KEY_COST = _counter("key_cost_usd", "What exchanges have cost, in USD, by the key's name.", "key")

FIRST_EVENT = Family(
    "grokflask_time_to_first_event_seconds",
    "histogram",
    "From a stream's request to its first event.",
    bounds=WAIT_BOUNDS_S,
)
DURATION = Family(
    "grokflask_exchange_duration_seconds",
    "histogram",
    "From a request to the end of its answer.",
    ("stream",),
    bounds=WAIT_BOUNDS_S,
)
EVENT_DELAY = Family(
    "grokflask_event_delay_seconds",
    "histogram",
    "From bytes read from upstream to their having been written to the client, one for each write.",
    bounds=DELAY_BOUNDS_S,
)

WORKERS = Family("grokflask_workers", "gauge", "Workers that live.")
BUILD = Family(
    "grokflask_build_info", "gauge", "The version that runs, always 1.", ("version", "python"), mode="livemax"
)
OPEN_EXCHANGES = Family("grokflask_open_exchanges", "gauge", "Exchanges that are open now, streams included.")
OPEN_STREAMS = Family("grokflask_open_streams", "gauge", "Streams that are open now.")
CAPACITY = Family("grokflask_capacity_exchanges", "gauge", "Exchanges that may be open at once.")
DRAINING = Family("grokflask_draining_workers", "gauge", "Workers that finish their streams before they end.")
DATABASE_UP = Family(
    "grokflask_database_up", "gauge", "0 while a worker finds the database away.", mode="livemin"
)
REDIS_UP = Family(
    "grokflask_redis_up", "gauge", "0 while a worker finds Redis away; missing without Redis.", mode="livemin"
)
UPSTREAM_UP = Family(
    "grokflask_upstream_up",
    "gauge",
    "Whether the last exchange reached upstream; missing before the first.",
    mode="livemostrecent",
)
LEDGER_QUEUED = Family("grokflask_ledger_queued_rows", "gauge", "Rows that are not in the database yet.")
SETTLEMENTS = Family(
    "grokflask_settlements_waiting", "gauge", "Settlements that wait for Redis, to be counted there."
)

FAMILIES = (
    *(REQUESTS, REFUSED, EXCHANGES, UPSTREAM_ERRORS, TOKENS, COST, FIRST_EVENT, DURATION, EVENT_DELAY),
    *(HEARTBEATS, OPEN_STREAMS, OPEN_EXCHANGES, CAPACITY, WORKERS, DRAINING, DATABASE_UP, REDIS_UP),
    *(UPSTREAM_UP, OUTAGES, LEDGER_QUEUED, LEDGER_ROWS, SETTLEMENTS, KEY_EXCHANGES, KEY_TOKENS, KEY_COST),
    BUILD,
)
"""All of them, in the order in which they are told."""
