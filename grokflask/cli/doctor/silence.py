"""Checks that proxies do not cut a silent stream, such as that of a reasoning model."""

from __future__ import annotations

import time

from grokflask.cli.caller import Caller, CallError
from grokflask.cli.doctor.findings import Finding
from grokflask.cli.doctor.url import name_proxy, receive

SILENCE_S = 70.0
"""Longer than the 60 s of nginx and most load balancers, and the 55 s of Heroku."""

MAX_SILENCE_S = 120.0
"""The most that the gateway accepts."""

_TIMEOUTS = {
    "nginx": "nginx: a longer proxy_read_timeout (120s)",
    "apache": "Apache: a longer ProxyTimeout and Timeout",
    "cloudflare": "Cloudflare ends connections after about 100 s of silence",
    "heroku": "Heroku's router ends connections after 55 s of silence",
}


def check_silence(caller: Caller, silence_s: float) -> Finding:
    """Requests two events with `silence_s` between them, in which only heartbeats arrive."""
    began = time.monotonic()
    try:
        passage = receive(caller, f"/diagnose/stream?silence_s={silence_s:g}")
    except CallError as error:
        return Finding("silence", "FAIL", error.message)
    if passage.complete:
        return Finding("silence", "ok", f"a stream survives {silence_s:g} s without events")
    known = name_proxy(passage.headers)
    remedy = _TIMEOUTS[known] if known else "Raise the idle and read timeouts of proxies in front to 120 s"
    return Finding(
        "silence",
        "FAIL",
        f"a stream without events was cut after {time.monotonic() - began:.1f} s, with a heartbeat every "
        f"{passage.event.get('heartbeat_s')} s",
        f"{remedy}; or set a smaller GROKFLASK_HEARTBEAT_S.",
    )
