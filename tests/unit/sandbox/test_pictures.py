"""Pictures: those that the sandbox draws are valid PNGs, those it is shown are described by their bytes."""

import base64
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from support.scripted import WAIT_S

from grokflask.sandbox import Sandbox
from grokflask.sandbox.pictures import draw_named, jpeg_size, png_size

JPEG = (
    b"\xff\xd8\xff\xe0\x00\x06JFIF\xff\xc4\x00\x04\x00\x00\xff"
    b"\xff\xc2\x00\x0b\x08\x00\x30\x00\x40\x01\x01\x11\x00\xff\xd9"
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(events_per_s=0) as running:
        yield running


def read_png(data: bytes) -> tuple[int, int, bytes]:
    """Return a PNG's size and pixels; check every checksum on the way."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, names = 8, b"", []
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + body)
        names.append(name)
        packed += body if name == b"IDAT" else b""
        at += 12 + length
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack_from(">II", data, 16)
    return width, height, zlib.decompress(packed)


def draw(sandbox: Sandbox, **fields: Any) -> requests.Response:
    body = {"model": "grok-imagine-image", "prompt": "a whale", **fields}
    return requests.post(sandbox.base_url + "/images/generations", json=body, timeout=WAIT_S)


def describe(sandbox: Sandbox, url: str, **fields: Any) -> requests.Response:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    body = {"model": "grok-4.3", "messages": [{"role": "user", "content": content}], **fields}
    return requests.post(sandbox.base_url + "/chat/completions", json=body, timeout=WAIT_S)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_an_image_answer_has_data_and_usage_only(sandbox: Sandbox) -> None:
    """By default there is one link; neither created nor id nor model is there."""
    reply = draw(sandbox).json()
    assert set(reply) == {"data", "usage"}
    assert reply["usage"] == {"cost_in_usd_ticks": 200_000_000}
    assert [set(item) for item in reply["data"]] == [{"url", "mime_type"}]
    assert reply["data"][0]["mime_type"] == "image/png"


def test_a_link_leads_to_a_png(sandbox: Sandbox) -> None:
    """The picture behind a link is a whole PNG of the stated shape."""
    reply = draw(sandbox, aspect_ratio="16:9").json()
    picture = requests.get(reply["data"][0]["url"], timeout=WAIT_S)
    assert picture.headers["Content-Type"] == "image/png"
    width, height, rows = read_png(picture.content)
    assert (width, height) == (256, 144)
    assert len(rows) == height * (3 * width + 1)


def test_pictures_depend_on_the_prompt_alone(sandbox: Sandbox) -> None:
    """The same prompt draws the same, another one another; several of one prompt differ."""
    first, again = (draw(sandbox, n=3, response_format="b64_json").json() for _ in range(2))
    assert first == again
    pictures = {item["b64_json"] for item in first["data"]}
    assert len(pictures) == 3
    assert all(set(item) == {"b64_json", "mime_type"} for item in first["data"])
    assert first["usage"]["cost_in_usd_ticks"] == 3 * 200_000_000
    other = draw(sandbox, prompt="a heron", response_format="b64_json").json()
    assert other["data"][0]["b64_json"] not in pictures


def test_resolution_doubles_the_sides(sandbox: Sandbox) -> None:
    """2k is twice 1k, and 19.5:9 is a ratio."""
    reply = draw(sandbox, resolution="2k", aspect_ratio="19.5:9", response_format="b64_json").json()
    assert png_size(base64.b64decode(reply["data"][0]["b64_json"])) == (512, 236)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"aspect_ratio": "7:5"}, 422),
        ({"resolution": "8k"}, 422),
        ({"response_format": "jpeg"}, 422),
        ({"prompt": ""}, 422),
        ({"prompt": None}, 422),
        ({"n": 0}, 400),
        ({"n": 11}, 400),
        ({"model": "grok-imagine-image-2.0", "quality": "high"}, 400),
        ({"model": "dall-e-3"}, 404),
        ({"size": "1024x1024", "style": "vivid", "quality": "hd"}, 200),
        ({"model": "grok-imagine-image-pro"}, 200),
        ({"model": "sandbox-error-503"}, 503),
    ],
)
def test_image_arguments(sandbox: Sandbox, fields: dict[str, Any], status: int) -> None:
    """What xAI documents as invalid is refused; size and style are ignored."""
    assert draw(sandbox, **fields).status_code == status


@pytest.mark.parametrize("name", ["x", "012345-0x5", "012345-999x999", "../../etc/passwd"])
def test_only_names_of_pictures_are_drawn(sandbox: Sandbox, name: str) -> None:
    """Any other name is a 404."""
    assert requests.get(f"{sandbox.origin}/sandbox/images/{name}.png", timeout=WAIT_S).status_code == 404


def test_a_png_is_described(sandbox: Sandbox) -> None:
    """Format and size are stated, whatever the data URI claims the format to be."""
    png = draw_named("d22828-64x48")
    assert png
    reply = describe(sandbox, data_uri(png, "image/webp")).json()
    text = reply["choices"][0]["message"]["content"]
    assert "a PNG, 64 × 48 pixels" in text  # noqa: RUF001 - the sign it uses
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 256
    details = reply["usage"]["prompt_tokens_details"]
    assert details["text_tokens"] + 256 == reply["usage"]["prompt_tokens"]


def test_a_jpeg_is_described_in_a_stream(sandbox: Sandbox) -> None:
    """A JPEG's size comes from its start-of-frame segment; vision streams as anything else."""
    reply = describe(sandbox, data_uri(JPEG), stream=True)
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert "JPEG" in reply.text
    assert jpeg_size(JPEG) == (64, 48)


def test_its_own_pictures_are_seen(sandbox: Sandbox) -> None:
    """A picture that it drew can be shown to it."""
    drawn = draw(sandbox, response_format="b64_json").json()["data"][0]["b64_json"]
    text = describe(sandbox, f"data:image/png;base64,{drawn}").json()["choices"][0]["message"]["content"]
    assert "a PNG, 256 × 256 pixels." in text  # noqa: RUF001


def test_an_address_is_named_not_fetched(sandbox: Sandbox) -> None:
    """A picture at an http address is not fetched: the answer says at which host it would be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        reply = describe(sandbox, f"http://127.0.0.1:{listener.getsockname()[1]}/whale.png")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert "127.0.0.1, which the sandbox does not fetch" in reply.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "url",
    [
        data_uri(b"GIF89a..."),
        data_uri(b"\x89PNG\r\n\x1a\n"),
        data_uri(b"\xff\xd8\xff\xd9"),
        "data:image/png;base64,%%%",
        "data:image/png,plain",
        "ftp://example.com/x.png",
        "x",
    ],
)
def test_what_is_no_picture_is_refused(sandbox: Sandbox, url: str) -> None:
    """Other formats, damaged bytes and other addresses are a flat 400."""
    reply = describe(sandbox, url)
    assert reply.status_code == 400
    assert set(reply.json()) == {"code", "error"}
