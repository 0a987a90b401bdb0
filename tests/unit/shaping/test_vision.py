"""Pictures for `/vision/analyze`: how they are read, checked and passed on."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from grokflask.errors import InvalidRequestError
from grokflask.shaping.vision import DEFAULT_PROMPT, build_messages

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(40))


def b64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def build(image: Any, prompt: Any = None, detail: Any = None) -> list[Any]:
    """The parts of the one message."""
    fields = {"image": raw(image), "prompt": raw(prompt), "detail": raw(detail)}
    build_messages(fields)
    assert fields.keys() == {"messages"}
    (message,) = json.loads(bytes(fields["messages"]))
    assert message["role"] == "user"
    content: list[Any] = message["content"]
    return content


def url_of(image: Any) -> str:
    url: str = build(image)[0]["image_url"]["url"]
    return url


def refuse(image: Any, prompt: Any = None, detail: Any = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        build(image, prompt, detail)
    return caught.value


def test_message_as_xai_takes_it() -> None:
    """One user message: the picture, with its detail, and the question."""
    assert build({"url": "https://example.com/a.png"}, "What is it?", "low") == [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "text", "text": "What is it?"},
    ]


@pytest.mark.parametrize("prompt", [None, ""])
def test_default_prompt(prompt: str | None) -> None:
    """Without a question the picture is described; without detail none is named."""
    assert build({"url": "https://example.com/a.png"}, prompt) == [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": DEFAULT_PROMPT},
    ]


@pytest.mark.parametrize("image", [None, "absent"])
def test_missing_image(image: str | None) -> None:
    """A request without a picture is a 400 that says what to send."""
    with pytest.raises(InvalidRequestError) as caught:
        build_messages({} if image else {"image": raw(None)})
    assert (caught.value.status, caught.value.param) == (400, "image")
    assert "b64_json" in caught.value.message


@pytest.mark.parametrize(
    ("image", "prompt", "detail", "param"),
    [
        ("https://example.com/a.png", None, None, "image"),
        ([], None, None, "image"),
        (1, None, None, "image"),
        ({"url": 1}, None, None, "image"),
        ({"b64_json": []}, None, None, "image"),
        ({}, None, None, "image"),
        ({"url": None, "b64_json": None}, None, None, "image"),
        ({"url": "https://example.com/a.png", "b64_json": b64(PNG)}, None, None, "image"),
        ({"url": "https://example.com/a.png"}, 1, None, "prompt"),
        ({"url": "https://example.com/a.png"}, ["x"], None, "prompt"),
        ({"url": "https://example.com/a.png"}, None, 1, "detail"),
    ],
)
def test_wrong_fields(image: Any, prompt: Any, detail: Any, param: str) -> None:
    """A wrong type, neither picture or both are a 400 that names the field."""
    error = refuse(image, prompt, detail)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("picture", "media_type"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (b"\xff\xd8\xff\xdb", "image/jpeg")],
)
def test_type_is_told_from_the_bytes(picture: bytes, media_type: str) -> None:
    """base64 becomes a data URI of the type that its first bytes show."""
    assert url_of({"b64_json": b64(picture)}) == f"data:{media_type};base64,{b64(picture)}"


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(b"GIF89a" + bytes(20), id="gif"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBPVP8 ", id="webp"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"hello world", id="text"),
        pytest.param(b"\x89PNG", id="half-a-signature"),
        pytest.param(b"", id="empty"),
    ],
)
def test_picture_that_upstream_would_refuse(picture: bytes) -> None:
    """Anything but PNG and JPEG is refused before it costs a request."""
    error = refuse({"b64_json": b64(picture)})
    assert (error.status, error.param) == (400, "image.b64_json")


@pytest.mark.parametrize(
    "text", ["not base64!", b64(PNG)[:-1] + "*", b64(PNG)[:-1], "=" + b64(PNG), "\u00e4"]
)
def test_damaged_base64(text: str) -> None:
    """base64 with strange characters or a cut end is refused."""
    error = refuse({"b64_json": text})
    assert (error.status, error.param) == (400, "image.b64_json")
    assert "base64" in error.message


def test_white_space_in_base64() -> None:
    """MIME breaks base64 into lines; the data URI has none."""
    text = b64(PNG)
    broken = f" {text[:10]}\r\n{text[10:20]}\n\t{text[20:]} \n"
    assert url_of({"b64_json": broken}) == f"data:image/png;base64,{text}"


@pytest.mark.parametrize("head", ["data:image/gif;base64,", "DATA:;base64,", "data:application/json;base64,"])
def test_data_uri_in_the_wrong_field(head: str) -> None:
    """A data URI in `b64_json` is understood; the type it claims is not believed."""
    assert url_of({"b64_json": head + b64(JPEG)}) == f"data:image/jpeg;base64,{b64(JPEG)}"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://example.com:8080/a?b=c&d=%20#e",
        "HTTPS://EXAMPLE.COM/",
        f"data:image/png;base64,{b64(PNG)}",
        "Data:Image/JPEG;base64,xyz",
    ],
)
def test_url_is_passed_on_unchanged(url: str) -> None:
    """The gateway fetches no picture and rewrites no URL."""
    assert url_of({"url": url}) == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "javascript:alert(1)", "file:///etc/passwd", "ftp://example.com/a.png", "//example.com/a.png"),
        *("example.com/a.png", "https://", "http:///a.png", "https:example.com", "http://[::1", "gopher://x"),
        *("data:text/html,<script>", "data:", b64(PNG), "view-source:https://example.com"),
    ],
)
def test_url_that_is_no_picture(url: str) -> None:
    """Only http(s) URLs and data:image URIs are passed on."""
    error = refuse({"url": url})
    assert (error.status, error.param) == (400, "image.url")
