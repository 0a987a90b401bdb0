"""Bodies that never end, break the rules or find no room: the worker goes on with everybody else.

While an attack runs, and for as long as it runs, a stream beside it gets its events and /health answers: each
test ends when enough of both have come, not after some time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, read_anonymous_kib, start_gateway, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.wire import AUTH, CHAT, build_request, connect, read_all, read_until

MIB = 2**20
CHUNKED = "Transfer-Encoding: chunked"
FORM = "Content-Type: multipart/form-data; boundary=b"


def make_head(path: str, *lines: str, key: str | None = CLIENT_KEY) -> bytes:
    """A POST's head."""
    key_lines = [f"Authorization: Bearer {key}"] if key else []
    if not any(line.startswith("Content-Type") for line in lines):
        lines = ("Content-Type: application/json", *lines)
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *key_lines, *lines, "", ""]).encode()


NOWHERE = make_head("/nowhere", CHUNKED, key=None)
MINE = make_head(CHAT, CHUNKED)

ATTACKS: dict[str, tuple[bytes, bytes]] = {
    "an extension after a 404": (NOWHERE + b"5;", b"x" * 65536),
    "tiny chunks after a 404": (NOWHERE, b"1\r\nx\r\n" * 10_000),
    "trailers after a 404": (NOWHERE + b"0\r\n", b"X: y\r\n" * 10_000),
    "a length after a 404": (make_head("/nowhere", "Content-Length: 99999999999"), b"x" * 65536),
    "a length without a key": (make_head(CHAT, "Content-Length: 99999999999", key=None), b"x" * 65536),
    "an extension": (MINE + b"5;", b"x" * 65536),
    "extensions": (MINE, (b"1;" + b"x" * 500 + b"\r\ny\r\n") * 100),
    "tiny chunks": (MINE, b"1\r\n \r\n" * 10_000),
    "trailers": (MINE + b"0\r\n", b"X: y\r\n" * 10_000),
    "chunks of an upload": (make_head("/v1/files", CHUNKED, FORM), b"1\r\nx\r\n" * 10_000),
    "a body that is too large": (make_head(CHAT, "Content-Length: 99999999999"), b"x" * 65536),
    "a head": (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
    "empty lines": (b"", b"\r\n" * 10_000),
    "requests in a row": (b"", b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" * 1000),
}


def has_answer(sock: socket.socket) -> bool:
    """Something has come from the gateway, or the end."""
    return bool(select.select([sock], [], [], 0)[0])


class Attack:
    """A client that sends `start` and then `more` again and again, on a new connection when one ends."""

    def __init__(self, gateway: GatewayServer, start: bytes, more: bytes) -> None:
        self._gateway, self._start, self._more = gateway, start, more
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError), connect(self._gateway) as sock:
                sock.settimeout(1.0)  # a connection whose answers nobody reads takes no more
                sock.sendall(self._start)
                while not self._ended.is_set():
                    sock.sendall(self._more)
                    while has_answer(sock) and sock.recv(2**20):
                        pass


@pytest.fixture(scope="module")
def server(
    shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """A gateway whose one worker these tests attack."""
    gateway = start_gateway(tmp_path_factory.mktemp("attacked"), shared_upstream)
    yield gateway
    gateway.leave()


@pytest.mark.parametrize("kind", ATTACKS)
def test_others_go_on(server: GatewayServer, clean_upstream: ScriptedUpstream, kind: str) -> None:
    """20 events of a stream arrive one by one, and 5 answers of /health beside them."""
    seen = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for number in range(20):
            exchange.event(chat_chunk(f"event {number}."))
            assert seen.acquire(timeout=WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    clean_upstream.handler = answer
    with connect(server) as stream, Attack(server, *ATTACKS[kind]):
        stream.sendall(build_request())
        for number in range(20):
            read_until(stream, f"event {number}.".encode())
            if number % 4 == 0:
                assert requests.get(f"{server.url}/health", timeout=WAIT_S).status_code == 200
            seen.release()
        read_until(stream, b"[DONE]")


BROKEN = {
    "a size": b"xyz\r\n",
    "a chunk's end": b"5\r\nhello!\r\n",
    "an extension": b"5;" + b"x" * 5000,
    "a trailer": b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
    "a forbidden trailer": b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "long trailers": b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 5000,
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("start", [b"", b'1\r\n{\r\n12\r\n"messages":[],"a":"\r\n' * 3])
def test_broken_chunks(
    server: GatewayServer, clean_upstream: ScriptedUpstream, kind: str, start: bytes
) -> None:
    """400 in the API's form, wherever in the body they come, and the connection ends."""
    with connect(server) as sock:
        sock.sendall(MINE + start + BROKEN[kind])
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    error = json.loads(body.removeprefix(b"data: "))["error"]
    assert "not valid HTTP" in json.dumps(error)
    assert not clean_upstream.exchanges
    assert "Traceback" not in server.log


START = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (CHUNKED, b"%x\r\n%s\r\nxyz\r\n" % (len(START), START)),
        (CHUNKED, b"%x\r\n%s\r\n2dc6c0\r\n%s!\r\n0\r\n\r\n" % (len(START), START, b"x" * 3_000_000)),
        (CHUNKED, b"%x\r\n%s\r\n" % (len(START), START)),
        ("Content-Length: 9999", START),
    ],
)
def test_broken_uploads(
    server: GatewayServer, clean_upstream: ScriptedUpstream, framing: str, body: bytes
) -> None:
    """Nothing of them goes up, and they are not answered as if they were whole."""
    with connect(server) as sock:
        sock.sendall(make_head("/v1/files", FORM, framing) + body)
        if b"!" not in body and b"xyz" not in body:
            sock.shutdown(socket.SHUT_WR)
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert not clean_upstream.exchanges


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (make_head(CHAT, f"Content-Length: {80 * MIB}"), b"413"),
        (make_head(CHAT, f"Content-Length: {80 * MIB}", key=None), b"401"),
        (make_head("/nowhere", f"Content-Length: {80 * MIB}"), b"404"),
        (make_head("/health", f"Content-Length: {80 * MIB}"), b"405"),
        (make_head(CHAT, f"Content-Length: {80 * MIB}").replace(b"1.1", b"7.1", 1), b"400"),
    ],
)
def test_a_client_that_sends_all_before_it_reads(server: GatewayServer, head: bytes, status: bytes) -> None:
    """It gets its answer, although nobody wanted the 80 MiB."""
    with connect(server) as sock:
        sock.sendall(head)
        for _ in range(80):
            sock.sendall(b"x" * MIB)
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in got


