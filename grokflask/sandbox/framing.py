"""Framing: chunks as the bytes of SSE events, as xAI sends them and in other allowed ways."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from grokflask.sandbox.chunks import Chunk
from grokflask.sandbox.steps import Event

Frame = Callable[[bytes], bytes]
"""Makes an event of its data."""


def frame_with(before: bytes = b"data: ", after: bytes = b"\n\n") -> Frame:
    """Return a framing that puts bytes before and after the data."""
    return lambda data: before + data + after


frame_plainly = frame_with()


def frame_in_lines(data: bytes) -> bytes:
    """Return an event whose JSON is laid out over several data lines (the reader joins them with LF)."""
    if not data.startswith(b"{"):
        return frame_plainly(data)
    lines = msgspec.json.format(data, indent=1).split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


def frame_chunks(chunks: Iterable[Chunk], frame: Frame, done: bool) -> Iterator[Event]:
    """Yield the events of a stream; `done` adds `[DONE]`."""
    for chunk in chunks:
        name = f"event: {chunk.name}\n".encode() if chunk.name else b""
        data = name + frame(msgspec.json.encode(chunk.body))
        yield Event(data, chunk.tokens, chunk.usage(), done=chunk.done)
    if done:
        yield Event(frame(b"[DONE]"), done=True)
