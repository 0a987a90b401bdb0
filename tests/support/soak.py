"""A soak: thousands of exchanges of all outcomes through one real gateway, and what is left of them after.

Each exchange has a script for upstream (chosen by the model's name), a way in which the client behaves, and
the outcome that the gateway's log must tell. Nothing may be lost: every exchange has its line, with the
right outcome, and every complete stream is compared with what upstream sent.
"""

from __future__ import annotations

import collections
import json
import random
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from grokflask.ledger.reports import RowFilter, check_daily, iterate_rows
from grokflask.storage.database import Database
from support.processes import CLIENT_KEY, ROOT, UPSTREAM_KEY, GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk

TIMEOUT_S = "3"  # so long a silence is a fault, on the busiest machine
STORY = [json.dumps(chat_chunk(f"word-{number} ü𝄞")).encode() for number in range(40)]
WHOLE_STREAM = b"".join(b"data: " + event + b"\n\n" for event in [*STORY, b"[DONE]"])


def tell(exchange: Exchange) -> None:
    exchange.start()
    wire = b"".join(b"data: " + event + b"\n\n" for event in STORY)
    for at in range(0, len(wire), 700):
        exchange.chunk(wire[at : at + 700])
    exchange.event("[DONE]")
    exchange.end()


def hold(exchange: Exchange) -> None:
    exchange.wait_until_left()
    exchange.close()


def begin(exchange: Exchange) -> None:
    exchange.start()
    exchange.event(STORY[0])


def flood(exchange: Exchange) -> None:
    exchange.start()
    exchange.sock.settimeout(WAIT_S)
    try:
        while True:
            exchange.event(STORY[0])
    except OSError:
        exchange.close()


def start_and_hold(exchange: Exchange) -> None:
    exchange.start()
    hold(exchange)


def begin_and_hold(exchange: Exchange) -> None:
    begin(exchange)
    hold(exchange)


def begin_and_close(exchange: Exchange) -> None:
    begin(exchange)
    exchange.close()


def begin_and_reset(exchange: Exchange) -> None:
    begin(exchange)
    exchange.reset()


def begin_and_end(exchange: Exchange) -> None:
    begin(exchange)
    exchange.end()


def begin_and_report(exchange: Exchange) -> None:
    begin(exchange)
    exchange.event({"code": "internal", "error": "it fell over"})
    exchange.end()


def refuse(exchange: Exchange) -> None:
    exchange.reply({"code": "permission-denied", "error": "no"}, 403)


SCRIPTS = {
    "tell": tell,
    "chat": answer_chat,
    "hold": hold,
    "start-and-hold": start_and_hold,
    "begin-and-hold": begin_and_hold,
    "flood": flood,
    "begin-and-close": begin_and_close,
    "begin-and-reset": begin_and_reset,
    "begin-and-end": begin_and_end,
    "begin-and-report": begin_and_report,
    "refuse": refuse,
    "drop": Exchange.close,
}


@dataclass(frozen=True)
class Case:
    """One kind of exchange. `leave` is what the client waits for before it goes; None stays to the end."""

    name: str
    script: str
    outcome: str
    stream: bool = True
    leave: bytes | None = None
    by_reset: bool = False
    weight: int = 1


CASES = [
    Case("complete stream", "tell", "complete", weight=12),
    Case("complete non-streaming reply", "chat", "complete", stream=False, weight=4),
    Case("client disconnects before headers", "hold", "client_abort", leave=b""),
    Case("client disconnects before headers, non-streaming", "hold", "client_abort", stream=False, leave=b""),
    Case("client disconnects before the first event", "start-and-hold", "client_abort", leave=b"\r\n\r\n"),
    Case("client disconnects in silence", "begin-and-hold", "client_abort", leave=b"word-0"),
    Case("client resets in silence", "begin-and-hold", "client_abort", leave=b"word-0", by_reset=True),
    Case("client disconnects in a burst", "flood", "client_abort", leave=b"word-0"),
    Case("client resets in a burst", "flood", "client_abort", leave=b"word-0", by_reset=True),
    Case("upstream closes the connection in mid-stream", "begin-and-close", "truncated"),
    Case("upstream resets the connection in mid-stream", "begin-and-reset", "truncated"),
    Case("upstream ends the stream early", "begin-and-end", "truncated"),
    Case("upstream reports an error in mid-stream", "begin-and-report", "upstream_error"),
    Case("upstream refuses the request", "refuse", "upstream_error"),
    Case("upstream drops the request", "drop", "upstream_error"),
    Case("upstream is silent before its headers", "hold", "timeout"),
    Case("upstream is silent before the first event", "start-and-hold", "timeout"),
    Case("upstream is silent between events", "begin-and-hold", "timeout"),
]


