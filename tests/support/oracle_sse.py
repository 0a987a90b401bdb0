"""Server-sent events the slow and obvious way: the whole stream at once, one line after the other.

Follows the HTML standard, section 9.2.6, word by word ("if the line is empty", "if the line starts with a
colon", ...), so that `grokflask.protocol.sse` can be held against it. Meant to differ from the standard:

- data over several lines are joined by a space, not by a newline;
- an event whose data are nothing but white space is not dispatched, however that is spelt;
- at the end of the stream, an event that only lacks its blank line is dispatched when its last line is
  complete, or is `data: [DONE]`.
"""

from __future__ import annotations

Event = tuple[bytes, bytes]
"""The data, and the name: b"" where there was none, or where it was `message`."""


def decode_stream(stream: bytes) -> list[Event]:
    """All events of `stream`."""
    if stream[:3] == b"\xef\xbb\xbf":
        stream = stream[3:]
    lines, unfinished = split_lines(stream)
    if unfinished in (b"data: [DONE]", b"data:[DONE]"):
        lines.append(unfinished)
        unfinished = b""

    events: list[Event] = []
    data: list[bytes] = []
    name = b""
    for line in lines:
        if line == b"":
            dispatch(events, data, name)
            data, name = [], b""
        elif line[:1] == b":":
            pass
        else:
            field, value = split_field(line)
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
    if unfinished == b"":
        dispatch(events, data, name)
    return events


def split_lines(stream: bytes) -> tuple[list[bytes], bytes]:
    """The complete lines, and what stands behind the last of them."""
    lines: list[bytes] = []
    line = b""
    at = 0
    while at < len(stream):
        byte = stream[at : at + 1]
        if byte == b"\r":
            lines.append(line)
            line = b""
            if stream[at + 1 : at + 2] == b"\n":
                at += 1
        elif byte == b"\n":
            lines.append(line)
            line = b""
        else:
            line += byte
        at += 1
    return lines, line


def split_field(line: bytes) -> tuple[bytes, bytes]:
    """A line's field name and value."""
    if b":" not in line:
        return line, b""
    field, value = line.split(b":", 1)
    if value[:1] == b" ":
        value = value[1:]
    return field, value


def dispatch(events: list[Event], data: list[bytes], name: bytes) -> None:
    """Adds the event, if there is one."""
    joined = b" ".join(data)
    if joined.strip() != b"":
        events.append((joined, b"" if name == b"message" else name))
