"""The sandbox as a server: routes, keys, connections, the journal, processes, and the command."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.scripted import WAIT_S

from grokflask.sandbox import Exchange, Journal, Sandbox
from grokflask.sandbox.faults import BROKEN_AFTER_EVENTS
from grokflask.sandbox.kept import MAX_EXCHANGES

ROOT = Path(__file__).parents[3]
HELLO = {"model": "grok-4.3", "messages": [{"role": "user", "content": "Hello there"}]}
PROMPT_TOKENS = 6


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def place_of(sandbox: Sandbox) -> str:
    return sandbox.origin.removeprefix("http://")


def connect(sandbox: Sandbox) -> socket.socket:
    host, port = place_of(sandbox).split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def post_bytes(body: dict[str, Any], version: str = "1.1") -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def post(sandbox: Sandbox, headers: dict[str, str] | None = None, **fields: Any) -> requests.Response:
    return requests.post(
        sandbox.base_url + "/chat/completions", json={**HELLO, **fields}, headers=headers, timeout=WAIT_S
    )


# --- routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/responses", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("PUT", "/v1/api-key", 405),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/v1/language-models/nothing", 404),
    ],
)
def test_unknown_routes_and_methods(sandbox: Sandbox, method: str, path: str, status: int) -> None:
    """An unknown path is a flat 404, a known one with another method a flat 405."""
    reply = requests.request(method, sandbox.origin + path, timeout=WAIT_S)
    assert reply.status_code == status
    assert set(reply.json()) == {"code", "error"}
    assert (status == 404 and "models/" not in path) == ("No handler found on route" in reply.text)
    assert ("Allow" in reply.headers) == (status == 405)


def test_head_has_no_body(sandbox: Sandbox) -> None:
    """HEAD is refused without a body, and the connection goes on."""
    client = http.client.HTTPConnection(place_of(sandbox), timeout=WAIT_S)
    for _ in range(2):
        client.request("HEAD", "/v1/models")
        assert client.getresponse().read() == b""
    client.close()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"{}", 415),
        (None, b"{}", 415),
        ("application/json", b"", 415),
        ("application/json; charset=utf-8", b"{", 400),
        ("application/json", b"[]", 422),
        ("application/json", b"{}", 422),
        ("application/json", b"\xff\xfe", 400),
    ],
)
def test_bodies_that_are_no_request(
    sandbox: Sandbox, content_type: str | None, body: bytes, status: int
) -> None:
    """Without JSON's content type or a body it is 415, broken JSON is 400, JSON without the fields 422."""
    headers = {"Content-Type": content_type} if content_type else {}
    reply = requests.post(sandbox.base_url + "/chat/completions", data=body, headers=headers, timeout=WAIT_S)
    assert reply.status_code == status
    assert set(reply.json()) == {"code", "error"}


def test_a_chunked_request_is_refused(sandbox: Sandbox) -> None:
    """A body without a length is a 411, and the connection is closed."""
    reply = requests.post(sandbox.base_url + "/chat/completions", data=iter([b"{}"]), timeout=WAIT_S)
    assert (reply.status_code, reply.headers["Connection"]) == (411, "close")


def test_models_are_listed(sandbox: Sandbox) -> None:
    """The lists hold current models with prices, neither retired ones nor fault models."""
    listed = requests.get(sandbox.base_url + "/models", timeout=WAIT_S).json()
    assert listed["object"] == "list"
    by_id = {item["id"]: item for item in listed["data"]}
    assert by_id["grok-4.3"]["prompt_text_token_price"] == 12_500
    assert by_id["grok-4.7"]["completion_text_token_price_long_context"] == 120_000
    assert by_id["grok-imagine-image"]["image_price"] == 2
    assert not [name for name in by_id if name in ("grok-4", "grok-3") or name.startswith("sandbox")]
    assert {item["object"] for item in listed["data"]} == {"model"}
    assert len({frozenset(item) for item in listed["data"]}) == 1
    rich = requests.get(sandbox.base_url + "/language-models", timeout=WAIT_S).json()
    assert set(rich) == {"models"}


