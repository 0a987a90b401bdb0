"""Pictures: the image routes' requests and answers, and the PNGs behind the links.

A PNG has one colour. Its name says which, so pictures are drawn when they are fetched and nothing is kept.
"""

import base64
import hashlib
import re
import struct
import zlib
from typing import Annotated, Any, Literal

import msgspec

from grokflask.sandbox.refusals import refuse
from grokflask.sandbox.vision import look_at

_LONG_SIDE = {"1k": 256, "2k": 512}
"""Pixels; a quarter of xAI's."""
_MAX_SIDE = 512
_NAME = re.compile(r"([0-9a-f]{6})-(\d{1,3})x(\d{1,3})")
_RATIOS = "1:1 3:4 4:3 9:16 16:9 2:3 3:2 9:19.5 19.5:9 9:20 20:9 1:2 2:1 auto"


class ImageRequest(msgspec.Struct):
    """The body of an image request. As at xAI, `size`, `style` and unknown fields are ignored."""

    model: str
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    n: int | None = None
    response_format: Literal["url", "b64_json"] | None = None
    aspect_ratio: str | None = None
    resolution: Literal["1k", "2k"] | None = None
    quality: str | None = None
    user: str | None = None


class Source(msgspec.Struct):
    """A picture to edit: an http address, a data URI or an uploaded file."""

    url: str | None = None
    file_id: str | None = None


class EditRequest(ImageRequest):
    """The body of an edit of one picture or of several."""

    image: Source | None = None
    images: list[Source] | None = None

    def sources(self) -> list[Source]:
        """Return the pictures to edit."""
        return [self.image] if self.image else self.images or []


def check_image_request(asked: ImageRequest) -> None:
    """Raise RefusalError for values that xAI documents as invalid."""
    if asked.aspect_ratio not in (None, *_RATIOS.split()):
        raise refuse(422, f"aspect_ratio must be one of {_RATIOS}.")
    if isinstance(asked, EditRequest):
        if bool(asked.image) == bool(asked.images):
            raise refuse(400, "Either image or images must be set.")
        for source in asked.sources():
            if bool(source.url) == bool(source.file_id):
                raise refuse(400, "An image has either a url or a file_id.")
            if source.url:
                look_at(source.url)
    if asked.n is not None and not 1 <= asked.n <= 10:
        raise refuse(400, "n must be between 1 and 10.")
    if asked.model == "grok-imagine-image-2.0" and asked.quality not in (None, "low", "medium"):
        raise refuse(400, "quality must be low or medium on this model.")


def make_images(asked: ImageRequest, origin: str, ticks: int) -> dict[str, Any]:
    """Return the answer; its links go to `origin`. Each new picture and each edited one costs `ticks`."""
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
    sources = asked.sources() if isinstance(asked, EditRequest) else []
    return {"data": data, "usage": {"cost_in_usd_ticks": ticks * (len(data) + len(sources))}}


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
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
