"""Checks upstream: the xAI key's format, each step of the connection, and the clocks."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from grokflask.cli.doctor.findings import Finding
from grokflask.config import XAI_API_BASE, Settings
from grokflask.upstream.connections import make_context

TIMEOUT_S = 10.0
SLOW_MS = 2000
MAX_SKEW_S = 30.0


def check_key(settings: Settings) -> Finding:
    """Checks the format of the xAI key."""
    finding = partial(Finding, "xAI key")
    key = settings.xai_api_key
    if settings.auth_mode == "passthrough":
        return finding("skipped", "each client brings its own (GROKFLASK_AUTH is passthrough)")
    if settings.uses_sandbox:
        text = "not set: answers come from the sandbox"
        return finding("skipped", text, "Set XAI_API_KEY for real answers.")
    if key is None:
        text = "XAI_API_BASE is set without XAI_API_KEY: no key is sent"
        return finding("warn", text, "Set XAI_API_KEY, unless that upstream needs none.")
    if key[0] in "'\"" or key[-1] in "'\"" or key.lower() == "bearer":
        text = "it is in quotes, or is not a key"
        return finding("FAIL", text, "Set XAI_API_KEY to the key alone.")
    if settings.upstream_base == XAI_API_BASE and not re.fullmatch(r"xai-[A-Za-z0-9_-]{20,}", key):
        text = "it does not look like one (xai- and a long random text)"
        return finding("warn", text, "Copy it once more from https://console.x.ai.")
    return finding("ok", "its format is valid")


def check_upstream(settings: Settings) -> Iterator[Finding]:
    """Checks DNS, TCP, TLS, then GET /models with the key. Stops at the first failure."""
    finding = partial(Finding, "upstream")
    if settings.uses_sandbox:
        yield finding("skipped", "the built-in sandbox")
        return
    host = urlsplit(settings.upstream_base).hostname or ""
    began = time.monotonic()
    try:
        _reach(settings)
    except socket.gaierror as error:
        text = f"the host name {host} is unknown ({error})"
        yield finding("FAIL", text, "Check XAI_API_BASE, and this machine's DNS.")
    except ssl.SSLError as error:
        remedy = "Check XAI_API_BASE. A firewall that inspects TLS needs a certificate trusted here."
        yield finding("FAIL", f"no TLS with {host}: {error}", remedy)
    except OSError as error:
        remedy = "Check XAI_API_BASE, and that the firewall allows outgoing connections."
        yield finding("FAIL", f"no connection to {host}: {error}", remedy)
    else:
        took_ms = (time.monotonic() - began) * 1000
        yield finding("ok" if took_ms < SLOW_MS else "warn", f"connected to {host} in {took_ms:.0f} ms")
        yield from _ask_for_models(settings)


def _reach(settings: Settings) -> None:
    """Connects to upstream, with TLS if its URL says so. Raises OSError."""
    parts = urlsplit(settings.upstream_base)
    secure = parts.scheme == "https"
    address = parts.hostname or "", parts.port or (443 if secure else 80)
    with socket.create_connection(address, settings.connect_timeout_s) as sock:
        if secure:
            make_context().wrap_socket(sock, server_hostname=parts.hostname).close()


def _ask_for_models(settings: Settings) -> Iterator[Finding]:
    session = requests.Session()
    session.trust_env = False  # like the gateway
    session.mount("https://", _Adapter())
    headers = {"Authorization": f"Bearer {settings.xai_api_key}"} if settings.xai_api_key else {}
    began = time.monotonic()
    try:
        with session:
            reply = session.get(
                f"{settings.upstream_base}/models", headers=headers, timeout=TIMEOUT_S, allow_redirects=False
            )
    except requests.RequestException as error:
        text = f"GET /models gets no answer: {type(error).__name__}"
        yield Finding("models", "FAIL", text, "See https://status.x.ai, and check proxies and firewalls.")
        return
    yield judge_models(settings, reply, (time.monotonic() - began) * 1000)
    yield judge_clock(reply.headers.get("Date"), time.time())


def judge_models(settings: Settings, reply: requests.Response, took_ms: float) -> Finding:
    """Judges the key and the base URL by upstream's answer to GET /models."""
    finding = partial(Finding, "models")
    status = reply.status_code
    # xAI answers a wrong key with 400.
    if status in (401, 403) or (status == 400 and "key" in reply.text[:2000].lower()):
        if settings.xai_api_key is None:
            return finding("ok", f"reachable, requires a key ({status}), {took_ms:.0f} ms")
        remedy = "Set XAI_API_KEY to an enabled key of https://console.x.ai."
        return finding("FAIL", f"upstream refuses the key ({status})", remedy)
    if status == 429:
        text = "upstream limits this key right now (429)"
        return finding("warn", text, "See the key's limits at https://console.x.ai.")
    text = f"{settings.upstream_base}/models does not return a list of models ({status})"
    if status >= 500:
        return finding("warn", text, "See https://status.x.ai.")
    try:
        count = len(reply.json()["data"]) if status == 200 else -1
    except (ValueError, LookupError, TypeError):
        count = -1
    if count < 0:
        return finding("FAIL", text, f"XAI_API_BASE ends with the version, as in {XAI_API_BASE}.")
    text = f"the key can use {count} models, {took_ms:.0f} ms"
    return finding("ok" if took_ms < SLOW_MS else "warn", text)


def judge_clock(date: str | None, now_s: float) -> Finding:
    """Compares this machine's clock (epoch seconds) with upstream's Date header."""
    try:
        skew_s = now_s - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return Finding("clock", "skipped", "upstream sends no Date header")
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding("clock", "ok", "agrees with upstream")
    text = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} upstream"
    remedy = "Synchronize it with NTP: it decides when keys expire and budget days begin."
    return Finding("clock", "warn", text, remedy)


class _Adapter(HTTPAdapter):
    """Trusts the same certificates as the gateway, including SSL_CERT_FILE."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=make_context())
