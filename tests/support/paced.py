"""Streams at a slow and steady pace through a gateway, and how long each event took on its way.

Upstream and clients share one event loop. What a busy machine adds does not count: the kernel knows how long
this process and the worker were ready to run and did not get a processor.

Upstream hands every connection that does not carry a stream of its own to another process, which answers as
it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from bisect import bisect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.scripted import USAGE, WAIT_S, chat_chunk
from support.wire import CHAT

INTERVAL_S = 0.2
SAMPLE_S = 0.05
_MARK = re.compile(rb"(?i)\r\nx-grok-conv-id: *paced-(\d+)\r\n")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_NUMBER = re.compile(rb'"content": ?"n(\d+)"')


@dataclass
class PacedStream:
    """One stream: when upstream sent each of its events, and when the client got it."""

    sent: list[float] = field(default_factory=list)
    got: list[tuple[int, float]] = field(default_factory=list)  #: the number in each event, and when it came
    status: bytes = b""
    done: bool = False  #: [DONE] has come

    @property
    def is_whole(self) -> bool:
        """Every event has come, in order, and the end."""
        return self.done and [number for number, _ in self.got] == list(range(len(self.sent)))


class PacedStreams:
    """Upstream for paced streams, and their clients. `hand_over` takes the other connections.

    `hand_over` is a socket of messages: what was read of the connection, and its descriptor beside it.
    """

    def __init__(self, hand_over: socket.socket) -> None:
        self.streams: list[PacedStream] = []
        self.waits: list[tuple[float, float]] = []  #: when, and how long the processes had waited until then
        self._hand_over = hand_over
        self._hand_over.setblocking(False)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def serve(self) -> None:
        """Begins to answer, in the running loop."""
        self._begin(self._accept())

    async def open(self, port: int, secret: str, count: int) -> None:
        """Opens streams, and returns when each has had an event."""
        first = len(self.streams)
        for number in range(first, first + count):
            self.streams.append(PacedStream())
            self._begin(self._read(port, secret, number))
        await self._wait(lambda: all(stream.got for stream in self.streams[first:]))

    def watch(self, pid: int) -> None:
        """Notes from now on how long the worker, and this process, wait for a processor."""
        self._begin(self._sample((pid, os.getpid())))

    def find_stall(self) -> tuple[float, float, int]:
        """The longest gap between two events of a stream beyond upstream's own and beyond the machine's.

        Returns its length, when it ended, and the stream's number.
        """
        stalls = [(0.0, 0.0, 0)]
        for number, stream in enumerate(self.streams):
            for (before, start), (event, end) in pairwise(stream.got):
                stall_s = end - start - (stream.sent[event] - stream.sent[before])
                stalls.append((stall_s - self._find_wait(start, end), end, number))
        return max(stalls)

    async def end(self) -> None:
        """Has upstream end all of them, and waits until every client has seen its end, whatever that is."""
        self._ending.set()
        readers = [task for task in self._tasks if task.get_name() == "_read"]
        await asyncio.wait_for(asyncio.gather(*readers), WAIT_S)
        self._ending.clear()

    def close(self) -> None:
        """Closes upstream."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=work.__name__)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, "the streams did not begin"
            await asyncio.sleep(0.05)

    async def _sample(self, pids: tuple[int, ...]) -> None:
        while True:
            with contextlib.suppress(OSError):  # the worker has been killed, or the kernel does not tell
                texts = [Path(f"/proc/{pid}/schedstat").read_text() for pid in pids]
                self.waits.append((time.monotonic(), sum(int(text.split()[1]) for text in texts) / 1e9))
            await asyncio.sleep(SAMPLE_S)

    def _find_wait(self, start: float, end: float) -> float:
        """How long both processes together waited for a processor."""
        first = bisect(self.waits, (start, 0.0)) - 1
        last = bisect(self.waits, (end, 0.0))
        if not 0 <= first < last < len(self.waits):
            return 0.0
        return self.waits[last][1] - self.waits[first][1]

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            self._begin(self._answer(sock))

    async def _answer(self, sock: socket.socket) -> None:
        """Answers the requests of one connection, or hands it over."""
        loop = asyncio.get_running_loop()
        with sock:
            try:
                while True:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        piece = await loop.sock_recv(sock, 65536)
                        if not piece:
                            return
                        data += piece
                    head, _, body = data.partition(b"\r\n\r\n")
                    mark, length = _MARK.search(head + b"\r\n"), _LENGTH.search(head + b"\r\n")
                    if mark is None:
                        await self._pass_on(sock, data)
                        return
                    left = int(length[1]) - len(body) if length else 0
                    while left > 0:
                        left -= len(await loop.sock_recv(sock, left))
                    await self._send(sock, self.streams[int(mark[1])])
            except OSError:
                return

    async def _pass_on(self, sock: socket.socket, data: bytes) -> None:
        while True:
            try:
                socket.send_fds(self._hand_over, [data], [sock.fileno()])
                return
            except BlockingIOError:
                await asyncio.sleep(0.005)

    async def _send(self, sock: socket.socket, stream: PacedStream) -> None:
        loop = asyncio.get_running_loop()

        async def send(text: str) -> None:
            event = f"data: {text}\n\n".encode()
            await loop.sock_sendall(sock, b"%x\r\n%s\r\n" % (len(event), event))

        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await loop.sock_sendall(sock, head)
        while not self._ending.is_set():
            stream.sent.append(time.monotonic())
            await send(json.dumps(chat_chunk(f"n{len(stream.sent) - 1}")))
            await asyncio.sleep(INTERVAL_S)
        await send(json.dumps(chat_chunk("", choices=[], usage=USAGE)))
        await send("[DONE]")
        await loop.sock_sendall(sock, b"0\r\n\r\n")

    async def _read(self, port: int, secret: str, number: int) -> None:
        """One client, from its request to the end of its stream, however that ends."""
        stream = self.streams[number]
        body = json.dumps({"messages": [{"role": "user", "content": f"hello {number}"}], "stream": True})
        lines = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Authorization: Bearer {secret}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"X-Grok-Conv-Id: paced-{number}", "", body]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write("\r\n".join(lines).encode())
            stream.status = await reader.readline()
            while line := await reader.readline():
                found = _NUMBER.search(line)
                if found:
                    stream.got.append((int(found[1]), time.monotonic()))
                stream.done = stream.done or line.startswith(b"data: [DONE]")
        except OSError:
            pass
        finally:
            writer.close()
