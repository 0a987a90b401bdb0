"""The services of one app, built from its settings and tied together. No Flask, no logic.

Nothing is opened or started here: connections are made when they are first used, and `background` is started
by the server or by the first request.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grokflask.background import Background
from grokflask.clients import ClientWatcher
from grokflask.config import Settings
from grokflask.counters import Counters
from grokflask.custody import Custody
from grokflask.db import Database
from grokflask.errors import StoreUnavailableError
from grokflask.gateway import Gateway
from grokflask.key_store import KeyStore
from grokflask.keys import KeyRing
from grokflask.ledger_writer import LedgerWriter
from grokflask.limits import Limits
from grokflask.memory_counters import MemoryCounters
from grokflask.metrics import Metrics
from grokflask.metrics_states import read_states
from grokflask.metrics_tallies import Tallies
from grokflask.ownership import Ownership
from grokflask.reconciliation import check_counters
from grokflask.recordings import Recordings
from grokflask.replay import Replays
from grokflask.reports import Drift, read_spent
from grokflask.shared_recordings import SharedRecordings
from grokflask.upstream import UpstreamClient

if TYPE_CHECKING:
    from redis import ConnectionPool


@dataclass(frozen=True)
class Services:
    """What views and commands find in `app.extensions`, under these names."""

    settings: Settings
    upstream: UpstreamClient
    clients: ClientWatcher
    database: Database
    key_store: KeyStore
    keys: KeyRing
    redis_pool: ConnectionPool | None
    counters: Counters
    ledger_writer: LedgerWriter
    limits: Limits
    ownership: Ownership
    tallies: Tallies
    metrics: Metrics
    background: Background
    gateway: Gateway
    replays: Replays
    checks: list[Callable[[bool], list[Drift]]]


def build_services(settings: Settings, upstream_url: str) -> Services:
    """All services of an app in front of `upstream_url`."""
    upstream = UpstreamClient(
        upstream_url,
        connect_timeout_s=settings.connect_timeout_s,
        header_timeout_s=settings.first_event_timeout_s,
        pool_size=settings.worker_connections,
    )
    clients = ClientWatcher()
    database = Database(settings.database_url)
    key_store = KeyStore(database, [name for name, _ in settings.keys])
    pool = _open_pool(settings.redis_url) if settings.redis_url else None
    counters = _make_counters(settings, pool)
    writer = LedgerWriter(
        database,
        worker=f"{socket.gethostname()}-{secrets.token_hex(6)}",
        retention_days=settings.retention_days,
        on_lost=lambda rows: limits.charge(rows),
    )

    def write_rows() -> None:
        # What this worker has not written yet; others' rows are FLUSH_S old at the most.
        if writer.state == "away" or not writer.flush():
            raise StoreUnavailableError

    def find_spent(key: str, day: str) -> tuple[int, int]:
        write_rows()
        return read_spent(database, key.removeprefix("key:"), day)

    def let_rows_arrive(seconds: float) -> None:
        time.sleep(seconds)
        write_rows()  # a ledger that lacks some would set the counters too low

    def catch_up() -> None:
        check_counters(counters, database, repair=True, sleep=let_rows_arrive)

    limits = Limits(
        settings,
        counters,
        shared=pool is not None,
        worker=lambda: writer.worker,
        find_spent=find_spent,
        stop=lambda ids: gateway.exchanges.stop(ids),
        catch_up=None if pool else catch_up,
    )
    ownership = Ownership(database)
    tallies = Tallies(by_key=settings.metrics_keys)
    gateway = Gateway(upstream, clients, limits, writer, Custody(ownership), settings, tallies=tallies)
    metrics = Metrics(tallies, lambda: read_states(settings, gateway.exchanges, database, limits, writer))
    recordings = _make_recordings(settings, pool, lambda: writer.worker)
    replays = Replays(gateway, recordings, clients, settings)
    return Services(
        settings=settings,
        upstream=upstream,
        clients=clients,
        database=database,
        key_store=key_store,
        keys=KeyRing(settings, key_store),
        redis_pool=pool,
        counters=counters,
        ledger_writer=writer,
        limits=limits,
        ownership=ownership,
        tallies=tallies,
        metrics=metrics,
        background=Background(replays, limits, writer, metrics),
        gateway=gateway,
        replays=replays,
        checks=[lambda repair: check_counters(counters, database, repair=repair)],
    )


# Redis' client is imported where there is a Redis: it takes 6 MiB, and a tenth of a second at each start.


def _open_pool(url: str) -> ConnectionPool:
    from grokflask.redis_pool import open_pool

    return open_pool(url)


def _make_counters(settings: Settings, pool: ConnectionPool | None) -> Counters:
    if pool is None:
        return MemoryCounters(capacity=settings.max_exchanges, fair_share=settings.fair_share)
    from redis import Redis

    from grokflask.redis_counters import RedisCounters

    redis = Redis(connection_pool=pool)
    return RedisCounters(redis, capacity=settings.max_exchanges, fair_share=settings.fair_share)


def _make_recordings(
    settings: Settings, pool: ConnectionPool | None, worker: Callable[[], str]
) -> Recordings | SharedRecordings:
    total_bytes, keep_s = settings.replay_total_bytes, settings.replay_keep_s
    kept_here_s = keep_s if pool is None else 0
    own = Recordings(max_bytes=settings.replay_bytes, total_bytes=total_bytes, keep_s=kept_here_s)
    if pool is None:
        return own
    from redis import Redis

    from grokflask.redis_recordings import RedisRecordings

    store = RedisRecordings(Redis(connection_pool=pool))
    return SharedRecordings(own, store, total_bytes=total_bytes, keep_s=keep_s, worker=worker)
