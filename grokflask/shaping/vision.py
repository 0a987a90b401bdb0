"""Pictures in requests: whether a request has one, and how `/vision/analyze` becomes a chat. No IO.

Upstream fetches remote pictures; the gateway never does. It looks into pictures that a client sends as
base64, because upstream accepts only PNG and JPEG and does not check the media type.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from grokflask.errors import MALFORMED, InvalidRequestError
from grokflask.protocol.raw_json import NULL, RawFields, decode_list
from grokflask.shaping.fields import LIST, TEXT, Expected, drop, read_field

DEFAULT_PROMPT = "Describe this image."

_IMAGE_TYPE = re.compile(rb'"type"\s*:\s*"(?:input_)?image(?:_url)?"')
_IMAGE_TYPES = ("image_url", "input_image", "image")
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


class _Message(msgspec.Struct):
    content: msgspec.Raw = NULL
    output: msgspec.Raw = NULL


class _Part(msgspec.Struct):
    type: str = ""
    content: msgspec.Raw = NULL


class _Image(msgspec.Struct):
    url: str | None = None
    b64_json: str | None = None
    detail: str | None = None


_MESSAGES = msgspec.json.Decoder(list[_Message])
_PART = msgspec.json.Decoder(_Part)
_IMAGE: Expected[_Image | None] = Expected(
    msgspec.json.Decoder(_Image | None), "an object with 'url' or 'b64_json'"
)


def has_image_part(messages: msgspec.Raw) -> bool:
    """A message has a picture, in its content, in a function's output or in a tool's result.

    Messages of another shape have none. Upstream reports what is wrong with them.
    """
    # Nearly every chat has no picture, and its messages may be long: search before parsing. Inside a text the
    # quotes would be escaped; an escaped spelling of the type (a "u0069mage_url") has its backslash.
    raw = bytes(messages)
    if b"\\u" not in raw and not (b"image" in raw and _IMAGE_TYPE.search(raw)):
        return False
    try:
        decoded = _MESSAGES.decode(raw)
    except MALFORMED:
        return False
    contents = [content for message in decoded for content in (message.content, message.output)]
    parts = [part for content in contents for part in _read_parts(content)]
    # Messages have pictures in a tool's result, one level below. No API nests deeper.
    parts += [part for outer in parts if outer.type == "tool_result" for part in _read_parts(outer.content)]
    return any(part.type in _IMAGE_TYPES for part in parts)


def _read_parts(content: msgspec.Raw) -> Iterator[_Part]:
    try:
        parts = decode_list(content)
    except MALFORMED:
        return  # text, the usual case
    for part in parts:
        with suppress(*MALFORMED):
            yield _PART.decode(part)


def build_messages(fields: RawFields) -> None:
    """Replaces `image`, `prompt` and `detail` by a message of chat, after the messages that there are."""
    image = read_field(fields, "image", _IMAGE)
    if image is None:
        raise InvalidRequestError('\'image\' is missing: send {"url"} or {"b64_json"}.', param="image")
    picture = {"url": _image_url(image)}
    if (detail := read_field(fields, "detail", TEXT) or image.detail) is not None:
        picture["detail"] = detail
    prompt = read_field(fields, "prompt", TEXT) or DEFAULT_PROMPT
    content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": prompt}]
    messages = read_field(fields, "messages", LIST) or []
    drop(fields, ["image", "detail", "prompt"])
    fields["messages"] = msgspec.Raw(msgspec.json.encode([*messages, {"role": "user", "content": content}]))


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
    """base64 of a picture as a data URI. Its media type follows from its first bytes."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]  # a data URI in the wrong field; its type is ignored
    packed = text.encode("utf-8", "replace").translate(None, b" \t\r\n")  # MIME breaks lines
    try:
        picture = binascii.a2b_base64(packed, strict_mode=True)
    except binascii.Error:
        raise InvalidRequestError("'image.b64_json' is not valid base64.", param="image.b64_json") from None
    for signature, media_type in _SIGNATURES:
        if picture.startswith(signature):
            return f"data:{media_type};base64,{packed.decode()}"
    raise InvalidRequestError("'image.b64_json' is neither a PNG nor a JPEG.", param="image.b64_json")