@dataclass
class Report:
    """What was thrown at the gateway, and what came of it."""

    total: int
    seconds: float = 0.0
    by_case: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def run_soak(total: int, concurrency: int, directory: Path, seed: int = 1) -> Report:
    """`total` exchanges, `concurrency` at once, after a warm-up of the same mix."""
    upstream = ScriptedUpstream(lambda exchange: SCRIPTS[exchange.document["model"]](exchange))
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
        "DATABASE_URL": f"sqlite:///{directory}/soak.db",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "GROKFLASK_HEARTBEAT_S": "0.3",
        "GROKFLASK_COMMIT_S": "0.5",
        "GROKFLASK_FIRST_EVENT_TIMEOUT_S": TIMEOUT_S,
        "GROKFLASK_IDLE_TIMEOUT_S": TIMEOUT_S,
    }
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        str(ROOT / "gunicorn.conf.py"),
        "support.inspected:app",
    ]
    server = GatewayServer(directory, env, command)
    report = Report(total)
    try:
        _throw(server, min(total, 400), concurrency, seed, "warm", Report(0))
        report.before = _settle(server)
        started_at = time.monotonic()
        plan = _throw(server, total, concurrency, seed, "soak", report)
        report.seconds = time.monotonic() - started_at
        report.after = _settle(server)
    finally:
        code = server.stop()
        upstream.close()
    if code != 0 or "Traceback" in server.log:
        report.wrong.append(f"the gateway ended with {code}, see {server.log_path}")
    _check_ledger(env["DATABASE_URL"], plan, "soak", report)
    return report


def _throw(
    server: GatewayServer, total: int, concurrency: int, seed: int, label: str, report: Report
) -> list[Case]:
    """Runs the exchanges, then looks each one up in the log; gives what was run, by number."""
    dice = random.Random(seed)
    plan = dice.choices(CASES, weights=[case.weight for case in CASES], k=total)
    lock = threading.Lock()

    def run(number: int) -> None:
        fault = _run_case(server, plan[number], f"{label}-{number}")
        with lock:
            report.by_case[plan[number].name] += 1
            if fault:
                report.wrong.append(f"{label}-{number} ({plan[number].name}): {fault}")

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(run, range(total)))
    wait_for(lambda: len(server.find_lines("msg=exchange", f"request_id={label}-")) >= total, "all log lines")
    outcomes: dict[str, list[str]] = collections.defaultdict(list)
    for line in server.find_lines("msg=exchange", f"request_id={label}-"):
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        outcomes[words["request_id"]].append(words["outcome"])
    for number, case in enumerate(plan):
        told = outcomes.get(f"{label}-{number}", [])
        if told != [case.outcome]:
            report.wrong.append(f"{label}-{number} ({case.name}): the log tells {told}, not {case.outcome}")
    return plan


def _check_ledger(url: str, plan: list[Case], label: str, report: Report) -> None:
    """Every exchange has one row, with its outcome, and the daily sums are those of the rows."""
    database = Database(url)
    outcomes: dict[str, list[str | None]] = collections.defaultdict(list)
    for row in iterate_rows(database, RowFilter()):
        outcomes[row.request_id].append(row.outcome)
    for number, case in enumerate(plan):
        told = outcomes.get(f"{label}-{number}", [])
        if told != [case.outcome]:
            report.wrong.append(f"{label}-{number} ({case.name}): the ledger has {told}, not {case.outcome}")
    report.wrong += [f"the sums have drifted: {drift}" for drift in check_daily(database)]
    database.close()


def _run_case(server: GatewayServer, case: Case, request_id: str) -> str | None:
    """One exchange as its client sees it; what was wrong with it, or None."""
    body = json.dumps(
        {"model": case.script, "messages": [{"role": "user", "content": "go"}], "stream": case.stream}
    )
    head = [
        "POST /api/v1/chat/completions HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CLIENT_KEY}",
        "Content-Type: application/json",
        f"X-Request-ID: {request_id}",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as sock:
        sock.sendall(("\r\n".join(head) + "\r\n\r\n" + body).encode())
        got = b""
        while case.leave is None or case.leave not in got:
            data = sock.recv(65536)
            if not data:
                break
            got += data
        if case.by_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if case.leave is not None:
        return None
    done = b"data: [DONE]\n\n" in got
    if case.stream and done != (case.outcome == "complete"):
        return f"[DONE] was {'' if done else 'not '}sent"
    if case.script == "tell" and _unchunk(got) != WHOLE_STREAM:
        return "the stream is not what upstream sent"
    return None


def _unchunk(response: bytes) -> bytes:
    """The body of a chunked response, comments taken out."""
    rest = response.partition(b"\r\n\r\n")[2]
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return body.replace(b": keep-alive\n", b"")


def _settle(server: GatewayServer) -> dict[str, Any]:
    """What the process holds once all is quiet."""

    def inspect() -> dict[str, Any]:
        document: dict[str, Any] = requests.get(f"{server.url}/_inspect", timeout=WAIT_S).json()
        return document

    wait_for(lambda: inspect()["open"] == 0 and inspect()["watches"] == 0, "all exchanges to end")
    # The figures for /metrics take rows in once a second.
    wait_for(lambda: inspect()["ours"]["LedgerRow"] == 0, "all rows to be summed up")
    return inspect()
