"""Framing: chunks into the bytes of SSE events, as xAI does it and in other ways that are allowed."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from grokflask.sandbox.chunks import Chunk
from grokflask.sandbox.steps import Event

Frame = Callable[[bytes], bytes]
"""From an event's data to the event."""


def frame_plainly(data: bytes) -> bytes:
    """Return `data: ...` and a blank line, ended by LF."""
    return b"data: " + data + b"\n\n"


def frame_crlf(data: bytes) -> bytes:
    """Return an event with lines ended by CR LF."""
    return b"data: " + data + b"\r\n\r\n"


def frame_cr(data: bytes) -> bytes:
    """Return an event with lines ended by CR."""
    return b"data: " + data + b"\r\r"


def frame_without_space(data: bytes) -> bytes:
    """Return an event without the optional space after the colon."""
    return b"data:" + data + b"\n\n"


def frame_with_fields(data: bytes) -> bytes:
    """Return an event with an id, a retry time, the default name spelled out, and a field nobody knows."""
    return b"id: 7\nevent: message\nretry: 3000\nweather: mild\ndata: " + data + b"\n\n"


def frame_in_lines(data: bytes) -> bytes:
    """Return an event whose JSON is laid out over several data lines (the reader joins them with LF)."""
    if not data.startswith(b"{"):
        return frame_plainly(data)
    lines = msgspec.json.format(data, indent=1).split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


def frame_as_error(data: bytes) -> bytes:
    """Return an event named error."""
    return b"event: error\n" + frame_plainly(data)


def frame_chunks(chunks: Iterable[Chunk], frame: Frame, done: bool = True) -> Iterator[Event]:
    """Yield the events of a stream, [DONE] at their end unless the API does without."""
    for chunk in chunks:
        name = f"event: {chunk.name}\n".encode() if chunk.name else b""
        data = name + frame(msgspec.json.encode(chunk.body))
        yield Event(data, chunk.kind, chunk.tokens, chunk.usage())
    if done:
        yield Event(frame(b"[DONE]"), "done")
