"""Whole replies as they arrive."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from grokflask.delivery.terms import Terms
from grokflask.delivery.whole import ReplyReader

SECRETS = ("SECRETKEY", "OTHER-SECRET", "x")


def read(pieces: list[bytes], *, any_type: bool = False) -> Any:
    """What is passed on of a reply that arrives in `pieces`."""
    left = [*pieces, b""]
    stream = SimpleNamespace(
        read=lambda _: left.pop(0), status=200, media_type="application/json", headers={}, retried=False
    )
    call: Any = SimpleNamespace(wait=lambda _: nullcontext(stream), cancelled=None, cancel=lambda _: None)
    departure: Any = SimpleNamespace(check=lambda: None, end=lambda: None)
    terms = Terms(
        wants_usage=False,
        wants_json=True,
        heartbeat_s=9,
        first_event_timeout_s=9,
        idle_timeout_s=9,
        total_timeout_s=9,
        secrets=SECRETS,
        any_type=any_type,
    )
    return ReplyReader(call, terms, departure, started_at=0.0, clock=lambda: 0.0).read().body


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 11, 100])
def test_secrets_in_pieces(size: int) -> None:
    """They are cut out wherever the reply is cut, and nothing else is changed. A short one may be a word."""
    text = (
        b"SECRETKEY, SECRET OTHER-SECRET SECRETKEY" + b"x" * 50 + b"SECRETKEYSECRETKEYOTHER-SECRET SECRETKE"
    )
    body = b'{"choices":[1],"a":"%s"}' % text
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    cleaned = body.replace(b"SECRETKEY", b"[redacted]").replace(b"OTHER-SECRET", b"[redacted]")
    assert read(pieces) == cleaned
    assert read(pieces, any_type=True) == body
