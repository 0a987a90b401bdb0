"""Pictures: edits, what is dropped on the way, and that the ledger has what upstream charged."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from support.kept import Door, door

from grokflask.sandbox.models import IMAGE_TICKS
from grokflask.sandbox.pictures import draw_named

__all__ = ["door"]

MODEL = "grok-imagine-image"
PICTURE = base64.b64encode(draw_named("405060-64x64") or b"").decode()
URI = f"data:image/png;base64,{PICTURE}"


def edit(door: Door, key: dict[str, str] | None = None, **fields: Any) -> Any:
    return door.call("POST", "images/edits", key, json={"prompt": "a hat on it", **fields})


@pytest.mark.parametrize(
    ("fields", "count", "paid"),
    [
        ({"image": {"url": URI}}, 1, 2),
        ({"image": {"url": "https://example.org/cat.png"}, "n": 3}, 3, 4),
        ({"images": [{"url": URI}, {"url": URI}], "n": 2}, 2, 4),
        ({"images": [{"url": URI}] * 3, "response_format": "b64_json"}, 1, 4),
        ({"image": {"url": URI}, "model": "grok-imagine-image-quality"}, 1, 2),
    ],
)
def test_an_edit(door: Door, fields: dict[str, Any], count: int, paid: int) -> None:
    """Of an address or a data URI, one picture or several; the ledger has what was charged, to the tick."""
    reply = edit(door, **fields)
    assert reply.status_code == 200, reply.data
    assert len(reply.json["data"]) == count
    [row], [charge] = door.list_rows(), door.find_charges(1)
    ticks = paid * IMAGE_TICKS[fields.get("model", MODEL)]
    assert (row["route"], row["cost_ticks"], row["estimated"]) == ("images-edits", ticks, False)
    assert charge.cost_ticks == ticks == reply.json["usage"]["cost_in_usd_ticks"]
    assert row["model"] == fields.get("model", MODEL)


@pytest.mark.parametrize(
    "fields", [{}, {"image": None}, {"images": []}, {"image": {"url": URI}, "prompt": ""}]
)
def test_what_is_missing(door: Door, fields: dict[str, Any]) -> None:
    """Without a picture or a prompt it is a 400 that names it, and nothing is asked upstream."""
    reply = edit(door, **fields)
    assert reply.status_code == 400
    assert reply.json["error"]["param"] == ("image" if "prompt" not in fields else "prompt")
    assert not len(door.sandbox.journal)


def test_a_form_is_refused(door: Door) -> None:
    """xAI takes JSON here, where OpenAI takes a form: it is a 415 that says so."""
    reply = door.call("POST", "images/edits", data={"prompt": "x", "image": (b"", "x.png")})
    assert reply.status_code == 415
    assert "JSON" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("model", "quality", "dropped"),
    [(MODEL, "low", True), (f"{MODEL}-2.0", "low", False), (f"{MODEL}-2.0", "high", True)],
)
@pytest.mark.parametrize("path", ["generations", "edits"])
def test_what_is_dropped(door: Door, path: str, model: str, quality: str, dropped: bool) -> None:
    """What xAI ignores is left out and named, and so is a quality that it would refuse."""
    fields = {"prompt": "x", "model": model, "size": "1024x1024", "style": "vivid", "quality": quality}
    extra = {"image": {"url": URI}, "mask": {"url": URI}} if path == "edits" else {"background": "opaque"}
    reply = door.call("POST", f"images/{path}", json={**fields, **extra, "aspect_ratio": "1:1"})
    assert reply.status_code == 200, reply.data
    named = {"size", "style", "mask" if path == "edits" else "background"} | (
        {"quality"} if dropped else set()
    )
    assert set(reply.headers["X-Params-Dropped"].split(", ")) == named
    [charge] = door.find_charges(1)
    assert set(charge.fields) == ({*fields, *extra, "aspect_ratio"} - named)


def test_limits_hold(door: Door) -> None:
    """A key's models and its budget: an edit is refused before it costs anything."""
    narrow = door.make_key("narrow", models=("grok-4*",))
    broke = door.make_key("broke", budget_day_ticks=3 * IMAGE_TICKS[MODEL])
    images = [{"url": URI}] * 3
    assert edit(door, narrow, image=images[0]).json["error"]["code"] == "model_not_allowed"
    assert edit(door, broke, images=images).json["error"]["code"] == "insufficient_quota"
    assert edit(door, broke, image=images[0]).status_code == 200
    assert edit(door, broke, image=images[0]).status_code == 429


def test_a_file_of_another_key(door: Door) -> None:
    """Named as the picture to work on it is a 404, however it is spelled; the owner's own passes."""
    door.app.extensions["ownership"].claim("file", "file_1", _as_key(door, "ann"))
    body = b'{"prompt": "x", "image": {"%s": "file_1"}}'
    for name in (b"file_id", b"file\\u005fid", b"\\u0066ile_id"):
        for key, status in ((door.bob, 404), (door.ann, 200)):
            reply = door.call(
                "POST", "images/edits", key, data=body % name, headers={"Content-Type": "application/json"}
            )
            assert reply.status_code == status, (name, reply.data)
    assert edit(door, images=[{"url": URI}, {"file_id": "file_2"}]).json["error"]["param"] == "file_id"


def _as_key(door: Door, name: str) -> Any:
    return door.app.extensions["keys"].authenticate(getattr(door, name)["Authorization"], "127.0.0.1")
