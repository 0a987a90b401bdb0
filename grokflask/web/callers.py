"""Who calls the API: the key of a request.

Where no key is needed (GROKFLASK_AUTH=open), every page that a browser shows on this machine could call.
Two checks keep foreign pages out. The name in the Host header must be a loopback name or a listed one:
otherwise a page could point its own name at this machine (DNS rebinding) and read answers. And a change must
have a JSON body, which a browser sends to another origin only with that origin's consent, or must not come
from a page of another origin.
"""

from __future__ import annotations

import re

from flask import Flask, Request

from grokflask.config import Settings
from grokflask.errors import CrossSiteError, HostNotAllowedError
from grokflask.keys.ring import ApiKey, KeyRing
from grokflask.web.addresses import group_address

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(:\d*)?")
_SAFE = ("GET", "HEAD", "OPTIONS")


def authenticate(app: Flask, flask_request: Request, authorization: str | None) -> ApiKey:
    """The caller's key. Raises HostNotAllowedError, CrossSiteError, and the errors of KeyRing."""
    keys: KeyRing = app.extensions["keys"]
    if keys.is_open:
        _check_browser(flask_request, app.extensions["settings"])
    return keys.authenticate(authorization, group_address(flask_request.environ.get("REMOTE_ADDR", "")))


def _check_browser(flask_request: Request, settings: Settings) -> None:
    host = flask_request.environ.get("HTTP_HOST", "").lower()  # every browser sends one
    match = _HOST.fullmatch(host)
    if host and settings.hosts != ("*",) and (not match or match[1] not in (*LOOPBACK, *settings.hosts)):
        raise HostNotAllowedError(
            f"Without keys (GROKFLASK_AUTH=open) the gateway answers only under local names, not as "
            f"{host[:100]!r}: add the name to GROKFLASK_HOSTS, or set GROKFLASK_AUTH=keys."
        )
    if flask_request.method in _SAFE or flask_request.is_json:
        return
    origin, site = flask_request.headers.get("Origin"), flask_request.headers.get("Sec-Fetch-Site")
    if settings.cors_origins == ("*",) or origin in settings.cors_origins:
        return
    is_own = origin is None or origin.partition("://")[2].lower() == host
    if site not in ("same-origin", "none") if site else not is_own:
        raise CrossSiteError
