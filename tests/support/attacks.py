"""All known attacks on a gateway: by strangers, by a key's holder, and by its upstream.

`python -m support.attacks` runs them in a process of its own, several at once, in an order drawn by a seed.
It prints what each of them saw as a line of JSON. Upstream's connections reach it over a socket of messages.

A row of a table has a name, a pattern for all that the attacker may see, and what makes the attack: either
the pieces to send on one connection, with options for `talk`, or the text of what was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.hostile import (
    ANSWER_S,
    BLOCK,
    LENGTH,
    LONG_S,
    SHORT_S,
    Attack,
    Target,
    Then,
    ask_many,
    forever,
    talk,
)
from support.scripted import USAGE, chat_chunk

ENEMY_S = 40.0
"""How long upstream goes on; longer than the client of its answer waits for it to be stopped."""

# What the attacker may see.
ANY = r"(none|[1-4]\d\d|503) (open|closed)"  # nothing is promised but that others do not notice
REFUSED = r"(4\d\d|503) (open|closed)"  # 503 where the bodies of others fill the memory
TAKEN = r"(200|4\d\d|503) (open|closed)"  # legal, or at least harmless
CUT = r"(4\d\d|503|none) closed"  # a flood may overtake the answer that says why the connection is closed
BROKEN = r"(400|none) closed"
UNREAD = r"(40[04]|none) closed"
TOO_LARGE = r"(400|413|503) (open|closed)"
FAILED = r"502 (open|closed)"
GUESSED = r"(401|429|401,429) then 200"
ENDED = r"(200|502) (open|closed)"

HELLO = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
STREAM = HELLO[:-1] + b', "stream": true}'
MESSAGE = b'{"role":"user","content":"x"}'
LEGAL = b'{"messages":[' + MESSAGE + b"],"  # a body begins so, with more to come
HELLO_CHUNK = b"%x\r\n%s\r\n" % (len(HELLO), HELLO)

CHUNKS = "Transfer-Encoding: chunked"
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n"

EXTENSION = Then(b"5;", forever(b"x"))
TRAILERS = forever(b"X: y\r\n")
ONE_BYTE = forever(b"1\r\n \r\n")
FLOOD = forever(b"x")
GIANT = 60 * 2**20
NOWHERE: dict[str, Any] = {"path": "/nowhere", "token": ""}

FORM = "Content-Type: multipart/form-data"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
PART_CHUNK = b"%x\r\n%s\r\n" % (len(PART), PART)


def raw(first: str, *headers: str, body: bytes = b"") -> Callable[[Target], bytes]:
    """A request without a key, just as it is written."""
    head = "\r\n".join((first, "Host: x", *headers)).encode() + b"\r\n\r\n"
    return lambda _: head + body


def say(content: bytes) -> bytes:
    """A chat's body with that content, which is as it stands in JSON."""
    return HELLO.replace(b"hello", content)


def by_bytes(pieces: Iterable[bytes]) -> Iterable[bytes]:
    """The same, byte by byte."""
    return (bytes([each]) for piece in pieces for each in piece)


def form(
    t: Target, body: bytes | Iterable[bytes], media_type: str = FORM + "; boundary=b"
) -> Iterable[bytes]:
    """An upload of a file; chunked if its length is not known."""
    length = f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked"
    return Then(t.head("/api/v1/files", media_type, length), body)


def ask_enemy(t: Target, name: str, *, stream: bool = False) -> Iterable[bytes]:
    """A chat that upstream answers as ENEMIES says."""
    return t.post(STREAM if stream else HELLO, f"X-Grok-Conv-Id: enemy-{name}")


