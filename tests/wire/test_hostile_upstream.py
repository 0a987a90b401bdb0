"""An upstream that sends without end: other streams go on, and the worker's memory stays bounded."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from pathlib import Path

import pytest
from support.processes import GatewayServer, start_gateway
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, chat_chunk
from support.wire import build_request, connect, read_until

ROUNDS = 50
MOST_MIB = 100
"""What the worker may grow by: an event of 32 MiB with a copy, and room."""


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
BOMB = gzip.compress(b"data: x\n\n" * (2**25 // 9))


def frame(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FLOODS = {
    "a body that unpacks a thousandfold": (CHUNKED + b"Content-Encoding: gzip\r\n\r\n", frame(BOMB)),
    "chunks of one byte": (CHUNKED + b"\r\n", (frame(b"x") + frame(b"\n")) * 4000),
    "an event of short lines without end": (CHUNKED + b"\r\n", frame(b"x\n" * 30_000)),
    "an event of one line without end": (CHUNKED + b"\r\n", frame(b"x" * 60_000)),
    "chunk extensions": (CHUNKED + b"\r\n1;", b"x" * 60_000),
    "trailers": (CHUNKED + b"\r\n0\r\n", b"X: 1\r\n" * 10_000),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 1000),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Filler: 1\r\n" * 1000),
}
"""How an answer begins, and what then comes without end."""


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_beside_a_stream(tmp_path: Path, upstream: ScriptedUpstream, flood: str) -> None:
    """The stream's events come one by one, each asked for by the one before, while the flood goes on."""
    seen, flowing, done = threading.Semaphore(0), threading.Event(), threading.Event()

    def pour(exchange: Exchange) -> None:
        start, piece = FLOODS[flood]
        exchange.send(start)
        try:
            while not done.is_set():
                exchange.send(piece)
                exchange.send(piece)
                flowing.set()
        except OSError:  # it was given up
            flowing.set()
        exchange.close()

    def answer(exchange: Exchange) -> None:
        if "flood" in str(exchange.document["messages"]):
            pour(exchange)
            return
        exchange.start()
        for number in range(ROUNDS):
            exchange.event(chat_chunk(f"<{number}>"))
            assert seen.acquire(timeout=WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    def drink(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(2**20):
                pass

    upstream.handler = answer
    server = start_gateway(tmp_path, upstream)
    try:
        with connect(server) as paced, connect(server) as flooded:
            paced.sendall(build_request())
            read_until(paced, b"<0>")
            before_mib = read_memory(server)
            messages = [{"role": "user", "content": "flood"}]
            flooded.sendall(build_request("Connection: close", messages=messages))
            drinker = threading.Thread(target=drink, args=(flooded,))
            drinker.start()
            assert flowing.wait(WAIT_S)
            for number in range(1, ROUNDS):
                seen.release()
                read_until(paced, f"<{number}>".encode())
            seen.release()
            read_until(paced, b"[DONE]")
            done.set()
            flooded.shutdown(socket.SHUT_RDWR)  # megabytes may be on their way, each a thousand unpacked
            drinker.join(WAIT_S)
        grown_mib = read_memory(server) - before_mib
        print(f"{flood}: grown by {grown_mib:.0f} MiB")
        assert grown_mib < MOST_MIB
    finally:
        done.set()
        server.leave()


def read_memory(server: GatewayServer) -> float:
    """The largest resident memory that a worker ever had, in MiB."""
    peaks = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                lines = (entry / "status").read_text().splitlines()
            except OSError:
                continue
            if int(parent) == server.process.pid:
                peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return max(peaks)
