"""How often one request changes folders: each change is one that a reader has to follow."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY
from support.scripted import Exchange, ScriptedUpstream, answer_chat, chat_chunk

from grokflask import gateway

PACKAGE = str(Path(gateway.__file__).parent) + "/"


def find_folder(frame: FrameType | None) -> str | None:
    """The folder of the innermost code of ours in `frame` and its callers, libraries left out."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return name.removeprefix(PACKAGE).removesuffix(".py").partition("/")[0]
        frame = frame.f_back
    return None


class Moves:
    """Counts calls from one folder into another, each with its return."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, frame: FrameType, event: str, _arg: Any) -> None:
        """A function for sys.setprofile."""
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            here, before = find_folder(frame), find_folder(frame.f_back)
            if here and before and here != before:
                self.counts[before, here] += 2

    def __enter__(self) -> Self:
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def answer_at_once(exchange: Exchange) -> None:
    """A stream of 134 events in one piece."""
    events = b"".join(b"data: %s\n\n" % json.dumps(chat_chunk("x")).encode() for _ in range(134))
    exchange.start()
    exchange.chunk(events + b"data: [DONE]\n\n")
    exchange.end()


@pytest.mark.parametrize(("handler", "stream"), [(answer_at_once, True), (answer_chat, False)])
def test_a_request_changes_folders_seldom(
    client: FlaskClient, upstream: ScriptedUpstream, handler: Callable[[Exchange], None], stream: bool
) -> None:
    """There and back again count as two. Threads that belong to the request count, too."""
    upstream.handler = handler

    def ask() -> bytes:
        chat = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
        headers = {"Authorization": f"Bearer {CLIENT_KEY}"}
        with client.post("/api/v1/chat/completions", json=chat, headers=headers) as response:
            return response.data

    ask()  # what is made at the first use is made by now
    with Moves() as moves:
        answer = ask()
    assert answer.count(b"data: {") == 134 or not stream
    assert moves.counts.total() <= 170, moves.counts.most_common()
