"""The look through a body: it finds what a parser sees, and its work is bounded."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest
from support.processes import WAIT_S

from grokflask.config import Settings
from grokflask.errors import BodyTooLargeError, ClientError, InvalidRequestError
from grokflask.shaping import scan as module
from grokflask.shaping.scan import AT_ONCE, MAX_DEPTH, NOTHING, WAITING_BYTES, Findings, scan

SETTINGS = Settings()


def look(body: Any, settings: Settings = SETTINGS, *, always: bool = True) -> Findings:
    return scan(body if isinstance(body, bytes) else json.dumps(body).encode(), settings, always=always)


# What it finds


@pytest.mark.parametrize(
    ("body", "files"),
    [
        ({"file_id": "a"}, ["a"]),
        ({"input_file_id": "a"}, ["a"]),
        ({"x": [{"y": {"file_ids": ["a", "b"]}}]}, ["a", "b"]),
        ({"messages": [{"content": [{"type": "file", "file": {"file_id": "a"}}]}]}, ["a"]),
        ({"file_id": {"file_id": "a"}}, ["a"]),
        ({"file_ids": ["a", {"x": "b"}, "c"]}, ["a", "c"]),
        ({"text": 'say "file_id": "a"'}, []),
        ({"profile_id": "a", "file_id_x": "b", "file_ident": "c"}, []),
        ({"file_id": None, "file_ids": [1, None, {}]}, []),
        (
            {"parameters": {"properties": {"file_id": {"type": "string"}}, "required": ["file_id"]}},
            [],
        ),
    ],
)
def test_files(body: Any, files: list[str]) -> None:
    """Wherever they stand; a function's parameter of that name is none."""
    assert look(body).files == files


@pytest.mark.parametrize(
    "name", ["file_id", "file\\u005fid", "\\u0066ile_id", "f\\u0069le_id", "file_i\\u0064", "a\\u005Ffile_id"]
)
def test_no_spelling_hides_a_file(name: str) -> None:
    """A small body is scanned if it may name one, however the field is written."""
    assert look(b'{"x": {"%s": "a"}}' % name.encode(), always=False).files == ["a"]


@pytest.mark.parametrize("body", [b'{"x": "hello"}', b'{"x": "caf\\u00e9"}', b'{"x": "\\u4f60 an image"}'])
def test_a_small_body_that_names_nothing_is_not_scanned(body: bytes) -> None:
    """Which would take time in each request."""
    assert look(body, always=False) is NOTHING


def test_what_a_decoder_cannot_read_hides_no_file() -> None:
    """Half a surrogate pair beside it; in its own id or name it is refused."""
    assert look(b'{"a": "\\ud800", "file_id": "x"}').files == ["x"]
    for body in (b'{"file_id": "\\ud800"}', b'{"\\ud800": 1, "file_id": "x"}'):
        with pytest.raises(InvalidRequestError, match="cannot be read"):
            look(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"file_id":"A","file_id":"B"}',
        b'{"file_id":"A","file\\u005fid":"B"}',
        b'{"messages":[{"content":[{"type":"file","file":{"file_id":"A"}}],"content":"hi"}]}',
        b'{"x":[[{"a":[],"b":{"a":1,"c":{}},"a":1}]]}',
        b'{"tools":[{"type":"web_search","type":"function"}]}',
        b'{"\xc3\xa9":1,"\\u00e9":2}',
        b'{"":1,"":2}',
    ],
)
def test_a_name_that_stands_twice(body: bytes) -> None:
    """Which of the two counts depends on the parser, so it is refused; the name is in the error."""
    with pytest.raises(InvalidRequestError, match="twice") as caught:
        look(body)
    assert (caught.value.status, caught.value.param is None) == (400, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}',
        b'{"a":"a","b":"a","c":["a","a"]}',
        b'{"file_id":"A","file_ids":["A","A"]}',
        b'{"A":1,"a":2,"a ":3,"\\u0000":4,"\\\\u0061":5}',
    ],
)
def test_names_that_differ(body: bytes) -> None:
    """Another object may have the same one, and a value may be the same."""
    look(body)


