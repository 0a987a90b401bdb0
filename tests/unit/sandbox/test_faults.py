"""Fault models: each one's effect as a client sees it on the wire, and the page that lists them."""

import json
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.scripted import WAIT_S

from grokflask.sandbox import FAULTS, Sandbox
from grokflask.sandbox.faults import BROKEN_AFTER_EVENTS, FORGED_TEXT, find_fault
from grokflask.sandbox.refusals import API_KEY_ID, TEAM_ID

PAGE = Path(__file__).parents[3] / "docs" / "sandbox.md"
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"properties": {"place": {"type": "string"}}}},
}
BEARER = "xai-a-secret-of-the-operator"
CUT_SHORT = "json-on-200 forged drop-rst drop-fin drop-mid-event truncated no-done error-mid-stream"
CUT_SHORT += " error-mid-stream-openai error-event"


class Heard(NamedTuple):
    """What came over one connection that the client asked to be closed after the answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    sends: list[bytes]
    ended: bool
    reset: bool
    waits: list[float]
    took: float

    def paused_at_first(self) -> bool:
        """Tell whether the longest wait was that for the first bytes."""
        return max(self.waits) == self.waits[0]

    def json(self) -> Any:
        return json.loads(self.body)

    def chunks(self) -> list[dict[str, Any]]:
        """Return the JSON of plainly framed events, without [DONE]."""
        events = self.body.decode().split("\n\n")[:-1]
        return [json.loads(event.removeprefix("data: ")) for event in events if event != "data: [DONE]"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def hear(sandbox: Sandbox, fault: str, stream: bool = True, **fields: Any) -> Heard:
    """Ask a fault model and take down everything until the connection ends."""
    messages = [{"role": "user", "content": "A story"}]
    body = json.dumps(
        {"model": f"sandbox-{fault}", "messages": messages, "stream": stream, **fields}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Authorization: Bearer {BEARER}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = (sandbox.origin.split("/")[2].split(":")[0], int(sandbox.origin.rsplit(":", 1)[1]))
    received, waits, reset = b"", [], False
    with socket.create_connection(address, timeout=WAIT_S) as client:
        started = time.monotonic()
        client.sendall(head.encode() + body)
        while True:
            before = time.monotonic()
            try:
                data = client.recv(65536)
            except ConnectionResetError:
                reset = True
                break
            waits.append(time.monotonic() - before)
            if not data:
                break
            received += data
    return take_apart(received, reset, waits, time.monotonic() - started)


def take_apart(received: bytes, reset: bool, waits: list[float], took: float) -> Heard:
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    status = int(first.split()[1]) if first else 0
    if headers.get("transfer-encoding") != "chunked":
        ended = status > 0 and len(rest) == int(headers["content-length"])
        return Heard(status, headers, rest, [rest], ended, reset, waits, took)
    sends, ended = [], False
    while rest and not ended:
        size, _, rest = rest.partition(b"\r\n")
        sends.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
        ended = size == b"0"
    return Heard(status, headers, b"".join(sends), sends[: -1 if ended else None], ended, reset, waits, took)


def assert_flat(heard: Heard, status: int, *fragments: str) -> None:
    assert heard.status == status
    assert heard.headers["content-type"] == "application/json"
    assert set(heard.json()) == {"code", "error"}
    assert all(isinstance(value, str) for value in heard.json().values())
    for fragment in fragments:
        assert fragment in heard.json()["error"]


def assert_broken(heard: Heard, reset: bool) -> None:
    """A few whole events came, no [DONE], and the HTTP body did not end."""
    assert heard.status == 200
    assert heard.body.count(b"\n\n") == BROKEN_AFTER_EVENTS
    assert not heard.ended
    assert heard.reset is reset


def assert_whole(heard: Heard) -> None:
    assert heard.status == 200
    assert heard.ended
    assert heard.chunks()[-1]["choices"][0]["finish_reason"] == "stop"
    assert heard.body.endswith(b"data: [DONE]\n\n")


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


@pytest.fixture(scope="module")
def story(sandbox: Sandbox) -> str:
    """What a sound answer to the same question says."""
    return text_of(hear(sandbox, "slow-headers-0").chunks())


# --- answers instead of the model


@pytest.mark.parametrize("stream", [True, False])
def test_wrong_key(sandbox: Sandbox, stream: bool) -> None:
    """A wrong key is 400, its key masked; before 2026 with a sentence for a code."""
    assert_flat(hear(sandbox, "wrong-key", stream), 400, "Incorrect API key provided", "xa***or")
    assert hear(sandbox, "wrong-key", stream).json()["code"] == "invalid-argument"
    old = hear(sandbox, "old-codes", stream)
    assert_flat(old, 400, "Incorrect API key provided")
    assert old.json()["code"].startswith("Client specified an invalid argument")


@pytest.mark.parametrize("stream", [True, False])
def test_refusals_that_leak_ids(sandbox: Sandbox, stream: bool) -> None:
    """Credits, moderation and permission texts hold ids of the operator; the last even the key."""
    spent = "used all available credits or reached its monthly spending limit"
    assert_flat(hear(sandbox, "no-credits", stream), 403, spent, TEAM_ID)
    assert_flat(hear(sandbox, "no-credits-429", stream), 429, spent, TEAM_ID)
    checks = ("Content violates usage guidelines", TEAM_ID, API_KEY_ID, "SAFETY_CHECK_TYPE_")
    assert_flat(hear(sandbox, "moderation", stream), 403, *checks)
    assert_flat(hear(sandbox, "leaky-error", stream), 403, BEARER, TEAM_ID, API_KEY_ID)


@pytest.mark.parametrize("stream", [True, False])
def test_rate_limits(sandbox: Sandbox, stream: bool) -> None:
    """A 429 has no Retry-After unless the other model is asked for."""
    plain = hear(sandbox, "rate-limit", stream)
    assert_flat(plain, 429, "Too many requests for team", TEAM_ID)
    assert "retry-after" not in plain.headers
    polite = hear(sandbox, "rate-limit-retry-after", stream)
    assert_flat(polite, 429)
    assert polite.headers["retry-after"] == "7"
    assert polite.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("stream", [True, False])
def test_failures(sandbox: Sandbox, stream: bool) -> None:
    """Server errors come flat, without a code, as HTML, or in OpenAI's shape."""
    assert_flat(hear(sandbox, "error-500", stream), 500)
    assert_flat(hear(sandbox, "error-503", stream), 503, "currently unavailable")
    bare = hear(sandbox, "error-no-code", stream)
    assert (bare.status, set(bare.json())) == (500, {"error"})
    page = hear(sandbox, "error-html", stream)
    assert (page.status, page.headers["content-type"]) == (502, "text/html")
    assert page.body.startswith(b"<!DOCTYPE html>")
    nested = hear(sandbox, "openai-error", stream)
    assert nested.status == 400
    assert set(nested.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [True, False])
