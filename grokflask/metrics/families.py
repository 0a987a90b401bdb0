"""The table of metrics that /metrics exposes. No IO.

Every label has a bounded number of values, whatever clients send.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from grokflask.errors import GrokflaskError, Outcome, UpstreamError

WAIT_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
LOOP_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DELAY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)

Kind = Literal["counter", "gauge", "histogram"]
Mode = Literal["livesum", "livemin", "livemax", "livemostrecent"]


@dataclass(frozen=True, eq=False, slots=True)
class Family:
    """One metric with all its labels."""

    #: Without the `_total` that a counter's samples have.
    name: str
    kind: Kind
    help: str
    #: Names of the labels.
    labels: tuple[str, ...] = ()
    #: Upper bounds of a histogram's buckets, without the infinite one.
    bounds: tuple[float, ...] = ()
    #: How prometheus_client combines a gauge of all live workers.
    mode: Mode = "livesum"


Labels = tuple[str, ...]
"""Values of a family's labels, in the order of their names."""

States = dict[Family, dict[Labels, float]]
"""Current gauges, and counters since the start of the process."""

FAMILIES: list[Family] = []
"""Every metric, in the order in which /metrics shows them."""


def _add(kind: Kind, name: str, help: str, *labels: str, **options: Any) -> Family:
    FAMILIES.append(Family(f"grokflask_{name}", kind, help, labels, **options))
    return FAMILIES[-1]


_counter = partial(_add, "counter")
_gauge = partial(_add, "gauge")
_histogram = partial(_add, "histogram")

REQUESTS = _counter("requests", "Requests answered, by route and status.", "route", "status")
REFUSED = _counter("refused", "Requests that the gateway itself refused, by error code.", "code")
EXCHANGES = _counter(
    "exchanges", "Finished exchanges with upstream, by route and outcome.", "route", "outcome"
)
UPSTREAM_ERRORS = _counter("upstream_errors", "Exchanges that upstream failed, by kind.", "kind")
TOKENS = _counter("tokens", "Tokens, by the model that served and by kind.", "model", "kind")
COST = _counter("cost_usd", "Cost of exchanges in USD, by the model that served.", "model")
FIRST_EVENT = _histogram(
    "time_to_first_event_seconds", "Time from a stream's request to its first event.", bounds=WAIT_BOUNDS_S
)
DURATION = _histogram(
    "exchange_duration_seconds",
    "Time from a request to the end of its answer.",
    "stream",
    bounds=WAIT_BOUNDS_S,
)
EVENT_DELAY = _histogram(
    "event_delay_seconds",
    "Time from reading bytes from upstream to having written them to the client, once per write.",
    bounds=DELAY_BOUNDS_S,
)
LOOP_DELAY = _histogram(
    "loop_delay_seconds",
    "Time that an event had to wait for the event loop, sampled ten times a second.",
    bounds=LOOP_BOUNDS_S,
)
HEARTBEATS = _counter("heartbeats", "Comment lines sent to keep silent streams alive.")
OPEN_STREAMS = _gauge("open_streams", "Streams that are open now.")
OPEN_EXCHANGES = _gauge("open_exchanges", "Exchanges that are open now, including streams.")
CAPACITY = _gauge("capacity_exchanges", "Exchanges that may be open at once.")
WORKERS = _gauge("workers", "Live workers.")
DRAINING = _gauge("draining_workers", "Workers that finish their streams before they exit.")
DATABASE_UP = _gauge("database_up", "0 while a worker cannot use the database.", mode="livemin")
REDIS_UP = _gauge("redis_up", "0 while a worker cannot use Redis; missing without Redis.", mode="livemin")
UPSTREAM_UP = _gauge(
    "upstream_up",
    "Whether the last exchange reached upstream; missing before the first.",
    mode="livemostrecent",
)
OUTAGES = _counter("outages", "Outages of a store, counted by each worker.", "store")
LEDGER_QUEUED = _gauge("ledger_queued_rows", "Rows that are not in the database yet.")
LEDGER_ROWS = _counter("ledger_rows", "Rows of the ledger that were dropped, refused or lost.", "fate")
THREAD_FAILURES = _counter("thread_failures", "Errors that background threads have outlived.", "thread")
SETTLEMENTS = _gauge("settlements_waiting", "Settlements that are not counted in Redis yet.")
KEY_EXCHANGES = _counter("key_exchanges", "Finished exchanges, by key name and outcome.", "key", "outcome")
KEY_TOKENS = _counter("key_tokens", "All tokens used, by key name.", "key")
KEY_COST = _counter("key_cost_usd", "Cost of exchanges in USD, by key name.", "key")
BUILD = _gauge("build_info", "The running version; always 1.", "version", "python", mode="livemax")


def _list_codes(root: type[GrokflaskError]) -> Iterator[str]:
    yield root.code
    for error in root.__subclasses__():
        yield from _list_codes(error)


UPSTREAM_KINDS = frozenset(_list_codes(UpstreamError)) - {UpstreamError.code}
CODES = frozenset(_list_codes(GrokflaskError)) - UPSTREAM_KINDS - {UpstreamError.code}
"""Codes of the gateway's own errors."""

LIMIT_CODES = (
    "rate_limit_exceeded token_limit_exceeded too_many_streams fair_share_exceeded insufficient_quota "
    "gateway_full"
).split()

SEEDS: list[tuple[Family, Labels]] = [
    *((REFUSED, (code,)) for code in (*LIMIT_CODES, "invalid_api_key")),
    *((EXCHANGES, ("chat", each.value)) for each in Outcome if each not in (Outcome.LOST, Outcome.REFUSED)),
    *((UPSTREAM_ERRORS, (kind,)) for kind in sorted(UPSTREAM_KINDS)),
    *((DURATION, (stream,)) for stream in ("true", "false")),
    *((family, ()) for family in (FIRST_EVENT, EVENT_DELAY, LOOP_DELAY, HEARTBEATS)),
]
"""Series that start at 0. An alert on a rate does not see the first step of a series that appears later."""
