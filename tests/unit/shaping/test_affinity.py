"""The id by which xAI finds a conversation's cached prompt: the same in each turn, unique to the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from grokflask.config import Settings
from grokflask.protocol.routes import ROUTES
from grokflask.shaping.affinity import MAX_PIECE_BYTES, MAX_TURNS, make_salt
from grokflask.shaping.bodies import shape_request
from grokflask.shaping.request import ClientRequest, UpstreamRequest

BY_PATH = {route.path: route for route in ROUTES if route.method == "POST"}
CHAT, RESPONSES, MESSAGES = "/chat/completions", "/responses", "/messages"
SYSTEM = {"role": "system", "content": "You are kind."}
FIRST = {"role": "user", "content": "Tell me of whales"}
LATER = [{"role": "assistant", "content": "They sing."}, {"role": "user", "content": "Why?"}]
HEADER = "x-grok-conv-id"


def shape(
    body: Mapping[str, Any] | bytes,
    path: str = CHAT,
    caller: bytes = b"alice",
    headers: Mapping[str, str] | None = None,
) -> UpstreamRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = ClientRequest(BY_PATH[path], "r1", raw, headers=headers)
    return shape_request(request, Settings(), caller)


def find_id(body: Mapping[str, Any] | bytes, path: str = CHAT, caller: bytes = b"alice") -> str | None:
    """The id that goes upstream, wherever the route has it."""
    shaped = shape(body, path, caller)
    assert isinstance(shaped.body, bytes)
    fields = json.loads(shaped.body)
    if path == RESPONSES:
        assert HEADER not in shaped.headers
        return fields.get("prompt_cache_key")
    assert "prompt_cache_key" not in fields
    return shaped.headers.get(HEADER)


def ask(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def test_it_is_the_same_in_each_turn() -> None:
    """Later turns, what they hold and all other parameters change nothing."""
    id = find_id(ask(SYSTEM, FIRST))
    assert id is not None
    assert len(id) == 32
    assert find_id(ask(SYSTEM, FIRST, *LATER)) == id
    assert find_id(ask(SYSTEM, FIRST, *LATER * 1000, model="grok-4.7", stream=True, deferred=False)) == id
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}
    assert find_id(ask(SYSTEM, FIRST, *LATER, picture)) == id


@pytest.mark.parametrize(
    "later",
    [
        b'{"role":"assistant","content":"They sing."}',
        b' {  "content" : "They sing." ,\n"role":"assistant" } ',
        b'{"role":"assistant","content":null,"tool_calls":[{"id":"c"}]},{"role":"tool","content":"x"}',
        b"{}",
    ],
)
def test_white_space_and_order_of_names_change_nothing(later: bytes) -> None:
    """Of later messages and around the first ones, it does not matter how the JSON is written."""
    plain = find_id(b'{"messages":[{"role":"user","content":"hi"}]}')
    assert plain is not None
    assert find_id(b'{"messages": [ {"content" : "hi",\t"role": "user", "name":"a"} , %s ]}' % later) == plain


def test_another_beginning_is_another_conversation() -> None:
    """The system prompt and the user's first message make it, in their order."""
    bodies = [
        ask(FIRST),
        ask(SYSTEM, FIRST),
        ask({**SYSTEM, "role": "developer"}, FIRST),
        ask({**SYSTEM, "content": "You are rude."}, FIRST),
        ask(SYSTEM, {**FIRST, "content": "Tell me of bees"}),
        ask(SYSTEM, LATER[0], FIRST),
        ask(SYSTEM),
    ]
    assert len({find_id(body) for body in bodies}) == len(bodies)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_no_two_keys_share_one(path: str) -> None:
    """The same words from another key are another conversation; the id reveals neither."""
    body = {"input": "hi"} if path == RESPONSES else ask(FIRST)
    ids = [find_id(body, path, caller) for caller in (b"alice", b"bob", b"alice\0")]
    assert len(set(ids)) == 3
    assert all(id and id.isalnum() and "alice" not in id for id in ids)
    assert find_id(body, path, b"") is None


def test_salts() -> None:
    """Each installation has ids of its own; the switch turns them off."""
    salts = [make_salt(Settings(xai_api_key=text)) for text in ("xai-1", "xai-2")]
    assert salts[0] != salts[1]
    assert make_salt(Settings(xai_api_key="xai-1")) == salts[0]
    assert b"xai-1" not in salts[0]
    assert make_salt(Settings(cache_affinity=False)) == b""


