"""Pictures and videos: those that the routes make, and pictures that are shown to a model.

A picture that is made has one colour, which is part of its name: it is drawn when it is fetched. A video's
link leads nowhere. Of a picture that is shown, format and size are read. Its bytes are not trusted. No
address is ever fetched.
"""

import base64
import binascii
import hashlib
import re
import struct
import zlib
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from grokflask.sandbox.models import IMAGE_TICKS, VIDEO_TICKS
from grokflask.sandbox.refusals import TEAM_ID, refuse, refuse_model
from grokflask.sandbox.request import ModelRequest

MAX_PICTURE_BYTES = 20 * 1024 * 1024
"""xAI's documented limit for a picture that is shown."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_LONG_SIDE = {"1k": 256, "2k": 512}
"""Pixels; a quarter of xAI's."""
_MAX_SIDE = 512
_NAME = re.compile(r"([0-9a-f]{6})-(\d{1,3})x(\d{1,3})")
_RATIOS = "1:1 3:4 4:3 9:16 16:9 2:3 3:2 9:19.5 19.5:9 9:20 20:9 1:2 2:1 auto"
_FAILING_PROMPT = "sandbox-failed"
"""A video whose prompt begins with this fails."""
_DURATION_S = 8
_LONGEST_S = 15


class ImageRequest(ModelRequest, kw_only=True):
    """The body of an image request. As at xAI, `size`, `style` and unknown fields are ignored."""

    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    n: int | None = None
    response_format: Literal["url", "b64_json"] | None = None
    aspect_ratio: str | None = None
    resolution: Literal["1k", "2k"] | None = None
    quality: str | None = None


class _Source(msgspec.Struct):
    url: str | None = None  # an http address or a data URI
    file_id: str | None = None


class EditRequest(ImageRequest, kw_only=True):
    """The body of an edit of one picture or of several."""

    image: _Source | None = None
    images: list[_Source] | None = None


def make_images(asked: ImageRequest, model: str, origin: str) -> dict[str, Any]:
    """Return the answer; its links go to `origin`. Raises RefusalError for what xAI documents as invalid."""
    if model not in IMAGE_TICKS:
        raise refuse_model(model)
    if asked.aspect_ratio not in (None, *_RATIOS.split()):
        raise refuse(422, f"aspect_ratio must be one of {_RATIOS}.")
    sources = _read_sources(asked) if isinstance(asked, EditRequest) else []
    if asked.n is not None and not 1 <= asked.n <= 10:
        raise refuse(400, "n must be between 1 and 10.")
    if asked.model == "grok-imagine-image-2.0" and asked.quality not in (None, "low", "medium"):
        raise refuse(400, "quality must be low or medium on this model.")
    width, height = _choose_size(asked.aspect_ratio or "auto", asked.resolution or "1k")
    data = []
    for number in range(asked.n or 1):
        colour = hashlib.blake2b(f"{number}\n{asked.prompt}".encode(), digest_size=3).hexdigest()
        name = f"{colour}-{width}x{height}"
        if asked.response_format == "b64_json":
            picture = {"b64_json": base64.b64encode(draw_named(name) or b"").decode()}
        else:
            picture = {"url": f"{origin}/sandbox/images/{name}.png"}
        data.append({**picture, "mime_type": "image/png"})
    charged = len(data) + len(sources)  # each new picture and each edited one
    return {"data": data, "usage": {"cost_in_usd_ticks": IMAGE_TICKS[model] * charged}}


def _read_sources(asked: EditRequest) -> list[_Source]:
    if bool(asked.image) == bool(asked.images):
        raise refuse(400, "Either image or images must be set.")
    sources = [asked.image] if asked.image else asked.images or []
    for source in sources:
        if bool(source.url) == bool(source.file_id):
            raise refuse(400, "An image has either a url or a file_id.")
        if source.url:
            look_at(source.url)
    return sources


def _choose_size(ratio: str, resolution: str) -> tuple[int, int]:
    side = _LONG_SIDE[resolution]
    wide, high = (1.0, 1.0) if ratio == "auto" else (float(part) for part in ratio.split(":"))
    longest = max(wide, high)
    return round(side * wide / longest), round(side * high / longest)


def draw_named(name: str) -> bytes | None:
    """Return the PNG for a name such as `c04080-256x144` (RGB and pixels), None for any other name."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    width, height = int(match[2]), int(match[3])
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        return None
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    rows = (b"\0" + bytes.fromhex(match[1]) * width) * height  # each row: filter 0, then pixels
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return _PNG_START + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


class Picture(NamedTuple):
    """A picture in a prompt; `tokens` is the sandbox's own measure (256 per tile of 448 x 448 pixels)."""

    description: str
    tokens: int


def look_at(url: str) -> Picture:
    """Describe the PNG or JPEG of a data URI, or name the host of an http address; raises RefusalError."""
    if url.startswith("data:"):
        return _describe(_decode(url))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refuse(400, "An image must be an http(s) URL or a base64 data URI.")
    return Picture(f"The picture is at {parts.hostname}, which the sandbox does not fetch.", 256)


def _decode(uri: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise refuse(400, "The image's data URI is not base64.")
    if len(payload) > MAX_PICTURE_BYTES * 4 // 3 + 4:
        raise refuse(400, f"The image is larger than {MAX_PICTURE_BYTES} bytes.")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error:
        raise refuse(400, "The image's base64 cannot be decoded.") from None


def _describe(data: bytes) -> Picture:
    if data.startswith(_PNG_START):
        kind, size = "PNG", png_size(data)
    elif data.startswith(b"\xff\xd8\xff"):
        kind, size = "JPEG", jpeg_size(data)
    else:
        raise refuse(400, "Unsupported image format: the bytes are neither PNG nor JPEG.")
    if size is None or 0 in size:
        raise refuse(400, f"The image is a damaged {kind}: it states no size.")
    width, height = size
    text = f"The picture is a {kind}, {width} × {height} pixels."  # noqa: RUF001 - a multiplication sign
    return Picture(text, 256 * -(-width // 448) * -(-height // 448))


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a PNG's first chunk, IHDR."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a JPEG's start-of-frame segment (C0 to CF but C4, C8, CC)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker in (0x01, *range(0xD0, 0xD9)):  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


class VideoRequest(ModelRequest, kw_only=True):
    """The body of a request for a video, an edit or an extension."""

    prompt: str
    duration: int | None = None


def make_video(asked: VideoRequest, model: str, origin: str) -> tuple[dict[str, Any], int]:
    """Return the final answer and its cost in ticks; raises RefusalError."""
    ticks = VIDEO_TICKS.get(model)
    if ticks is None:
        raise refuse_model(model)
    duration_s = _DURATION_S if asked.duration is None else asked.duration
    if not 1 <= duration_s <= _LONGEST_S:
        raise refuse(400, f"duration must be between 1 and {_LONGEST_S} seconds.")
    if asked.prompt.startswith(_FAILING_PROMPT):
        error = {"code": "invalid_argument", "message": f"The prompt was refused for team {TEAM_ID}."}
        return {"status": "failed", "error": error}, 0
    cost_ticks = ticks * duration_s
    video = {"url": f"{origin}/sandbox/video.mp4", "duration": duration_s, "respect_moderation": True}
    usage = {"cost_in_usd_ticks": cost_ticks}
    return {"status": "done", "video": video, "model": model, "usage": usage}, cost_ticks
