"""Every gateway that is measured. What stands in `setup` is printed in the page; launches.py does it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import peers
from launches import Launch, Site, launch_grokflask, launch_litellm, launch_nginx, launch_portkey
from peers import ROOT


@dataclass(frozen=True)
class Gateway:
    """A gateway under measurement.

    Attributes:
        find_fault: why it cannot be measured here; None when it can.
        pace: how many times as many replies it gets as grokflask in the scenarios that count replies.
    """

    name: str
    title: str
    setup: tuple[str, ...]
    launch: Callable[[Site], Launch]
    find_version: Callable[[], str]
    find_fault: Callable[[], str | None]
    pace: float = 1.0
    uses_stores: bool = False
    uses_tls: bool = False


def find_grokflask_version() -> str:
    """The commit, and whether there are changes that it does not have."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return f"commit {done.stdout.strip() or 'unknown'}"


def find_nginx_version() -> str:
    """Such as 1.22.1."""
    done = subprocess.run([str(peers.find_nginx()), "-v"], capture_output=True, text=True)
    return done.stderr.rpartition("/")[2].strip()


def find_portkey_version() -> str:
    """Its own, and Node's."""
    done = subprocess.run(["node", "--version"], capture_output=True, text=True)
    return f"{peers.PORTKEY_VERSION} on Node {done.stdout.strip().lstrip('v')}"


def find_nginx_fault() -> str | None:
    """Why nginx is left out, if it is."""
    return None if peers.find_nginx() else peers.NGINX_HINT


def find_portkey_fault() -> str | None:
    """Why Portkey is left out, if it is."""
    return None if peers.has_portkey() else "Portkey is not installed: make bench-peers"


def find_litellm_fault() -> str | None:
    """Why LiteLLM is left out, if it is."""
    return None if peers.LITELLM_SERVER.exists() else "LiteLLM is not installed: make bench-peers"


GROKFLASK_SETUP = (
    "`gunicorn -c gunicorn.conf.py wsgi:app`, one gevent worker, as the Procfile starts it; "
    "`GROKFLASK_WORKER_CONNECTIONS=12000`, all other settings at their defaults: heartbeats, deadlines, "
    "client watching, a log line and a ledger row for each exchange",
    "one client key from the database, with limits on requests, streams and tokens a minute and with "
    "budgets; no limit is reached",
)
NGINX_SETUP = (
    "one worker; `proxy_pass` over HTTP/1.1 with `proxy_buffering off` and up to 2,000 keep-alive "
    "upstream connections; no access log, no limits, no keys",
)
PORTKEY_SETUP = (
    "`node build/start-server.js --headless`, one process; provider `x-ai` with the upstream as custom host; "
    "no keys, no cache, no limits",
    "`make bench-peers` patches one line of its published build, without which every stream fails "
    "(`TypeError: immutable`)",
)
LITELLM_SETUP = (
    "`litellm --num_workers 1`, `LITELLM_MODE=PRODUCTION`; models `*` to `openai/*` at the upstream, only "
    "the master key, no database, no callbacks",
    "because it is slow, it gets a twentieth of the replies in scenarios that count them, warm-up included",
)
TLS_SETUP = (
    "the upstream speaks TLS (an nginx in front of it, on the other core, not counted); its certificate is "
    "verified"
)
STORES_SETUP = (
    "keys and ledger in PostgreSQL, limits and budgets in Redis, both on the other core, not counted"
)

GATEWAYS = (
    Gateway(
        "grokflask",
        "grokflask",
        (*GROKFLASK_SETUP, "keys and ledger in SQLite, limits in memory"),
        launch_grokflask,
        find_grokflask_version,
        lambda: None,
    ),
    Gateway(
        "grokflask-stores",
        "grokflask, PostgreSQL + Redis",
        (*GROKFLASK_SETUP[1:], STORES_SETUP),
        launch_grokflask,
        find_grokflask_version,
        lambda: None,
        uses_stores=True,
    ),
    # A cheap one needs more replies for a figure of the same worth.
    Gateway("nginx", "nginx", NGINX_SETUP, launch_nginx, find_nginx_version, find_nginx_fault, pace=4),
    Gateway("portkey", "Portkey", PORTKEY_SETUP, launch_portkey, find_portkey_version, find_portkey_fault),
    Gateway(
        "litellm",
        "LiteLLM",
        LITELLM_SETUP,
        launch_litellm,
        lambda: peers.LITELLM_VERSION,
        find_litellm_fault,
        pace=0.05,
    ),
    Gateway(
        "grokflask-tls",
        "grokflask, TLS upstream",
        (TLS_SETUP, "`SSL_CERT_FILE` names the certificate"),
        launch_grokflask,
        find_grokflask_version,
        find_nginx_fault,
        uses_tls=True,
    ),
    Gateway(
        "nginx-tls",
        "nginx, TLS upstream",
        (TLS_SETUP, "`proxy_ssl_verify on`, TLS sessions are reused"),
        launch_nginx,
        find_nginx_version,
        find_nginx_fault,
        pace=4,
        uses_tls=True,
    ),
    Gateway(
        "portkey-tls",
        "Portkey, TLS upstream",
        (TLS_SETUP, "`NODE_EXTRA_CA_CERTS` names the certificate"),
        launch_portkey,
        find_portkey_version,
        lambda: find_portkey_fault() or find_nginx_fault(),
        uses_tls=True,
    ),
)
BY_NAME = {gateway.name: gateway for gateway in GATEWAYS}
