"""Server-sent events: bytes in, the data of complete events out.

Follows the event stream format of the HTML standard, section 9.2.6: lines end in LF, CRLF or CR, a blank
line ends an event, a line that starts with a colon is a comment, one space after a field's colon is not
part of its value, a byte order mark may stand in front. It works on bytes, so a character cut in two is
whole again once its event is. It knows nothing of JSON or of what the data mean, and does no IO.

One deliberate difference: data over several lines are joined by a space, not by a newline, since a client
gets each event on one line. In JSON both are white space.

What nearly every upstream sends, `data: {...}` on one line after another, is not taken apart at all: that it
is nothing else is told by counting, and it comes out as a `Run`. tests/unit/oracle_sse.py is the slow and
obvious way, and property tests hold the two against each other.
"""

from __future__ import annotations

from typing import Self

from grokflask.errors import UpstreamProtocolError

MAX_EVENT_BYTES = 32 * 2**20
_BOM = b"\xef\xbb\xbf"
_DONE_BLOCK = b"data: [DONE]\n\n"


class NamedEvent(bytes):
    """The data of an event that carried an `event:` line; `name` is that line's value."""

    name: bytes

    def __new__(cls, data: bytes, name: bytes) -> Self:
        """`data`, remembering `name`."""
        event = super().__new__(cls, data)
        event.name = name
        return event


class Run(bytes):
    """Events framed as a client gets them: one line of `data: {...}` and a blank line each, nothing else."""

    __slots__ = ()

    @property
    def number(self) -> int:
        """How many events it is."""
        return self.count(b"\n\n")

    def cut(self, at: int) -> tuple[Self, list[bytes]]:
        """The events before the one that the byte `at` is in, and the data of that one and all others."""
        before = self.rfind(b"\n\n", 0, at)
        start = before + 2 if before >= 0 else 0
        return type(self)(self[:start]), self[start + 6 : -2].split(b"\n\ndata: ")


class EventDecoder:
    """Takes a stream in pieces cut anywhere; gives each event's data as soon as its last byte is in."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []  # an unfinished event, joined only once: a long one costs no more
        self._pending_bytes = 0
        self._after_cr = False  # the last byte was CR: an LF that follows belongs to it
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of all events that `data` completes, in order; several of them may come as one `Run`.

        Raises UpstreamProtocolError once the event that is still open has passed `max_event_bytes`; the
        events before it have been given out by then.
        """
        if not (self._pieces or self._at_start or self._after_cr) and _is_run(data):
            return [Run(data)]  # what nearly every read brings
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
        end = data.rfind(b"\n\n") + 2
        if end < len(data):
            self._keep(data[end:])
            data = data[:end]
        return _parse(data)

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


def _is_run(data: bytes) -> bool:
    """`data` is a `Run`: as many newlines as its events need, so none inside of one and no other block."""
    return (
        data.startswith(b"data: {")
        and data.endswith(b"\n\n")
        and data.count(b"\n") == 2 * data.count(b"\n\ndata: {") + 2
        and b"\r" not in data
    )


def _parse(blocks: bytes) -> list[bytes]:
    """The events of whole blocks, each with its blank line."""
    if _is_run(blocks):
        return [Run(blocks)]
    if blocks.endswith(_DONE_BLOCK) and _is_run(run := blocks[: -len(_DONE_BLOCK)]):
        return [Run(run), b"[DONE]"]
    parsed = map(_parse_block, blocks[:-2].split(b"\n\n"))
    return [event for event in parsed if event is not None]


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
