"""Checks what the gateway depends on: settings, Redis, the database, keys, open files."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from grokflask.cli.doctor.findings import Finding, State
from grokflask.config import Settings, find_unknown
from grokflask.errors import StoreUnavailableError
from grokflask.keys.store import KeyStore
from grokflask.storage.database import Database
from grokflask.storage.migrations import is_current

SLOW_MS = 50
SPARE_DESCRIPTORS = 100
WRITE_SQL = "UPDATE schema_version SET version = version WHERE version < 0"
WRITE_SCRIPT = "redis.call('SET', KEYS[1], '1', 'EX', 10) return redis.call('DEL', KEYS[1])"


def check_settings(environ: Mapping[str, str], problems: list[str]) -> Iterator[Finding]:
    """Reports every problem of the settings, and unknown names."""
    finding = partial(Finding, "settings")
    for problem in problems:
        yield finding("FAIL", problem, "docs/settings.md describes each setting.")
    for warning in find_unknown(environ):
        if not warning.startswith("GROKFLASK_KEY "):  # of the commands that call a gateway
            yield finding("warn", warning, "Correct or remove it; docs/settings.md lists them all.")
    if not problems:
        yield finding("ok", "no problems")


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Checks that Redis answers, accepts writes, and does not evict counters."""
    finding = partial(Finding, "redis")
    if settings.redis_url is None:
        yield finding("skipped", "not configured: the only worker counts in memory")
        return
    from redis import Redis, RedisError, ResponseError

    from grokflask.storage.redis import open_pool

    pool = open_pool(settings.redis_url)
    try:
        client = Redis(connection_pool=pool)
        began = time.monotonic()
        client.ping()
        connected_ms = (time.monotonic() - began) * 1000
        began = time.monotonic()
        client.ping()
        took_ms = (time.monotonic() - began) * 1000
        info: Any = client.info()
        try:
            client.eval(WRITE_SCRIPT, 1, f"grokflask:doctor:{secrets.token_hex(6)}")
        except ResponseError as error:
            remedy = (
                "REDIS_URL must name a primary with free memory and a user that may write and run scripts."
            )
            yield finding("FAIL", f"it refuses writes: {error}", remedy)
    except RedisError as error:
        remedy = "Start it, or correct REDIS_URL (rediss:// is TLS). Until then the settings "
        remedy += "GROKFLASK_…_OUTAGE say what each limit does."
        yield finding("FAIL", f"not usable: {error}", remedy)
        return
    finally:
        pool.disconnect()
    version = info.get("redis_version", "unknown")
    text = f"version {version}, {took_ms:.1f} ms (connecting {connected_ms:.0f} ms)"
    if took_ms < SLOW_MS:
        yield finding("ok", text)
    else:
        yield finding("warn", text, "Move it closer: each request waits for it.")
    yield judge_eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)))


def judge_eviction(policy: str, max_bytes: int) -> Finding:
    """Whether a full Redis would evict counters."""
    finding = partial(Finding, "eviction")
    remedy = "Set maxmemory-policy noeviction."
    if not policy:
        return finding("skipped", "Redis does not report its maxmemory-policy", remedy)
    if policy == "noeviction":
        return finding("ok", "maxmemory-policy is noeviction")
    text = f"maxmemory-policy is {policy}: a full Redis would evict counters and reset limits"
    state: State = "FAIL" if policy.startswith("allkeys") and max_bytes else "warn"
    return finding(state, text, remedy)


def check_database(settings: Settings, database: Database) -> Iterator[Finding]:
    """Checks that the database answers, has current tables (the first use updates them) and is writable."""
    finding = partial(Finding, "database")
    try:
        database.upgrade()
        began = time.monotonic()
        current = database.read(is_current)
        took_ms = (time.monotonic() - began) * 1000
        # Changes nothing, but fails on a read-only database.
        database.write(lambda connection: connection.exec_driver_sql(WRITE_SQL))
    except StoreUnavailableError as error:
        remedy = "Check DATABASE_URL, that the server runs or the folder is writable, and the disk."
        yield finding("FAIL", f"not usable: {error.detail}", remedy)
        return
    text = f"writable, {took_ms:.1f} ms"
    kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    if current:
        yield finding("ok" if took_ms < SLOW_MS else "warn", f"{kind}, tables up to date, {text}")
    else:
        yield finding("warn", f"{kind}, tables not up to date, {text}", "Run flask --app wsgi db upgrade.")
    if database.is_sqlite and "DYNO" in os.environ:
        text = "a SQLite file on Heroku is lost with each restart, with all keys"
        yield finding("FAIL", text, "heroku addons:create heroku-postgresql sets DATABASE_URL.")


def check_keys(settings: Settings, store: KeyStore) -> Finding:
    """Checks that there are keys, and that strangers cannot call."""
    finding = partial(Finding, "keys")
    if settings.auth_mode == "passthrough":
        return finding("ok", "clients bring their own xAI keys")
    if settings.auth_mode == "open":
        if settings.uses_sandbox:
            return finding("ok", "open to everyone, on the sandbox")
        text = "GROKFLASK_AUTH=open: everyone who can reach the gateway spends your money"
        return finding("warn", text, "Set GROKFLASK_AUTH=keys and create keys.")
    try:
        now = time.time()
        stored = [key for key in store.list() if key.to_fields(now)["status"] == "active"]
    except StoreUnavailableError:
        text = f"{len(settings.keys)} in GROKFLASK_KEYS; those of the database are unknown"
        return finding("skipped", text)
    count = len(settings.keys) + len(stored)
    if not count:
        text = "there are no keys: every call gets a 401"
        return finding("warn", text, "Create one: flask --app wsgi keys create NAME")
    return finding("ok", f"{count} active")


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Checks that nobody can guess the tokens and the keys of the settings."""
    warnings = settings.find_weak_secrets()
    for warning in warnings:
        text, _, remedy = warning.partition(": ")
        yield Finding("secrets", "warn", text, remedy.capitalize() + ".")
    if not warnings:
        yield Finding("secrets", "ok", "tokens and GROKFLASK_KEYS are long enough")


def check_files(settings: Settings) -> Finding:
    """Checks the limit of open files: a stream takes two."""
    finding = partial(Finding, "open files")
    try:
        import resource
    except ImportError:
        return finding("skipped", "this system has no such limit")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = 2 * settings.worker_connections + SPARE_DESCRIPTORS
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return finding("ok", f"room for {settings.worker_connections} connections a worker")
    room = max(1, (hard - SPARE_DESCRIPTORS) // 2)
    text = f"the limit of {hard} has room for {room} connections a worker, not {settings.worker_connections}"
    remedy = f"Raise it to {needed} (ulimit -n, LimitNOFILE=), or set GROKFLASK_WORKER_CONNECTIONS={room}."
    return finding("warn", text, remedy)
