"""The address that a request comes from: whole for the log, and as a group for counting.

Whatever a client or a proxy sends, the result is an address in its normal form, or UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from typing import Any

UNKNOWN = "unknown"
"""Stands for the callers without an address, such as those of a Unix socket."""

MAX_CHARS = 80
"""More than the longest IPv6 address with a zone, brackets and a port."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class TrustedProxies:
    """WSGI middleware that takes a request's address and scheme from the last `hops` proxies.

    An entry of X-Forwarded-For that is not an address leaves the peer's. Werkzeug's ProxyFix reads quoted
    text in these lists: there, a quote that a client opens hides the entries that proxies append to it.
    """

    def __init__(self, app: Application, hops: int) -> None:
        self._app = app
        self._hops = hops

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Calls the app, with REMOTE_ADDR and wsgi.url_scheme corrected."""
        address = read_address(environ.get("REMOTE_ADDR", ""))
        if self._hops:
            entry = read_address(self._pick(environ, "HTTP_X_FORWARDED_FOR"))
            address = address if entry == UNKNOWN else entry
            scheme = self._pick(environ, "HTTP_X_FORWARDED_PROTO").strip().lower()
            if scheme in ("http", "https"):
                environ["wsgi.url_scheme"] = scheme
        environ["REMOTE_ADDR"] = address
        return self._app(environ, start_response)

    def _pick(self, environ: dict[str, Any], header: str) -> str:
        """The entry of the first trusted proxy; "" if there are fewer entries than trusted proxies."""
        entries: list[str] = environ.get(header, "").rsplit(",", self._hops)
        return entries[-self._hops] if len(entries) >= self._hops else ""


def read_address(text: str) -> str:
    """The address in `text`, which may have a port, brackets, quotes, spaces or a zone; or else UNKNOWN.

    An IPv4 address that is mapped into IPv6 (RFC 4291, section 2.5.5.2) is the IPv4 address.
    """
    return _normalize(text) if len(text) <= MAX_CHARS else UNKNOWN


@lru_cache(maxsize=4096)
def _normalize(text: str) -> str:
    text = text.strip(" \t\"'")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return UNKNOWN
    return str(getattr(address, "ipv4_mapped", None) or address)


@lru_cache(maxsize=4096)
def group_address(address: str) -> str:
    """What counts as one caller: an IPv4 address, or the /64 of an IPv6 address. Takes a clean REMOTE_ADDR.

    A subscriber has at least a /64 (RFC 6177), and so any number of addresses.
    """
    return str(IPv6Network((address, 64), strict=False)) if ":" in address else address
