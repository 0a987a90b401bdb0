"""What an answer gives out: the reading behind the rules of ownership."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.kept.custody import read_id


@pytest.mark.parametrize(
    ("body", "id"),
    [
        ({"id": "a"}, "a"),
        ({"request_id": "a"}, "a"),
        ({"batch_id": "a", "id": "b"}, "a"),
        ({"id": 7}, None),
        ([], None),
        ({}, None),
    ],
)
def test_the_id_of_a_thing(body: Any, id: str | None) -> None:
    """Under each of upstream's names for it."""
    assert read_id(json.dumps(body).encode()) == id
