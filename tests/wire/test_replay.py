"""Idempotency-Key and resume over real sockets: attached, replayed, cut at every event, paid once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from support.processes import UPSTREAM_KEY, RedisServer, wait_for
from support.replaying import (
    DONE,
    STREAM,
    Headers,
    Story,
    ask,
    close_replies,
    cut_off,
    read_event,
    read_rest,
)
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, chat_chunk, reply_story
from support.stores import KeyedGateway

from grokflask.sandbox import Sandbox

LEAVE_S = 15.0
"""From the last client's leaving to upstream's end. The contract has a second, a busy machine more:
a client that is not noticed costs minutes, the idle timeout."""


@pytest.fixture(autouse=True)
def _replies() -> Iterator[None]:
    """No test leaves a reply open."""
    yield
    close_replies()


@pytest.fixture(params=["memory", "redis, 2 workers"])
def replay_stores(request: pytest.FixtureRequest) -> Headers:
    """The settings of each place where recordings are shared: one worker, and two over Redis."""
    if request.param == "memory":
        return {"GROKFLASK_HEARTBEAT_S": "0.3"}  # a response's head comes with its first bytes
    redis: RedisServer = request.getfixturevalue("redis_server")
    return {"GROKFLASK_HEARTBEAT_S": "0.3", "REDIS_URL": redis.url, "WEB_CONCURRENCY": "2"}


@pytest.fixture
def gate(make_keyed: Callable[..., KeyedGateway], replay_stores: Headers) -> KeyedGateway:
    """A gateway over each of them."""
    return make_keyed(**replay_stores)


def test_a_second_request_reads_along(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """It gets the stream from its start, then live, and says that it is a replay; upstream is asked once."""
    key = gate.make_key("ann")
    story = Story(upstream)
    first = ask(gate, key, "k1", body=STREAM)
    story.go.release()
    head = read_event(first)
    assert "Idempotent-Replayed" not in first.headers
    others = [ask(gate, key, "k1", body=STREAM) for _ in range(6)]
    assert [read_event(other) for other in others] == [head] * 6
    for _ in range(story.words):
        story.go.release()
    whole = head + read_rest(first)
    assert [head + read_rest(other) for other in others] == [whole] * 6
    assert whole.endswith(DONE)
    assert {other.headers["Idempotent-Replayed"] for other in others} == {"true"}
    assert {other.headers["Content-Type"] for other in others} == {first.headers["Content-Type"]}
    assert [ask(gate, key, "k1", body=STREAM).content for _ in range(4)] == [whole] * 4
    assert story.calls == 1
    rows = gate.wait_for_rows(1)
    assert [(row["outcome"], row["cost_ticks"]) for row in rows] == [("complete", USAGE["cost_in_usd_ticks"])]
    wait_for(lambda: len(gate.server.find_lines("msg=replay", "outcome=complete")) == 10, "ten lines")


def test_ten_clients_of_a_key_with_one_stream(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """None is refused: each takes the place of the one before it, in the worker that it comes to."""
    key = gate.make_key("ann", streams=1)
    story = Story(upstream)
    clients = [ask(gate, key, "k1", body=STREAM)]
    story.go.release()
    heads = [read_event(clients[0])]
    for _ in range(9):
        clients.append(ask(gate, key, "k1", body=STREAM))
        heads.append(read_event(clients[-1]))
    assert heads == [heads[0]] * 10
    for _ in range(story.words):
        story.go.release()
    ends = [read_rest(client) for client in clients]
    whole = [end for end in ends if end.endswith(DONE)]
    assert ends[-1] in whole
    assert len(whole) <= int(gate.env.get("WEB_CONCURRENCY", "1"))
    assert all(b'"too_many_streams"' in end for end in ends if end not in whole)
    assert story.calls == 1
    assert [row["outcome"] for row in gate.wait_for_rows(1)] == ["complete"]
    wait_for(lambda: gate.show_usage(key)["remaining"]["streams"] == 1, "the stream to be released")


def test_reading_along_counts_as_a_stream(
    make_keyed: Callable[..., KeyedGateway], upstream: ScriptedUpstream
) -> None:
    """Beside the first reader each takes one of the key's streams, and gives it back when it leaves."""
    gateway = make_keyed(GROKFLASK_HEARTBEAT_S="0.3")
    key = gateway.make_key("ann", streams=3)
    Story(upstream)

    def count_left() -> int:
        left: int = gateway.show_usage(key)["remaining"]["streams"]
        return left

    clients = [ask(gateway, key, "k1", body=STREAM) for _ in range(3)]
    assert count_left() == 0
    refused = ask(gateway, key, "k2", body=STREAM)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
    cut_off(clients[0])  # the others read on: the exchange is one stream, and one more reads beside
    wait_for(lambda: count_left() == 1, "one to be noticed as gone")
    clients.append(ask(gateway, key, "k1", body=STREAM))
    assert count_left() == 0
    for client in clients[1:]:
        cut_off(client)
    wait_for(lambda: count_left() == 3, "all to be noticed as gone")


