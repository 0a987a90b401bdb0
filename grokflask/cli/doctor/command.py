"""`flask --app wsgi doctor`: checks everything that the gateway needs, and says what to do.

It also works with broken settings, and reports them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click
from flask import current_app
from flask.cli import with_appcontext

from grokflask.cli.caller import Caller, find_key, is_safe, read_url
from grokflask.cli.doctor.findings import Finding, print_findings, redact
from grokflask.cli.doctor.place import check_modes, check_place
from grokflask.cli.doctor.stores import (
    check_database,
    check_files,
    check_keys,
    check_redis,
    check_secrets,
    check_settings,
)
from grokflask.cli.doctor.upstream import check_key, check_upstream
from grokflask.cli.doctor.url import MAX_SILENCE_S, SILENCE_S, check_silence, check_url
from grokflask.cli.group import as_json, silence_log
from grokflask.cli.tables import print_json
from grokflask.config import Settings
from grokflask.errors import ConfigError
from grokflask.log import MIN_SECRET_CHARS


@click.command("doctor")
@click.option(
    "--url", metavar="URL", help="Also check the running gateway at the address that its clients use."
)
@click.option(
    "--key",
    metavar="KEY",
    help="The key to call it with [default: GROKFLASK_KEY, then the first of GROKFLASK_KEYS, then, over "
    "https or to this machine, GROKFLASK_ADMIN_TOKEN].",
)
@click.option(
    "--long",
    "silence_s",
    type=click.FloatRange(0.1, MAX_SILENCE_S),
    is_flag=False,
    flag_value=SILENCE_S,
    metavar="[SECONDS]",
    help=f"With --url: also check that a stream survives this much silence [default: {SILENCE_S:g}].",
)
@as_json
@with_appcontext
def doctor(url: str | None, key: str | None, silence_s: float | None, as_json: bool) -> None:
    """Check settings, upstream, Redis and database, and say what to do. Exits with 1 if a check fails."""
    settings: Settings | None = current_app.extensions.get("settings")
    address = read_url(url, 8000) if url else None
    if silence_s and not address:
        raise click.UsageError("--long needs --url.")
    found_key = find_key(key, settings)
    if not found_key and settings and address and is_safe(address):
        found_key = settings.admin_token
    with silence_log("grokflask"):  # the findings say the same
        findings = [*_check_here(settings), *_check_there(address, found_key, silence_s)]
    secrets = {*(settings.secrets if settings else ()), found_key or ""}
    findings = redact(findings, [text for text in secrets if len(text) >= MIN_SECRET_CHARS])
    has_failed = any(each.state == "FAIL" for each in findings)
    if as_json:
        print_json({"healthy": not has_failed, "findings": [asdict(each) for each in findings]})
    else:
        print_findings(findings)
    sys.exit(has_failed)


def _check_here(settings: Settings | None) -> Iterator[Finding]:
    """Checks from this machine with these settings, which are None if broken."""
    if settings is None:
        error: ConfigError = current_app.extensions["config_error"]
        yield from check_settings(os.environ, error.problems)
        yield Finding("stores", "skipped", "upstream, Redis, database and keys, until the settings are right")
        return
    yield from check_settings(os.environ, [])
    yield check_key(settings)
    yield from check_upstream(settings)
    yield from check_redis(settings)
    yield from check_database(settings, current_app.extensions["database"])
    yield from check_place(settings, os.environ)
    yield check_modes(settings)
    yield check_keys(settings, current_app.extensions["key_store"])
    yield from check_secrets(settings)
    counters = "Redis" if settings.redis_url else "memory"
    yield Finding("workers", "ok", f"{settings.workers}, counting in {counters}")
    yield check_files(settings)


def _check_there(address: str | None, key: str | None, silence_s: float | None) -> Iterator[Finding]:
    """Checks through the address of a running gateway."""
    if address is None:
        yield Finding("url", "skipped", "not given", "--url https://your.gateway checks proxies in front.")
        return
    with Caller(address, key) as caller:
        yield from check_url(caller)
        if silence_s:
            yield check_silence(caller, silence_s)
