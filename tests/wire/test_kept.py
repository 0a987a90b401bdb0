"""Files, batches, deferred chats and pictures with OpenAI's SDK, through real gunicorn on the sandbox."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI
from openai.types import ImagesResponse
from support.processes import UPSTREAM_KEY, GatewayServer, wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream
from support.stores import KeyedGateway
from support.wire import AUTH, connect

from grokflask.sandbox import Sandbox
from grokflask.sandbox.pictures import draw_named

LINE = {"method": "POST", "url": "/v1/chat/completions"}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
SIZE = 40 * 2**20


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def gateway(
    make_keyed: Callable[..., KeyedGateway], stores: dict[str, str], sandbox: Sandbox
) -> KeyedGateway:
    """Over each pair of stores, one of them with two workers."""
    return make_keyed(**stores, XAI_API_BASE=sandbox.base_url)


def open_sdk(gateway: KeyedGateway, name: str) -> OpenAI:
    secret = gateway.make_key(name)["Authorization"].removeprefix("Bearer ")
    return OpenAI(api_key=secret, base_url=f"{gateway.url}/v1", max_retries=0)


def test_the_sdk(gateway: KeyedGateway, sandbox: Sandbox) -> None:
    """Models, files, batches, an edit and a deferred chat; another key sees nothing of it; rows are true."""
    picture = base64.b64encode(draw_named("405060-64x64") or b"").decode()
    with open_sdk(gateway, "ann") as ann, open_sdk(gateway, "bob") as bob:
        assert "grok-4.3" in [model.id for model in ann.models.list()]
        lines = [
            json.dumps({"custom_id": f"c{n}", **LINE, "body": {"model": "grok-4.3", "messages": MESSAGES}})
            for n in range(3)
        ]
        content = "\n".join(lines).encode()
        file = ann.files.create(file=("in.jsonl", content), purpose="batch")
        assert ann.files.retrieve(file.id).bytes == len(content)
        assert [each.id for each in ann.files.list()] == [file.id]
        assert ann.files.content(file.id).content == content
        batch: Any = ann.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert ann.batches.retrieve(batch.batch_id).state["num_requests"] == 3  # type: ignore[attr-defined]
        results: Any = ann.get(f"/batches/{batch.batch_id}/results", cast_to=object)
        assert len(results["results"]) == 3
        assert ann.batches.cancel(batch.batch_id).state["num_cancelled"] == 3  # type: ignore[attr-defined]
        edited = ann.post(
            "/images/edits",
            body={"prompt": "a hat", "image": {"url": f"data:image/png;base64,{picture}"}},
            cast_to=ImagesResponse,
        )
        assert edited.data
        asked: Any = ann.chat.completions.create(
            model="grok-4.3", messages=MESSAGES, extra_body={"deferred": True}
        )
        path = f"/chat/deferred-completion/{asked.request_id}"
        assert not ann.get(path, cast_to=object)  # 202, with nothing in it
        told: Any = ann.get(path, cast_to=openai.types.chat.ChatCompletion)
        assert told.choices[0].message.content
        assert list(bob.files.list()) == []
        for attempt in (
            lambda: bob.files.retrieve(file.id),
            lambda: bob.files.content(file.id),
            lambda: bob.files.delete(file.id),
            lambda: bob.batches.retrieve(batch.batch_id),
            lambda: bob.batches.cancel(batch.batch_id),
            lambda: bob.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            ),
            lambda: bob.get(path, cast_to=object),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        assert ann.files.delete(file.id).deleted
    noted = {each.path: each.cost_ticks for each in sandbox.journal.wait_until_idle()}
    rows = gateway.wait_for_rows(13, key="ann")
    paid = {row["route"]: row["cost_ticks"] for row in rows if row["cost_ticks"]}
    assert paid == {
        "images-edits": noted["/v1/images/edits"],
        "deferred": noted["/v1/chat/completions"],
    }


def test_large_files_at_once(make_keyed: Callable[..., KeyedGateway], sandbox: Sandbox) -> None:
    """Several uploads and downloads of 40 MiB arrive byte for byte."""
    gateway = make_keyed(XAI_API_BASE=sandbox.base_url)
    key = gateway.make_key("ann")

    def carry(_: int) -> None:
        content = os.urandom(2**20) * (SIZE // 2**20)
        form = {"file": ("large.bin", content)}
        made = requests.post(f"{gateway.url}/v1/files", files=form, headers=key, timeout=60)
        assert made.status_code == 200, made.text
        id = made.json()["id"]
        down = requests.get(f"{gateway.url}/v1/files/{id}/content", headers=key, timeout=60)
        assert down.status_code == 200
        assert hashlib.sha256(down.content).digest() == hashlib.sha256(content).digest()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(carry, range(3)))
    too_large = {"file": ("larger.bin", bytes(53 * 2**20))}
    try:
        refused = requests.post(f"{gateway.url}/v1/files", files=too_large, headers=key, timeout=60)
        assert refused.status_code == 413
    except requests.ConnectionError:
        pass  # it closes without having read it all
    assert len(sandbox.kept.files.list()) == 3


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 9999999", b"--b\r\n" + b"x" * 3_000_000),
        ("Transfer-Encoding: chunked", b"5\r\n--b\r\n\r\n2dc6c0\r\n" + b"x" * 3_000_000 + b"\r\nffff\r\nx"),
    ],
)
def test_an_upload_that_breaks_off(
    gateway: KeyedGateway, sandbox: Sandbox, framing: str, body: bytes
) -> None:
    """A client that leaves in mid-upload: upstream never hears of it."""
    key = gateway.make_key("ann")["Authorization"]
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {key}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"{framing}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.server.port), WAIT_S) as sock:
        sock.sendall(head.encode() + body)
    wait_for(lambda: bool(gateway.server.find_lines("refused", "route=files")), "its line in the log")
    assert not sandbox.kept.files.list()


def test_a_client_that_leaves_a_deferred_answer(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream
) -> None:
    """It is given out but once, so it is read to its end, and its cost is in the row."""
    gateway = make_gateway()
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost_in_usd_ticks": 777}
    left = threading.Event()

    def serve(exchange: Exchange) -> None:
        if exchange.method == "POST":
            exchange.reply({"request_id": "d-1"})
            return
        body = json.dumps({"id": "x", "model": "grok-4.3", "choices": [{}], "usage": usage}).encode()
        exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        exchange.send(body[:20])
        assert left.wait(WAIT_S)
        exchange.send(body[20:])

    upstream.handler = serve
    asked = {"messages": MESSAGES, "deferred": True}
    made = requests.post(f"{gateway.url}/v1/chat/completions", json=asked, headers=AUTH, timeout=WAIT_S)
    assert made.json() == {"request_id": "d-1"}
    with connect(gateway) as sock:
        sock.sendall(
            b"GET /v1/chat/deferred-completion/d-1 HTTP/1.1\r\nHost: x\r\n"
            + f"Authorization: {AUTH['Authorization']}\r\n\r\n".encode()
        )
        wait_for(lambda: len(upstream.exchanges) == 2, "the fetch to reach upstream")
    left.set()
    gateway.wait_for_line("route=deferred", "cost_ticks=777")  # whichever of the two ends was seen first
