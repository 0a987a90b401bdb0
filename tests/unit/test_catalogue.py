"""The lists of models: kept for a moment, and without what a key may not use."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask import catalogue
from grokflask.catalogue import Catalogue, filter_models
from grokflask.errors import ModelNotAllowedError
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey
from grokflask.sandbox.models import detailed_item, list_models, short_item

ALICE = ApiKey("alice", "key:alice", "xai-1")
BOB = ApiKey("bob", "key:bob", "xai-2")
LONG = {"object": "list", "data": list_models()}
SHORT = {"object": "list", "data": [short_item(item["id"]) for item in list_models()]}
KINDS = {"models": [detailed_item("grok-4.3"), detailed_item("grok-4.7")]}


def show(document: Any, *patterns: str) -> Any:
    return json.loads(filter_models(json.dumps(document).encode(), KeyLimits(models=patterns)))


def list_ids(document: Any) -> list[str]:
    return [item["id"] for item in document.get("data", document.get("models"))]


@pytest.mark.parametrize("document", [LONG, SHORT, KINDS, detailed_item("grok-4.3")])
def test_a_key_without_patterns_sees_all(document: Any) -> None:
    """And that as upstream sent it, byte for byte; so does one that may use every model of the list."""
    body = json.dumps(document, indent=3).encode()
    assert filter_models(body, KeyLimits()) == body
    assert filter_models(body, KeyLimits(models=("grok-*",))) == body


@pytest.mark.parametrize("document", [LONG, SHORT])
def test_both_forms_are_filtered(document: Any) -> None:
    """What is left out is left out whole, what is left stays as it was, and so does all around it."""
    shown = show(document, "grok-4.3", "grok-imagine-*")
    assert list_ids(shown) == [id for id in list_ids(document) if id == "grok-4.3" or "imagine" in id]
    assert shown["object"] == "list"
    assert all(item in document["data"] for item in shown["data"])


def test_aliases_count() -> None:
    """A model is shown if the key may use it under any of its names; the short form knows of none."""
    assert list_ids(show(LONG, "grok-4")) == ["grok-4.3"]
    assert list_ids(show(LONG, "grok-imagine-image-pro")) == ["grok-imagine-image-quality"]
    assert list_ids(show(KINDS, "grok-4.3-latest")) == ["grok-4.3"]
    assert list_ids(show(SHORT, "grok-4")) == []


def test_one_model() -> None:
    """By itself it is shown, or refused."""
    assert show(detailed_item("grok-imagine-image"), "grok-imagine-*")["id"] == "grok-imagine-image"
    assert show(detailed_item("grok-4.3"), "grok-4")["id"] == "grok-4.3"
    with pytest.raises(ModelNotAllowedError):
        show(detailed_item("grok-4.3"), "grok-4.7")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"7", b'{"data": 7}', b'{"data": [7]}', b'{"models": [{"id": 7}]}', b"{}", b'{"id": null}'],
)
def test_what_cannot_be_read_is_not_shown(body: bytes) -> None:
    """A key that may not see all models does not get an answer that cannot be read."""
    with pytest.raises(ModelNotAllowedError):
        filter_models(body, KeyLimits(models=("grok-4",)))
    assert filter_models(body, KeyLimits()) == body


def test_kept_for_a_moment() -> None:
    """An answer is given again with its age, until it is too old; apart by path and by xAI key."""
    now = 100.0
    kept = Catalogue(60, lambda: now)
    assert kept.find("/models", ALICE) is None
    kept.keep("/models", ALICE, b"1")
    now += 59.9
    assert kept.find("/models", ALICE) == (b"1", 59)
    assert kept.find("/models", BOB) is None
    assert kept.find("/models/x", ALICE) is None
    now += 0.1
    assert kept.find("/models", ALICE) is None


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds a limited number of answers, and no large one; with 0 seconds none at all."""
    monkeypatch.setattr(catalogue, "MAX_KEPT", 3)
    kept = Catalogue(60, lambda: 0.0)
    for number in range(5):
        kept.keep(f"/models/{number}", ALICE, b"1")
    assert [bool(kept.find(f"/models/{number}", ALICE)) for number in range(5)] == [False] * 2 + [True] * 3
    kept.keep("/models", ALICE, b"x" * (catalogue.MAX_KEPT_BYTES + 1))
    assert kept.find("/models", ALICE) is None
    nothing = Catalogue(0, lambda: 0.0)
    nothing.keep("/models", ALICE, b"1")
    assert nothing.find("/models", ALICE) is None