@pytest.mark.parametrize(
    ("asked", "shown"), [("grok-4.3", "grok-4.3"), ("grok-4", "grok-4.3"), ("sandbox-crlf", "grok-4.3")]
)
def test_one_model_is_shown(sandbox: Sandbox, asked: str, shown: str) -> None:
    """A retired id or an alias shows the model that serves it."""
    assert requests.get(f"{sandbox.base_url}/models/{asked}?x=1", timeout=WAIT_S).json()["id"] == shown


def test_image_and_language_models_are_shown(sandbox: Sandbox) -> None:
    """An image model has its price per picture, a language model its fingerprint."""
    picture = requests.get(f"{sandbox.base_url}/models/grok-imagine-image-quality", timeout=WAIT_S).json()
    assert picture["image_price"] == 5
    rich = requests.get(f"{sandbox.base_url}/language-models/grok-4", timeout=WAIT_S).json()
    assert rich["fingerprint"] == post(sandbox).json()["system_fingerprint"]


# --- keys


def test_without_a_key_any_bearer_passes(sandbox: Sandbox) -> None:
    """A sandbox without a key takes any bearer and none."""
    assert post(sandbox).status_code == 200
    assert post(sandbox, {"Authorization": "Bearer anything"}).status_code == 200


def test_with_a_key_only_that_passes() -> None:
    """A wrong bearer is xAI's 400, a missing or malformed one 401, also for the lists."""
    with Sandbox(events_per_s=0, key="xai-right") as guarded:
        assert post(guarded, {"Authorization": "Bearer xai-right"}).status_code == 200
        wrong = post(guarded, {"Authorization": "Bearer xai-wrong"})
        assert wrong.status_code == 400
        assert "Incorrect API key provided: xa***ng" in wrong.json()["error"]
        for headers in (None, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}):
            assert post(guarded, headers).status_code == 401
        assert requests.get(guarded.base_url + "/models", timeout=WAIT_S).status_code == 401
        assert requests.get(guarded.origin + "/sandbox/journal", timeout=WAIT_S).status_code == 200
        whoami = requests.get(
            guarded.base_url + "/api-key", headers={"Authorization": "Bearer xai-right"}, timeout=WAIT_S
        ).json()
    assert whoami["redacted_api_key"] == "xa***ht"
    assert not whoami["team_blocked"]


# --- connections


def test_one_connection_serves_many_requests(sandbox: Sandbox) -> None:
    """Streams, replies and refusals follow each other on one connection."""
    client = http.client.HTTPConnection(place_of(sandbox), timeout=WAIT_S)
    client.connect()
    first = client.sock
    for fields in ({"stream": True}, {}, {"model": "nothing"}, {"stream": True}):
        client.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({**HELLO, **fields}),
            {"Content-Type": "application/json"},
        )
        reply = client.getresponse()
        assert reply.read()
        assert client.sock is first
    client.close()


def test_headers_of_what_stands_before_xai(sandbox: Sandbox) -> None:
    """Answers carry the headers that a gateway must not pass on, and a request id of their own each."""
    first, second = post(sandbox), post(sandbox)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["cf-cache-status"] == "DYNAMIC"
    assert "__cf_bm" in first.headers["set-cookie"]


def test_an_old_client_gets_no_chunks(sandbox: Sandbox) -> None:
    """An HTTP/1.0 client gets the stream unframed, ended by the end of the connection."""
    with connect(sandbox) as client:
        client.sendall(post_bytes({**HELLO, "stream": True}, "1.0"))
        received = client.makefile("rb").read()
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_the_pace_is_kept() -> None:
    """Events are spread in time by events_per_s."""
    with Sandbox(events_per_s=100) as paced:
        before = time.monotonic()
        reply = post(paced, stream=True, max_tokens=28)
        assert reply.text.count("\n\n") == 30
        assert time.monotonic() - before >= 29 / 100


def test_nonsense_on_the_wire_does_no_harm(sandbox: Sandbox) -> None:
    """Garbage, half requests and instant resets leave the server serving, and silent."""
    for data in (
        b"",
        b"\r\n",
        b"\x16\x03\x01",
        b"GET",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",
    ):
        with connect(sandbox) as client:
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert post(sandbox).status_code == 200


# --- the journal


