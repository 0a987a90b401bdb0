"""The doctor's look at what the gateway leans on: settings, Redis, the database, keys, open files."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, text

from grokflask.cli.doctor.findings import Finding
from grokflask.config import Settings, find_unknown
from grokflask.errors import StoreUnavailableError
from grokflask.keys.store import KeyStore
from grokflask.storage.database import Database
from grokflask.storage.migrations import is_current

SLOW_MS = 50
SPARE_DESCRIPTORS = 100
CLIENT_SETTINGS = ("GROKFLASK_KEY",)
"""Read by the commands that call a gateway, not by the gateway."""


def check_settings(environ: Mapping[str, str], problems: list[str]) -> Iterator[Finding]:
    """Every problem of the settings, and names that are none."""
    for problem in problems:
        yield Finding("settings", "FAIL", problem, "docs/settings.md describes each setting.")
    for warning in find_unknown(environ):
        if warning.split(" ", 1)[0] not in CLIENT_SETTINGS:
            yield Finding(
                "settings", "warn", warning, "Correct or remove it; docs/settings.md lists them all."
            )
    if not problems:
        yield Finding("settings", "ok", "they can work together")


def check_redis(settings: Settings) -> Iterator[Finding]:
    """It answers, and does not forget counters when it is full."""
    if settings.redis_url is None:
        yield Finding("redis", "skipped", "none is set: the one worker counts in its memory")
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
            f"it cannot be used: {error}",
            "Start it, or correct REDIS_URL (rediss:// is TLS). Until then the settings "
            "GROKFLASK_…_OUTAGE say what each limit does.",
        )
        return
    finally:
        pool.disconnect()
    told = f"version {version}, {took_ms:.1f} ms (connecting {connected_ms:.0f} ms)"
    yield Finding(
        "redis",
        "ok" if took_ms < SLOW_MS else "warn",
        told,
        "" if took_ms < SLOW_MS else "Put it nearer: each request waits for it.",
    )
    if refusal:
        remedy = "REDIS_URL must lead to a primary with room, and a user who may write and run scripts."
        yield Finding("redis", "FAIL", f"it takes no writes: {refusal}", remedy)
    yield judge_eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)))


def _try_writing(client: Any) -> str:
    """Why a script may write no key, which is gone again at once; "" when it may."""
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
    """Whether a full Redis would forget counters."""
    remedy = "Set maxmemory-policy noeviction."
    if not policy:
        return Finding("eviction", "skipped", "Redis does not tell its maxmemory-policy", remedy)
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction")
    told = f"maxmemory-policy is {policy}: a full Redis would forget counters, and limits would begin anew"
    return Finding("eviction", "FAIL" if policy.startswith("allkeys") and max_bytes else "warn", told, remedy)


def check_database(settings: Settings, database: Database) -> Iterator[Finding]:
    """It answers, its tables are up to date (the first use makes them so), and it can be written to."""
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
            f"it cannot be used: {detail[:300]}",
            "Check DATABASE_URL, that the server runs or the folder can be written to, and its disk.",
        )
        return
    kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    state = "up to date" if current else "not up to date"
    yield Finding(
        "database",
        "ok" if current and took_ms < SLOW_MS else "warn",
        f"{kind}, tables {state}, can be written to, {took_ms:.1f} ms",
        "" if current else "Run flask --app wsgi db upgrade.",
    )
    if database.is_sqlite and "DYNO" in os.environ:
        yield Finding(
            "database",
            "FAIL",
            "a SQLite file on Heroku vanishes with each restart, with all keys",
            "heroku addons:create heroku-postgresql sets DATABASE_URL.",
        )


def _touch(connection: Connection) -> None:
    """A write that changes nothing, and that a database which takes no writes refuses."""
    connection.execute(text("UPDATE schema_version SET version = version WHERE version < 0"))


def check_keys(settings: Settings, store: KeyStore) -> Finding:
    """Somebody may call, and not everybody."""
    if settings.auth_mode == "passthrough":
        return Finding("keys", "ok", "clients bring their own xAI keys")
    if settings.auth_mode == "open":
        if settings.uses_sandbox:
            return Finding("keys", "ok", "open to anybody, on the sandbox")
        return Finding(
            "keys",
            "warn",
            "GROKFLASK_AUTH=open: anybody who reaches the gateway spends your money",
            "Set GROKFLASK_AUTH=keys, and make keys.",
        )
    try:
        now = time.time()
        stored = [key for key in store.list() if key.to_fields(now)["status"] == "active"]
    except StoreUnavailableError:
        return Finding(
            "keys", "skipped", f"{len(settings.keys)} in GROKFLASK_KEYS, the database's are unknown"
        )
    count = len(settings.keys) + len(stored)
    if not count:
        return Finding(
            "keys",
            "warn",
            "there are none: every call gets a 401",
            "flask --app wsgi keys create NAME makes one.",
        )
    return Finding("keys", "ok", f"{count} may be used")


def check_workers(settings: Settings) -> Finding:
    """Several workers share their counters (the settings refuse anything else)."""
    where = "Redis" if settings.redis_url else "memory"
    return Finding("workers", "ok", f"{settings.workers}, counting in {where}")


def check_files(settings: Settings) -> Finding:
    """There are descriptors for the connections of a worker: a stream takes two."""
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
