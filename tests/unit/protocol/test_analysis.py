"""The answer of `/vision/analyze`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.errors import UpstreamProtocolError
from grokflask.protocol.analysis import read_analysis


def reply(**changes: Any) -> bytes:
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "grok-4.3",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "A cat."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 3, "total_tokens": 303},
        **changes,
    }
    return json.dumps(body).encode()


def test_analysis_has_four_fields() -> None:
    """The answer is model, created, content and usage, taken from the chat completion."""
    assert json.loads(read_analysis(reply())) == {
        "model": "grok-4.3",
        "created": 1700000000,
        "content": "A cat.",
        "usage": {"prompt_tokens": 300, "completion_tokens": 3, "total_tokens": 303},
    }


def test_usage_passes_byte_for_byte() -> None:
    """Figures are not rounded on their way."""
    body = reply().replace(b'"prompt_tokens": 300', b'"prompt_tokens": 300, "x": 1.50e3')
    assert b'"prompt_tokens": 300, "x": 1.50e3' in read_analysis(body)


def test_fields_that_upstream_left_out_are_null() -> None:
    """All four fields are always there."""
    body = b'{"choices":[{"message":{"content":null}}]}'
    expected = {"model": None, "created": None, "content": None, "usage": None}
    assert json.loads(read_analysis(body)) == expected


def test_first_choice_counts() -> None:
    """With several choices the first is the answer."""
    choices = [{"message": {"content": text}} for text in ("one", "two")]
    assert json.loads(read_analysis(reply(choices=choices)))["content"] == "one"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="no-choices-field"),
        pytest.param(reply(choices=[]), id="no-choices"),
        pytest.param(reply(choices=[{}]), id="no-message"),
        pytest.param(reply(choices=None), id="null-choices"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b'{"choices":[{"message":{"content":"\xff"}}]}', id="not-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_completion_that_cannot_be_read(body: bytes) -> None:
    """An answer that is no chat completion is upstream's error."""
    with pytest.raises(UpstreamProtocolError):
        read_analysis(body)