def test_json_on_200(sandbox: Sandbox, stream: bool) -> None:
    """A status of 200 may hold an error as JSON, though a stream was asked for."""
    assert_flat(hear(sandbox, "json-on-200", stream), 200, "currently unavailable")


def test_forged(sandbox: Sandbox) -> None:
    """An error's text may look like events; on the wire it is still one JSON string."""
    assert_flat(hear(sandbox, "forged", stream=False), 500, FORGED_TEXT)
    heard = hear(sandbox, "forged")
    assert heard.chunks()[-1]["error"] == FORGED_TEXT
    assert len(heard.chunks()) == BROKEN_AFTER_EVENTS + 1


def test_strict_content(sandbox: Sandbox) -> None:
    """An assistant message without content is refused, an empty one is not."""
    for content, status in ((None, 400), ("", 200)):
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]
        assert hear(sandbox, "strict-content", messages=messages).status == status


# --- breaking off


def test_drop_before_headers(sandbox: Sandbox) -> None:
    """The connection closes without a byte."""
    for stream in (True, False):
        heard = hear(sandbox, "drop-before-headers", stream)
        assert (heard.status, heard.body, heard.reset) == (0, b"", False)


def test_drop_rst(sandbox: Sandbox) -> None:
    """The connection is reset: in mid-stream, or in the middle of a reply's body."""
    assert_broken(hear(sandbox, "drop-rst"), reset=True)
    reply = hear(sandbox, "drop-rst", stream=False)
    assert (reply.status, reply.ended, reply.reset) == (200, False, True)


