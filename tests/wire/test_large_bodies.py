"""Bodies of many megabytes go through real gunicorn without being held in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.processes import GatewayServer, read_anonymous_kib, wait_for
from support.scripted import Exchange, ScriptedUpstream
from support.wire import AUTH, connect

MIB = 2**20
SIZE = 48 * MIB
AT_ONCE = 4
USAGE = b'"usage":{"cost_in_usd_ticks":200000000}}'


@pytest.fixture
def gateway(make_gateway: Callable[..., GatewayServer]) -> GatewayServer:
    """One that has carried nothing else."""
    return make_gateway()


def count_files(server: GatewayServer) -> int:
    """Large temporary files that the server's processes have open."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == server.process.pid:
                    links = [link for link in (entry / "fd").iterdir() if "(deleted)" in os.readlink(link)]
                    count += sum(link.stat().st_size > MIB for link in links)
            except OSError:
                continue
    return count


def send_pictures(exchange: Exchange) -> None:
    """A reply of SIZE bytes and more, its usage at the end."""
    start, end = b'{"data":[{"b64_json":"', b'"}],' + USAGE
    exchange.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (len(start) + SIZE + len(end))
    )
    exchange.send(start)
    for _ in range(SIZE // MIB):
        exchange.send(b"A" * MIB)
    exchange.send(end)


def ask(gateway: GatewayServer, watch: Callable[[], Any] = lambda: None) -> tuple[int, int, bytes]:
    """Status, size and end of the answer, read piece by piece."""
    with requests.post(
        f"{gateway.url}/v1/images/generations",
        json={"prompt": "x", "response_format": "b64_json"},
        headers={**AUTH, "Accept": "application/json"},
        stream=True,
        timeout=60,
    ) as reply:
        size, end = 0, b""
        for number, piece in enumerate(reply.iter_content(MIB)):
            size, end = size + len(piece), (end + piece)[-100:]
            if number % 8 == 0:
                watch()
        return reply.status_code, size, end


def test_large_pictures(gateway: GatewayServer, upstream: ScriptedUpstream) -> None:
    """Several large replies at once come whole, cost what they say, and take a few megabytes of memory."""
    upstream.handler = lambda exchange: exchange.reply(b'{"data":[],' + USAGE)
    ask(gateway)
    upstream.handler = send_pictures
    before = read_anonymous_kib(gateway)
    peaks: list[int] = []
    files: list[int] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        note = lambda: (peaks.append(read_anonymous_kib(gateway)), files.append(count_files(gateway)))  # noqa: E731
        got = list(pool.map(lambda _: ask(gateway, note), range(AT_ONCE)))
    assert max(files) > 0
    assert {status for status, _, _ in got} == {200}
    assert {size for _, size, _ in got} == {SIZE + len(b'{"data":[{"b64_json":""}],') + len(USAGE)}
    assert all(end.endswith(USAGE) for _, _, end in got)
    assert max(peaks) - before < 40 * 1024, (before, max(peaks))
    assert len(gateway.find_lines("route=images", "cost_ticks=200000000", "outcome=complete")) == AT_ONCE + 1
    wait_for(lambda: count_files(gateway) == 0, "the files to be gone")


def test_a_large_reply_that_breaks(gateway: GatewayServer, upstream: ScriptedUpstream) -> None:
    """One that upstream cuts is a 502 as ever, for nothing has gone out; its file is gone."""

    def cut(exchange: Exchange) -> None:
        exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
        )
        exchange.send(b"[" * 8 * MIB)
        exchange.close()

    upstream.handler = cut
    status, _, end = ask(gateway)
    assert (status, b"stream_broken" in end) == (502, True)
    upstream.handler = lambda exchange: exchange.reply(b'{"a":"' + b"x" * 8 * MIB)
    assert ask(gateway)[0] == 502
    upstream.handler = lambda exchange: exchange.reply(b'{"error":"no","b":"' + b"x" * 8 * MIB + b'"}')
    status, _, end = ask(gateway)
    assert (status, b'"no"' in end) == (502, True)
    wait_for(lambda: count_files(gateway) == 0, "the files to be gone")


def test_a_reply_that_is_too_large(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """Beyond the setting it is a 502, and its upstream is not read any further."""
    gateway = make_gateway(GROKFLASK_MAX_REPLY_BYTES=str(4 * MIB))
    left: list[bool] = []

    def flood(exchange: Exchange) -> None:
        exchange.start(media_type="application/json")
        try:
            while True:
                exchange.chunk(b"[" * MIB)
        except OSError:
            left.append(True)
            exchange.close()

    upstream.handler = flood
    assert ask(gateway)[0] == 502
    wait_for(lambda: bool(left), "upstream to be left")
    assert count_files(gateway) == 0


@pytest.mark.parametrize("taken", [0, 5 * MIB])
def test_a_client_that_leaves(gateway: GatewayServer, upstream: ScriptedUpstream, taken: int) -> None:
    """While it is being sent a large reply: the file goes with it."""
    upstream.handler = send_pictures
    with connect(gateway) as sock:
        body = b'{"prompt":"x"}'
        head = (
            "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: {AUTH['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        got = len(sock.recv(65536))
        while got < taken:
            got += len(sock.recv(65536))
    wait_for(lambda: count_files(gateway) == 0, "the file to be gone")


def test_large_files(gateway: GatewayServer, upstream: ScriptedUpstream) -> None:
    """Uploads and downloads at once: what is uploaded goes up whole, and neither takes memory."""
    content = os.urandom(MIB) * (SIZE // MIB)
    sizes: list[int] = []
    peaks: list[int] = []

    def serve(exchange: Exchange) -> None:
        if exchange.method == "POST":
            sizes.append(exchange.body.count(content))
            exchange.reply({"id": f"file_{len(sizes)}"})
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\nContent-Length: {SIZE}\r\n\r\n"
            exchange.send(head.encode() + content)

    def carry(_: int) -> bool:
        form = {"file": ("large.bin", content)}
        made = requests.post(f"{gateway.url}/v1/files", files=form, headers=AUTH, timeout=60)
        peaks.append(read_anonymous_kib(gateway))
        down = requests.get(
            f"{gateway.url}/v1/files/{made.json()['id']}/content", headers=AUTH, stream=True, timeout=60
        )
        with down:
            peaks.append(read_anonymous_kib(gateway))
            return down.content == content and down.headers["content-type"] == "application/pdf"

    upstream.handler = serve
    before = read_anonymous_kib(gateway)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert all(pool.map(carry, range(AT_ONCE)))
    assert sizes == [1] * AT_ONCE
    assert max(peaks) - before < 40 * 1024, (before, max(peaks))
    wait_for(lambda: count_files(gateway) == 0, "the files to be gone")
