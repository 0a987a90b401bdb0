"""The sandbox's prompt cache: which tokens are cached, and what is charged for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from support.scripted import WAIT_S

from grokflask.sandbox import Exchange, Sandbox, kept
from grokflask.sandbox.kept import BLOCK_TOKENS, PromptCache
from grokflask.sandbox.models import cost_ticks

LONG = "whale " * 3 * BLOCK_TOKENS
CHAT, RESPONSES, MESSAGES = "/chat/completions", "/responses", "/messages"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def say(path: str, *texts: str) -> dict[str, Any]:
    """A body whose conversation is these texts, the user's and the model's in turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    name = "input" if path == RESPONSES else "messages"
    return {"model": "grok-4.3", name: turns} | ({"max_tokens": 99} if path == MESSAGES else {})


def ask(sandbox: Sandbox, path: str, *texts: str, conv_id: str | None = None, **more: Any) -> Exchange:
    """What is noted of an exchange; its usage is what the client was told."""
    headers = {"x-grok-conv-id": conv_id} if conv_id else {}
    number = len(sandbox.journal)
    body = say(path, *texts) | more
    requests.post(sandbox.base_url + path, json=body, headers=headers, timeout=WAIT_S).raise_for_status()
    return sandbox.journal.wait_until_idle()[number]


def test_whole_blocks_from_the_beginning() -> None:
    """A prompt is cached as far as an earlier one is the same, in whole blocks."""
    cache, tokens = PromptCache(), [str(number) for number in range(4 * BLOCK_TOKENS)]
    assert cache.read("a", b"m", tokens[: 2 * BLOCK_TOKENS + 1]) == 0
    assert cache.read("a", b"m", tokens) == 2 * BLOCK_TOKENS
    assert cache.read("a", b"m", tokens) == 4 * BLOCK_TOKENS
    assert cache.read("a", b"m", tokens[: BLOCK_TOKENS - 1]) == 0
    changed = [*tokens[:BLOCK_TOKENS], "other", *tokens[BLOCK_TOKENS:]]
    assert cache.read("a", b"m", changed) == BLOCK_TOKENS
    assert cache.read("a", b"m", ["other", *tokens]) == 0
    assert cache.read("a", b"another model", tokens) == 0


def test_each_conversation_has_its_own() -> None:
    """Another conversation finds nothing, whatever was read in the first."""
    cache, tokens = PromptCache(), ["x"] * BLOCK_TOKENS
    assert [cache.read(conv_id, b"m", tokens) for conv_id in "aba"] == [0, 0, BLOCK_TOKENS]


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest blocks are dropped."""
    monkeypatch.setattr(kept, "MAX_BLOCKS", 3)
    cache = PromptCache()
    first, many = ["first"] * BLOCK_TOKENS, ["x"] * BLOCK_TOKENS * 3
    assert [cache.read("a", b"m", tokens) for tokens in (first, many, first)] == [0, 0, 0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_what_is_found_costs_less(sandbox: Sandbox, path: str, stream: bool) -> None:
    """The next turn is charged the cached price for its beginning, and its usage says so in each shape."""
    more: dict[str, Any] = {"stream": stream}
    if path == CHAT and stream:
        more["stream_options"] = {"include_usage": True}
    first = ask(sandbox, path, LONG, conv_id="c", **more)
    second = ask(sandbox, path, LONG, "It swims.", "Where?", conv_id="c", **more)
    assert (first.cached_tokens, second.cached_tokens) == (0, 3 * BLOCK_TOKENS)
    for noted in (first, second):
        tokens = (noted.prompt_tokens, noted.output_tokens, noted.cached_tokens)
        assert noted.cost_ticks == cost_ticks("grok-4.3", *tokens)
        assert noted.conv_id == "c"
    usage = second.usage
    assert usage is not None
    if path == MESSAGES:
        assert usage["cache_read_input_tokens"] == second.cached_tokens
        assert usage["input_tokens"] == second.prompt_tokens - second.cached_tokens
    else:
        details = "prompt_tokens_details" if path == CHAT else "input_tokens_details"
        assert usage[details]["cached_tokens"] == second.cached_tokens
        assert usage["cost_in_usd_ticks"] == second.cost_ticks


def test_the_key_in_the_body_is_the_header(sandbox: Sandbox) -> None:
    """`prompt_cache_key` of Responses names the same conversation."""
    ask(sandbox, RESPONSES, LONG, prompt_cache_key="c")
    again = ask(sandbox, CHAT, LONG, conv_id="c")
    assert (again.cached_tokens, again.conv_id) == (3 * BLOCK_TOKENS, "c")


def test_without_an_id_nothing_is_cached(sandbox: Sandbox) -> None:
    """At xAI such a request can reach any server."""
    assert [ask(sandbox, CHAT, LONG).cached_tokens for _ in range(2)] == [0, 0]


def test_what_is_refused_is_not_read(sandbox: Sandbox) -> None:
    """A request that is refused leaves nothing to be found."""
    body = say(CHAT, LONG) | {"stop": "x"}
    headers = {"x-grok-conv-id": "c"}
    reply = requests.post(sandbox.base_url + CHAT, json=body, headers=headers, timeout=WAIT_S)
    assert reply.status_code == 400
    sandbox.journal.wait_for(lambda noted: noted.status == 400)
    assert ask(sandbox, CHAT, LONG, conv_id="c").cached_tokens == 0