def test_drop_fin(sandbox: Sandbox) -> None:
    """The connection is closed in order, but before the body is complete."""
    assert_broken(hear(sandbox, "drop-fin"), reset=False)
    reply = hear(sandbox, "drop-fin", stream=False)
    assert (reply.status, reply.ended, reply.reset) == (200, False, False)
    assert 0 < len(reply.body) < int(reply.headers["content-length"])


def test_drop_mid_event(sandbox: Sandbox) -> None:
    """The last thing that comes is half an event."""
    heard = hear(sandbox, "drop-mid-event")
    assert_broken(heard, reset=False)
    assert not heard.body.endswith(b"\n\n")
    assert not hear(sandbox, "drop-mid-event", stream=False).ended


def test_truncated(sandbox: Sandbox) -> None:
    """The HTTP body ends well, after a few events and without a finish."""
    heard = hear(sandbox, "truncated")
    assert heard.ended
    assert len(heard.chunks()) == BROKEN_AFTER_EVENTS
    assert b"[DONE]" not in heard.body


def test_no_done(sandbox: Sandbox, story: str) -> None:
    """Everything comes, finish_reason too, but no [DONE]."""
    heard = hear(sandbox, "no-done")
    assert heard.ended
    assert b"[DONE]" not in heard.body
    assert heard.chunks()[-1]["choices"][0]["finish_reason"] == "stop"
    assert text_of(heard.chunks()) == story


@pytest.mark.parametrize(
    ("fault", "line", "read"),
    [
        ("error-mid-stream", b'data: {"code":', lambda error: error["error"]),
        ("error-mid-stream-openai", b'data: {"error":', lambda error: error["error"]["message"]),
        ("error-event", b'event: error\ndata: {"code":', lambda error: error["error"]),
    ],
)
def test_errors_in_mid_stream(sandbox: Sandbox, fault: str, line: bytes, read: Callable[[Any], str]) -> None:
    """After a few events an error object comes, in one of three shapes, and the body ends without [DONE]."""
    heard = hear(sandbox, fault)
    assert heard.ended
    *events, failure, rest = heard.body.split(b"\n\n")
    assert (len(events), rest) == (BROKEN_AFTER_EVENTS, b"")
    assert failure.startswith(line)
    assert "currently unavailable" in read(json.loads(failure.partition(b"data: ")[2]))


# --- time


def test_slow_headers(sandbox: Sandbox) -> None:
    """Nothing at all comes for the seconds in the name."""
    for stream in (True, False):
        heard = hear(sandbox, "slow-headers-0.5", stream)
        assert heard.took >= 0.5
        assert heard.paused_at_first()
        assert heard.ended


def test_slow_first_event(sandbox: Sandbox) -> None:
    """Headers come at once, the body only after the seconds in the name."""
    for stream in (True, False):
        heard = hear(sandbox, "slow-first-event-0.5", stream)
        assert heard.took >= 0.5
        assert not heard.paused_at_first()
        assert heard.ended


def test_stall(sandbox: Sandbox) -> None:
    """A part comes, then silence, then the rest."""
    heard = hear(sandbox, "stall-0.5")
    assert_whole(heard)
    reply = hear(sandbox, "stall-0.5", stream=False)
    assert reply.json()["choices"]
    for one in (heard, reply):
        assert one.took >= 0.5
        assert not one.paused_at_first()


def test_linger(sandbox: Sandbox) -> None:
    """The stream is complete, but its HTTP body ends only later."""
    heard = hear(sandbox, "linger-0.5")
    assert_whole(heard)
    assert heard.took >= 0.5
    assert max(heard.waits) in heard.waits[-2:]


