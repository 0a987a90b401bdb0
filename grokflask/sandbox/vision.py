"""Vision: a picture's format and its size in pixels, read from the first bytes of the file.

Pictures at an http address are never fetched. The bytes are not trusted: every size is bounded.
"""

import base64
import binascii
import struct
from typing import NamedTuple
from urllib.parse import urlsplit

from grokflask.sandbox.refusals import refuse

MAX_PICTURE_BYTES = 20 * 1024 * 1024
"""xAI's documented limit for one picture."""
_PNG_START = b"\x89PNG\r\n\x1a\n"


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
