"""The services of one app, built from its settings and tied together. No Flask, no logic.

Nothing is opened or started here: connections are made when they are first used, and `background` is started
by the server or by the first request.
"""

from __future__ import annotations

import logging
import platform
import secrets
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grokflask.config import Settings
from grokflask.delivery.clients import ClientWatcher
from grokflask.errors import StoreUnavailableError
from grokflask.gateway import Gateway
from grokflask.kept.custody import Custody
from grokflask.kept.ownership import Ownership
from grokflask.keys.ring import KeyRing
from grokflask.keys.store import KeyStore
from grokflask.ledger.reports import Drift, read_spent
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits.admission import Limits
from grokflask.limits.counters import Counters
from grokflask.limits.healing import Healer
from grokflask.limits.memory import MemoryCounters
from grokflask.limits.reconciliation import check_counters
from grokflask.metrics import families
from grokflask.metrics.exposition import Metrics
from grokflask.metrics.families import States
from grokflask.metrics.tallies import Tallies
from grokflask.register import OpenExchanges
from grokflask.replay.idempotency import Idempotency
from grokflask.replay.recordings import Recordings
from grokflask.runtime import VERSION, Background, failures
from grokflask.storage.database import Database
from grokflask.storage.outages import TimeLimits
from grokflask.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from redis import ConnectionPool

_log = logging.getLogger("grokflask.limits")


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
    healer: Healer
    ownership: Ownership
    tallies: Tallies
    metrics: Metrics
    background: Background
    gateway: Gateway
    idempotency: Idempotency
    checks: list[Callable[[bool], list[Drift]]]


def build_services(settings: Settings, upstream_url: str, upstream_key: str | None = None) -> Services:
    """All services of an app in front of `upstream_url`, whose key may differ from the settings'."""
    upstream = UpstreamClient(
        upstream_url,
        connect_timeout_s=settings.connect_timeout_s,
        header_timeout_s=settings.first_event_timeout_s + 1.0,  # after the relay's own deadline
        pool_size=settings.worker_connections,
    )
    clients = ClientWatcher()
    database = _make_database(settings)
    key_store = KeyStore(database, [name for name, _ in settings.keys])
    pool = _open_pool(settings.redis_url) if settings.redis_url else None
    counters = _make_counters(settings, pool)
    exchanges = OpenExchanges(settings.max_exchanges, settings.max_bodies_bytes)
    name = f"{socket.gethostname()}-{secrets.token_hex(6)}"
    writer = LedgerWriter(database, worker=name, retention_days=settings.retention_days)
    limits, healer = _make_limits(settings, counters, database, writer, exchanges)
    ownership = Ownership(database)
    tallies = Tallies(by_key=settings.metrics_keys)
    gateway = Gateway(upstream, clients, limits, writer, Custody(ownership), settings, exchanges, tallies)
    metrics = Metrics(tallies, lambda: read_states(settings, exchanges, database, limits, writer))
    recordings = _make_recordings(settings, pool, lambda: writer.worker)
    idempotency = Idempotency(gateway, recordings, clients, settings, limits)
    return Services(
        settings=settings,
        upstream=upstream,
        clients=clients,
        database=database,
        key_store=key_store,
        keys=KeyRing(settings, key_store, upstream_key=upstream_key),
        redis_pool=pool,
        counters=counters,
        ledger_writer=writer,
        limits=limits,
        healer=healer,
        ownership=ownership,
        tallies=tallies,
        metrics=metrics,
        background=Background(idempotency, limits, healer, writer, metrics),
        gateway=gateway,
        idempotency=idempotency,
        checks=[lambda repair: check_counters(counters, database, repair=repair)],
    )


def _make_database(settings: Settings) -> Database:
    limits = TimeLimits(settings.database_connect_timeout_s, settings.database_read_timeout_s)
    return Database(settings.database_url, limits)


def _make_limits(
    settings: Settings,
    counters: Counters,
    database: Database,
    writer: LedgerWriter,
    exchanges: OpenExchanges,
) -> tuple[Limits, Healer]:
    def find_spent(key: str, day: str) -> tuple[int, int]:
        # Writes this worker's queued rows first. Other workers write theirs within FLUSH_S.
        if writer.state == "away" or not writer.flush():
            raise StoreUnavailableError
        return read_spent(database, key.removeprefix("key:"), day)

    def heal(keys: Collection[str]) -> None:
        # Not lowered: what is counted and not in the ledger yet must not be lost.
        for drift in check_counters(counters, database, repair=True, keys=keys, lowers=False):
            fields = {"key": drift.key, "period": drift.day, "was": drift.stored, "is": drift.actual}
            _log.warning("a key's spending was raised to what the ledger has", extra={"fields": fields})

    healer = Healer(heal, settings.grace_s)
    limits = Limits(
        settings,
        counters,
        shared=bool(settings.redis_url),
        worker=lambda: writer.worker,
        find_spent=find_spent,
        stop=exchanges.stop,
        healer=healer,
    )
    writer.on_lost = limits.charge
    return limits, healer


# Redis' client is imported where there is a Redis: it takes 6 MiB, and a tenth of a second at each start.


def _open_pool(url: str) -> ConnectionPool:
    from grokflask.storage.redis import open_pool

    return open_pool(url)


def _make_counters(settings: Settings, pool: ConnectionPool | None) -> Counters:
    if pool is None:
        return MemoryCounters(capacity=settings.max_exchanges, fair_share=settings.fair_share)
    from redis import Redis

    from grokflask.limits.redis import RedisCounters

    redis = Redis(connection_pool=pool)
    return RedisCounters(redis, capacity=settings.max_exchanges, fair_share=settings.fair_share)


def _make_recordings(
    settings: Settings, pool: ConnectionPool | None, worker: Callable[[], str]
) -> Recordings:
    store = None
    if pool is not None:
        from redis import Redis

        from grokflask.replay.redis import RedisRecordings

        store = RedisRecordings(Redis(connection_pool=pool), worker)
    return Recordings(
        max_bytes=settings.replay_bytes,
        total_bytes=settings.replay_total_bytes,
        keep_s=settings.replay_keep_s,
        store=store,
    )


def read_states(
    settings: Settings, exchanges: OpenExchanges, database: Database, limits: Limits, writer: LedgerWriter
) -> States:
    """Current values for /metrics: open exchanges, stores, the ledger's queue. Queries no store."""
    store = limits.state
    states: States = {
        families.BUILD: {(VERSION, platform.python_version()): 1},
        families.WORKERS: {(): 1},
        families.DRAINING: {(): int(exchanges.draining)},
        families.OPEN_EXCHANGES: {(): len(exchanges)},
        families.OPEN_STREAMS: {(): len(exchanges.streams)},
        families.CAPACITY: {(): settings.max_exchanges},
        families.DATABASE_UP: {(): int(database.state != "away")},
        families.LEDGER_QUEUED: {(): writer.queued},
        families.LEDGER_ROWS: {
            ("dropped",): writer.dropped,
            ("refused",): writer.refused,
            ("lost",): writer.lost,
        },
        families.THREAD_FAILURES: {(name,): number for name, number in list(failures.items())},
        families.SETTLEMENTS: {(): store.waiting},
        families.OUTAGES: {("database",): database.outages},
    }
    if settings.redis_url:
        states[families.REDIS_UP] = {(): int(store.store != "local")}
        states[families.OUTAGES][("redis",)] = store.outages
    return states
