"""The doctor's look at a stream that is silent for long, as a model's is that thinks: it may be cut."""

from __future__ import annotations

import time

from grokflask.cli.caller import Caller, CallError
from grokflask.cli.doctor.findings import Finding
from grokflask.cli.doctor.url import name_proxy, receive

SILENCE_S = 70.0
"""Longer than nginx' and most load balancers' 60 s, and Heroku's 55 s."""

MAX_SILENCE_S = 120.0
"""What the gateway gives at most."""

_TIMEOUTS = {
    "nginx": "nginx: a longer proxy_read_timeout (120s)",
    "apache": "Apache: a longer ProxyTimeout and Timeout",
    "cloudflare": "Cloudflare ends what is silent for about 100 s",
    "heroku": "Heroku's router ends what is silent for 55 s",
}


def check_silence(caller: Caller, silence_s: float) -> Finding:
    """Two events with so many seconds between them, in which only heartbeats come."""
    began = time.monotonic()
    try:
        passage = receive(caller, f"/diagnose/stream?silence_s={silence_s:g}")
    except CallError as error:
        return Finding("silence", "FAIL", error.message)
    if passage.complete:
        return Finding("silence", "ok", f"a stream without events for {silence_s:g} s goes on")
    known = name_proxy(passage.headers)
    remedy = _TIMEOUTS[known] if known else "Raise the idle and read timeouts of what is in front to 120 s"
    return Finding(
        "silence",
        "FAIL",
        f"a stream without events was cut after {time.monotonic() - began:.1f} s, with a heartbeat every "
        f"{passage.told.get('heartbeat_s')} s",
        f"{remedy}; or set a smaller GROKFLASK_HEARTBEAT_S.",
    )
