"""Pictures in requests: whether there are any, and how `/vision/analyze` becomes a chat. No IO.

A remote picture's URL is passed on for upstream to fetch; the gateway never fetches one. Bytes that a
client sends itself are looked at, for upstream takes PNG and JPEG only and believes the type it is told.
"""

from __future__ import annotations

import binascii
import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from grokflask.errors import MALFORMED, InvalidRequestError, UpstreamProtocolError

DEFAULT_PROMPT = "Describe this image."

_NULL = msgspec.Raw(b"null")
_IMAGE_TYPE = re.compile(rb'"type"\s*:\s*"(?:input_)?image(?:_url)?"')
_IMAGE_TYPES = ("image_url", "input_image", "image")
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


class _Message(msgspec.Struct):
    content: msgspec.Raw = _NULL
    output: msgspec.Raw = _NULL


class _Part(msgspec.Struct):
    type: str = ""


class _Image(msgspec.Struct):
    url: str | None = None
    b64_json: str | None = None
    detail: str | None = None


class _Reply(msgspec.Struct):
    class Choice(msgspec.Struct):
        class Message(msgspec.Struct):
            content: str | None = None

        message: Message

    choices: list[Choice]
    model: str | None = None
    created: int | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


def has_image_part(messages: msgspec.Raw) -> bool:
    """A message's content has a part of type `image_url`, `input_image` or `image`.

    The first is chat's, the second that of Responses, where a function's output may have one as well; the
    third is that of Messages, where a tool's result may.

    Messages of another shape have none; what is wrong with them is for upstream to say.
    """
    # Nearly every chat has no picture, and its messages may be long: look before parsing. Inside a text the
    # quotes would be escaped; an escaped spelling of the type (a "u0069mage_url") has its backslash.
    raw = bytes(messages)
    if b"\\u" not in raw and not (b"image" in raw and _IMAGE_TYPE.search(raw)):
        return False
    try:
        messages_read = msgspec.json.decode(raw, type=list[_Message])
    except MALFORMED:
        return False
    parts = [
        part
        for message in messages_read
        for part in (*_read_parts(message.content), *_read_parts(message.output))
    ]
    # One level below, and no deeper: no API has more, and each level would be parsed once more.
    inner = [
        part
        for outer in parts
        if b"tool_result" in bytes(outer)
        for part in _read_parts(_read_content(outer))
    ]
    return any(map(_is_image, parts)) or any(map(_is_image, inner))


def _read_parts(content: msgspec.Raw) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(content, type=list[msgspec.Raw])
    except MALFORMED:
        return []  # text, the usual case


def _is_image(part: msgspec.Raw) -> bool:
    try:
        return msgspec.json.decode(part, type=_Part).type in _IMAGE_TYPES
    except MALFORMED:
        return False


def _read_content(part: msgspec.Raw) -> msgspec.Raw:
    try:
        return msgspec.json.decode(part, type=_Message).content
    except MALFORMED:
        return _NULL


def build_messages(
    *,
    image: msgspec.Raw | None,
    prompt: msgspec.Raw | None,
    detail: msgspec.Raw | None,
    before: msgspec.Raw | None = None,
) -> msgspec.Raw:
    """The messages of a chat that asks `prompt` about `image`, as xAI takes them; `before` come first."""
    given = _read_image(image)
    picture: dict[str, Any] = {"url": _image_url(given)}
    level = _read(detail, str | None, "detail", "a string") or given.detail
    if level is not None:
        picture["detail"] = level
    text = _read(prompt, str | None, "prompt", "a string")
    content = [
        {"type": "image_url", "image_url": picture},
        {"type": "text", "text": text or DEFAULT_PROMPT},
    ]
    messages = _read(before, list[msgspec.Raw] | None, "messages", "a list") or []
    return msgspec.Raw(msgspec.json.encode([*messages, {"role": "user", "content": content}]))


def _read_image(raw: msgspec.Raw | None) -> _Image:
    image: _Image | None = _read(raw, _Image | None, "image", "an object with 'url' or 'b64_json'")
    if image is None:
        raise InvalidRequestError('\'image\' is missing: send {"url"} or {"b64_json"}.', param="image")
    return image


def _image_url(image: _Image) -> str:
    if (image.url is None) == (image.b64_json is None):
        raise InvalidRequestError("'image' takes exactly one of 'url' and 'b64_json'.", param="image")
    if image.b64_json is not None:
        return _data_uri(image.b64_json)
    url = image.url or ""
    if url[:11].lower() == "data:image/":
        return url
    try:
        usable = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).netloc)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequestError(
            "'image.url' must be an http(s) URL or a data:image URI.", param="image.url"
        )
    return url


def _data_uri(text: str) -> str:
    """base64 of a picture as a data URI of its true type, told from its first bytes."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]  # a data URI in the wrong field: what counts are the bytes
    packed = text.encode("utf-8", "replace").translate(None, b" \t\r\n")  # MIME breaks lines
    try:
        picture = binascii.a2b_base64(packed, strict_mode=True)
    except binascii.Error:
        raise InvalidRequestError("'image.b64_json' is not valid base64.", param="image.b64_json") from None
    for signature, media_type in _SIGNATURES:
        if picture.startswith(signature):
            return f"data:{media_type};base64,{packed.decode()}"
    raise InvalidRequestError("'image.b64_json' is neither a PNG nor a JPEG.", param="image.b64_json")


def _read(raw: msgspec.Raw | None, kind: Any, name: str, what: str) -> Any:
    try:
        return msgspec.json.decode(b"null" if raw is None else raw, type=kind)
    except MALFORMED:
        raise InvalidRequestError(f"{name!r} must be {what}.", param=name) from None


def read_analysis(body: bytes) -> bytes:
    """The reply of `/vision/analyze`, from upstream's chat completion: model, created, content, usage.

    Raises UpstreamProtocolError when the completion is none.
    """
    try:
        reply = msgspec.json.decode(body, type=_Reply)
        content = reply.choices[0].message.content
    except (*MALFORMED, IndexError):
        raise UpstreamProtocolError from None
    return msgspec.json.encode(
        {"model": reply.model, "created": reply.created, "content": content, "usage": reply.usage}
    )