def test_responses_and_collections() -> None:
    """Earlier responses are found at any depth; collections anywhere but in prompts, where they are data."""
    batch = {"batch_requests": [{"batch_request": {"responses": {"previous_response_id": "r"}}}]}
    assert look(batch).responses == ["r"]
    for tool in ({"type": "file_search", "vector_store_ids": ["v"]}, {"collection_ids": ["c"]}):
        assert look({"tools": [tool]}).collections
    parameters = {"properties": {"vector_store_ids": {"type": "array", "items": {"type": "string"}}}}
    for body in (
        {"tools": [{"type": "file_search", "vector_store_ids": []}]},
        {"tools": [{"type": "function", "parameters": parameters}]},
        {"messages": [{"content": [{"type": "tool_use", "input": {"vector_store_ids": ["v"]}}]}]},
    ):
        assert not look(body).collections


PNG = "data:image/png;base64," + "A" * 500_000


@pytest.mark.parametrize(
    ("part", "pictures", "has_bytes"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, 1, True),
        ({"type": "image_url", "image_url": {"url": "https://a/1.png"}}, 1, False),
        ({"type": "input_image", "image_url": PNG}, 1, True),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, 1, True),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PNG}}, 0, False),
        ({"type": "tool_result", "content": [{"type": "image", "source": {}}]}, 1, False),
        ({"type": "tool_use", "input": {"type": "image", "url": "x"}}, 0, False),
        ({"type": "text", "text": '{"type":"image"}' + PNG}, 0, False),
    ],
)
def test_pictures(part: Any, pictures: int, has_bytes: bool) -> None:
    """By the type of a part; the base64 is that of a picture, and not of a text that looks like one."""
    found = look({"messages": [{"role": "user", "content": [part]}]})
    assert (found.pictures, found.picture_bytes > 500_000) == (pictures, has_bytes)


# The same as a parser


@dataclass
class Expected:
    """What json.loads says of a body."""

    files: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    elements: int = 0
    depth: int = 0
    twice: bool = False

    def read(self, value: Any, depth: int = 1) -> None:
        if not isinstance(value, list | Pairs):
            return
        self.depth = max(self.depth, depth)
        self.elements += 1 + max(0, len(value) - 1)
        if isinstance(value, Pairs):
            names = [name for name, _ in value]
            self.twice |= len(set(names)) < len(names)
            for name, inner in value:
                texts = [text for text in flatten(inner) if isinstance(text, str)]
                if re.fullmatch(r"(?:.*_)?file_ids?", name, re.DOTALL):
                    self.files += texts
                if name == "previous_response_id":
                    self.responses += texts
        for inner in [inner for _, inner in value] if isinstance(value, Pairs) else value:
            self.read(inner, depth + 1)


class Pairs(tuple[tuple[str, Any], ...]):
    """An object's fields, also those that stand twice."""

    __slots__ = ()


def flatten(value: Any) -> list[Any]:
    return [inner for each in value for inner in flatten(each)] if isinstance(value, list) else [value]


def expect(body: bytes) -> Expected:
    """Raises ValueError for what is not JSON, and for half a surrogate pair."""
    json.dumps(json.loads(body), ensure_ascii=False).encode()
    expected = Expected()
    expected.read(json.loads(body, object_pairs_hook=Pairs))
    return expected


NAMES = [
    "file_id", "x_file_id", "file_ids", "previous_response_id", "type", "url", "data", "content", "a", "",
    "\u00e9", '"', "\\", "\\\\", "{", "]:", "\U0001f600", "x" * 40,
]  # fmt: skip
SCALARS = ["0", "-1.5e9", "true", "null", "123456789012345678901234567890"]


def write_text(random: random.Random, text: str) -> str:
    """A JSON string, some of its characters escaped."""
    out = []
    for char in text:
        units = char.encode("utf-16-be")
        escaped = "".join(f"\\u{units[at]:02x}{units[at + 1]:02X}" for at in range(0, len(units), 2))
        plain = json.dumps(char, ensure_ascii=False)[1:-1]
        out.append(escaped if random.random() < 0.2 else plain)
    return '"' + "".join(out) + '"'