def test_a_refused_request_keeps_its_connection(server: GatewayServer) -> None:
    """If its body is small and here; the next request on it is served."""
    body = b'{"input":"x"}'
    refused = make_head("/v1/embeddings", f"Content-Length: {len(body)}", key="wrong-key") + body
    with connect(server) as sock:
        for _ in range(3):
            sock.sendall(refused)
            got = read_until(sock, b"}")
            assert re.match(rb"HTTP/1.1 4\d\d ", got)
            assert b"Connection: keep-alive" in got


def test_a_refused_body_is_not_asked_for(server: GatewayServer, clean_upstream: ScriptedUpstream) -> None:
    """A client that waits for `100 Continue` gets its answer instead; an accepted one is asked on."""
    refused = make_head(CHAT, "Expect: 100-continue", "Content-Length: 9", key="wrong-key")
    with connect(server) as sock:
        sock.sendall(refused)
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in got
    head, _, body = build_request("Expect: 100-continue").partition(b"\r\n\r\n")
    with connect(server) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        read_until(sock, b"[DONE]")


def list_files(server: GatewayServer) -> list[str]:
    """The deleted files that the server's processes have open."""
    files = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(entry.name)) == server.process.pid:
                links = [os.readlink(link) for link in (entry / "fd").iterdir()]
                files += [link for link in links if "(deleted)" in link and "wgunicorn" not in link]
    return files


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(
    full_disk: Path, make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """507 for uploads and answers that find no room, a line in the log, and no file left."""
    server = make_gateway(TMPDIR=str(full_disk))
    content = b"x" * 10 * MIB
    form = START + content + b"\r\n--b--\r\n"
    uploads = [
        make_head("/v1/files", FORM, f"Content-Length: {len(form)}") + form,
        make_head("/v1/files", FORM, CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(form), form),
    ]
    upstream.handler = lambda exchange: exchange.reply(b'{"a":"' + content + b'"}')
    before = list_files(server)
    for number, upload in enumerate(uploads * 2, start=1):
        with connect(server) as sock:
            sock.sendall(upload)
            got = read_all(sock)
        assert got.startswith(b"HTTP/1.1 507 "), got[:200]
        assert b"disk_full" in got
        lines = server.find_lines("level=error", f"directory={full_disk}")
        assert len(lines) == number
    assert not upstream.exchanges
    reply = requests.get(f"{server.url}/v1/files", headers=AUTH, timeout=WAIT_S)
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "disk_full")
    wait_for(lambda: list_files(server) == before, "the files to be gone")
    upstream.handler = answer_chat
    with connect(server) as sock:
        sock.sendall(build_request())
        read_until(sock, b"[DONE]")
    server.stop()
    assert "Traceback" not in server.log