HEADS = [
    ("heads: lower-case method", REFUSED, raw("get /health HTTP/1.1")),
    ("heads: method of 10 KB", CUT, raw("G" * 10_000 + " /health HTTP/1.1")),
    ("heads: unknown method", r"(40\d|501) .*", raw("BREW /health HTTP/1.1")),
    ("heads: path of 100 KB", CUT, raw("GET /" + "a" * 100_000 + " HTTP/1.1")),
    ("heads: header of 1 MB", CUT, raw("GET /health HTTP/1.1", "X: " + "y" * 2**20)),
    ("heads: 1,000 headers", CUT, raw("GET /health HTTP/1.1", *["X: y"] * 1000)),
    ("heads: SCRIPT_NAME hides a path", REFUSED, raw("GET /open/health HTTP/1.1", "SCRIPT_NAME: /open")),
    ("heads: SCRIPT_NAME elsewhere", TAKEN, raw("GET /health HTTP/1.1", "SCRIPT_NAME: /nowhere")),
    ("heads: PATH_INFO", TAKEN, raw("GET /health HTTP/1.1", "PATH_INFO: /ready", "wsgi.input: x")),
    ("heads: REMOTE_USER", TAKEN, raw("GET /health HTTP/1.1", "REMOTE_USER: root", "REMOTE_ADDR: ::1")),
    ("heads: both lengths", BROKEN, raw("POST /x HTTP/1.1", "Content-Length: 5", CHUNKS)),
    ("heads: two lengths", BROKEN, raw("POST /x HTTP/1.1", "Content-Length: 5", "Content-Length: 6")),
    ("heads: unknown coding", r"(400|501) closed", raw("POST /x HTTP/1.1", "Transfer-Encoding: xchunked")),
    ("heads: chunked twice", BROKEN, raw("POST /x HTTP/1.1", "Transfer-Encoding: chunked, chunked")),
    ("heads: chunked in 1.0", BROKEN, raw("POST /x HTTP/1.0", CHUNKS)),
    ("heads: folded header", TAKEN, raw("GET /health HTTP/1.1", "X: a", " b")),
    ("heads: NUL in a header", BROKEN, raw("GET /health HTTP/1.1", "X: a\0b")),
    ("heads: name with a space", BROKEN, raw("GET /health HTTP/1.1", "X Y: a")),
    ("heads: no colon", BROKEN, raw("GET /health HTTP/1.1", "nonsense")),
    ("heads: bare line feeds", ANY, lambda _: b"GET /health HTTP/1.1\nHost: x\n\n"),
    ("heads: absolute URI", TAKEN, raw("GET http://evil.test/health HTTP/1.1")),
    ("heads: NUL in the path", REFUSED, raw("GET /a%00b HTTP/1.1")),
    ("heads: bad Host", TAKEN, raw("GET /health HTTP/1.1", "Host: a b@c/d")),
    ("heads: upgrade", TAKEN, raw("GET /health HTTP/1.1", "Upgrade: websocket", "Connection: upgrade")),
    ("heads: HTTP/0.9", CUT, raw("GET /health")),
    ("heads: HTTP/9.9", r"(400|505) closed", raw("GET /health HTTP/9.9")),
    ("heads: HTTP/2", r"(400|505) closed", raw("PRI * HTTP/2.0", body=b"SM\r\n\r\n" + bytes(9))),
    ("heads: TLS", BROKEN, lambda _: TLS),
    ("heads: empty lines", BROKEN, lambda _: b"\r\n" * 50_000),
    ("heads: endless", CUT, lambda _: Then(b"GET / HTTP/1.1\r\n", TRAILERS)),
    ("heads: endless line", CUT, lambda _: Then(b"GET /", FLOOD)),
    ("heads: by bytes", ANY, lambda t: by_bytes([t.get("/health")]), SHORT_S, 0.2),
    ("heads: 1,000 requests unread", ANY, lambda t: t.get("/health") * 1000, SHORT_S, 0, False),
    ("heads: 1,000 pages unread", ANY, lambda t: t.get("/") * 1000, SHORT_S, 0, False),
    ("heads: 300 idle connections", "300", lambda t: sit_idle(t)),
    *(
        (f"heads: length {length[:9]}", BROKEN, raw("POST /x HTTP/1.1", f"Content-Length: {length}"))
        for length in ("-1", "+5", "5_0", "0x5", "\u00b2", "5, 5", "1" * 5000)
    ),
]

