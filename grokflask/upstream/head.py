"""The head of an upstream answer: bytes in, status, headers and framing out. No IO.

gunicorn's C parser takes it apart; what it means for the body and the connection is decided here (RFC 9112,
section 6.3).
"""

from __future__ import annotations

import re

import msgspec
from gunicorn_h1c import IncompleteError, ParseError, parse_response

from grokflask.errors import UpstreamProtocolError
from grokflask.upstream.framing import Framing, choose_framing

MAX_HEAD_BYTES = 64 * 1024
_SOUND = re.compile(rb"[!#-'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110, section 5
_FRAMING = (b"transfer-encoding", b"content-length")


class AnswerHead(msgspec.Struct, frozen=True):
    """What stands before the body.

    Attributes:
        headers: names in lower case; a repeated one's values are joined by ", ".
        framing: of the body, still to be fed.
        keeps: the connection may be used again once the body has ended.
    """

    status: int
    headers: dict[str, str]
    framing: Framing
    keeps: bool


def parse_head(data: bytes) -> tuple[AnswerHead, bytes] | None:
    """The head that `data` begins with, and the bytes behind it; None while it is not complete.

    Interim answers (100 Continue, 103 Early Hints) in front are skipped. Raises UpstreamProtocolError for
    what is no answer, one that is too long, and one whose body's length cannot be told.
    """
    while True:
        try:
            head = parse_response(data)
        except IncompleteError:
            if len(data) > MAX_HEAD_BYTES:
                raise UpstreamProtocolError("The upstream API sent a head that is too long.") from None
            return None
        except ParseError:
            end = data.find(b"\r\n\r\n")
            mended = _drop_odd(data[:end]) + data[end:]
            if mended == data:
                raise UpstreamProtocolError from None
            data = mended
            continue
        data = data[head["consumed"] :]
        status: int = head["status"]
        if status >= 200:
            return _read_head(status, head["minor_version"], _join(head["headers"])), data
        if status == 101:  # nobody asked for another protocol
            raise UpstreamProtocolError


def _drop_odd(head: bytes) -> bytes:
    """`head` without headers of an odd name or value, which do not spoil the answer.

    It comes back as it is where that would not help, or where the odd one tells how the body is framed.
    """
    status, *lines = head.split(b"\r\n")
    kept = [line for line in lines if _SOUND.fullmatch(line)]
    for line in lines:
        name, colon, _ = line.partition(b":")
        if not colon or (line not in kept and name.strip().lower() in _FRAMING):
            return head
    return b"\r\n".join([status, *kept])


def _join(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    last = ""
    for name_bytes, value_bytes in fields:
        # A line that begins with white space goes on with the value before it (obsolete, but sent).
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
        if not name:
            headers[last] = f"{headers.get(last, '')} {value.strip()}"
            continue
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
        last = name
    return headers


def _read_head(status: int, minor_version: int, headers: dict[str, str]) -> AnswerHead:
    encoding = headers.get("content-encoding", "").strip().lower()
    options = headers.get("connection", "").lower()
    keeps = "close" not in options and (minor_version == 1 or "keep-alive" in options)
    if status in (204, 304):
        return AnswerHead(status, headers, choose_framing(chunked=False, length=0, encoding=None), keeps)
    coding = headers.get("transfer-encoding", "").strip().lower()
    if coding not in ("", "chunked"):
        raise UpstreamProtocolError(f"The upstream API framed its answer as {coding[:64]!r}.")
    length = None if coding else _read_length(headers)
    try:
        framing = choose_framing(chunked=bool(coding), length=length, encoding=encoding)
    except UpstreamProtocolError:
        if status < 400:
            raise
        # An error whose text cannot be unpacked is still that error.
        framing = choose_framing(chunked=bool(coding), length=length, encoding=None)
    return AnswerHead(status, headers, framing, keeps and (bool(coding) or length is not None))


def _read_length(headers: dict[str, str]) -> int | None:
    """The stated length of the body; one that is stated twice alike counts once."""
    if "content-length" not in headers:
        return None
    lengths = {each.strip() for each in headers["content-length"].split(",")}
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdecimal()) or len(length) > 18:
        raise UpstreamProtocolError("The upstream API sent a malformed Content-Length.")
    return int(length)
