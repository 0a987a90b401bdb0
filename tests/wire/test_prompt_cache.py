"""A conversation's turns reach the server that has its beginning, and cost less by the sandbox's books."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
import requests
from support.processes import UPSTREAM_KEY
from support.scripted import WAIT_S
from support.stores import KeyedGateway

from grokflask.billing.prices import price_saved
from grokflask.sandbox import Exchange, Sandbox

TURNS = 6
MODEL = "grok-4.3"
SYSTEM = "You are a patient teacher of the ways of whales and other animals of the sea. " * 60
CHAT, RESPONSES, MESSAGES = "/chat/completions", "/responses", "/messages"
TICKS = ("prompt_tokens", "cached_tokens", "cost_ticks")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator without pauses, whose journal is read here."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


class Talk:
    """A conversation of TURNS turns, each of which sends all of those before it again."""

    def __init__(self, gateway: KeyedGateway, sandbox: Sandbox, name: str) -> None:
        self.gateway = gateway
        self.sandbox = sandbox
        self.name = name
        self.key = gateway.make_key(name)
        self.system = f"{name.partition('-')[2]}: {SYSTEM}"  # no other pair of talks begins with it

    def hold(self, path: str, *, stream: bool) -> list[Exchange]:
        """What upstream noted of it."""
        seen = len(self.sandbox.journal)
        said: list[dict[str, Any]] = []
        for turn in range(TURNS):
            said.append({"role": "user", "content": f"Question {turn}: tell me a story of 80 words"})
            said.append({"role": "assistant", "content": self._ask(path, said, stream)})
            self.sandbox.journal.wait_until_idle()  # or the next turn's note could be there first
        return list(self.sandbox.journal)[seen:]

    def _ask(self, path: str, said: list[dict[str, Any]], stream: bool) -> str:
        body: dict[str, Any] = {"model": MODEL, "stream": stream, "max_tokens": 500}
        if path == CHAT:
            body["messages"] = [{"role": "system", "content": self.system}, *said]
        elif path == RESPONSES:
            del body["max_tokens"]
            body |= {"input": said, "instructions": self.system}
        else:
            body |= {"messages": said, "system": self.system}
        url = f"{self.gateway.url}/v1{path}"
        reply = requests.post(url, json=body, headers=self.key, timeout=WAIT_S)
        assert reply.status_code == 200, reply.text
        return _read_stream(path, reply.text) if stream else _read_whole(path, reply.json())

    def check_rows(self, noted: list[Exchange], shown: dict[str, Any]) -> None:
        """The ledger has what upstream charged, turn by turn, and what the cache saved of it."""
        rows = self.gateway.wait_for_rows(len(noted), key=self.name)[::-1]
        assert [tuple(row[name] for name in TICKS) for row in rows] == [
            tuple(getattr(each, name) for name in TICKS) for each in noted
        ]
        assert shown["cached_tokens"] == sum(each.cached_tokens for each in noted)
        assert shown["saved_ticks"] == price_saved(MODEL, shown["cached_tokens"])


def _read_whole(path: str, reply: dict[str, Any]) -> str:
    if path == CHAT:
        return str(reply["choices"][0]["message"]["content"])
    return str((reply["output"][-1] if path == RESPONSES else reply)["content"][0]["text"])


def _read_stream(path: str, text: str) -> str:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    pieces = []
    for event in map(json.loads, lines):
        if path == CHAT:
            pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
        elif path == RESPONSES:
            pieces += [event["delta"]] if event["type"] == "response.output_text.delta" else []
        elif event["type"] == "content_block_delta":
            pieces.append(event["delta"]["text"])
    assert pieces
    return "".join(pieces)


def test_turns_after_the_first_cost_less(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], sandbox: Sandbox
) -> None:
    """The same conversation with the id and without it, whole and streamed, on one worker and on two."""
    on = make_keyed(**stores, XAI_API_BASE=sandbox.base_url)
    off = make_keyed(**stores, XAI_API_BASE=sandbox.base_url, GROKFLASK_CACHE_AFFINITY="off")
    talks = {}
    for path, stream in product((CHAT, RESPONSES, MESSAGES), (False, True)):
        # Without an id first: what it leaves on the servers is for the other one the least it could find.
        name = f"{path[1:].replace('/', '-')}-{stream}"
        plain, pinned = Talk(off, sandbox, f"off-{name}"), Talk(on, sandbox, f"on-{name}")
        without, with_id = plain.hold(path, stream=stream), pinned.hold(path, stream=stream)
        assert {each.conv_id for each in without} == {None}
        [id] = {each.conv_id for each in with_id}
        assert id is not None
        assert [each.prompt_tokens for each in with_id] == [each.prompt_tokens for each in without]
        # All but the last blocks of what the turn before had sent.
        for before, turn in pairwise(with_id):
            assert before.prompt_tokens - 128 < turn.cached_tokens <= turn.prompt_tokens
        costs = [sum(each.cost_ticks for each in noted) for noted in (without, with_id)]
        assert costs[1] < costs[0]
        for noted, cost in zip((without, with_id), costs, strict=True):
            print(path, stream, cost, [(each.prompt_tokens, each.cached_tokens) for each in noted])
        talks |= {plain: without, pinned: with_id}
    summary = {each["key"]: each for each in on.run("usage", "summary")}
    for talk, noted in talks.items():
        talk.check_rows(noted, summary[talk.name])


def test_each_key_and_conversation_has_an_id_of_its_own(
    make_keyed: Callable[..., KeyedGateway], sandbox: Sandbox
) -> None:
    """Two keys that say the same have two ids; a deferred chat has its key's; the client's own stays."""
    gateway = make_keyed(XAI_API_BASE=sandbox.base_url)
    keys = [gateway.make_key(name) for name in ("ann", "bob")]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}

    def ask(headers: dict[str, str], **more: Any) -> str | None:
        count = len(sandbox.journal)
        url = f"{gateway.url}/v1{CHAT}"
        assert requests.post(url, json=body | more, headers=headers, timeout=WAIT_S).status_code == 200
        return sandbox.journal.wait_until_idle()[count].conv_id

    ids = [ask(key) for key in keys]
    assert None not in ids
    assert len(set(ids)) == 2
    assert [ask(key) for key in keys] == ids
    assert ask(keys[0], deferred=True) == ids[0]
    assert ask(keys[0] | {"x-grok-conv-id": "mine"}) == "mine"
