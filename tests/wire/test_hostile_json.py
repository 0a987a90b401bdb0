"""Bodies made to keep a worker busy: the others' streams go on, and the memory comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import requests
from support.processes import GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.wire import AUTH, CHAT

MB = 10**6
SIZE = 59 * MB
AT_ONCE = 3
GAP_S = 1.0
EVENT_S = 0.02
LEFT_KIB = 100 * 1024
"""How much more memory than before may be in use afterwards: less than two bodies."""

PART = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}'
PICTURE = b'{"messages":[{"role":"user","content":[%b]}]}' % PART
BODIES: dict[str, tuple[Callable[[], bytes], int, str | None]] = {
    "messages": (
        lambda: b'{"\\u006dessages":[%b1]}' % (b'{"role":"user","content":"x"},' * (SIZE // 30)),
        400,
        "messages",
    ),
    "objects": (lambda: b'{"file_id":"x","a":[%b1]}' % (b"{}," * (SIZE // 3)), 400, "a"),
    "lists": (lambda: b'{"a":' + b"[" * SIZE, 400, "a"),
    "escapes": (lambda: b'{"a":"%b"}' % (b"\\\\" * (SIZE // 2)), 413, "a"),
    "blanks": (lambda: b'{"a":%b1}' % (b" " * SIZE), 413, "a"),
    "names": (lambda: b'{%b"a":1}' % b"".join(b'"%d":1,' % n for n in range(SIZE // 11)), 400, None),
    "picture": (lambda: PICTURE % (b"A" * SIZE), 200, None),
    "escaped picture": (lambda: PICTURE % ((b"A" * 62 + b"\\/") * (SIZE // 64)), 200, None),
}


def read_kib(server: GatewayServer) -> int:
    """Memory of the processes of the server's group; pages of files are not counted."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == server.process.pid:
                    lines = (entry / "status").read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            except OSError:
                continue
    return total


class Story:
    """A stream that runs beside the requests: when upstream sent each event, and when the client had it."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.over = threading.Event()
        self.sent: list[float] = []
        self.seen: list[float] = []
        upstream.handler = self.answer

    def answer(self, exchange: Exchange) -> None:
        if not exchange.document.get("stream"):
            exchange.reply({**chat_chunk("x"), "choices": [{"message": {"content": "x"}}]})
            return
        exchange.start()
        while not self.over.wait(EVENT_S):
            self.sent.append(time.monotonic())
            exchange.event(chat_chunk("x"))
        exchange.event("[DONE]")
        exchange.end()

    def read(self, gateway: GatewayServer) -> None:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        with requests.post(gateway.url + CHAT, json=body, headers=AUTH, stream=True, timeout=WAIT_S) as reply:
            for _ in reply.iter_lines():
                self.seen.append(time.monotonic())


def find_gap(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


@pytest.mark.parametrize("name", BODIES)
def test_a_stream_beside_hostile_bodies(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream, name: str
) -> None:
    """Three of them at once hold the stream for less than a second beyond upstream's own gaps."""
    make, status, param = BODIES[name]
    body = make()
    gateway = make_gateway(GROKFLASK_BODIES_TOTAL_BYTES=str(2**30))  # or one key may not send three
    story = Story(upstream)

    def send(data: bytes) -> requests.Response:
        headers = {**AUTH, "Content-Type": "application/json", "Accept": "application/json"}
        return requests.post(gateway.url + CHAT, data=data, headers=headers, timeout=WAIT_S)

    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        reading = pool.submit(story.read, gateway)
        wait_for(lambda: len(story.seen) > 10, "the stream to run")
        assert send(b'{"messages":[1]}').status_code == 200
        before = read_kib(gateway)
        replies = list(pool.map(send, [body] * AT_ONCE))
        story.over.set()
        reading.result(WAIT_S)
    assert {reply.status_code for reply in replies} == {status}, replies[0].text
    if param is not None:
        assert {reply.json()["error"]["param"] for reply in replies} == {param}
    assert find_gap(story.seen) < find_gap(story.sent) + GAP_S
    assert len(story.seen) >= len(story.sent)
    wait_for(lambda: read_kib(gateway) < before + LEFT_KIB, "the memory to come back")