def test_seconds_are_read_from_the_name() -> None:
    """Timed faults take a number at the end of their name, five seconds without; others take none."""
    for name, seconds in (("slow-headers", 5.0), ("slow-headers-3", 3.0), ("stall-0.5", 0.5)):
        found = find_fault(f"sandbox-{name}")
        assert found
        assert found.seconds == seconds
    for name in (
        "sandbox-crlf-3",
        "sandbox-",
        "sandbox-stall-x",
        "sandbox-stall--1",
        "stall",
        "sandbox-stall-1e9",
    ):
        assert find_fault(name) is None


# --- framing


@pytest.mark.parametrize(
    ("fault", "start", "end"),
    [("crlf", b"data: ", b"\r\n\r\n"), ("cr", b"data: ", b"\r\r"), ("no-space", b"data:", b"\n\n")],
)
def test_line_ends_and_spaces(sandbox: Sandbox, story: str, fault: str, start: bytes, end: bytes) -> None:
    """Events are marked off in one of the other ways that the standard allows."""
    heard = hear(sandbox, fault)
    *events, done, rest = heard.body.split(end)
    assert (done, rest) == (start + b"[DONE]", b"")
    assert b"\n" not in b"".join(events)
    assert text_of([json.loads(event[len(start) :]) for event in events]) == story


def test_bom(sandbox: Sandbox) -> None:
    """The body starts with one byte order mark."""
    heard = hear(sandbox, "bom")
    assert heard.body.startswith(b"\xef\xbb\xbfdata: ")
    assert heard.body.count(b"\xef\xbb\xbf") == 1


def test_comments(sandbox: Sandbox, story: str) -> None:
    """Comments stand between and within events; without them the stream is a plain one."""
    heard = hear(sandbox, "comments")
    lines = heard.body.decode().split("\n")
    assert sum(line.startswith(":") for line in lines) > 200
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert text_of([json.loads(one) for one in data]) == story


def test_multiline(sandbox: Sandbox, story: str) -> None:
    """A chunk's JSON is spread over data lines; joined by LF they are the chunk."""
    events = hear(sandbox, "multiline").body.decode().split("\n\n")[:-2]
    assert all(event.count("\ndata: ") > 5 for event in events)
    chunks = [json.loads("\n".join(line[6:] for line in event.split("\n"))) for event in events]
    assert text_of(chunks) == story


def test_other_fields(sandbox: Sandbox) -> None:
    """Each event has an id, a retry time, a name and an unknown field."""
    first = hear(sandbox, "other-fields").body.split(b"\n\n")[0].split(b"\n")
    assert [line.partition(b":")[0] for line in first] == [b"id", b"event", b"retry", b"weather", b"data"]


def test_bytewise(sandbox: Sandbox) -> None:
    """No send holds more than a byte, and together they are the whole stream."""
    heard = hear(sandbox, "bytewise")
    assert {len(send) for send in heard.sends} == {1}
    assert_whole(heard)


def test_burst(sandbox: Sandbox) -> None:
    """One send holds the whole stream."""
    heard = hear(sandbox, "burst")
    assert len(heard.sends) == 1
    assert_whole(heard)


def test_unicode(sandbox: Sandbox) -> None:
    """Sends end within characters, which still come out whole."""
    heard = hear(sandbox, "unicode")
    assert_whole(heard)
    assert "🦊" in text_of(heard.chunks())
    assert sum(is_cut(send) for send in heard.sends) > 20