def test_the_journal_notes_a_whole_stream(sandbox: Sandbox) -> None:
    """A told stream is complete, with its events, its usage and the cost that it told."""
    reply = post(sandbox, stream=True, stream_options={"include_usage": True})
    noted = sandbox.journal.wait_for(lambda exchange: exchange.stream)
    assert (noted.model, noted.path, noted.outcome) == ("grok-4.3", "/v1/chat/completions", "complete")
    assert noted.events_sent == reply.text.count("\n\n")
    assert noted.usage
    assert noted.cost_ticks == noted.usage["cost_in_usd_ticks"]
    assert set(noted.fields) == {"model", "messages", "stream", "stream_options"}
    assert not noted.client_left


def test_cost_is_noted_though_not_told(sandbox: Sandbox) -> None:
    """A stream without usage costs the same as one with it."""
    costs = []
    for fields in ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {}):
        sandbox.journal.wait_until_idle().clear()
        post(sandbox, **fields)
        costs.append(sandbox.journal.wait_for(lambda exchange: True).cost_ticks)
    assert len(set(costs)) == 1


def test_the_journal_notes_refusals(sandbox: Sandbox) -> None:
    """What the request did wrong is refused, and costs nothing."""
    post(sandbox, model="nothing")
    noted = sandbox.journal.wait_for(lambda exchange: exchange.model == "nothing")
    assert (noted.outcome, noted.status, noted.cost_ticks) == ("refused", 404, 0)


@pytest.mark.parametrize("fault", ["stall-60", "slow-first-event-60", "slow-headers-60"])
@pytest.mark.parametrize("rude", [True, False])
def test_the_journal_notes_a_client_that_left(sandbox: Sandbox, fault: str, rude: bool) -> None:
    """A client that closes or resets while nothing is being sent is noticed at once."""
    begun = not fault.startswith("slow-headers")
    output_tokens = BROKEN_AFTER_EVENTS if fault.startswith("stall") else 0
    with connect(sandbox) as client:
        client.sendall(post_bytes({**HELLO, "model": f"sandbox-{fault}", "stream": True}))
        received = b"" if begun else b"\r\n\r\n"
        while b"\r\n\r\n" not in received or received.count(b"data: ") < output_tokens:
            received += client.recv(65536)
        if rude:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    noted = sandbox.journal.wait_for(lambda exchange: exchange.client_left, timeout_s=WAIT_S)
    assert (noted.outcome, noted.usage) == ("client_left", None)
    assert noted.status == (200 if begun else 0)
    # The prompt was read, so it is charged, and what was sent of the answer.
    assert (noted.prompt_tokens, noted.output_tokens) == (PROMPT_TOKENS, output_tokens)
    assert noted.cost_ticks == PROMPT_TOKENS * 12_500 + output_tokens * 25_000


@pytest.mark.parametrize(
    ("fault", "stream", "part"),
    [
        ("drop-before-headers", True, "prompt"),
        ("drop-before-headers", False, "all"),
        ("drop-rst", False, "all"),
        ("slow-headers-60", False, "all"),
        ("wrong-key", True, "nothing"),
        ("json-on-200", False, "nothing"),
        ("usage-zero", True, "all"),
    ],
)
def test_what_is_charged(sandbox: Sandbox, fault: str, stream: bool, part: str) -> None:
    """A prompt that was read and an answer that was made are charged, whoever gets it; a refusal is not."""
    whole = post(sandbox).json()["usage"]
    sandbox.journal.wait_until_idle().clear()
    with connect(sandbox) as client:
        client.sendall(post_bytes({**HELLO, "model": f"sandbox-{fault}", "stream": stream}))
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    noted = sandbox.journal.wait_for(lambda exchange: True)
    output_tokens = whole["total_tokens"] - PROMPT_TOKENS
    tokens = {"nothing": (0, 0), "prompt": (PROMPT_TOKENS, 0), "all": (PROMPT_TOKENS, output_tokens)}[part]
    assert (noted.prompt_tokens, noted.output_tokens) == tokens
    assert noted.cost_ticks == tokens[0] * 12_500 + tokens[1] * 25_000


