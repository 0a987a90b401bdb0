"""Checks what the gateway depends on: settings, Redis, the database, keys, open files."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, text

from grokflask.cli.doctor.findings import Finding, State
from grokflask.config import Settings, find_unknown
from grokflask.errors import StoreUnavailableError
from grokflask.keys.store import KeyStore
from grokflask.storage.database import Database
from grokflask.storage.migrations import is_current

SLOW_MS = 50
SPARE_DESCRIPTORS = 100
CLIENT_SETTINGS = ("GROKFLASK_KEY",)
"""Settings of the commands that call a gateway."""


def check_settings(environ: Mapping[str, str], problems: list[str]) -> Iterator[Finding]:
    """Reports every problem of the settings, and unknown names."""
    for problem in problems:
        yield Finding("settings", "FAIL", problem, "docs/settings.md describes each setting.")
    for warning in find_unknown(environ):
        if warning.split(" ", 1)[0] not in CLIENT_SETTINGS:
            yield Finding(
                "settings", "warn", warning, "Correct or remove it; docs/settings.md lists them all."
            )
    if not problems:
        yield Finding("settings", "ok", "no problems")


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Checks that Redis answers, accepts writes, and does not evict counters."""
    if settings.redis_url is None:
        yield Finding("redis", "skipped", "not configured: the only worker counts in memory")
        return
    from redis import Redis, RedisError

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
        version = info.get("redis_version", "unknown")
        refusal = _try_writing(client)
    except RedisError as error:
        yield Finding(
            "redis",
            "FAIL",
            f"not usable: {error}",
            "Start it, or correct REDIS_URL (rediss:// is TLS). Until then the settings "
            "GROKFLASK_…_OUTAGE say what each limit does.",
        )
        return
    finally:
        pool.disconnect()
    summary = f"version {version}, {took_ms:.1f} ms (connecting {connected_ms:.0f} ms)"
    yield Finding(
        "redis",
        "ok" if took_ms < SLOW_MS else "warn",
        summary,
        "" if took_ms < SLOW_MS else "Move it closer: each request waits for it.",
    )
    if refusal:
        remedy = "REDIS_URL must name a primary with free memory and a user that may write and run scripts."
        yield Finding("redis", "FAIL", f"it refuses writes: {refusal}", remedy)
    yield judge_eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)))


def _try_writing(client: Any) -> str:
    """The error of a script that writes and deletes a key, or ""."""
    from redis import RedisError
    from redis.exceptions import ConnectionError as AwayError

    script = "redis.call('SET', KEYS[1], '1', 'EX', 10) return redis.call('DEL', KEYS[1])"
    try:
        client.eval(script, 1, f"grokflask:doctor:{secrets.token_hex(6)}")
    except AwayError:
        raise
    except RedisError as error:
        return str(error)
    return ""


def judge_eviction(policy: str, max_bytes: int) -> Finding:
    """Whether a full Redis would evict counters."""
    remedy = "Set maxmemory-policy noeviction."
    if not policy:
        return Finding("eviction", "skipped", "Redis does not report its maxmemory-policy", remedy)
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction")
    found = f"maxmemory-policy is {policy}: a full Redis would evict counters and reset limits"
    state: State = "FAIL" if policy.startswith("allkeys") and max_bytes else "warn"
    return Finding("eviction", state, found, remedy)


def check_database(settings: Settings, database: Database) -> Iterator[Finding]:
    """Checks that the database answers, has current tables (the first use updates them) and is writable."""
    began = time.monotonic()
    try:
        database.upgrade()
        began = time.monotonic()
        current = database.read(is_current)
        took_ms = (time.monotonic() - began) * 1000
        database.write(_touch)
    except StoreUnavailableError as error:
        cause = error.__cause__
        detail = str(getattr(cause, "orig", None) or cause or error)
        yield Finding(
            "database",
            "FAIL",
            f"not usable: {detail[:300]}",
            "Check DATABASE_URL, that the server runs or the folder is writable, and the disk.",
        )
        return
    kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    state = "up to date" if current else "not up to date"
    yield Finding(
        "database",
        "ok" if current and took_ms < SLOW_MS else "warn",
        f"{kind}, tables {state}, writable, {took_ms:.1f} ms",
        "" if current else "Run flask --app wsgi db upgrade.",
    )
    if database.is_sqlite and "DYNO" in os.environ:
        yield Finding(
            "database",
            "FAIL",
            "a SQLite file on Heroku is lost with each restart, with all keys",
            "heroku addons:create heroku-postgresql sets DATABASE_URL.",
        )


def _touch(connection: Connection) -> None:
    """A write that changes nothing, but fails on a read-only database."""
    connection.execute(text("UPDATE schema_version SET version = version WHERE version < 0"))


def check_keys(settings: Settings, store: KeyStore) -> Finding:
    """Checks that there are keys, and that strangers cannot call."""
    if settings.auth_mode == "passthrough":
        return Finding("keys", "ok", "clients bring their own xAI keys")
    if settings.auth_mode == "open":
        if settings.uses_sandbox:
            return Finding("keys", "ok", "open to everyone, on the sandbox")
        return Finding(
            "keys",
            "warn",
            "GROKFLASK_AUTH=open: everyone who can reach the gateway spends your money",
            "Set GROKFLASK_AUTH=keys and create keys.",
        )
    try:
        now = time.time()
        stored = [key for key in store.list() if key.to_fields(now)["status"] == "active"]
    except StoreUnavailableError:
        return Finding(
            "keys", "skipped", f"{len(settings.keys)} in GROKFLASK_KEYS; those of the database are unknown"
        )
    count = len(settings.keys) + len(stored)
    if not count:
        return Finding(
            "keys",
            "warn",
            "there are no keys: every call gets a 401",
            "Create one: flask --app wsgi keys create NAME",
        )
    return Finding("keys", "ok", f"{count} active")


def check_workers(settings: Settings) -> Finding:
    """Reports the workers. Several share their counters, or the settings are refused."""
    where = "Redis" if settings.redis_url else "memory"
    return Finding("workers", "ok", f"{settings.workers}, counting in {where}")


def check_files(settings: Settings) -> Finding:
    """Checks the limit of open files: a stream takes two."""
    try:
        import resource
    except ImportError:
        return Finding("open files", "skipped", "this system has no such limit")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = 2 * settings.worker_connections + SPARE_DESCRIPTORS
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding("open files", "ok", f"room for {settings.worker_connections} connections a worker")
    room = max(1, (hard - SPARE_DESCRIPTORS) // 2)
    return Finding(
        "open files",
        "warn",
        f"the limit of {hard} has room for {room} connections a worker, not {settings.worker_connections}",
        f"Raise it to {needed} (ulimit -n, LimitNOFILE= of systemd), or set GROKFLASK_WORKER_CONNECTIONS "
        f"to {room}.",
    )
