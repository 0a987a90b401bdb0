"""One HTTP/1.1 answer: bytes off the socket in; status, headers and body bytes out. No IO.

llhttp parses it, through httptools. http.client cannot: its reader refuses to read on after a timeout, and
returns one chunk a call. A relay waits with a timeout many times, and takes all that has come in one step.
"""

from __future__ import annotations

import re
import zlib

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from grokflask.errors import StreamBrokenError, UpstreamProtocolError

MAX_HEAD_BYTES = 64 * 1024
"""Of an answer's head and of the interim answers before it, together."""
MAX_HEADERS = 256
MAX_INTERIM_ANSWERS = 16
MAX_FRAMING_BYTES = 8192
"""Chunk sizes, extensions and trailers that may come, over several reads, without a byte of the body."""
UNPACKED_BYTES = 64 * 1024
"""What is unpacked in one step: a few packed bytes can become millions."""

_HEAD_END = re.compile(rb"\n\r?\n")
_BARE_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_FOLD = re.compile(rb"\r\n[ \t]+")
_FIELD = re.compile(rb"[!#-'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110, section 5


class AnswerHead(msgspec.Struct, frozen=True):
    """The part of an answer before its body."""

    status: int
    #: Names in lower case; the values of a repeated name are joined by ", ".
    headers: dict[str, str]
    #: The connection can be used again once the body has ended.
    keeps: bool
    #: Bytes that came behind the head.
    rest: bytes


class _Message:
    """Collects what llhttp reports. It has no reference to the parser, so no cycle is left behind."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.ended = False
        self.on_body = self.parts.append  # called for each chunk: a burst has hundreds in one read

    def on_header(self, name_bytes: bytes, value_bytes: bytes) -> None:
        # Not tabs: with one behind it, "chunked" is another coding to llhttp, so it must be one here as well.
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.strip(b" ").decode("latin-1")
        self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value

    def on_message_complete(self) -> None:
        self.ended = True

    def on_message_begin(self) -> None:
        if self.ended:
            raise ValueError("bytes behind the answer")  # stops llhttp, which would read another answer


class AnswerParser:
    """Parses one answer: `feed_head` until it returns the head, then `feed` until the body has ended.

    While `is_packed` is true, `unpack` has more of the body, and comes before the next `feed`.
    """

    def __init__(self) -> None:
        #: The body is complete.
        self.ended = False
        #: Bytes came behind the body. The connection must not be used again.
        self.surplus = False
        #: Invalid HTTP behind the bytes that `feed` has returned.
        self.error: UpstreamProtocolError | None = None
        self._head = bytearray()
        #: Not all bytes that were fed have been unpacked.
        self.is_packed = False
        self._interim_answers = 0
        self._head_bytes = 0  # of interim answers
        self._framing_bytes = 0
        self._until_close = False
        self._inflate: zlib._Decompress | None = None
        self._packed = b""

    def feed_head(self, data: bytes) -> AnswerHead | None:
        """The head, once it is complete.

        Skips interim answers such as 100 Continue. Raises UpstreamProtocolError if the head is invalid or
        too large, and if it leaves the length of the body in doubt.
        """
        searched = max(len(self._head) - 2, 0)
        self._head += data
        while True:
            if not self._head.startswith(b"HTTP/1."[: len(self._head)]):
                raise UpstreamProtocolError
            end = _HEAD_END.search(self._head, searched)
            size = end.end() if end else len(self._head)
            if self._head_bytes + size > MAX_HEAD_BYTES:
                raise UpstreamProtocolError("The upstream API sent a head that is too long.")
            if end is None:
                return None
            head = bytes(self._head[:size])
            del self._head[:size]
            status = self._start(head)
            if status >= 200:
                return self._read_head(status, is_1_1=head.startswith(b"HTTP/1.1"))
            self._head_bytes += size
            self._interim_answers += 1
            if self._interim_answers > MAX_INTERIM_ANSWERS:
                raise UpstreamProtocolError("The upstream API sent too many interim answers.")
            searched = 0

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`, unpacked. Sets `ended`, `surplus`, `error` and `is_packed`."""
        message = self._message
        try:
            self._llhttp.feed_data(data)
        except HttpParserError as error:
            if message.ended:
                self.surplus = True
            else:
                self.error = _explain(error)
        body = b"".join(message.parts)
        message.parts.clear()
        if message.ended:
            self.ended = True
        elif body:
            self._framing_bytes = 0
        else:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES and not self.error:
                self.error = UpstreamProtocolError("The upstream API sent chunk framing that is too long.")
        if self._inflate is None:
            return body
        self._packed += body
        return self.unpack()

    def feed_eof(self) -> None:
        """The connection has closed. Raises StreamBrokenError if the body is not complete."""
        if self._until_close and (self._inflate is None or self._inflate.eof):
            self.ended = True
        if not self.ended:
            raise StreamBrokenError

    def _start(self, head: bytes) -> int:
        """Gives `head` to a new llhttp. Returns the status."""
        if head.count(b"\n") > MAX_HEADERS:
            raise UpstreamProtocolError("The upstream API sent too many headers.")
        try:
            try:
                self._feed_new(head)
            except HttpParserError:
                self._feed_new(_repair(head))
        except HttpParserError as error:
            raise _explain(error) from None
        except HttpParserUpgrade:
            raise UpstreamProtocolError from None  # 101: grokflask never asks for another protocol
        status = self._llhttp.get_status_code()
        if status < 100:
            raise UpstreamProtocolError
        return status

    def _feed_new(self, head: bytes) -> None:
        self._message = _Message()
        self._llhttp = HttpResponseParser(self._message)
        self._llhttp.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._llhttp.feed_data(head)

    def _read_head(self, status: int, *, is_1_1: bool) -> AnswerHead:
        headers, self._message.headers = self._message.headers, {}  # trailers are no headers
        rest = bytes(self._head)
        self._head.clear()
        options = headers.get("connection", "").lower()
        self.ended = self._message.ended
        if not self.ended:
            coding = headers.get("transfer-encoding")
            if coding is not None and coding.lower() != "chunked":
                raise UpstreamProtocolError(f"The upstream API framed its answer as {coding[:64]!r}.")
            self._until_close = coding is None and "content-length" not in headers
            self._inflate = _make_inflate(headers.get("content-encoding", "").strip().lower(), status)
        keeps = not self._until_close and "close" not in options and (is_1_1 or "keep-alive" in options)
        return AnswerHead(status, headers, keeps, rest)

    def unpack(self) -> bytes:
        """The next UNPACKED_BYTES of a body that upstream packs although no coding was accepted."""
        assert self._inflate is not None
        try:
            body = self._inflate.decompress(self._packed, UNPACKED_BYTES)
        except zlib.error:
            self.error = UpstreamProtocolError("The upstream API sent a damaged compressed body.")
            self.ended = self.is_packed = False
            return b""
        self._packed = self._inflate.unconsumed_tail
        if self._inflate.eof and self._inflate.unused_data:
            self._packed = self._inflate.unused_data  # the next member (RFC 1952, section 2.2)
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        # zlib may have taken all bytes and still have more to give.
        self.is_packed = bool(self._packed) or len(body) == UNPACKED_BYTES
        self.ended = self._message.ended and not self.is_packed
        if self.ended and not self._inflate.eof:
            self.ended = False
            self.error = UpstreamProtocolError("The upstream API sent a compressed body that is cut off.")
        return body


def _make_inflate(encoding: str, status: int) -> zlib._Decompress | None:
    """Raises UpstreamProtocolError for a coding other than gzip and deflate (none was asked for)."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    if encoding not in ("", "identity") and status < 400:  # an error that cannot be unpacked is still one
        raise UpstreamProtocolError(f"The upstream API used an unrequested compression: {encoding!r}.")
    return None


def _explain(error: HttpParserError) -> UpstreamProtocolError:
    return UpstreamProtocolError(f"The upstream API sent invalid HTTP: {error}.")


def _repair(head: bytes) -> bytes:
    """`head` without oddities that llhttp refuses, although the answer is clear without them.

    Joins values that go over several lines, drops headers of an invalid name or value, keeps one of several
    equal Content-Lengths, and none beside a Transfer-Encoding (RFC 9112, section 6.3). Raises
    UpstreamProtocolError if what is odd decides about the length of the body.
    """
    if _BARE_LINE_END.search(head):  # it may hide a header from one of two parsers
        raise UpstreamProtocolError
    status_line, *lines = _FOLD.sub(b" ", head[:-4]).split(b"\r\n")
    kept = [status_line]
    lengths: set[bytes] = set()
    is_coded = False
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.strip().lower()
        decides = name in (b"content-length", b"transfer-encoding")
        if not _FIELD.fullmatch(line):
            if decides or not colon:
                raise UpstreamProtocolError
        elif name == b"content-length":
            lengths.update(length.strip() for length in value.split(b","))
        else:
            is_coded = is_coded or decides
            kept.append(line)
    if len(lengths) > 1:
        raise UpstreamProtocolError("The upstream API sent several lengths of one body.")
    if lengths and not is_coded:
        kept.append(b"Content-Length: " + lengths.pop())
    return b"\r\n".join([*kept, b"", b""])