def test_exchanges_can_be_told_apart(sandbox: Sandbox) -> None:
    """The journal has the request's `user` and the answer's id, for chats, pictures and refusals alike."""
    pictures = {"model": "grok-imagine-image", "prompt": "a whale", "user": "ann 2"}
    replies = [
        post(sandbox, user="ann 1"),
        requests.post(sandbox.base_url + "/images/generations", json=pictures, timeout=WAIT_S),
        post(sandbox, user="ann 3", model="nothing"),
    ]
    noted = {exchange.user: exchange.request_id for exchange in sandbox.journal.wait_until_idle()}
    assert noted == {f"ann {n}": reply.headers["x-request-id"] for n, reply in enumerate(replies, 1)}


def test_user_names_a_fault_for_any_model(sandbox: Sandbox) -> None:
    """A fault in the first word of `user` happens to the model that is asked for, at its price."""
    for user in ("sandbox-usage-none", "sandbox-usage-none and a mark"):
        reply = post(
            sandbox, model="grok-4.7", user=user, stream=True, stream_options={"include_usage": True}
        )
        assert '"grok-4.7"' in reply.text
        assert '"usage"' not in reply.text
    assert post(sandbox, model="grok-4.7", user="sandbox-no-credits").status_code == 403
    for user in ("sandbox-nothing", "a sandbox-no-credits", ""):
        assert post(sandbox, user=user).status_code == 200
    image = {"model": "grok-imagine-image-quality", "prompt": "a whale", "user": "sandbox-error-500"}
    assert (
        requests.post(sandbox.base_url + "/images/generations", json=image, timeout=WAIT_S).status_code == 500
    )