def write_value(random: random.Random, room: int) -> str:
    """A random document with what is hard: blanks, escapes, empty containers, equal names."""
    blank = lambda: random.choice(["", "", "", " ", "\n\t", " " * 9])  # noqa: E731
    kind = random.random()
    if room <= 0 or kind < 0.3:
        if kind < 0.15:
            return random.choice(SCALARS)
        return write_text(
            random, "".join(random.choices(['a"', "\\", "\u00e9", "file_id", "}", ","], k=room % 4))
        )
    inner = [write_value(random, room - random.randint(1, 4)) for _ in range(random.randint(0, 4))]
    if kind < 0.6:
        return "[" + blank() + ",".join(f"{blank()}{each}{blank()}" for each in inner) + "]"
    pairs = [f"{write_text(random, random.choice(NAMES))}{blank()}:{blank()}{each}" for each in inner]
    return "{" + blank() + ",".join(f"{blank()}{pair}{blank()}" for pair in pairs) + "}"


@pytest.mark.parametrize("slice_bytes", [1, 2, 7, 16 * 1024])
def test_it_sees_what_a_parser_sees(slice_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any document, wherever the slices cut it. One that is not JSON never makes it fail."""
    monkeypatch.setattr(module, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(module, "STRING_BYTES", slice_bytes + 1)
    monkeypatch.setattr(module, "step_aside", lambda: None)
    dice = random.Random(slice_bytes)
    seen = {"valid": 0, "twice": 0, "invalid": 0, "files": 0}
    for _ in range(1500):
        body = write_value(dice, 12).encode()
        if dice.random() < 0.3:
            at = dice.randrange(len(body))
            body = body[:at] + dice.choice([b"", b'"', b"\\", b"}", b"[", b",", b"\xff"]) + body[at + 1 :]
        check(body, seen)
    assert min(seen.values()) > 50, seen


def check(body: bytes, seen: dict[str, int]) -> None:
    state = module._Scan(body, SETTINGS)
    try:
        expected = expect(body)
    except ValueError:
        seen["invalid"] += 1
        with suppress(InvalidRequestError):
            state.run()
        return
    seen["valid"] += 1
    seen["files"] += bool(expected.files)
    if expected.twice:
        seen["twice"] += 1
        with pytest.raises(InvalidRequestError, match="twice"):
            state.run()
        return
    found = state.run()
    assert sorted(found.files) == sorted(expected.files), body
    assert sorted(found.responses) == sorted(expected.responses), body
    assert state._elements == expected.elements, body
    if scan(body, SETTINGS) is NOTHING:
        assert (found.files, found.pictures) == ([], 0), body


# Limits


def test_too_many_elements() -> None:
    """Each value counts, and each container once more; the field is named."""
    most = SETTINGS.max_json_elements
    look(b'{"a":[' + b",".join([b"1"] * (most - 2)) + b"]}")
    for filling in (b"1", b"[]", b'{"b":1}', b'"file_id"'):
        with pytest.raises(InvalidRequestError, match="200000") as caught:
            look(b'{"x":1,"a":[' + b",".join([filling] * most) + b"]}", always=False)
        assert (caught.value.status, caught.value.param) == (400, "a")


def test_too_many_bytes() -> None:
    """Those of base64 are not counted, whether it is a picture, a document or a sound."""
    settings = Settings(max_json_bytes=100_000)
    data = "data:application/pdf;base64," + "A" * 200_000
    for part in (
        {"url": data},
        {"image_url": data},
        {"b64_json": "A" * 200_000},
        {"file": {"file_data": data}},
    ):
        look({"messages": [part]}, settings)
    for part in ({"text": data}, {"url": "x" * 200_000}, {"x" * 200_000: 1}, ["abc"] * 30_000):
        with pytest.raises(BodyTooLargeError) as caught:
            look({"messages": [part]}, settings, always=False)
        assert (caught.value.status, caught.value.param) == (413, "messages")


def test_too_deep() -> None:
    """Nested deeper than any API has it."""
    look(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    with pytest.raises(InvalidRequestError, match="levels") as caught:
        look(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")
    assert (caught.value.status, caught.value.param) == (400, "a")


# Work

MB = 10**6
CHAT = b'{"messages":[{"role":"user","content":[%b]}]}'
PICTURE = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}'

KINDS: dict[str, Callable[[int], bytes]] = {
    "one picture": lambda size: CHAT % (PICTURE % (b"A" * size)),
    "pictures": lambda size: CHAT % b",".join([PICTURE % (b"A" * 100_000)] * (size // 100_000)),
    "picture with escapes": lambda size: CHAT % (PICTURE % (b"AAAA\\/" * (size // 6))),
    "text": lambda size: CHAT % (b'"%b"' % (b"word, " * (size // 6))),
    "escapes": lambda size: CHAT % (b'"%b"' % (b"\\\\" * (size // 2))),
    "messages": lambda size: b'{"\\u006dessages":[%b1]}' % (b'{"role":"user"},' * (size // 16)),
    "objects": lambda size: b'{"file_id":"x","a":[%b1]}' % (b"{}," * (size // 3)),
    "strings": lambda size: b'{"file_ids":[%b1]}' % (b'"x",' * (size // 4)),
    "numbers": lambda size: b'{"file_id":[%b1]}' % (b"1," * (size // 2)),
    "names": lambda size: b'{"file_id":0%b}' % b"".join(b',"%d":1' % n for n in range(size // 10)),
    "lists": lambda size: b'{"a":%b' % (b"[" * size),
    "brackets": lambda size: b'{"a":%b' % (b"]" * size),
    "quotes": lambda size: b'{"a":%b' % (b'"' * size),
    "colons": lambda size: b'{"a":%b' % (b":" * size),
    "commas": lambda size: b'{"a":%b' % (b"," * size),
    "blanks": lambda size: b'{"file_id"%b:1}' % (b" " * size),
    "one number": lambda size: b'{"file_id":%b}' % (b"1" * size),
    "one name": lambda size: b'{"%b":1}' % (b"\\u0061" * (size // 6)),
    "no end": lambda size: b'{"data":"%b' % (b"A" * size),
    "half an escape": lambda size: b'{"data":"%b\\' % (b"\\\\" * (size // 2)),
}


def measure(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Of a scan: its calls of functions, in Python and in C, its yields, and the most bytes that it had."""
    counts = {"calls": 0, "yields": 0}

    def note(_frame: FrameType, event: str, _arg: Any) -> None:
        counts["calls"] += event in ("call", "c_call")

    def count_yield() -> None:
        counts["yields"] += 1

    monkeypatch.setattr(module, "step_aside", count_yield)
    with suppress(ClientError):
        tracemalloc.start()
        try:
            scan(body, SETTINGS, always=True)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    sys.setprofile(note)
    try:
        with suppress(ClientError):
            scan(body, SETTINGS, always=True)
    finally:
        sys.setprofile(None)
    return counts["calls"], counts["yields"] // 2, peak


def test_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many large bodies only some are scanned at a time. A small one passes them; an error gives way."""
    entered, go = threading.Semaphore(0), threading.Event()
    large = b'{"x":"%s"}' % (b"x" * WAITING_BYTES)

    def wait(_scan: object) -> Findings:
        if len(_scan._body) > WAITING_BYTES:  # type: ignore[attr-defined]
            entered.release()
            go.wait(WAIT_S)
        raise InvalidRequestError

    def look_at(body: bytes) -> None:
        with suppress(InvalidRequestError):
            look(body)

    monkeypatch.setattr(module._Scan, "run", wait)
    threads = [threading.Thread(target=look_at, args=(large,)) for _ in range(3 * AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in range(AT_ONCE):
        assert entered.acquire(timeout=WAIT_S)
    look_at(b"{}")
    assert not entered.acquire(timeout=0.2)
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert entered._value == 2 * AT_ONCE  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", KINDS)
def test_work_is_linear(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the body is at most twice the calls, and the memory does not depend on what is no name."""
    make = KINDS[name]
    few, _, low = measure(make(400_000), monkeypatch)
    many, _, high = measure(make(800_000), monkeypatch)
    assert many <= 2 * few + 100
    assert high <= 3 * low + 100_000  # a set of names grows in steps


@pytest.mark.parametrize("name", KINDS)
def test_work_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 MB of anything: few calls for each element that is allowed, little memory, and turns for others."""
    body = KINDS[name](60 * MB)
    calls, yields, peak = measure(body, monkeypatch)
    assert calls < 8 * SETTINGS.max_json_elements
    assert peak < (40 if name in ("names", "one name", "strings") else 2) * MB
    if "picture" in name or name in ("no end", "half an escape"):
        assert yields >= len(body) // module.TURN_BYTES // 2
    elif name not in ("lists", "brackets"):
        assert yields >= SETTINGS.max_json_bytes // module.TURN_BYTES // 2
