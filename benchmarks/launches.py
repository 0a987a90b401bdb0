"""How each gateway is started: its command, its settings, its files, with the reason for each choice.

Each runs one worker process, listens on 127.0.0.1 without TLS, and talks to the same upstream.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import client_keys
import nginx_files
import peers
from peers import ROOT


@dataclass(frozen=True)
class Site:
    """Where a gateway is started: a folder and a port of its own, and the upstream it gets.

    Attributes:
        upstream: its base URL, without `/v1`.
        authority: the file with the certificate to trust, when the upstream speaks TLS.
        stores: settings that name a PostgreSQL and a Redis.
    """

    folder: Path
    port: int
    upstream: str
    authority: Path | None = None
    stores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """How a gateway is started, and how it is talked to."""

    command: list[str]
    env: Mapping[str, str]
    ready: str
    path: str = "/v1/chat/completions"
    keys_file: Path | None = None
    headers: tuple[str, ...] = ()


GROKFLASK_SETTINGS = {
    # Upstream's key is never looked at, but without one the gateway would not ask anybody's.
    "XAI_API_KEY": "xai-bench-0123456789",
    "WEB_CONCURRENCY": "1",
    # Room for 5,000 streams and their fair share; the default is 4,000 connections.
    "GROKFLASK_WORKER_CONNECTIONS": "12000",
    "GROKFLASK_GRACE_S": "5",
}


def launch_grokflask(site: Site, settings: Mapping[str, str] | None = None) -> Launch:
    """As the Procfile starts it, with one key whose limits are all on and all far away."""
    database = {"DATABASE_URL": f"sqlite:///{site.folder}/bench.db", **site.stores}["DATABASE_URL"]
    keys_file = site.folder / "keys"
    if not keys_file.exists():  # a measurement may have made its own
        client_keys.make(database, 1, keys_file)
    env = {
        **base_env(),
        **GROKFLASK_SETTINGS,
        "PORT": str(site.port),
        "PYTHONPATH": str(ROOT),
        "XAI_API_BASE": f"{site.upstream}/v1",
        "DATABASE_URL": database,
        **site.stores,
        **({"SSL_CERT_FILE": str(site.authority)} if site.authority else {}),
        **(settings or {}),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
    return Launch(command, env, "/ready", keys_file=keys_file)


def launch_nginx(site: Site) -> Launch:
    """`proxy_pass`, told to do as little as a proxy can."""
    path = site.folder / "nginx.conf"
    path.write_text(nginx_files.render_gateway(site.folder, site.port, site.upstream, site.authority))
    command = [str(peers.find_nginx()), "-e", str(site.folder / "nginx-start.log"), "-c", str(path)]
    return Launch(command, base_env(), "/ready")


def launch_portkey(site: Site) -> Launch:
    """Portkey's open gateway. Headers of each request say where it goes."""
    env = base_env()
    if site.authority:
        env["NODE_EXTRA_CA_CERTS"] = str(site.authority)
    headers = ("x-portkey-provider: x-ai", f"x-portkey-custom-host: {site.upstream}/v1")
    command = [str(shutil.which("node")), str(peers.PORTKEY_SERVER), f"--port={site.port}", "--headless"]
    return Launch(command, env, "/", headers=headers)


LITELLM_CONFIG = """\
model_list:
  - model_name: "*"
    litellm_params: {{model: "openai/*", api_base: "{upstream}/v1", api_key: unused}}
litellm_settings: {{telemetry: false, set_verbose: false}}
general_settings: {{master_key: sk-bench}}
"""


def launch_litellm(site: Site) -> Launch:
    """LiteLLM's proxy, with its master key as the only one and no database."""
    config, keys_file = site.folder / "litellm.yaml", site.folder / "keys"
    config.write_text(LITELLM_CONFIG.format(upstream=site.upstream))
    keys_file.write_text("sk-bench\n")
    env = {**base_env(), "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    # Without this it fetches a price list from the internet when it starts.
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    command = [str(peers.LITELLM_SERVER), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(site.port), "--num_workers", "1"]
    return Launch(command, env, "/health/liveliness", keys_file=keys_file)


def base_env() -> dict[str, str]:
    """What a process needs of ours; none of the user's settings."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