def is_cut(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def test_gzip(sandbox: Sandbox, story: str) -> None:
    """The stream is compressed unasked, and flushed so that each event can be read when it comes."""
    heard = hear(sandbox, "gzip")
    assert heard.headers["content-encoding"] == "gzip"
    reader = zlib.decompressobj(wbits=31)
    events = [reader.decompress(send) for send in heard.sends]
    assert events[0].startswith(b"data: ")
    assert events[0].endswith(b"\n\n")
    assert reader.eof
    assert text_of(heard._replace(body=b"".join(events)).chunks()) == story


def test_big_event(sandbox: Sandbox) -> None:
    """One delta holds a mebibyte."""
    heard = hear(sandbox, "big-event")
    assert_whole(heard)
    assert len(heard.chunks()) == 2
    assert len(text_of(heard.chunks())) >= 2**20


# --- chunks and usage


def test_hidden_reasoning(sandbox: Sandbox, story: str) -> None:
    """Between reasoning and content come 100 empty deltas, and all of it is counted as reasoning."""
    heard = hear(sandbox, "hidden-reasoning", stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in heard.chunks() if chunk["choices"]]
    empty = [i for i, delta in enumerate(deltas) if delta == {}][:-1]
    assert empty == list(range(empty[0], empty[0] + 100))
    assert "reasoning_content" in deltas[empty[0] - 1]
    assert "content" in deltas[empty[-1] + 1]
    assert heard.chunks()[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == empty[-1] + 1
    assert text_of(heard.chunks()) == story


@pytest.mark.parametrize("stream", [True, False])
def test_two_tools(sandbox: Sandbox, stream: bool) -> None:
    """Two calls come, with indexes 0 and 1 in a stream."""
    heard = hear(sandbox, "two-tools", stream, tools=[TOOL])
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in heard.chunks()]
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0, 1]
    else:
        calls = heard.json()["choices"][0]["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 2


def test_split_tools(sandbox: Sandbox) -> None:
    """A call's name comes first and its arguments piece by piece."""
    deltas = [chunk["choices"][0]["delta"] for chunk in hear(sandbox, "split-tools", tools=[TOOL]).chunks()]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "look", "arguments": ""}
    assert len(calls) > 2
    assert set(json.loads("".join(call["function"]["arguments"] for call in calls))) == {"place"}


def test_finish_empty(sandbox: Sandbox) -> None:
    """finish_reason is an empty string where tools are called."""
    assert hear(sandbox, "finish-empty", tools=[TOOL]).chunks()[-1]["choices"][0]["finish_reason"] == ""


def test_usage_every_chunk(sandbox: Sandbox) -> None:
    """Usage grows by a token a chunk, and there is no chunk of usage, asked for or not."""
    chunks = hear(sandbox, "usage-every-chunk", stream_options={"include_usage": True}).chunks()
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [*range(1, len(chunks)), len(chunks) - 1]
    assert all(chunk["choices"] for chunk in chunks)
    assert set(chunks[0]["usage"]) == {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
    }


def test_usage_none_and_zero(sandbox: Sandbox) -> None:
    """Usage that was asked for may never come, or be all zeros."""
    none = hear(sandbox, "usage-none", stream_options={"include_usage": True}).chunks()
    assert all("usage" not in chunk for chunk in none)
    zero = hear(sandbox, "usage-zero", stream_options={"include_usage": True}).chunks()[-1]["usage"]
    assert zero["total_tokens"] == zero["cost_in_usd_ticks"] == 0


def test_documented_nulls(sandbox: Sandbox, story: str) -> None:
    """Role is on every chunk, and finish_reason and usage are null instead of absent."""
    chunks = hear(sandbox, "documented-nulls").chunks()
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert text_of(chunks) == story


# --- the table


def test_the_page_lists_the_table() -> None:
    """docs/sandbox.md has a row for each fault model and for no other, and says which take seconds."""
    rows = re.findall(r"^\| `sandbox-([a-z0-9-]+)(-N)?` \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert [(name, bool(timed)) for name, timed in rows] == [
        (name, fault.timed) for name, fault in FAULTS.items()
    ]


def test_every_fault_is_tested_here() -> None:
    """No fault model is without a test that asks for it by name."""
    source = Path(__file__).read_text()
    assert [name for name in FAULTS if not re.search(rf'"{name}(-0\.\d)?"', source)] == []


@pytest.mark.parametrize("fault", [name for name in FAULTS if not FAULTS[name].timed])
def test_faults_are_noted(sandbox: Sandbox, fault: str) -> None:
    """The journal says whether a fault model cut its answer short or told all of it."""
    sandbox.journal.wait_until_idle().clear()
    heard = hear(sandbox, fault)
    noted = sandbox.journal.wait_for(lambda exchange: exchange.model == f"sandbox-{fault}")
    shortened = heard.status != 200 or fault in CUT_SHORT.split()
    assert noted.outcome == ("fault" if shortened else "complete")
    assert noted.status == heard.status
    assert not noted.client_left