def test_whole_replies(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """A reply that is given whole likewise: while it is made, and after it."""
    key = gate.make_key("ann")
    go, asked = threading.Event(), threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        asked.release()
        assert go.wait(WAIT_S)
        reply_story(exchange)

    upstream.handler = answer
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, gate, key, "k1")
        assert asked.acquire(timeout=WAIT_S)
        others = [pool.submit(ask, gate, key, "k1") for _ in range(4)]
        wait_for(lambda: gate.read_ready()["open"] >= 2, "somebody to read along")
        go.set()
        replies = [each.result() for each in others]
        whole = first.result()
    again = ask(gate, key, "k1")
    assert {reply.content for reply in [*replies, again]} == {whole.content}
    assert {reply.headers["Idempotent-Replayed"] for reply in [*replies, again]} == {"true"}
    assert len(upstream.exchanges) == 1
    assert len(gate.wait_for_rows(1)) == 1


def test_another_body_is_refused(gate: KeyedGateway) -> None:
    """422 for another body or route under the same key; another client's same key is its own."""
    ann, bob = gate.make_key("ann"), gate.make_key("bob")
    first = ask(gate, ann, "k1")
    assert first.status_code == 200
    for _ in range(4):
        refused = ask(gate, ann, "k1", body={"temperature": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    other = ask(gate, bob, "k1", body={"temperature": 1})
    assert other.status_code == 200
    assert "Idempotent-Replayed" not in other.headers
    for bad in ("", "x" * 256):
        assert ask(gate, ann, bad).status_code == 400


def test_failures_are_not_kept(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """What fails, before or inside the answer, is told to who waits for it; the next request tries anew."""
    key = gate.make_key("ann")
    upstream.handler = lambda exchange: exchange.reply({"error": "broken", "code": "x"}, 500)
    assert ask(gate, key, "k1", body=STREAM).status_code == 500

    def cut(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.close()

    upstream.handler = cut
    got = ask(gate, key, "k1", body=STREAM).content
    assert b"stream_broken" in got
    assert DONE not in got
    story = Story(upstream)
    for _ in range(5):
        story.go.release()
    got = ask(gate, key, "k1", body=STREAM).content
    assert got.endswith(DONE)
    assert len(upstream.exchanges) == 3
    assert len(gate.wait_for_rows(3)) == 3


def test_the_first_leaves_and_the_second_goes_on(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """Upstream goes on as long as one of them is there, and ends with the last one's leaving."""
    key = gate.make_key("ann")
    story = Story(upstream)
    first = ask(gate, key, "k1", body=STREAM)
    story.go.release()
    head = read_event(first)
    second = ask(gate, key, "k1", body=STREAM)
    assert read_event(second) == head
    cut_off(first)
    assert not story.left.wait(2.5)
    story.go.release()
    assert b" w1" in read_event(second)
    left_at = time.monotonic()
    cut_off(second)
    assert story.left.wait(WAIT_S)
    print(f"ended {story.left_at - left_at:.2f} s after the last client")
    assert story.left_at - left_at < LEAVE_S
    assert [row["outcome"] for row in gate.wait_for_rows(1)] == ["client_abort"]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator at a pace at which a client can drop between two events."""
    with Sandbox(events_per_s=400, key=UPSTREAM_KEY) as running:
        yield running


def test_cut_at_every_event(
    make_keyed: Callable[..., KeyedGateway], replay_stores: Headers, sandbox: Sandbox
) -> None:
    """A stream that is cut behind every event and resumed is the uncut one, byte for byte, and paid once."""
    gateway = make_keyed(**replay_stores, XAI_API_BASE=sandbox.base_url)
    key = gateway.make_key("ann")
    body = {"stream": True, "max_tokens": 12, "stream_options": {"include_usage": True}}
    got, last = b"", ""
    connections = 0
    while not got.endswith(DONE):
        more = {"Last_Event_ID": last} if last else {}
        with ask(gateway, key, "k1", body=body, X_Stream_Resume="true", **more) as reply:
            assert reply.status_code == 200, reply.text
            event = read_event(reply)
            cut_off(reply)
        connections += 1
        got += event
        last = event.partition(b"id: ")[2].partition(b"\n")[0].decode()
    assert connections == got.count(b"data: ") > 12
    uncut = ask(gateway, key, "k1", body=body, X_Stream_Resume="true").content
    assert got == uncut
    assert re.sub(rb"id: .*\n", b"", uncut) == ask(gateway, key, "k1", body=body).content
    rows = gateway.wait_for_rows(1)
    charged = [each.cost_ticks for each in sandbox.journal.wait_until_idle()]
    assert [row["outcome"] for row in rows] == ["complete"]
    assert [row["cost_ticks"] for row in rows] == charged
    assert len(charged) == 1


def test_the_grace(
    make_keyed: Callable[..., KeyedGateway], replay_stores: Headers, upstream: ScriptedUpstream
) -> None:
    """Upstream goes on for the grace, then is ended; the stream is gone then, and its key is free."""
    gateway = make_keyed(**replay_stores, GROKFLASK_RESUME_GRACE_S="2")
    key = gateway.make_key("ann")
    story = Story(upstream)
    first = ask(gateway, key, "k1", body=STREAM, X_Stream_Resume="true")
    story.go.release()
    event = read_event(first)
    last = event.partition(b"id: ")[2].partition(b"\n")[0].decode()
    dropped_at = time.monotonic()
    cut_off(first)
    assert story.left.wait(WAIT_S)
    assert story.left_at - dropped_at > 1.9
    assert [row["outcome"] for row in gateway.wait_for_rows(1)] == ["client_abort"]
    gone = ask(gateway, key, "k1", body=STREAM, X_Stream_Resume="true", Last_Event_ID=last)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "stream_gone")
    for _ in range(9):
        story.go.release()
    again = ask(gateway, key, "k1", body=STREAM, X_Stream_Resume="true")
    assert again.content.endswith(DONE)
    for wrong in (last, "x", "-", "0-0", "9" * 500):
        gone = ask(gateway, key, "k1", body=STREAM, Last_Event_ID=wrong)
        assert gone.status_code == 410, wrong


def test_an_sdk_that_retries_pays_once(gate: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """OpenAI's SDK gives up on a slow answer and asks again, with the same key: upstream is asked once."""
    key = gate.make_key("ann")["Authorization"].removeprefix("Bearer ")
    asked: list[int] = []
    with OpenAI(api_key=key, base_url=f"{gate.url}/v1", max_retries=9, timeout=1.0) as client:
        for attempt in range(9):  # on a busy machine it may come back too late to be expected any more
            answer = Slow()
            upstream.handler = answer
            done = client.chat.completions.create(
                model="grok-4.3",
                messages=[{"role": "user", "content": "hello"}],
                extra_headers={"Idempotency-Key": f"retry-{attempt}"},
            )
            assert done.choices[0].message.content == "Once upon"
            asked.append(answer.calls)
            if asked[-1] == 1:
                break
    assert asked[-1] == 1, asked
    rows = gate.wait_for_rows(sum(asked))
    assert [row["outcome"] for row in rows].count("complete") == len(asked)
    assert gate.server.find_lines("msg=replay", "outcome=complete")


class Slow:
    """An upstream that answers after the client has given up twice."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, exchange: Exchange) -> None:
        self.calls += 1
        exchange.sock.settimeout(2.5)
        try:
            gone = exchange.sock.recv(1) == b""
        except TimeoutError:
            gone = False
        exchange.sock.settimeout(WAIT_S)
        if gone:
            exchange.close()
        else:
            reply_story(exchange)


def test_read_on_for_the_usage(
    make_keyed: Callable[..., KeyedGateway], replay_stores: Headers, upstream: ScriptedUpstream
) -> None:
    """With drain, upstream is read on when the last has left, and no longer than it may be in silence."""
    settings = {"GROKFLASK_ON_ABORT": "drain", "GROKFLASK_DRAIN_S": "1"}
    gateway = make_keyed(**replay_stores, **settings)
    key = gateway.make_key("ann")
    told, silent = Story(upstream), Story(upstream)
    for name, story in (("told", told), ("silent", silent)):
        upstream.handler = story.tell
        reply = ask(gateway, key, name, body=STREAM)
        story.go.release()
        read_event(reply)
        cut_off(reply)
        if story is told:
            for _ in range(9):
                story.go.release()
            gateway.wait_for_rows(1)
    assert silent.left.wait(WAIT_S)
    rows = gateway.wait_for_rows(2)
    assert {row["outcome"] for row in rows} <= {"client_abort", "complete"}
    assert rows[0]["outcome"] == "client_abort"
    assert (rows[1]["cost_ticks"], rows[1]["estimated"]) == (USAGE["cost_in_usd_ticks"], False)
