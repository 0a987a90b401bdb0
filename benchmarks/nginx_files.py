"""What nginx is told: as a gateway that is measured, and as the TLS end of the upstream."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from urllib.parse import urlsplit

_FRAME = """\
worker_processes 1;
daemon off;
{user}
pid {folder}/{name}.pid;
error_log {folder}/{name}.log;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 600s;
    upstream bench {{ server {upstream}; keepalive 2000; keepalive_requests 1000000; }}
    server {{
        {listen}
        location = /ready {{ return 200; }}
        location / {{ proxy_pass {scheme}://bench; {verify} }}
    }}
}}
"""


def render_gateway(folder: Path, port: int, upstream: str, authority: Path | None) -> str:
    """The gateway's file. An upstream with TLS is verified against `authority`."""
    parts = urlsplit(upstream)
    verify = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority}; proxy_ssl_name localhost;"
    return _render(
        folder,
        "nginx",
        upstream=parts.netloc,
        scheme=parts.scheme,
        listen=f"listen 127.0.0.1:{port} backlog=8192;",
        verify=verify if authority else "",
    )


def render_tls_end(folder: Path, port: int, upstream: str) -> str:
    """The file of what stands in front of the upstream; its certificate is in `folder`."""
    certificate = f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;"
    return _render(
        folder,
        "tls-end",
        upstream=urlsplit(upstream).netloc,
        scheme="http",
        listen=f"listen 127.0.0.1:{port} ssl backlog=8192; keepalive_timeout 600s; {certificate}",
        verify="",
    )


def _render(folder: Path, name: str, **words: str) -> str:
    # As root it would drop to a user who may not enter the folder.
    user = "user root;" if _is_root() else ""
    return _FRAME.format(folder=folder, name=name, user=user, files=_files(), connections=_files(), **words)


def _is_root() -> bool:

    return os.getuid() == 0


def _files() -> int:
    """As many descriptors as the process may have."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 60_000)