BODIES = [
    ("bodies: endless extension", BROKEN, lambda t: t.chunked(EXTENSION)),
    ("bodies: endless extension, 404", UNREAD, lambda t: t.chunked(EXTENSION, **NOWHERE)),
    ("bodies: one-byte chunks", ANY, lambda t: t.chunked(ONE_BYTE), LONG_S),
    ("bodies: one-byte chunks, 404", UNREAD, lambda t: t.chunked(ONE_BYTE, **NOWHERE)),
    ("bodies: endless trailers", BROKEN, lambda t: t.chunked(Then(HELLO_CHUNK + b"0\r\n", TRAILERS))),
    ("bodies: endless trailers, 404", UNREAD, lambda t: t.chunked(Then(b"0\r\n", TRAILERS), **NOWHERE)),
    (
        "bodies: length as trailer",
        BROKEN,
        lambda t: t.chunked(HELLO_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"),
    ),
    ("bodies: broken trailer", BROKEN, lambda t: t.chunked(HELLO_CHUNK + b"0\r\nnonsense\r\n\r\n")),
    ("bodies: broken trailer, 404", UNREAD, lambda t: t.chunked(b"0\r\nnonsense\r\n\r\n", **NOWHERE)),
    ("bodies: no end of a chunk", BROKEN, lambda t: t.chunked(b"5\r\nhelloX0\r\n\r\n")),
    ("bodies: huge chunk", ANY, lambda t: t.chunked(b"F" * 16 + b"\r\nx"), SHORT_S),
    ("bodies: 60 MB, 404", UNREAD, lambda t: t.post(FLOOD, size=GIANT, **NOWHERE)),
    ("bodies: 60 MB, wrong key", CUT, lambda t: t.post(FLOOD, size=GIANT, token="wrong-key-of-nobody")),
    ("bodies: 60 MB, GET", r"200 closed", lambda t: t.post(FLOOD, size=GIANT, path="/health", method="GET")),
    ("bodies: length of 10^18", r"(413|none) closed", lambda t: t.post(FLOOD, size=10**18)),
    ("bodies: eight of 59 MB stand still", r"none|503|503,none", lambda t: stall_uploads(t)),
    ("bodies: by bytes", ANY, lambda t: by_bytes(t.post(HELLO)), SHORT_S, 0.05),
    ("bodies: Expect, 404", REFUSED, lambda t: t.post(b"", "Expect: 100-continue", size=GIANT, **NOWHERE)),
    ("bodies: Expect, then nothing", ANY, lambda t: t.post(b"", "Expect: 100-continue", size=9), SHORT_S),
    ("bodies: unknown Expect", TAKEN, lambda t: t.post(HELLO, "Expect: 200-maybe")),
    ("bodies: end early", CUT, lambda t: t.post(HELLO, size=1000), ANSWER_S, 0, True, True),
    ("bodies: chunked, end early", CUT, lambda t: t.chunked(b"50\r\nhello"), ANSWER_S, 0, True, True),
    ("bodies: gzip", REFUSED, lambda t: t.post(b"\x1f\x8b" + bytes(100), "Content-Encoding: gzip")),
    *(
        (f"bodies: chunk of {size[:9]!r}", CUT, lambda t, size=size: t.chunked(size + b"\r\nx\r\n0\r\n\r\n"))
        for size in (b"zz", b"-5", b"+5", b"0x5", b"", b"0" * 10_000 + b"1")
    ),
]

BAD_JSON = [
    ("json: 1,600,000 messages", TOO_LARGE, lambda t: t.post(make_messages())),
    ("json: 20,000,000 objects", TOO_LARGE, lambda t: t.post(make_objects())),
    ("json: picture of 59 MB", TAKEN, lambda t: t.post(make_picture())),
    ("json: 200,001 names", TOO_LARGE, lambda t: t.post(make_names(200_001))),
    ("json: arrays, 100,000 deep", TOO_LARGE, lambda t: t.post(nest(b"[", b"]", 100_000))),
    ("json: objects, 1,000,000 deep", TOO_LARGE, lambda t: t.post(nest(b'{"a":', b"}", 1_000_000))),
    ("json: text of 30 MB", TOO_LARGE, lambda t: t.post(say(b"x" * 30_000_000))),
    ("json: 30 MB of escapes", TOO_LARGE, lambda t: t.post(say(b"\\u0041" * 5_000_000))),
    ("json: 40 MB of spaces", TOO_LARGE, lambda t: t.post(b" " * 40_000_000 + HELLO)),
    ("json: number of a million digits", TAKEN, lambda t: t.post(nest(b"1" * 500_000, b"1" * 500_000, 1))),
    ("json: escaped name", TAKEN, lambda t: t.post(LEGAL + b'"str\\u0065am": true}')),
    ("json: two files under one name", REFUSED, lambda t: t.post(LEGAL + b'"file_id": "a", "file_id": "b"}')),
    ("json: a file under another's name", REFUSED, lambda t: t.post(TWO_CONTENTS)),
    ("json: two lists of messages", TAKEN, lambda t: t.post(LEGAL + b'"messages": []}')),
    ("json: NaN", REFUSED, lambda t: t.post(LEGAL + b'"temperature": NaN}')),
    ("json: infinite number", TAKEN, lambda t: t.post(LEGAL + b'"temperature": 1e999999}')),
    ("json: half a surrogate pair", TAKEN, lambda t: t.post(say(b"\\ud800"))),
    ("json: byte order mark", TAKEN, lambda t: t.post(b"\xef\xbb\xbf" + HELLO)),
    ("json: not UTF-8", REFUSED, lambda t: t.post(say(b"\xff\xfe"))),
    ("json: UTF-16", REFUSED, lambda t: t.post(HELLO.decode().encode("utf-16"))),
    ("json: nothing", REFUSED, lambda t: t.post(b"")),
    ("json: no object", REFUSED, lambda t: t.post(b"[1]")),
    ("json: cut", REFUSED, lambda t: t.post(HELLO[:-3])),
]
TWO_CONTENTS = MESSAGE.join((b'{"messages":[', b"]}")).replace(
    b'"content"', b'"content":[{"type":"file","file":{"file_id":"A"}}],"content"'
)

FORMS = [
    ("forms: broken boundary", TAKEN, lambda t: form(t, b"--other\r\n\r\nx")),
    ("forms: no boundary", TAKEN, lambda t: form(t, PART, FORM)),
    ("forms: boundary of 5 KB", TAKEN, lambda t: form(t, PART, FORM + "; boundary=" + "b" * 5000)),
    ("forms: 100,000 parts", TAKEN, lambda t: form(t, PART * 100_000 + b"--b--\r\n")),
    ("forms: chunked, cut", CUT, lambda t: form(t, [PART_CHUNK + b"50\r\nx"]), ANSWER_S, 0, True, True),
    ("forms: chunked, broken", BROKEN, lambda t: form(t, [PART_CHUNK + b"zz\r\n"])),
    ("forms: endless extension", BROKEN, lambda t: form(t, EXTENSION)),
    ("forms: one-byte chunks", ANY, lambda t: form(t, ONE_BYTE), LONG_S),
    ("forms: JSON", REFUSED, lambda t: form(t, HELLO, "Content-Type: application/json")),
    ("forms: login of 1 MB", REFUSED, lambda t: t.post(b"x" * 2**20, path="/admin/login", token="")),
]

TOKENS = [
    ("tokens: 300 wrong keys", r"401|429|401,429", lambda t: guess_keys(t)),
    ("tokens: 30 wrong for the API", GUESSED, lambda t: guess(t, "/admin/api/keys")),
    ("tokens: 30 wrong for the metrics", GUESSED, lambda t: guess(t, "/metrics")),
    ("tokens: one of 7 KB", REFUSED, lambda t: t.get("/api/v1/models", token="x" * 7000)),
    ("tokens: one of 1 MB", CUT, lambda t: t.get("/api/v1/models", token="x" * 2**20)),
    ("tokens: not ASCII", REFUSED, lambda t: t.get("/api/v1/models", token="\xff\xfe")),
    ("tokens: another scheme", REFUSED, lambda t: t.get("/api/v1/models", "Authorization: Basic ====")),
]

READERS = [
    ("readers: never", ANY, lambda t: ask_enemy(t, "flood_events", stream=True), LONG_S, 0, False),
    ("readers: a byte a second", r"HTTP/1\.1", lambda t: read_slowly(t)),
    ("readers: leave in each phase", "left", lambda t: leave_early(t)),
    ("readers: 50 come and go", "left", lambda t: open_and_close(t)),
    ("readers: half-closed", r"(none|200) closed", lambda t: t.post(STREAM), ANSWER_S, 0, True, True),
    ("readers: 50 long pages unread", ANY, lambda t: t.get("/openapi.json") * 50, SHORT_S, 0, False),
]

REPLAYS = [
    ("replay: ten clients, one key", "200", lambda t: share_key(t)),
    ("replay: other bodies, one key", "200,422", lambda t: reuse_key(t)),
    ("replay: Last-Event-ID", r"410|410,400|400,410", lambda t: resume_anything(t)),
    ("replay: key of 7 KB", REFUSED, lambda t: t.post(HELLO, "Idempotency-Key: " + "k" * 7000)),
]

PAGES = [
    ("pages: traversal", REFUSED, lambda t: t.get("/static/../../etc/passwd")),
    ("pages: encoded traversal", REFUSED, lambda t: t.get("/static/..%2f..%2fconfig.py")),
    ("pages: double slash", REFUSED, lambda t: t.get("//evil.test/%2e%2e")),
    ("pages: traversal of the reference", REFUSED, lambda t: t.get("/docs/..%2f..%2f.env")),
    ("pages: query of 3 KB", TAKEN, lambda t: t.get("/?" + "a=b&" * 750)),
    ("pages: strange numbers", REFUSED, lambda t: t.get("/admin/api/ledger?since=z&limit=-1", token=t.admin)),
    ("pages: id with a path", REFUSED, lambda t: t.get("/api/v1/files/..%2f..%2fadmin", token=t.key)),
    ("pages: dashboard", r"(30\d|4\d\d) .*", lambda t: t.get("/admin/exchanges/%27%3B--")),
    ("pages: form of another site", REFUSED, lambda t: t.post(b"name=x", "Origin: http://evil.test", **KEYS)),
]
KEYS: dict[str, Any] = {"path": "/admin/keys", "token": ""}

UPSTREAM = [
    (
        FAILED,
        "flood_1xx endless_head endless_header endless_status endless_extension redirect negative_length "
        "two_lengths negative_chunk huge_chunk bad_status no_http page switch nothing",
    ),
    (ENDED, "gzip_bomb nul_header split_header deep_json"),
    (r"50\d .*", "endless_error"),
    (r"(none|502) .*", "endless_json slow_head", LONG_S),
]
STREAMING = [
    (ENDED, "endless_extension_in_stream endless_trailers endless_event"),
    (ANY, "endless_comment one_byte_chunks flood_events", LONG_S),  # no end is expected
]


def list_attacks() -> list[Attack]:
    """All of them."""
    tables: list[Any] = [HEADS, BODIES, BAD_JSON, FORMS, TOKENS, READERS, REPLAYS, PAGES]
    attacks = [Attack(*row) for table in tables for row in table]
    for stream, table in ((False, UPSTREAM), (True, STREAMING)):
        for pattern, names, *options in table:
            for name in names.split():
                make = functools.partial(ask_enemy, name=name, stream=stream)
                attacks.append(Attack(f"upstream: {name}", pattern, make, *options))
    return attacks


# Bodies that take a while to make.


@functools.cache
def make_messages() -> bytes:
    """1.6 million messages, with a field's name escaped."""
    return b'{"messages":[' + b'{"r\\u006fle":"user","content":"x"},' * 1_600_000 + MESSAGE + b"]}"


@functools.cache
def make_objects() -> bytes:
    """20 million empty objects beside the name for which a body is searched."""
    return LEGAL + b'"x":{"file_id":"file-1"},"y":[' + b"{}," * 19_900_000 + b"{}]}"


@functools.cache
def make_picture() -> bytes:
    """A picture of 59 MB in base64."""
    url = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"QUJD" * 14_750_000 + b'"}}'
    return b'{"messages":[{"role":"user","content":[' + url + b"]}]}"


def make_names(count: int) -> bytes:
    return LEGAL + b",".join(b'"n%d":1' % n for n in range(count)) + b"}"


def nest(start: bytes, end: bytes, depth: int) -> bytes:
    return LEGAL + b'"x":' + start * depth + b"1" + end * depth + b"}"


# Attacks of more than one connection, or with more to look at than a status.


def sit_idle(t: Target) -> str:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(t.connect()) for _ in range(300)]
        time.sleep(SHORT_S)
        return f"{len(socks)}"


