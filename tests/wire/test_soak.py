"""The short form of `make soak`: nothing is lost and nothing leaks over streams of all outcomes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, start_gateway
from support.scripted import WAIT_S, Exchange, ScriptedUpstream
from support.soak import run_soak

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}
BODY = '{"messages":[{"role":"user","content":"hello"}],"stream":true}'
CHAT = "/api/v1/chat/completions"


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_leaks(tmp_path: Path) -> None:
    """300 exchanges of all outcomes: each has its one log line, and the process is as it was before."""
    report = run_soak(300, 20, tmp_path)
    assert report.wrong == []
    assert report.after["open"] == report.after["watches"] == 0
    assert set(report.after["ours"].values()) == {0}, report.after["ours"]
    assert report.after["greenlets"] <= report.before["greenlets"] + 5
    assert report.after["descriptors"] <= report.before["descriptors"] + 20  # kept upstream connections
    assert report.after["objects"] <= report.before["objects"] * 1.05 + 1000


def read_worker_rss_kib(server: GatewayServer) -> int:
    """The largest process of the server's group, now."""
    sizes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == server.process.pid:
                    lines = (entry / "status").read_text().splitlines()
                    sizes += [int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
            except OSError:
                continue
    return max(sizes)


def start(tmp_path: Path, upstream: ScriptedUpstream) -> GatewayServer:
    server = start_gateway(tmp_path, upstream)
    assert requests.post(f"{server.url}{CHAT}", data=BODY, headers=AUTH, timeout=WAIT_S).status_code == 200
    return server


@pytest.mark.timeout(300)
def test_a_million_events(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """One stream of 10^6 events arrives whole, in the memory of a short one."""
    server = start(tmp_path, upstream)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    block = event * 1000

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for _ in range(1000):
            exchange.chunk(block)
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    try:
        before = read_worker_rss_kib(server)
        size = 0
        tail = b""
        with requests.post(f"{server.url}{CHAT}", data=BODY, headers=AUTH, stream=True, timeout=60) as reply:
            for data in reply.iter_content(2**20):
                size += len(data)
                tail = (tail + data)[-100:]
        assert size == 1_000_000 * len(event) + len(b"data: [DONE]\n\n")
        assert tail.endswith(b"data: [DONE]\n\n")
        assert read_worker_rss_kib(server) - before < 30_000
        server.wait_for_line("outcome=complete", "events=1000000")
    finally:
        server.leave()


def test_an_event_of_16_mib(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """One event of 16 MiB arrives whole, in a few times its own memory; one above the bound is an error."""
    server = start(tmp_path, upstream)
    sizes = [16 * 2**20]

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(b'{"choices":[{"delta":{"content":"' + b"y" * sizes[0] + b'"}}]}')
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    try:
        before = read_worker_rss_kib(server)
        reply = requests.post(f"{server.url}{CHAT}", data=BODY, headers=AUTH, timeout=60)
        assert len(reply.content) > sizes[0]
        assert reply.content.endswith(b"data: [DONE]\n\n")
        assert read_worker_rss_kib(server) - before < 6 * 16 * 1024
        sizes[0] = 33 * 2**20
        reply = requests.post(f"{server.url}{CHAT}", data=BODY, headers=AUTH, timeout=60)
        assert reply.content.startswith(
            b'data: {"error":"API error: The upstream API sent an event of more than'
        )
    finally:
        server.leave()
