"""Server-sent events: bytes in, the data of complete events out.

Follows the event stream format of the HTML standard, section 9.2.6: lines end in LF, CRLF or CR, a blank
line ends an event, a line that starts with a colon is a comment, one space after a field's colon is not
part of its value, a byte order mark may stand in front. It works on bytes, so a character cut in two is
whole again once its event is. It knows nothing of JSON or of what the data mean, and does no IO.

One deliberate difference: data over several lines are joined by a space, not by a newline, since a client
gets each event on one line. In JSON both are white space.
"""

from __future__ import annotations

from typing import Self

from grokflask.errors import UpstreamProtocolError

MAX_EVENT_BYTES = 32 * 2**20
_BOM = b"\xef\xbb\xbf"


class NamedEvent(bytes):
    """The data of an event that carried an `event:` line; `name` is that line's value."""

    name: bytes

    def __new__(cls, data: bytes, name: bytes) -> Self:
        """`data`, remembering `name`."""
        event = super().__new__(cls, data)
        event.name = name
        return event


class EventDecoder:
    """Takes a stream in pieces cut anywhere; gives each event's data as soon as its last byte is in."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []  # an unfinished event, joined only once: a long one costs no more
        self._pending_bytes = 0
        self._after_cr = False  # the last byte was CR: an LF that follows belongs to it
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of all events that `data` completes.

        Raises UpstreamProtocolError once the event that is still open has passed `max_event_bytes`; the
        events before it have been given out by then.
        """
        if self._pending_bytes > self._max_event_bytes:
            raise UpstreamProtocolError(
                f"The upstream API sent an event of more than {self._max_event_bytes} bytes."
            )
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
            self._pending_bytes = 0
        blocks = data.split(b"\n\n")
        tail = blocks.pop()
        if tail:
            self._keep(tail)
        return _parse_blocks(blocks)

    def finish(self) -> list[bytes]:
        """The stream has ended: the data of an event that only lacks its blank line.

        The standard drops such an event. It is given out here only when its last line is complete, so
        that a final `data: [DONE]` with one newline counts; a line cut in the middle never does.
        """
        block = b"".join(self._pieces)
        self._pieces.clear()
        if block.rpartition(b"\n")[2] not in (b"", b"data: [DONE]", b"data:[DONE]"):
            return []
        event = _parse_block(block)
        return [event] if event else []

    def _strip_bom(self, data: bytes) -> bytes:
        """`data` without a byte order mark, which may itself arrive in pieces."""
        data = b"".join(self._pieces) + data
        self._pieces.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._pieces.append(data)
            return b""
        self._at_start = False
        return data.removeprefix(_BOM)

    def _normalise(self, data: bytes) -> bytes:
        """Line ends as LF. A CR ends its line at once; an LF after it, even a piece later, is part of it."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _closes_with(self, data: bytes) -> bool:
        """A blank line stands across the cut."""
        return data[:1] == b"\n" and bool(self._pieces) and self._pieces[-1].endswith(b"\n")

    def _keep(self, piece: bytes) -> None:
        self._pending_bytes += len(piece)
        self._pieces.append(piece)


def _parse_blocks(blocks: list[bytes]) -> list[bytes]:
    events: list[bytes] = []
    for block in blocks:
        # What nearly every event looks like: one line, one space.
        if block.startswith(b"data: ") and b"\n" not in block:
            event = block[6:]
            if event and not event.isspace():
                events.append(event)
        elif (parsed := _parse_block(block)) is not None:
            events.append(parsed)
    return events


def _parse_block(block: bytes) -> bytes | None:
    """The data of an event given as its lines, or None where there are none to dispatch."""
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
