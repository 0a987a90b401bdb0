"""How `/vision/analyze` becomes a chat. No IO.

Upstream fetches remote pictures; the gateway never does. It looks into pictures that a client sends as
base64, because upstream accepts only PNG and JPEG and does not check the media type.
"""

from __future__ import annotations

import binascii
from urllib.parse import urlsplit

import msgspec

from grokflask.errors import InvalidRequestError
from grokflask.protocol.raw_json import NULL, RawFields
from grokflask.runtime import step_aside, take_turns
from grokflask.shaping.fields import LIST, TEXT, Expected, drop, read_field

DEFAULT_PROMPT = "Describe this image."

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


class _Image(msgspec.Struct):
    url: str | None = None
    b64_json: str | None = None
    detail: str | None = None


_IMAGE: Expected[_Image | None] = Expected(
    msgspec.json.Decoder(_Image | None), "an object with 'url' or 'b64_json'"
)


def build_messages(fields: RawFields) -> None:
    """Replaces `image`, `prompt` and `detail` by a message of chat, after the messages that there are."""
    image = read_field(fields, "image", _IMAGE)
    step_aside(memoryview(fields.get("image", NULL)).nbytes)
    if image is None:
        raise InvalidRequestError('\'image\' is missing: send {"url"} or {"b64_json"}.', param="image")
    picture = {"url": _image_url(image)}
    step_aside(len(picture["url"]))
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
    step_aside(len(packed))
    try:
        if 0 <= packed.find(b"=") < len(packed) - 2:
            raise binascii.Error
        pieces = [binascii.a2b_base64(piece, strict_mode=True)[:16] for piece in take_turns(packed)]
    except binascii.Error:
        raise InvalidRequestError("'image.b64_json' is not valid base64.", param="image.b64_json") from None
    for signature, media_type in _SIGNATURES:
        if pieces and pieces[0].startswith(signature):
            return f"data:{media_type};base64,{packed.decode()}"
    raise InvalidRequestError("'image.b64_json' is neither a PNG nor a JPEG.", param="image.b64_json")
