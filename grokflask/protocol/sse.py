"""Server-sent events: bytes in, the data of complete events out.

Follows the HTML standard, section 9.2.6: lines end in LF, CRLF or CR, a blank line ends an event, a line that
starts with a colon is a comment, one space after a field's colon is not part of its value, and a byte order
mark may come first. It works on bytes, which may be cut anywhere. It does not look into the data. No IO.

One deliberate difference: several data lines are joined by a space, not by a newline, because a client gets
each event on one line. In JSON both are white space.

Nearly every upstream sends nothing but lines of `data: {...}`. Counting newlines recognises such input, which
is returned whole, as a `Run`. tests/support/oracle_sse.py is a slow and obvious decoder; property tests
compare the two.
"""

from __future__ import annotations

from typing import Self

from grokflask.errors import UpstreamProtocolError

MAX_EVENT_BYTES = 32 * 2**20
MAX_EVENT_LINES = 20_000
"""Each line of an event becomes an object."""
SMALL_BYTES = 4096
"""Smaller pieces are joined at once: one by one they take many times their size."""
_BOM = b"\xef\xbb\xbf"
_DONE_BLOCK = b"data: [DONE]\n\n"


class NamedEvent(bytes):
    """The data of an event with an `event:` line, whose value is `name`."""

    name: bytes

    def __new__(cls, data: bytes, name: bytes) -> Self:
        """`data` with its `name`."""
        event = super().__new__(cls, data)
        event.name = name
        return event


class Run(bytes):
    """Events as a client gets them: each is one line of `data: {...}` and a blank line."""

    __slots__ = ()

    @property
    def number(self) -> int:
        """The number of events."""
        return self.count(b"\n\n")

    def cut(self, at: int) -> tuple[Self, list[bytes]]:
        """The events before the one that contains byte `at`, and the data of each event from there on."""
        before = self.rfind(b"\n\n", 0, at)
        start = before + 2 if before >= 0 else 0
        return type(self)(self[:start]), self[start + 6 : -2].split(b"\n\ndata: ")


class EventDecoder:
    """Decodes a stream that arrives in pieces; returns an event's data as soon as it is complete."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []  # of an incomplete event; joined once, so that a long one stays cheap
        self._pending_bytes = self._pending_lines = 0
        self._after_cr = False  # the last byte was CR: an LF after it is part of the same line end
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of all events that `data` completes, in order; several of them may be one `Run`.

        Raises UpstreamProtocolError when the incomplete event exceeds `max_event_bytes` or MAX_EVENT_LINES.
        The events before it have been returned by then.
        """
        if not (self._pieces or self._at_start or self._after_cr) and _is_run(data):
            return [Run(data)]  # nearly every read
        if self._pending_bytes > self._max_event_bytes or self._pending_lines > MAX_EVENT_LINES:
            most = f"{self._max_event_bytes} bytes or {MAX_EVENT_LINES} lines"
            raise UpstreamProtocolError(f"The upstream API sent an event of more than {most}.")
        if self._at_start:
            data = self._strip_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._normalise(data)
        if not data:
            return []
        if b"\n\n" not in data and not self._closes_with(data):
            self._keep(data)
            return []
        if self._pieces:
            self._pieces.append(data)
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._pending_bytes = self._pending_lines = 0
        end = data.rfind(b"\n\n") + 2
        if end < len(data):
            self._keep(data[end:])
            data = data[:end]
        return _parse(data)

    def finish(self) -> list[bytes]:
        """At the end of the stream, the data of an event that lacks only its blank line.

        The standard drops such an event. It is returned here if its last line is complete, so that a final
        `data: [DONE]` with one newline counts. A line that is cut in the middle never does.
        """
        block = b"".join(self._pieces)
        self._pieces.clear()
        if block.rpartition(b"\n")[2] not in (b"", b"data: [DONE]", b"data:[DONE]"):
            return []
        event = _parse_block(block)
        return [event] if event else []

    def _strip_bom(self, data: bytes) -> bytes:
        """`data` without the byte order mark, which may arrive in pieces as well."""
        data = b"".join(self._pieces) + data
        self._pieces.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._pieces.append(data)
            return b""
        self._at_start = False
        return data.removeprefix(_BOM)

    def _normalise(self, data: bytes) -> bytes:
        """`data` with LF as line ends. A CR ends its line at once, and absorbs an LF in the next piece."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _closes_with(self, data: bytes) -> bool:
        """The blank line is split between the last piece and `data`."""
        return data[:1] == b"\n" and bool(self._pieces) and self._pieces[-1].endswith(b"\n")

    def _keep(self, piece: bytes) -> None:
        self._pending_bytes += len(piece)
        self._pending_lines += piece.count(b"\n")
        if self._pieces and len(self._pieces[-1]) < SMALL_BYTES:
            self._pieces[-1] += piece
        else:
            self._pieces.append(piece)


def _is_run(data: bytes) -> bool:
    """`data` is a `Run`: it has just the newlines that its events need, so no other lines."""
    return (
        data.startswith(b"data: {")
        and data.endswith(b"\n\n")
        and data.count(b"\n") == 2 * data.count(b"\n\ndata: {") + 2
        and b"\r" not in data
    )


def _parse(blocks: bytes) -> list[bytes]:
    """The events of complete blocks."""
    if _is_run(blocks):
        return [Run(blocks)]
    if blocks.endswith(_DONE_BLOCK) and _is_run(run := blocks[: -len(_DONE_BLOCK)]):
        return [Run(run), b"[DONE]"]
    parsed = map(_parse_block, blocks[:-2].split(b"\n\n"))
    return [event for event in parsed if event is not None]


def _parse_block(block: bytes) -> bytes | None:
    """The data of the event in a block of lines; None when it has none."""
    lines: list[bytes] = []
    name = b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value
    data = b" ".join(lines)
    if not data.strip():
        return None
    return NamedEvent(data, name) if name and name != b"message" else data