def test_a_client_that_left_pays_for_what_it_got() -> None:
    """The cost of a stream that was left is that of the prompt and of the tokens sent."""
    with Sandbox(events_per_s=200) as paced:
        with connect(paced) as client:
            client.sendall(post_bytes({**HELLO, "stream": True}))
            while b'" ' not in client.recv(65536):
                pass
        noted = paced.journal.wait_for(lambda exchange: True)
        assert noted.outcome == "client_left"
        prompt = post(paced, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert noted.cost_ticks == prompt * 12_500 + noted.events_sent * 25_000


def test_a_client_that_left_after_done_had_it_all(sandbox: Sandbox) -> None:
    """Leaving a lingering connection after [DONE] leaves a complete exchange."""
    with connect(sandbox) as client:
        client.sendall(post_bytes({**HELLO, "model": "sandbox-linger-60", "stream": True}))
        received = b""
        while b"[DONE]" not in received:
            received += client.recv(65536)
    noted = sandbox.journal.wait_for(lambda exchange: True)
    assert (noted.outcome, noted.client_left) == ("complete", True)


def test_the_journal_is_served_and_cleared(sandbox: Sandbox) -> None:
    """GET shows it as JSON, DELETE empties it."""
    post(sandbox)
    sandbox.journal.wait_for(lambda exchange: True)
    url = sandbox.origin + "/sandbox/journal"
    shown = requests.get(url, timeout=WAIT_S).json()["exchanges"]
    assert [exchange["outcome"] for exchange in shown] == ["complete"]
    assert requests.delete(url, timeout=WAIT_S).json() == {"exchanges": []}
    assert len(sandbox.journal) == 0


def test_the_journal_is_bounded() -> None:
    """The oldest of more than 10,000 exchanges are forgotten; it reads like a list."""
    journal = Journal()
    for number in range(MAX_EXCHANGES + 5):
        journal.begin()
        journal.end(Exchange(str(number), "/", "complete", 200))
    assert len(journal) == MAX_EXCHANGES
    assert journal[0].model == "5"
    assert next(iter(journal)) == journal[0]


def test_waiting_for_what_never_comes_ends() -> None:
    """wait_for gives up with TimeoutError."""
    with pytest.raises(TimeoutError):
        Journal().wait_for(lambda exchange: True, timeout_s=0.01)


# --- life


def test_nothing_is_served_before_it_runs() -> None:
    """Connections made before ensure_running wait, and are then served."""
    early = Sandbox(events_per_s=0)
    with connect(early) as client:
        client.sendall(post_bytes(HELLO))
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        early.ensure_running()
        client.settimeout(WAIT_S)
        assert client.recv(12) == b"HTTP/1.1 200"
    early.close()


def test_ensure_running_starts_one_thread() -> None:
    """Many threads may ask at once; one accept thread results."""
    many = Sandbox(events_per_s=0)
    name = f"sandbox-{place_of(many)}"
    callers = [threading.Thread(target=many.ensure_running) for _ in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [thread.name for thread in threading.enumerate()].count(name) == 1
    many.close()
    assert name not in [thread.name for thread in threading.enumerate()]


def test_close_ends_everything() -> None:
    """After close nothing listens, what was being served is broken off, and closing again is harmless."""
    closing = Sandbox(events_per_s=0)
    closing.ensure_running()
    with connect(closing) as client:
        client.sendall(post_bytes({**HELLO, "model": "sandbox-stall-60", "stream": True}))
        assert client.recv(10)
        closing.close()
        closing.close()
        while client.recv(65536):
            pass
    assert closing.journal.wait_for(lambda exchange: True).client_left
    with pytest.raises(ConnectionRefusedError):
        connect(closing)
    with pytest.raises(RuntimeError):
        closing.ensure_running()


@pytest.mark.parametrize("parent_ran", [True, False])
def test_a_forked_process_serves_too(parent_ran: bool) -> None:
    """After a fork the child starts its own thread on the same socket, with a journal of its own."""
    shared = Sandbox(events_per_s=0)
    if parent_ran:
        shared.ensure_running()
        post(shared)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fresh = parent_ran
            shared.ensure_running()
            fresh = len(shared.journal) == 0
            if not parent_ran:
                fresh = fresh and post(shared).status_code == 200 and len(shared.journal) <= 1
            os.write(write_end, b"yes" if fresh else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 10) == b"yes"
    os.close(read_end)
    os.close(write_end)
    shared.ensure_running()
    assert post(shared).status_code == 200
    shared.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_as_a_command(number: signal.Signals) -> None:
    """The command prints where it is and a curl line, serves, and ends cleanly on a signal."""
    command = [sys.executable, "-m", "grokflask.sandbox", "--port", "0", "--events-per-s", "0", "--key", "k"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        greeting = "".join(process.stdout.readline() for _ in range(5))
        base_url = re.search(r"http://127\.0\.0\.1:\d+/v1", greeting)
        assert base_url
        reply = requests.get(base_url[0] + "/models", headers={"Authorization": "Bearer k"}, timeout=WAIT_S)
        assert reply.status_code == 200
        process.send_signal(number)
        process.wait(timeout=WAIT_S)
        assert (process.returncode, process.stderr.read()) == (0, "")
    assert f"curl -N {base_url[0]}/chat/completions" in greeting
    assert "Bearer k" in greeting


def test_a_taken_port_is_said_plainly(sandbox: Sandbox) -> None:
    """A port in use ends the command with one line, not with a traceback."""
    port = place_of(sandbox).split(":")[1]
    ended = subprocess.run(
        [sys.executable, "-m", "grokflask.sandbox", "--port", port],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("cannot listen on 127.0.0.1")
    assert ended.stderr.count("\n") == 1


COOPERATIVE = """
from gevent import monkey
monkey.patch_all()
import threading, requests
from grokflask.sandbox import Sandbox
hello = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 20}
with Sandbox(events_per_s=100) as sandbox:
    url = sandbox.base_url + "/chat/completions"
    def ask():
        reply = requests.post(url, json={**hello, "model": "grok-4.3"}, timeout=60)
        assert reply.text.endswith("data: [DONE]\\n\\n")
    callers = [threading.Thread(target=ask) for _ in range(50)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    requests.post(url, json={**hello, "model": "sandbox-stall-60"}, stream=True, timeout=60).close()
    outcomes = [exchange.outcome for exchange in sandbox.journal.wait_until_idle()]
    assert outcomes == ["complete"] * 50 + ["client_left"]
"""


def test_it_serves_where_threads_are_cooperative() -> None:
    """Under gevent's patches it serves many streams at once and still notices a client that left."""
    ended = subprocess.run(
        [sys.executable, "-c", COOPERATIVE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