def stall_uploads(t: Target) -> str:
    """Each body is sent but for its last byte."""
    body = make_picture()
    request = Then(*t.post(body[:-1], size=len(body)))
    with ThreadPoolExecutor(8) as pool:
        saw = pool.map(lambda _: talk(t, request, SHORT_S), range(8))
        return ",".join(sorted({each.split()[0] for each in saw}))


def guess(t: Target, path: str) -> str:
    """Wrong tokens, and then the right one, which passes all the same."""
    saw = ask_many(t, [t.get(path, token=f"wrong-token-{number:09}") for number in range(30)])
    return f"{saw} then {talk(t, t.get(path, token=t.admin)).split()[0]}"


def guess_keys(t: Target) -> str:
    return ask_many(t, [t.get("/api/v1/models", token=f"wrong-key-{number:09}") for number in range(300)])


def read_slowly(t: Target) -> str:
    """A stream that comes at full speed."""
    with t.connect() as sock:
        sock.sendall(b"".join(ask_enemy(t, "flood_events", stream=True)))
        got = b""
        for _ in range(8):
            got += sock.recv(1)
            time.sleep(1)
    return got.decode()


def leave_early(t: Target) -> str:
    """Closes and resets in turn."""
    whole = b"".join(t.post(STREAM))
    for cut in (0, 1, 20, len(whole) // 2, len(whole) - 1, len(whole), len(whole) + 1):
        for reset in (False, True):
            with t.connect() as sock:
                sock.sendall(whole[:cut])
                if cut > len(whole):
                    sock.recv(100)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def open_and_close(t: Target) -> str:
    for _ in range(4):
        socks = [t.connect() for _ in range(50)]
        for sock in socks:
            sock.close()
    return "left"


def share_key(t: Target) -> str:
    request = b"".join(t.post(STREAM, "Idempotency-Key: shared"))
    with ThreadPoolExecutor(10) as pool:
        return ",".join({each.split()[0] for each in pool.map(lambda _: talk(t, request), range(10))})


def reuse_key(t: Target) -> str:
    bodies = [say(b"%d" % number) for number in range(20)]
    return ask_many(t, [b"".join(t.post(body, "Idempotency-Key: reused")) for body in bodies])


def resume_anything(t: Target) -> str:
    wrong = ("x", "-", "0-0", "-1", "9" * 500, "a-" + "9" * 30, "%00", "../..", "\xff")
    headers = [("Idempotency-Key: none", f"Last-Event-ID: {each}") for each in wrong]
    return ask_many(t, [b"".join(t.post(STREAM, *each)) for each in headers])


# How upstream answers.

STARTED = b"HTTP/1.1 200 OK\r\n"
JSON = STARTED + b"Content-Type: application/json\r\n"
CHUNKED = JSON + b"Transfer-Encoding: chunked\r\n\r\n"
EVENTS = STARTED + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"data: " + json.dumps(chat_chunk("x" * 100)).encode() + b"\n\n"
FIRST = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

ENEMIES: dict[str, bytes | Iterable[bytes]] = {
    "flood_1xx": forever(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "endless_head": Then(STARTED, forever(b"X-Filler: " + b"y" * 80 + b"\r\n")),
    "endless_header": Then(STARTED + b"X-Filler: ", FLOOD),
    "endless_status": Then(b"HTTP/1.1 200 ", FLOOD),
    "endless_extension": Then(CHUNKED + b"1;", FLOOD),
    "endless_extension_in_stream": Then(EVENTS + FIRST + b"1;", FLOOD),
    "endless_trailers": Then(EVENTS + FIRST + b"0\r\n", TRAILERS),
    "endless_event": Then(EVENTS, forever(b"%x\r\n%s\r\n" % (BLOCK, b"x" * BLOCK))),
    "endless_comment": Then(EVENTS, forever(b"3\r\n: \n\r\n")),
    "endless_json": Then(CHUNKED, forever(b"5\r\n[[[[[\r\n")),
    "endless_error": Then(b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\n\r\n", forever(b'{"error":')),
    "one_byte_chunks": Then(EVENTS, forever(b"".join(b"1\r\n%c\r\n" % each for each in EVENT))),
    "flood_events": Then(EVENTS, forever(FIRST)),
    "gzip_bomb": JSON + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b" + b"0" * 98,
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "slow_head": Then(STARTED, itertools.repeat(b"X")),
    "negative_length": JSON + b"Content-Length: -5\r\n\r\n{}",
    "two_lengths": JSON + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    "negative_chunk": CHUNKED + b"-5\r\n",
    "huge_chunk": CHUNKED + b"F" * 30 + b"\r\n",
    "bad_status": b"HTTP/1.1 99999 X\r\nContent-Length: 2\r\n\r\n{}",
    "no_http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nul_header": JSON + b"X-A: \0\r\nContent-Length: 2\r\n\r\n{}",
    "split_header": JSON + b"X-Request-Id: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
    "page": STARTED + b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "deep_json": Then(JSON + b"Content-Length: 20000000\r\n\r\n", [b"[" * 1_000_000] * 20),
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + b"x" * 1000,
    "nothing": b"",
}


def serve_upstream(connections: socket.socket) -> None:
    """Answers the connections that arrive over `connections`, each in a thread."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connections, 2 * BLOCK, 1)
        if not descriptors:
            return
        sock = socket.socket(fileno=descriptors[0])
        threading.Thread(target=_answer, args=(sock, data), daemon=True).start()


def _answer(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(ENEMY_S)
    end = time.monotonic() + ENEMY_S
    with sock, contextlib.suppress(OSError):
        head, _, body = data.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        left = int(length[1]) - len(body) if length else 0
        while left > 0 and (piece := sock.recv(BLOCK)):
            left -= len(piece)
        for piece, pause_s in _list_pieces(head):
            sock.sendall(piece)
            time.sleep(pause_s)
            if time.monotonic() > end:
                return


def _list_pieces(head: bytes) -> Iterable[tuple[bytes, float]]:
    """What to answer, and how long to wait after each piece."""
    enemy = re.search(rb"(?i)x-grok-conv-id: *enemy-(\w+)", head)
    if enemy:
        pieces = ENEMIES[enemy[1].decode()]
        pieces = [pieces] if isinstance(pieces, bytes) else pieces
        return ((piece, 0.2 if enemy[1].startswith(b"slow") else 0.0) for piece in pieces)
    if b"text/event-stream" in head:
        return [(EVENTS.replace(b"Tr", b"Connection: close\r\nTr"), 0.0), *[(FIRST, 0.05)] * 20, (DONE, 0.0)]
    choices = [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]
    whole = json.dumps({"id": "x-1", "model": "grok-4.3", "choices": choices, "usage": USAGE}).encode()
    return [(JSON + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(whole), whole), 0.0)]


def main() -> None:
    """Runs the attacks whose names match `--only`."""
    parser = argparse.ArgumentParser()
    for name in ("--port", "--upstream", "--seed", "--at-once"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--key", "--admin", "--only"):
        parser.add_argument(name, required=True)
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