@pytest.mark.parametrize("path", BY_PATH)
def test_the_clients_own_id_wins(path: str) -> None:
    """A header that the client sent goes up as it is, and nothing beside it."""
    route = BY_PATH[path]
    if route.body != "json" or "<" in path:
        return
    body = {**ask(FIRST), "input": "hi", "prompt": "a cat", "name": "b", "text": "t", "model": "m"}
    body |= {"image": {"url": "https://a.b/c.png"}}
    shaped = shape(body, path, headers={HEADER: "mine"})
    assert shaped.headers == {HEADER: "mine"}
    assert isinstance(shaped.body, bytes)
    assert b"prompt_cache_key" not in shaped.body
    # Without it there is one only where a prompt is read.
    has_id = HEADER in (others := shape(body, path)).headers or b"prompt_cache_key" in bytes(
        others.body or b""
    )
    assert has_id is (route.billing == "tokens")


def test_the_clients_own_key_wins_on_responses() -> None:
    """`prompt_cache_key` stays as it was sent; null counts as none."""
    assert find_id({"input": "hi", "prompt_cache_key": "mine"}, RESPONSES) == "mine"
    own = find_id({"input": "hi", "prompt_cache_key": None}, RESPONSES)
    assert own is not None
    assert own == find_id({"input": "hi"}, RESPONSES)


def test_responses() -> None:
    """Instructions and the first of the input, whichever way it is written; not what upstream keeps."""
    said = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]}
    id = find_id({"input": "hi", "instructions": "Be kind."}, RESPONSES)
    assert id is not None
    for turns in ([said], [said, answer], [{"role": "user", "content": "hi"}, answer, said]):
        assert find_id({"input": turns, "instructions": "Be kind."}, RESPONSES) == id
    assert find_id({"input": "hi"}, RESPONSES) not in (id, None)
    assert find_id({"input": [{"role": "developer", "content": "Be kind."}, said]}, RESPONSES) not in (
        id,
        None,
    )
    assert find_id({"input": "hi", "previous_response_id": "resp_1"}, RESPONSES) is None


def test_messages() -> None:
    """`system` counts; the mark of where to cache, which moves from turn to turn, does not."""
    mark = {"cache_control": {"type": "ephemeral"}}

    def say(text: str, **more: Any) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text, **more}]}

    system = [{"type": "text", "text": "Be kind.", **mark}]
    id = find_id(ask(say("hi", **mark), system=system), MESSAGES)
    assert id is not None
    assert find_id(ask(say("hi"), LATER[0], say("more", **mark), system=system), MESSAGES) == id
    assert find_id(ask({"role": "user", "content": "hi"}, system="Be kind."), MESSAGES) == id
    assert find_id(ask(say("hi")), MESSAGES) != id


def test_pictures_tell_conversations_apart() -> None:
    """Two pictures are two conversations, a large one read no further than needed."""

    def show(url: str) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": url}}
        return ask({"role": "user", "content": [{"type": "text", "text": "what?"}, picture]})

    urls = ["https://a.b/1.png", "https://a.b/2.png", "data:image/png;base64," + "A" * 2 * MAX_PIECE_BYTES]
    ids = [find_id(show(url)) for url in urls]
    assert None not in ids
    assert len(set(ids)) == 3
    assert find_id(show(urls[2] + "B")) == ids[2]


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[5]}',
        b'{"messages":["hi"]}',
        b'{"messages":[{"role":"user","content":["hi"]}]}',
        b'{"messages":[{"role":"user","content":[{"text":1},[]]}]}',
        b'{"messages":[[],{}]}',
    ],
)
def test_what_is_no_conversation_has_none(body: bytes) -> None:
    """It goes up as it came, and what is wrong with it is for upstream to say."""
    assert find_id(body) is None


def test_a_long_list_is_not_read() -> None:
    """Only the first messages are looked at, so what the rest is made of cannot matter."""
    head = b'{"messages":[' + b",".join([b"{}"] * MAX_TURNS)
    assert find_id(head + b"]}") == find_id(head + b",5" * 100_000 + b"]}")
