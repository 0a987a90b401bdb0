"""Pictures: `/v1/images/generations` and the PNGs behind its links, drawn from their names and not kept."""

import base64
import colorsys
import hashlib
import math
import random
import re
import struct
import zlib
from typing import Annotated, Any, Literal

import msgspec

from grokflask.sandbox.refusals import refuse
from grokflask.sandbox.vision import look_at

_LONG_SIDE = {"1k": 256, "2k": 512}
"""Pixels; a quarter of xAI's, so that drawing costs milliseconds."""
_NAME = re.compile(r"([0-9a-f]{16})-(\d{1,3})x(\d{1,3})")
_MAX_SIDE = 512

Ratio = Literal[
    "1:1",
    "3:4",
    "4:3",
    "9:16",
    "16:9",
    "2:3",
    "3:2",
    "9:19.5",
    "19.5:9",
    "9:20",
    "20:9",
    "1:2",
    "2:1",
    "auto",
]


class ImageRequest(msgspec.Struct):
    """The body of an image request; `size` and `style` and anything else are ignored, as xAI does."""

    model: str
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    n: int | None = None
    response_format: Literal["url", "b64_json"] | None = None
    aspect_ratio: Ratio | None = None
    resolution: Literal["1k", "2k"] | None = None
    quality: str | None = None
    user: str | None = None


class Source(msgspec.Struct):
    """A picture to work on: an address, a data URI, or an uploaded file."""

    url: str | None = None
    file_id: str | None = None


class EditRequest(ImageRequest):
    """The body of an edit: of one picture, or of several."""

    image: Source | None = None
    images: list[Source] | None = None

    def sources(self) -> list[Source]:
        """Return the pictures that it names."""
        return [self.image] if self.image else self.images or []


def check_image_request(asked: ImageRequest) -> None:
    """Refuse with 400 the values that xAI documents as invalid."""
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
    """Return the answer, without id, model, `created`; links go to `origin`.

    A picture costs `ticks`, and so does each that an edit works on.
    """
    width, height = _size(asked.aspect_ratio or "auto", asked.resolution or "1k")
    data = []
    for number in range(asked.n or 1):
        seed = hashlib.blake2b(f"{number}\n{asked.prompt}".encode(), digest_size=8).hexdigest()
        name = f"{seed}-{width}x{height}"
        if asked.response_format == "b64_json":
            picture: dict[str, str] = {"b64_json": base64.b64encode(draw_named(name) or b"").decode()}
        else:
            picture = {"url": f"{origin}/sandbox/images/{name}.png"}
        data.append({**picture, "mime_type": "image/png"})
    sources = asked.sources() if isinstance(asked, EditRequest) else []
    return {"data": data, "usage": {"cost_in_usd_ticks": ticks * (len(data) + len(sources))}}


def draw_named(name: str) -> bytes | None:
    """Return the PNG that a name stands for (16 hex digits and a size in pixels), or None."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    width, height = int(match[2]), int(match[3])
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        return None
    return _draw(random.Random(int(match[1], 16)), width, height)


def _size(ratio: str, resolution: str) -> tuple[int, int]:
    side = _LONG_SIDE[resolution]
    wide, high = (1.0, 1.0) if ratio == "auto" else (float(part) for part in ratio.split(":"))
    longest = max(wide, high)
    return round(side * wide / longest), round(side * high / longest)


def _draw(rng: random.Random, width: int, height: int) -> bytes:
    """Return a PNG of soft waves: each row is one wave, rolled and then shifted along a ring of colours."""
    waves = _wave(rng, width, 70)
    shifts = _wave(rng, height, 90)
    rolls = _wave(rng, height, max(width // 6, 1))
    row = bytes(value % 256 for value in waves) * 2
    ring = bytes(range(256)) * 2
    rows = bytearray()
    for shift, roll in zip(shifts, rolls, strict=True):
        start, turn = roll % width, shift % 256
        rows += b"\0" + row[start : start + width].translate(ring[turn : turn + 256])
    return _encode_png(width, height, _ring_of_colours(rng), bytes(rows))


def _wave(rng: random.Random, length: int, height: int) -> list[int]:
    """Return a sum of two sines that closes on itself, values between -height and height."""
    slow, fast = rng.randint(1, 2), rng.randint(2, 4)
    phase, other = rng.random() * math.tau, rng.random() * math.tau

    def value(i: int) -> int:
        angle = math.tau * i / length
        return int(height * (0.65 * math.sin(slow * angle + phase) + 0.35 * math.sin(fast * angle + other)))

    return [value(i) for i in range(length)]


def _ring_of_colours(rng: random.Random) -> bytes:
    """Return 256 colours in a ring, blending four of related hue."""
    hue = rng.random()
    anchors = [
        colorsys.hsv_to_rgb((hue + step) % 1, 0.2 + 0.35 * rng.random(), light)
        for step, light in ((0.0, 0.97), (0.05, 0.85), (0.13, 0.6), (0.27, 0.9))
    ]
    palette = bytearray()
    for index in range(256):
        here, blend = divmod(index, 64)
        before, after = anchors[here], anchors[(here + 1) % 4]
        weight = (1 - math.cos(math.pi * blend / 64)) / 2
        palette += bytes(round(255 * (a + (b - a) * weight)) for a, b in zip(before, after, strict=True))
    return bytes(palette)


def _encode_png(width: int, height: int, palette: bytes, rows: bytes) -> bytes:
    """Return a PNG with a palette (PNG specification: colour type 3, 8 bits), its rows unfiltered."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(rows, 6))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")
