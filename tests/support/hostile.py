"""Attacks on a gateway, each for a bounded time: as a stranger, as a key's holder, and as its upstream.

`python -m support.hostile` runs them in a process of its own, several at once, in an order drawn by a
seed. It prints what each of them saw as a line of JSON. Upstream's connections reach it over a socket of
messages.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from support.scripted import USAGE, chat_chunk
from support.wire import CHAT

BLOCK = 64 * 1024
SHORT_S, LONG_S = 4.0, 10.0
"""How long an attack lasts that waits for nothing, and how long one waits for its answer."""
ENEMY_S = 20.0
"""How long upstream goes on; longer than the client of its answer waits for it to be stopped."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Target:
    """The gateway, and the secrets that an attacker has."""

    port: int
    key: str
    admin: str

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), LONG_S)

    def head(self, path: str = CHAT, *headers: str, method: str = "POST", token: str | None = None) -> bytes:
        """A request's head with the key, or with another token; none with ""."""
        token = self.key if token is None else token
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
        lines += [f"Authorization: Bearer {token}"] if token else []
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def post(
        self, body: bytes | Iterable[bytes], *headers: str, size: int | None = None, **where: Any
    ) -> Iterable[bytes]:
        """A chat with that body, or a request to another path; `size` is what its head says."""
        size = len(body) if isinstance(body, bytes) and size is None else size
        lengths = ("Content-Type: application/json", f"Content-Length: {size}")
        return then(self.head(where.pop("path", CHAT), *lengths, *headers, **where), body)

    def chunked(self, body: bytes | Iterable[bytes], **where: Any) -> Iterable[bytes]:
        """The same with a chunked body, whose bytes are `body`, framing and all."""
        lengths = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        return then(self.head(where.pop("path", CHAT), *lengths, **where), body)

    def chunked_form(self, body: bytes | Iterable[bytes]) -> Iterable[bytes]:
        return then(self.head("/api/v1/files", *FORM_HEADERS, "Transfer-Encoding: chunked"), body)

    def get(self, path: str, *headers: str, token: str = "") -> bytes:
        return self.head(path, *headers, method="GET", token=token)


@dataclass(frozen=True)
class Attack:
    """`run` returns what it saw, which must match `expects` as a whole."""

    name: str
    expects: str
    run: Callable[[Target], str]

    def carry_out(self, target: Target) -> dict[str, Any]:
        """What happened, as it is printed."""
        start = time.monotonic()
        try:
            saw = self.run(target)
        except OSError as error:
            saw = f"{type(error).__name__}"
        fine = re.fullmatch(self.expects, saw) is not None
        end = time.monotonic()
        return {
            "name": self.name,
            "fine": fine,
            "saw": saw,
            "expects": self.expects,
            "start": start,
            "end": end,
        }


def talk(
    target: Target,
    pieces: bytes | Iterable[bytes],
    seconds: float = LONG_S,
    *,
    pause_s: float = 0.0,
    half_close: bool = False,
    reads: int = BLOCK,
) -> str:
    """Sends and reads on one connection until the answer is whole, the gateway closes, or time is over.

    Returns the status (`none` without one) and whether the connection was then `closed` or still `open`.
    After `half_close`, or if the answer says `Connection: close`, it waits for the end. With `reads` 0 it
    reads nothing, and leaves after `seconds`.
    """
    waiting = iter([pieces] if isinstance(pieces, bytes) else pieces)
    end = time.monotonic() + seconds
    left: memoryview | None = memoryview(b"")
    got, closed, next_at = b"", False, 0.0
    with target.connect() as sock:
        sock.setblocking(False)
        while (now := time.monotonic()) < end and not closed:
            if left is not None and not left and now >= next_at:
                piece = next(waiting, None)
                left = None if piece is None else memoryview(piece)
                next_at = now + pause_s
                if left is None and half_close:
                    sock.shutdown(socket.SHUT_WR)
            if left is None and _is_over(got) and not half_close:
                break
            wants = [sock] if left else []
            ready, writable, _ = select.select([sock] if reads else [], wants, [], min(0.1, end - now))
            try:
                if ready:
                    data = sock.recv(reads)
                    closed = not data
                    got = (got + data)[-4 * BLOCK :] if _STATUS.search(got) is None else _trim(got + data)
                if writable and left:
                    left = left[sock.send(left[:BLOCK]) :]
            except BlockingIOError:
                pass
            except OSError:
                closed = True
                with contextlib.suppress(OSError):  # an answer may be there all the same
                    while data := sock.recv(BLOCK):
                        got += data
        if not closed and not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return f"{_find_status(got)} {'closed' if closed else 'open'}"


