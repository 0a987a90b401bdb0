"""Checks a gateway through its clients' address, and so through the proxies in front of it.

GET /diagnose/stream sends a few events at known times. Their arrival shows whether a proxy buffers streams.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import msgspec

from grokflask.cli.caller import (
    Caller,
    CallError,
    explain_status,
    is_local,
    is_safe,
    read_events,
    read_start,
)
from grokflask.cli.doctor.findings import Finding
from grokflask.errors import MALFORMED

SILENCE_S = 70.0
"""Longer than the 60 s of nginx and most load balancers, and the 55 s of Heroku."""

MAX_SILENCE_S = 120.0
"""The most that the gateway accepts."""

ANSWER_S = 60.0
MAX_EVENTS = 100
TRIES = 2
"""A machine that is busy for a moment looks like a buffering proxy, so the best of two tries counts."""

LUMP_SHARE = 0.5
"""Events that arrive within less than this share of their sending time were buffered."""

_BUFFERS = {
    "nginx": "nginx: proxy_buffering off; proxy_http_version 1.1; and leave X-Accel-Buffering alone",
    "apache": "Apache: flushpackets=on behind ProxyPass, and SetEnv no-gzip 1 for this path",
    "cloudflare": "Cloudflare: turn compression and Rocket Loader off for this host, by a Configuration Rule",
    "heroku": "Heroku's router does not buffer: check what else is in front (an nginx buildpack, a CDN)",
}


_TIMEOUTS = {
    "nginx": "nginx: a longer proxy_read_timeout (120s)",
    "apache": "Apache: a longer ProxyTimeout and Timeout",
    "cloudflare": "Cloudflare ends connections after about 100 s of silence",
    "heroku": "Heroku's router ends connections after 55 s of silence",
    None: "Raise the idle and read timeouts of proxies in front to 120 s",
}


@dataclass
class Passage:
    """One diagnostic stream as it arrived. `event` is its first event."""

    headers: Mapping[str, str]
    request_id: str
    event: dict[str, Any] = field(default_factory=dict)
    sent_ms: list[float] = field(default_factory=list)
    arrived_ms: list[float] = field(default_factory=list)
    complete: bool = False

    @property
    def share(self) -> float:
        """Arrival time of the events, divided by their sending time; 1 without buffering."""
        if len(self.sent_ms) < 2:
            return 0.0
        sent_in_ms = self.sent_ms[-1] - self.sent_ms[0]
        return (self.arrived_ms[-1] - self.arrived_ms[0]) / sent_in_ms if sent_in_ms > 0 else 1.0


def check_url(caller: Caller) -> Iterator[Finding]:
    """Checks health, readiness, what strangers reach, then the stream. Stops at the first failed call."""
    if not is_safe(caller.url):
        text = "http sends keys and answers unencrypted"
        yield Finding("url", "warn", text, "Use TLS at the proxy (docs/deployment.md).")
    try:
        for path in ("/health", "/ready"):
            yield _check_path(caller, path)
        with Caller(caller.url, None) as stranger:
            yield from _check_as_stranger(stranger)
        passage = _measure(caller)
    except CallError as error:
        yield Finding("url", "FAIL", error.message)
        return
    yield judge_stream(passage)
    yield judge_compression(passage)
    yield judge_request_id(passage)
    yield from judge_forwarding(passage, urlsplit(caller.url).scheme)


def _check_path(caller: Caller, path: str) -> Finding:
    """Checks that the gateway answers a path outside the API. Raises CallError."""
    with caller.call("GET", path, silence_s=ANSWER_S) as reply:
        body, status = read_start(reply), reply.status_code
    try:
        text = str(msgspec.json.decode(body)["status"])
    except (*MALFORMED, LookupError, TypeError):
        text = f"{path} was not answered by a gateway ({status})"
        return Finding(path, "FAIL", text, f"Let the proxy pass {path}: load balancers need it.")
    if status != 200:
        return Finding(path, "warn", text, "It is shutting down: another instance should take over.")
    return Finding(path, "ok", text)


def _check_as_stranger(caller: Caller) -> Iterator[Finding]:
    """Checks what a caller without a key can do. Raises CallError."""
    prefix = f"/doctor-{secrets.token_hex(4)}"
    with caller.call("GET", f"{prefix}/health", silence_s=ANSWER_S, headers={"SCRIPT_NAME": prefix}) as reply:
        if reply.status_code != 200:
            yield Finding("script name", "ok", "a client's SCRIPT_NAME header does not change the path")
        else:
            text = "a client's SCRIPT_NAME header changes the path, and so passes access lists of the proxy"
            remedy = "Use the gateway's gunicorn.conf.py, and no --forwarder-headers."
            yield Finding("script name", "FAIL", text, remedy)
    for name, path in (("/admin", "/admin/login"), ("/metrics", "/metrics")):
        with caller.call("GET", path, silence_s=ANSWER_S) as reply:
            yield judge_reach(name, reply.status_code, is_local(caller.url))


def judge_reach(name: str, status: int, is_near: bool) -> Finding:
    """Whether something for the operator alone can be reached by everybody."""
    if status in (403, 404):
        return Finding(name, "ok", f"not reachable at this address ({status})")
    if is_near:
        return Finding(name, "ok", "reachable from this machine")
    guarded = "everybody can read it" if status == 200 and name == "/metrics" else "only its token guards it"
    remedy = f"Let the proxy pass {name} only to the addresses that need it (docs/deployment.md)."
    return Finding(name, "warn", f"reachable from here: {guarded}", remedy)


def check_silence(caller: Caller, silence_s: float) -> Finding:
    """Requests two events with `silence_s` between them, in which only heartbeats arrive."""
    finding = partial(Finding, "silence")
    began = time.monotonic()
    try:
        passage = receive(caller, f"/diagnose/stream?silence_s={silence_s:g}")
    except CallError as error:
        return finding("FAIL", error.message)
    if passage.complete:
        return finding("ok", f"a stream survives {silence_s:g} s without events")
    text = f"a stream without events was cut after {time.monotonic() - began:.1f} s, with a heartbeat every "
    text += f"{passage.event.get('heartbeat_s')} s"
    remedy = f"{_TIMEOUTS[name_proxy(passage.headers)]}; or set a smaller GROKFLASK_HEARTBEAT_S."
    return finding("FAIL", text, remedy)


def _measure(caller: Caller) -> Passage:
    """The best of a few tries. Raises CallError."""
    best = receive(caller)
    for _ in range(TRIES - 1):
        if best.complete and best.share >= LUMP_SHARE:
            break
        best = max(best, receive(caller), key=lambda each: (each.complete, each.share))
    return best


def receive(caller: Caller, path: str = "/diagnose/stream") -> Passage:
    """Reads and times one diagnostic stream. Raises CallError if it does not begin."""
    request_id = f"doctor-{secrets.token_hex(8)}"
    headers = {"X-Request-ID": request_id, "Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    with caller.call("GET", path, silence_s=ANSWER_S, headers=headers) as reply:
        if reply.status_code != 200:
            raise CallError(explain_status(reply))
        if not reply.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise CallError("/diagnose/stream is not a stream: something else answers, or an older version.")
        passage = Passage(reply.headers, request_id)
        # A stream that is cut, or is not a gateway's, remains incomplete.
        with suppress(CallError, *MALFORMED, LookupError, TypeError, ValueError):
            for data in islice(read_events(reply), MAX_EVENTS):
                if data == b"[DONE]":
                    passage.complete = True
                    break
                arrived_ms = time.monotonic() * 1000
                event = msgspec.json.decode(data)
                passage.sent_ms.append(float(event["sent_ms"]))
                passage.arrived_ms.append(arrived_ms)
                passage.event = passage.event or event
        return passage


def judge_stream(passage: Passage) -> Finding:
    """Whether events arrive when they are sent."""
    if not passage.complete:
        remedy = "Raise the proxy's read timeout (nginx: proxy_read_timeout 120s)."
        return Finding("stream", "FAIL", f"cut off after {len(passage.sent_ms)} events", remedy)
    sent_in_ms = passage.sent_ms[-1] - passage.sent_ms[0]
    arrived_in_ms = passage.arrived_ms[-1] - passage.arrived_ms[0]
    text = f"{len(passage.sent_ms)} events sent over {sent_in_ms:.0f} ms arrived over {arrived_in_ms:.0f} ms"
    if passage.share >= LUMP_SHARE:
        return Finding("stream", "ok", text)
    known = name_proxy(passage.headers)
    remedies = [_BUFFERS[known]] if known else _BUFFERS.values()
    remedy = f"{'; or '.join(remedies)}. See docs/streaming.md."
    return Finding("stream", "FAIL", f"a proxy buffers streams: {text}", remedy)


def name_proxy(headers: Mapping[str, str]) -> str | None:
    """The known proxy that is named in the headers of an answer."""
    if "CF-RAY" in headers:
        return "cloudflare"
    text = f"{headers.get('Server', '')} {headers.get('Via', '')}".lower()
    text = text.replace("vegur", "heroku")
    return next((name for name in _BUFFERS if name in text), None)


def judge_compression(passage: Passage) -> Finding:
    """Whether a proxy compressed the stream; the gateway never does."""
    coding = passage.headers.get("Content-Encoding", "identity")
    if coding in ("", "identity"):
        return Finding("compression", "ok", "none")
    text = f"a proxy compresses streams ({coding}), and may buffer events for that"
    remedy = "Turn it off for text/event-stream (nginx: gzip_types, Apache: SetEnv no-gzip 1)."
    return Finding("compression", "warn", text, remedy)


def judge_request_id(passage: Passage) -> Finding:
    """Whether X-Request-ID passes in both directions."""
    finding = partial(Finding, "request id")
    remedy = "Let it pass: clients use it to find their requests in the log."
    if passage.event.get("request_id") != passage.request_id:
        return finding("warn", "a proxy replaces or drops X-Request-ID on the way in", remedy)
    if passage.headers.get("X-Request-ID") != passage.request_id:
        return finding("warn", "a proxy drops X-Request-ID on the way out", remedy)
    return finding("ok", "X-Request-ID passes in both directions")


def judge_forwarding(passage: Passage, scheme: str) -> Iterator[Finding]:
    """Whether the gateway sees its callers' addresses and scheme behind the proxies."""
    event = passage.event
    count, trusted = int(event.get("forwarded_for") or 0), int(event.get("trusted_proxies") or 0)
    hint = f"Set GROKFLASK_TRUSTED_PROXIES={count}"
    finding = partial(Finding, "addresses")
    text = f"X-Forwarded-For has {count} addresses, and {trusted} proxies are trusted"
    if not count and not trusted and name_proxy(passage.headers):
        remedy = "Have the proxy send X-Forwarded-For, and set GROKFLASK_TRUSTED_PROXIES."
        yield finding("warn", "a proxy sends no X-Forwarded-For: all callers count as one", remedy)
    elif count == trusted:
        yield finding("ok", text)
    elif count > trusted:
        remedy = f"{hint}, if that many proxies are yours."
        yield finding("warn", f"{text}: all callers may count as one", remedy)
    else:
        remedy = f"{hint}, or have the proxy send X-Forwarded-For."
        yield finding("FAIL", f"{text}: callers can forge theirs", remedy)
    if scheme == "https" and event.get("scheme") != "https":
        sent = event.get("forwarded_proto")
        remedy = hint if sent else "Have the proxy send X-Forwarded-Proto, and trust it."
        yield Finding("scheme", "warn", f"the gateway takes https for {event.get('scheme')}", remedy)
