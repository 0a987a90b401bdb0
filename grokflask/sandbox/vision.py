"""Vision: what a picture's own bytes tell: format, size in pixels and, for a small PNG, its colour.

Nothing is ever fetched: a picture at an http address is only named. Bytes are not trusted: sizes are bounded.
"""

import base64
import binascii
import struct
import zlib
from typing import NamedTuple
from urllib.parse import urlsplit

from grokflask.sandbox.refusals import refuse

MAX_PICTURE_BYTES = 20 * 1024 * 1024
"""xAI's documented limit for one picture."""
_MAX_AVERAGED_BYTES = 256 * 1024  # of pixels: undoing PNG's filters in Python is slow
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_NAMED_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (210, 40, 40),
    "orange": (240, 145, 40),
    "yellow": (240, 220, 60),
    "green": (50, 160, 70),
    "teal": (30, 135, 140),
    "blue": (50, 90, 210),
    "sky blue": (135, 190, 235),
    "purple": (125, 60, 170),
    "pink": (240, 150, 190),
    "brown": (120, 75, 40),
    "navy": (25, 30, 90),
}


class Picture(NamedTuple):
    """A picture in a prompt; `tokens` is our own measure (256 a tile of 448 x 448), xAI's is not public."""

    description: str
    tokens: int


def look_at(url: str) -> Picture:
    """Return what can be said of a picture; refuses with 400 what is neither PNG, JPEG nor an address."""
    if url.startswith("data:"):
        return _describe(_decode(url))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refuse(400, "An image must be an http(s) URL or a base64 data URI.")
    return Picture(
        f"I was given the address of a picture at {parts.hostname}, which the sandbox does not fetch.", 256
    )


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
    colour = None
    if data.startswith(_PNG_SIGNATURE):
        kind, size, colour = "PNG", png_size(data), average_colour(data)
    elif data.startswith(b"\xff\xd8\xff"):
        kind, size = "JPEG", jpeg_size(data)
    else:
        raise refuse(400, "Unsupported image format: the bytes are neither PNG nor JPEG.")
    if size is None or 0 in size:
        raise refuse(400, f"The image is a damaged {kind}: it states no size.")
    width, height = size
    text = f"The picture is a {kind}, {width} × {height} pixels"  # noqa: RUF001 - meant as a multiplication sign
    if colour:
        text += f", on average {_name_colour(colour)} (#{bytes(colour).hex()})"
    return Picture(text + ".", 256 * -(-width // 448) * -(-height // 448))


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a PNG's IHDR, its first chunk."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a JPEG's start-of-frame segment (C0 to CF but C4, C8, CC)."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
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


def average_colour(data: bytes) -> tuple[int, int, int] | None:
    """Return a small PNG's mean colour, or None where it is large, damaged, interlaced or not 8 bits deep."""
    try:
        width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
        channels = _CHANNELS[kind]
        if depth != 8 or interlaced or not 0 < width * height * channels <= _MAX_AVERAGED_BYTES:
            return None
        chunks = _read_chunks(data)
        size = height * (1 + width * channels)
        packed = zlib.decompressobj().decompress(chunks[b"IDAT"], size)
        if len(packed) != size:
            return None
        samples = _unfilter(packed, width * channels, channels)
        return _mean(samples, kind, channels, chunks.get(b"PLTE", b""))
    except (struct.error, KeyError, IndexError, zlib.error):
        return None


def _read_chunks(data: bytes) -> dict[bytes, bytes]:
    """Return a PNG's chunks by type, those of one type joined."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks[kind] = chunks.get(kind, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    return chunks


def _unfilter(packed: bytes, row_bytes: int, step: int) -> bytes:
    """Undo PNG's five row filters (PNG specification, section 9)."""
    above = bytearray(row_bytes)
    rows = []
    for start in range(0, len(packed), row_bytes + 1):
        kind, row = packed[start], bytearray(packed[start + 1 : start + 1 + row_bytes])
        for i in range(row_bytes if kind else 0):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))[kind]
            row[i] = (row[i] + guess) & 255
        rows.append(bytes(row))
        above = row
    return b"".join(rows)


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))


def _mean(samples: bytes, kind: int, channels: int, palette: bytes) -> tuple[int, int, int]:
    pixels = len(samples) // channels
    if kind == 3:
        counts = [(samples.count(index), palette[3 * index : 3 * index + 3]) for index in set(samples)]
        sums = [sum(count * colour[i] for count, colour in counts) for i in range(3)]
    else:
        planes = (0, 1, 2) if channels >= 3 else (0, 0, 0)
        sums = [sum(samples[plane::channels]) for plane in planes]
    red, green, blue = (total // pixels for total in sums)
    return red, green, blue


def _name_colour(colour: tuple[int, int, int]) -> str:
    def distance(name: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, _NAMED_COLOURS[name], strict=True))

    return min(_NAMED_COLOURS, key=distance)