def stall(server: GatewayServer, size: int, of: int) -> socket.socket:
    """A client that has sent `size` bytes of a body of `of`, and then waits."""
    sock = connect(server)
    sock.sendall(make_head(CHAT, f"Content-Length: {of}", "Accept: application/json"))
    with contextlib.suppress(ConnectionError):
        sock.sendall(b'"' + b"x" * (size - 1))
    return sock


def say(size: int) -> list[dict[str, str]]:
    """Messages of that size."""
    return [{"role": "user", "content": "x" * size}]


def test_memory_for_bodies_has_a_bound(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """Of ten stalled bodies of 12 MiB two find room in their key's half of 64; small ones always do."""
    server = make_gateway(GROKFLASK_MAX_BODY_BYTES=str(16 * MIB), GROKFLASK_BODIES_TOTAL_BYTES=str(64 * MIB))
    before = read_anonymous_kib(server)
    with ThreadPoolExecutor(10) as pool:
        socks = list(pool.map(lambda _: stall(server, 12 * MIB, 16 * MIB), range(10)))
    try:
        wait_for(lambda: sum(map(has_answer, socks)) == 8, "eight to be refused")
        for sock in filter(has_answer, socks):
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in head
            assert b"Connection: close" in head
            assert json.loads(body)["error"]["code"] == "bodies_full"
        with connect(server) as sock:  # 24 MiB are held, and a small body needs little
            sock.sendall(build_request(messages=say(MIB)))
            read_until(sock, b"[DONE]")
        assert sum(map(has_answer, socks)) == 8
        assert read_anonymous_kib(server) < before + 96 * 1024  # all ten would take more
    finally:
        for sock in socks:
            sock.close()

    def ask(_: int) -> bool:
        with connect(server) as sock:
            sock.sendall(build_request(messages=say(16 * MIB - 1000)))
            return sock.recv(65536).startswith(b"HTTP/1.1 200 ")

    with ThreadPoolExecutor(2) as pool:
        wait_for(lambda: all(pool.map(ask, range(2))), "all memory to be free")


def test_bodies_count_until_upstream_has_answered(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """For whole answers the request is kept, as it may have to be sent again."""
    server = make_gateway(GROKFLASK_MAX_BODY_BYTES=str(2 * MIB), GROKFLASK_BODIES_TOTAL_BYTES=str(4 * MIB))
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        waiting.release()
        assert go_on.wait(WAIT_S)
        answer_chat(exchange)

    upstream.handler = answer
    request = build_request("Accept: application/json", stream=False, messages=say(3 * MIB // 2))
    with connect(server) as first, connect(server) as second, connect(server) as third:
        first.sendall(request)
        assert waiting.acquire(timeout=WAIT_S)
        second.sendall(request)
        assert b"bodies_full" in read_until(second, b"}")
        go_on.set()
        read_until(first, b'"usage"')
        third.sendall(request)
        read_until(third, b'"usage"')
    assert len(upstream.exchanges) == 2