def _trim(got: bytes) -> bytes:
    """The head of an answer and the end of its body: a long one is not kept."""
    return got if len(got) < 3 * BLOCK else got[:BLOCK] + got[-BLOCK:]


def _find_status(got: bytes) -> str:
    """The last status that is no 1xx; `none` without one."""
    found = [each.decode() for each in _STATUS.findall(got) if not each.startswith(b"1")]
    return found[0] if found else "none"


def _is_over(got: bytes) -> bool:
    """A whole answer is there, and the connection stays open."""
    while got.startswith(b"HTTP/1.1 1"):
        got = got.partition(b"\r\n\r\n")[2]
    head, end, body = got.partition(b"\r\n\r\n")
    if not end or b"connection: close" in head.lower():
        return False
    length = _LENGTH.search(head)
    return len(body) >= int(length[1]) if length else got.endswith(b"0\r\n\r\n")


def ask_many(target: Target, requests: Iterable[bytes]) -> str:
    """The different statuses of requests over a connection each, in order of their first appearance."""
    return ",".join(dict.fromkeys(talk(target, request).split()[0] for request in requests))


# What is sent.


def forever(piece: bytes) -> Iterable[bytes]:
    """The same bytes again and again, in blocks."""
    return itertools.repeat(piece * (BLOCK // len(piece) + 1))


class then:  # noqa: N801 - a function in all but that its result can be iterated again
    """One after the other."""

    def __init__(self, *parts: bytes | Iterable[bytes]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(
            [part] if isinstance(part, bytes) else part for part in self._parts
        )


def chat(content: str = "hello", **more: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **more}).encode()


HELLO = chat()
STREAM = chat(stream=True)
CHUNKED_HELLO = b"%x\r\n%s\r\n" % (len(HELLO), HELLO)
MESSAGE = b'{"role":"user","content":"x"}'


@functools.cache
def make_messages() -> bytes:
    """A legal chat of 1.6 million messages, with a field's name escaped."""
    return b'{"messages":[' + b'{"r\\u006fle":"user","content":"x"},' * 1_600_000 + MESSAGE + b"]}"


@functools.cache
def make_objects() -> bytes:
    """20 million empty objects beside the name that has a body searched for files."""
    return b'{"x":{"file_id":"file-1"},"y":[' + b"{}," * 19_900_000 + b'{}],"messages":[' + MESSAGE + b"]}"


@functools.cache
def make_picture() -> bytes:
    """A picture of 59 MB in base64, which is legal."""
    url = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"QUJD" * 14_750_000 + b'"}}'
    return b'{"messages":[{"role":"user","content":[' + url + b"]}]}"


def nest(start: bytes, end: bytes, depth: int) -> bytes:
    return b'{"messages":[' + MESSAGE + b'],"x":' + start * depth + b"1" + end * depth + b"}"


def make_names(count: int) -> bytes:
    return b'{"messages":[' + MESSAGE + b"]," + b",".join(b'"n%d":1' % n for n in range(count)) + b"}"


FORM_HEADERS = ("Content-Type: multipart/form-data; boundary=b",)


def form(target: Target, body: bytes, *headers: str) -> bytes:
    """An upload of a file."""
    headers = headers or FORM_HEADERS
    return target.head("/api/v1/files", *headers, f"Content-Length: {len(body)}") + body


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'


# Attacks of more than one connection, or with more to look at than a status.


def stall_uploads(target: Target) -> str:
    """Eight bodies of 59 MB, all but their last byte."""
    body = make_picture()
    request = then(*target.post(body[:-1], size=len(body)))
    with ThreadPoolExecutor(8) as pool:
        saw = pool.map(lambda _: talk(target, request, LONG_S), range(8))
        return ",".join(sorted({each.split()[0] for each in saw}))


def leave_early(target: Target) -> str:
    """Leaves in each phase, closing and resetting in turn."""
    whole = b"".join(target.post(STREAM, "X-Grok-Conv-Id: story"))
    for number, cut in enumerate((0, 1, 20, len(whole) // 2, len(whole) - 1, len(whole), len(whole))):
        for reset in (False, True):
            with target.connect() as sock:
                sock.sendall(whole[:cut])
                if number == 6:
                    sock.recv(100)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def read_slowly(target: Target) -> str:
    """A byte a second of a stream that comes at full speed."""
    with target.connect() as sock:
        sock.sendall(b"".join(target.post(STREAM, "X-Grok-Conv-Id: enemy-flood_events")))
        got = b""
        for _ in range(int(LONG_S) - 2):
            got += sock.recv(1)
            time.sleep(1)
    return got.decode()


def open_and_close(target: Target, count: int = 50) -> str:
    for _ in range(4):
        socks = [target.connect() for _ in range(count)]
        for sock in socks:
            sock.close()
    return "left"


def sit_idle(target: Target) -> str:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(target.connect()) for _ in range(300)]
        time.sleep(SHORT_S)
        return f"{len(socks)} open"


def share_key(target: Target) -> str:
    """Ten clients of one Idempotency-Key."""
    request = b"".join(target.post(STREAM, "X-Grok-Conv-Id: story", "Idempotency-Key: shared"))
    with ThreadPoolExecutor(10) as pool:
        return ",".join({each.split()[0] for each in pool.map(lambda _: talk(target, request), range(10))})


def reuse_key(target: Target) -> str:
    """Twenty bodies under one Idempotency-Key."""
    bodies = [chat(f"hello {number}") for number in range(20)]
    requests = [b"".join(target.post(body, "Idempotency-Key: reused")) for body in bodies]
    return ask_many(target, requests)


def resume_anything(target: Target) -> str:
    wrong = ("x", "-", "0-0", "-1", "9" * 500, "a-" + "9" * 30, "%00", "../..", "\xff")
    more = [f"Last-Event-ID: {each}" for each in wrong]
    return ask_many(target, [b"".join(target.post(STREAM, "Idempotency-Key: none", each)) for each in more])


def guess_keys(target: Target, count: int = 300) -> str:
    head = target.head(CHAT, "Content-Type: application/json", "Content-Length: 2", token="wrong-key-{:04}")
    return ask_many(target, [head.replace(b"{:04}", b"%04d" % number) + b"{}" for number in range(count)])


def guess_admin_tokens(target: Target) -> str:
    """Wrong ones, and then the right one, which passes all the same."""
    wrong = [target.get("/admin/api/keys", token=f"wrong-token-{number:09}") for number in range(30)]
    right = talk(target, target.get("/admin/api/keys", token=target.admin)).split()[0]
    return f"{ask_many(target, wrong)} then {right}"


def guess_metrics_tokens(target: Target) -> str:
    wrong = [target.get("/metrics", token=f"wrong-token-{number:09}") for number in range(30)]
    right = talk(target, target.get("/admin/api/keys", token=target.admin)).split()[0]
    return f"{ask_many(target, wrong)} then {right}"


def answer_as(target: Target, enemy: str, *, stream: bool = False) -> str:
    """Asks what an upstream answers that behaves as `enemy` says."""
    return talk(target, target.post(STREAM if stream else HELLO, f"X-Grok-Conv-Id: enemy-{enemy}"))


# How upstream answers a request with `X-Grok-Conv-Id: enemy-…`. Each goes on until the gateway hangs up.

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON = OK + b"Content-Type: application/json\r\n"
EVENT = b"data: " + json.dumps(chat_chunk("x" * 100)).encode() + b"\n\n"
FIRST = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)

ENEMIES: dict[str, bytes | Iterable[bytes]] = {
    "flood_1xx": forever(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "endless_head": then(OK, forever(b"X-Filler: " + b"y" * 80 + b"\r\n")),
    "endless_header": then(OK + b"X-Filler: ", forever(b"y")),
    "endless_status": then(b"HTTP/1.1 200 ", forever(b"O")),
    "endless_extension": then(JSON + b"Transfer-Encoding: chunked\r\n\r\n1;", forever(b"x")),
    "endless_extension_in_stream": then(EVENTS + FIRST + b"1;", forever(b"x")),
    "endless_trailers": then(EVENTS + FIRST + b"0\r\n", forever(b"X-Filler: y\r\n")),
    "endless_event": then(EVENTS, forever(b"%x\r\n%s\r\n" % (BLOCK, b"x" * BLOCK))),
    "endless_comment": then(EVENTS, forever(b"3\r\n: \n\r\n")),
    "one_byte_chunks": then(EVENTS, forever(b"".join(b"1\r\n%c\r\n" % each for each in EVENT))),
    "flood_events": then(EVENTS, forever(FIRST)),
    "gzip_bomb": then(
        JSON + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n", b"\x1f\x8b" + b"0" * 98
    ),
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "slow_head": then(OK, itertools.repeat(b"X")),
    "negative_length": JSON + b"Content-Length: -5\r\n\r\n{}",
    "two_lengths": JSON + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    "negative_chunk": JSON + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
    "huge_chunk": JSON + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 30 + b"\r\n",
    "bad_status": b"HTTP/1.1 99999 X\r\nContent-Length: 2\r\n\r\n{}",
    "no_http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nul_header": JSON + b"X-A: \0\r\nContent-Length: 2\r\n\r\n{}",
    "split_header": JSON + b"X-Request-Id: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
    "page": OK + b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "deep_json": JSON + b"Content-Length: 20000000\r\n\r\n" + b"[" * 20_000_000,
    "endless_json": then(JSON + b"Transfer-Encoding: chunked\r\n\r\n", forever(b"5\r\n[[[[[\r\n")),
    "endless_error": then(b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\n\r\n", forever(b'{"error":')),
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + b"x" * 1000,
    "nothing": b"",
}

REFUSED = r"4\d\d closed|none closed"
"""The connection is closed; a flood may overtake the answer that says why."""
BROKEN = r"400 closed|none closed"
UNREAD = r"404 closed|400 closed|none closed"
FINE = r"200 (open|closed)"
FAILED = r"502 (open|closed)"
ENDED = r"(200|502) (open|closed)"
ANY = r"(none|[1-4]\d\d|503) (open|closed)"
"""Nothing is promised but that others do not notice, and that it is no failure of the gateway."""

RAW = [
    ("heads: lower-case method", r"4\d\d .*", b"get /health HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: method of 10 KB", REFUSED, b"G" * 10_000 + b" /health HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: unknown method", r"[45]0[0-9] .*", b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: path of 100 KB", REFUSED, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: header of 1 MB", REFUSED, b"GET /health HTTP/1.1\r\nX: " + b"y" * 2**20 + b"\r\n\r\n"),
    ("heads: 1,000 headers", REFUSED, b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n"),
    (
        "heads: SCRIPT_NAME hides the path",
        r"(404|400) .*",
        b"GET /open/health HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /open\r\n\r\n",
    ),
    (
        "heads: SCRIPT_NAME of another path",
        r"(200|400) .*",
        b"GET /health HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /nowhere\r\n\r\n",
    ),
    (
        "heads: variables of the server",
        r"(200|400) .*",
        b"GET /health HTTP/1.1\r\nHost: x\r\nPATH_INFO: /ready\r\nREMOTE_USER: root\r\nwsgi.input: x\r\n\r\n",
    ),
    (
        "heads: both lengths",
        BROKEN,
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "heads: two lengths",
        BROKEN,
        b"POST /x HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ),
    (
        "heads: unknown coding",
        r"(400|501) closed",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "heads: chunked twice",
        BROKEN,
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    ("heads: chunked in 1.0", BROKEN, b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("heads: folded header", BROKEN, b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"),
    ("heads: NUL in a header", BROKEN, b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"),
    ("heads: name with a space", BROKEN, b"GET /health HTTP/1.1\r\nHost: x\r\nX Y: a\r\n\r\n"),
    ("heads: no colon", BROKEN, b"GET /health HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n"),
    ("heads: bare line feeds", r"(200|400) .*|none closed", b"GET /health HTTP/1.1\nHost: x\n\n"),
    ("heads: absolute URI", r"(200|4\d\d) .*", b"GET http://evil.test/health HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: NUL in the path", r"4\d\d .*", b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("heads: HTTP/0.9", REFUSED, b"GET /health\r\n\r\n"),
    ("heads: HTTP/9.9", r"(400|505) closed", b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n"),
    ("heads: HTTP/2", r"(400|505) closed", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    ("heads: TLS", BROKEN, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n"),
    ("heads: empty lines", BROKEN, b"\r\n" * 50_000),
    ("heads: no Host, bad Host", ANY, b"GET /health HTTP/1.1\r\nHost: a b@c/d\r\n\r\n"),
    (
        "heads: upgrade",
        r"(200|4\d\d) .*",
        b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ),
    *(
        (
            f"heads: length of {length}",
            BROKEN,
            f"POST /x HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode(),
        )
        for length in ("-1", "+5", "5_0", "0x5", "\u00b2", "5, 5", "1" * 5000)
    ),
]
"""Name, what is expected, and all that is sent."""

BAD_JSON = [
    ("1,600,000 messages", r"4(13|00) .*", make_messages),
    ("20,000,000 objects", r"4(13|00) .*", make_objects),
    ("picture of 59 MB", r"(200|413) .*", make_picture),
    ("200,001 names", r"4(13|00) .*", lambda: make_names(200_001)),
    ("arrays, 100,000 deep", r"400 .*", lambda: nest(b"[", b"]", 100_000)),
    ("objects, 1,000,000 deep", r"4(13|00) .*", lambda: nest(b'{"a":', b"}", 1_000_000)),
    ("text of 30 MB", r"(413|200) .*", lambda: chat("x" * 30_000_000)),
    ("40 MB of spaces", r"4(13|00) .*", lambda: b" " * 40_000_000 + HELLO),
    ("30 MB of escapes", r"(413|400|200) .*", lambda: chat("\\u0041" * 1_000_000).replace(b"\\\\", b"\\")),
    ("number of a million digits", r"4(13|00) .*", lambda: nest(b"", b"", 1)[:-2] + b"9" * 10**6 + b"}"),
    ("escaped name", r"(200|400) .*", lambda: HELLO[:-1] + b', "str\\u0065am": true}'),
    ("two files under one name", r"4\d\d .*", lambda: HELLO[:-1] + b', "file_id": "a", "file_id": "b"}'),
    (
        "two contents",
        r"4\d\d .*",
        lambda: (
            b'{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"A"}}],"content":"hi"}]}'
        ),
    ),
    ("two lists of messages", r"(200|400) .*", lambda: HELLO[:-1] + b', "messages": []}'),
    ("NaN", r"400 .*", lambda: HELLO[:-1] + b', "temperature": NaN}'),
    ("infinite number", r"(400|200) .*", lambda: HELLO[:-1] + b', "temperature": 1e999999}'),
    ("half a surrogate pair", r"(200|400) .*", lambda: chat("\ud800")),
    ("byte order mark", r"(400|200) .*", lambda: b"\xef\xbb\xbf" + HELLO),
    ("not UTF-8", r"400 .*", lambda: HELLO.replace(b"hello", b"\xff\xfe")),
    ("UTF-16", r"400 .*", lambda: HELLO.decode().encode("utf-16")),
    ("nothing", r"400 .*", lambda: b""),
    ("no object", r"400 .*", lambda: b"[1]"),
    ("cut", r"400 .*", lambda: HELLO[:-3]),
]
"""Name, what is expected, and what makes the body of a chat."""

PATHS = [
    ("pages: traversal", r"4\d\d .*", "/static/../../etc/passwd"),
    ("pages: encoded traversal", r"4\d\d .*", "/static/..%2f..%2fconfig.py"),
    ("pages: double slash", r"4\d\d .*", "//evil.test/%2e%2e"),
    ("pages: docs traversal", r"4\d\d .*", "/docs/..%2f..%2f.env"),
    ("pages: query of 7 KB", r"(200|4\d\d) .*", "/?" + "a=b&" * 1750),
    ("pages: strange numbers", r"4\d\d .*", "/admin/api/ledger?since=zzz&limit=-1&before=%00"),
    ("pages: item with a path", r"4\d\d .*", "/api/v1/files/..%2f..%2fadmin"),
    ("pages: dashboard without a session", r"(30\d|4\d\d) .*", "/admin/exchanges/%27%3B--"),
]

UPSTREAM = {
    FAILED: "flood_1xx endless_head endless_header endless_status endless_extension redirect negative_length "
    "two_lengths negative_chunk huge_chunk bad_status no_http nul_header page switch nothing",
    ENDED: "gzip_bomb split_header deep_json endless_json",
    r"5\d\d (open|closed)": "endless_error",
    r"none (open|closed)|50[24] .*": "slow_head",
}
STREAMING = {
    r"(200|502) .*": "endless_extension_in_stream endless_trailers endless_event",
    r"200 .*": "endless_comment one_byte_chunks flood_events",
}


NOWHERE: dict[str, Any] = {"path": "/nowhere", "token": ""}
WRONG: dict[str, Any] = {"token": "wrong-key-of-nobody"}
GIANT = 60 * 2**20

MORE: list[tuple[str, str, Callable[[Target], str]]] = [
    (
        "heads: a byte at a time",
        ANY,
        lambda t: talk(t, map(bytes, zip(t.get("/health"))), SHORT_S, pause_s=0.2),
    ),
    ("heads: endless", REFUSED, lambda t: talk(t, then(b"GET / HTTP/1.1\r\n", forever(b"X: y\r\n")))),
    ("heads: endless line", REFUSED, lambda t: talk(t, then(b"GET /", forever(b"a")))),
    ("heads: 1,000 requests unread", ANY, lambda t: talk(t, t.get("/health") * 1000, SHORT_S, reads=0)),
    ("heads: 1,000 pages unread", ANY, lambda t: talk(t, t.get("/") * 1000, SHORT_S, reads=0)),
    ("heads: 300 idle connections", r"300 open", sit_idle),
    (
        "bodies: endless extension, 404",
        UNREAD,
        lambda t: talk(t, t.chunked(then(b"5;", forever(b"x")), **NOWHERE)),
    ),
    ("bodies: endless extension", BROKEN, lambda t: talk(t, t.chunked(then(b"5;", forever(b"x"))))),
    ("bodies: one-byte chunks, 404", UNREAD, lambda t: talk(t, t.chunked(forever(b"1\r\nx\r\n"), **NOWHERE))),
    ("bodies: one-byte chunks", ANY, lambda t: talk(t, t.chunked(forever(b"1\r\n \r\n")))),
    (
        "bodies: endless trailers, 404",
        UNREAD,
        lambda t: talk(t, t.chunked(then(b"0\r\n", forever(b"X: y\r\n")), **NOWHERE)),
    ),
    (
        "bodies: endless trailers",
        BROKEN,
        lambda t: talk(t, t.chunked(then(CHUNKED_HELLO + b"0\r\n", forever(b"X: y\r\n")))),
    ),
    (
        "bodies: forbidden trailer",
        r"400 .*",
        lambda t: talk(t, t.chunked(CHUNKED_HELLO + b"0\r\nContent-Length: 5\r\n\r\n")),
    ),
    (
        "bodies: broken trailer",
        BROKEN,
        lambda t: talk(t, t.chunked(CHUNKED_HELLO + b"0\r\nnonsense\r\n\r\n")),
    ),
    (
        "bodies: broken trailer, 404",
        UNREAD,
        lambda t: talk(t, t.chunked(b"0\r\nnonsense\r\n\r\n", **NOWHERE)),
    ),
    *(
        (
            f"bodies: chunk of size {size[:20]!r}",
            r"4(00|13) closed|none closed",
            lambda t, size=size: talk(t, t.chunked(size + b"\r\nx\r\n0\r\n\r\n")),
        )
        for size in (b"zz", b"-5", b"+5", b"0x5", b"", b"F" * 16, b"0" * 10_000 + b"1")
    ),
    ("bodies: no end of a chunk", BROKEN, lambda t: talk(t, t.chunked(b"5\r\nhelloX0\r\n\r\n"))),
    ("bodies: 60 MB, 404", UNREAD, lambda t: talk(t, t.post(forever(b"x"), size=GIANT, **NOWHERE))),
    (
        "bodies: 60 MB, wrong key",
        r"4(01|29) closed|none closed",
        lambda t: talk(t, t.post(forever(b"x"), size=GIANT, **WRONG)),
    ),
    (
        "bodies: length of 10^18",
        r"413 closed|none closed",
        lambda t: talk(t, t.post(forever(b"x"), size=10**18)),
    ),
    ("bodies: 8 uploads stand still", r"none|503|503,none", stall_uploads),
    (
        "bodies: a byte at a time",
        ANY,
        lambda t: talk(t, map(bytes, zip(b"".join(t.post(HELLO)))), SHORT_S, pause_s=0.05),
    ),
    (
        "bodies: Expect, 404",
        r"4\d\d .*",
        lambda t: talk(t, t.post(b"", "Expect: 100-continue", size=GIANT, **NOWHERE)),
    ),
    (
        "bodies: Expect, then nothing",
        ANY,
        lambda t: talk(t, t.post(b"", "Expect: 100-continue", size=100), SHORT_S),
    ),
    ("bodies: unknown Expect", r"4\d\d .*|200 .*", lambda t: talk(t, t.post(HELLO, "Expect: 200-maybe"))),
    ("bodies: end early", REFUSED, lambda t: talk(t, t.post(HELLO, size=1000), half_close=True)),
    ("bodies: chunked, end early", REFUSED, lambda t: talk(t, t.chunked(b"50\r\nhello"), half_close=True)),
    (
        "bodies: gzip",
        r"4(15|00) .*",
        lambda t: talk(t, t.post(b"\x1f\x8b" + bytes(100), "Content-Encoding: gzip")),
    ),
    (
        "bodies: a GET has one",
        ANY,
        lambda t: talk(t, t.post(forever(b"x"), size=GIANT, path="/health", method="GET")),
    ),
    ("forms: broken boundary", r"(200|4\d\d) .*", lambda t: talk(t, form(t, b"--other\r\n\r\nx"))),
    (
        "forms: no boundary",
        r"(200|4\d\d) .*",
        lambda t: talk(t, form(t, PART, "Content-Type: multipart/form-data")),
    ),
    (
        "forms: boundary of 5 KB",
        r"(200|4\d\d) .*",
        lambda t: talk(t, form(t, PART, "Content-Type: multipart/form-data; boundary=" + "b" * 5000)),
    ),
    ("forms: 100,000 parts", r"(200|4\d\d) .*", lambda t: talk(t, form(t, PART * 100_000 + b"--b--\r\n"))),
    (
        "forms: chunked, cut",
        REFUSED,
        lambda t: talk(t, t.chunked_form(b"%x\r\n%s\r\n50\r\nx" % (len(PART), PART)), half_close=True),
    ),
    (
        "forms: chunked, broken",
        BROKEN,
        lambda t: talk(t, t.chunked_form(b"%x\r\n%s\r\nzz\r\n" % (len(PART), PART))),
    ),
    (
        "forms: chunked, endless extension",
        BROKEN,
        lambda t: talk(t, t.chunked_form(then(b"5;", forever(b"x")))),
    ),
    (
        "forms: a JSON one",
        r"4(15|00) .*",
        lambda t: talk(t, form(t, HELLO, "Content-Type: application/json")),
    ),
    (
        "forms: login of 1 MB",
        r"4\d\d .*",
        lambda t: talk(t, t.post(b"token=" + b"x" * 2**20, path="/admin/login", token="")),
    ),
    ("tokens: 300 wrong keys", r"401|429|401,429", guess_keys),
    ("tokens: 30 wrong admin tokens", r"(401|429|401,429) then 200", guess_admin_tokens),
    ("tokens: 30 wrong metrics tokens", r"(401|429|401,429) then 200", guess_metrics_tokens),
    ("tokens: one of 7 KB", r"4\d\d .*", lambda t: talk(t, t.get("/api/v1/models", token="x" * 7000))),
    ("tokens: one of 1 MB", REFUSED, lambda t: talk(t, t.get("/api/v1/models", token="x" * 2**20))),
    ("tokens: not ASCII", r"4\d\d .*", lambda t: talk(t, t.get("/api/v1/models", token="\xff\xfe"))),
    (
        "tokens: another scheme",
        r"4\d\d .*",
        lambda t: talk(t, t.get("/api/v1/models", "Authorization: Basic ====", token="")),
    ),
    (
        "readers: one that never reads",
        ANY,
        lambda t: talk(t, t.post(STREAM, "X-Grok-Conv-Id: enemy-flood_events"), LONG_S, reads=0),
    ),
    ("readers: a byte a second", r"HTTP/1\.1.*", read_slowly),
    ("readers: leave in each phase", r"left", leave_early),
    ("readers: 50 come and go", r"left", open_and_close),
    (
        "readers: half-closed",
        r"(none|200) closed",
        lambda t: talk(t, t.post(STREAM, "X-Grok-Conv-Id: story"), half_close=True),
    ),
    ("readers: large reply unread", ANY, lambda t: talk(t, t.get("/openapi.json") * 50, SHORT_S, reads=0)),
    ("replay: ten clients, one key", r"200", share_key),
    ("replay: other bodies, one key", r"200,422", reuse_key),
    ("replay: Last-Event-ID", r"410|410,400|400,410", resume_anything),
    ("replay: key of 7 KB", r"400 .*", lambda t: talk(t, t.post(HELLO, "Idempotency-Key: " + "k" * 7000))),
    (
        "pages: form from elsewhere",
        r"4\d\d .*|30\d .*",
        lambda t: talk(t, t.post(b"name=x", "Origin: http://evil.test", path="/admin/keys", token="")),
    ),
]
"""Name, what is expected, and the attack."""


def list_attacks() -> list[Attack]:
    """All of them."""
    attacks = [
        Attack(name, expects, lambda target, data=data: talk(target, data)) for name, expects, data in RAW
    ]
    attacks += [
        Attack(
            f"json: {name}", expects, lambda target, make=make: talk(target, target.post(make()), 2 * LONG_S)
        )
        for name, expects, make in BAD_JSON
    ]
    attacks += [
        Attack(
            name,
            expects,
            lambda t, path=path: talk(t, t.get(path, token=t.admin if "api/ledger" in path else t.key)),
        )
        for name, expects, path in PATHS
    ]
    for streams, table in ((False, UPSTREAM), (True, STREAMING)):
        attacks += [
            Attack(f"upstream: {enemy}", expects, lambda t, e=enemy, s=streams: answer_as(t, e, stream=s))
            for expects, enemies in table.items()
            for enemy in enemies.split()
        ]
    return attacks + [Attack(*row) for row in MORE]


# Upstream.


def serve_upstream(connections: socket.socket) -> None:
    """Answers the connections that arrive over `connections`, each in a thread."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connections, BLOCK * 2, 1)
        if not descriptors:
            return
        sock = socket.socket(fileno=descriptors[0])
        threading.Thread(target=_answer, args=(sock, data), daemon=True).start()


def _answer(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(ENEMY_S)
    with sock, contextlib.suppress(OSError):
        head, _, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        left = int(length[1]) - len(body) if length else 0
        while left > 0 and (piece := sock.recv(BLOCK)):
            left -= len(piece)
        found = re.search(rb"(?i)x-grok-conv-id: *enemy-(\w+)", head)
        if found:
            name = found[1].decode()
            pieces, end = ENEMIES[name], time.monotonic() + ENEMY_S
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                sock.sendall(piece)
                time.sleep(0.2 if name.startswith("slow") else 0)
                if time.monotonic() > end:
                    return
        elif b"text/event-stream" in head:
            sock.sendall(EVENTS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            for _ in range(20):
                sock.sendall(FIRST)
                time.sleep(0.05)
            end_of_stream = b"data: [DONE]\n\n"
            sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end_of_stream), end_of_stream))
        else:
            message = {"role": "assistant", "content": "hello"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            whole = json.dumps(
                {"id": "x-1", "model": "grok-4.3", "choices": choices, "usage": USAGE}
            ).encode()
            sock.sendall(JSON + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(whole), whole))


def main() -> None:
    """Runs the attacks."""
    parser = argparse.ArgumentParser()
    for name in ("--port", "--upstream", "--seed", "--at-once"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--key", "--admin"):
        parser.add_argument(name, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    upstream = socket.socket(fileno=options.upstream)
    threading.Thread(target=serve_upstream, args=(upstream,), daemon=True).start()
    target = Target(options.port, options.key, options.admin)
    attacks = [attack for attack in list_attacks() if re.search(options.only, attack.name)]
    random.Random(options.seed).shuffle(attacks)
    with ThreadPoolExecutor(options.at_once) as pool:
        for done in pool.map(lambda attack: attack.carry_out(target), attacks):
            print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
