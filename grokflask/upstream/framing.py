"""How an HTTP/1.1 body is framed: bytes off the socket in, body bytes out.

http.client could do this, but its buffered reader refuses to go on after a timeout and gives one HTTP
chunk a call. A relay needs both: to wait with a timeout many times over, and to take in one step all that
has come. Three framings (RFC 9112, section 6): chunked, a stated length, until the connection closes; and
gzip or deflate on top, for an upstream that compresses unasked. No IO.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from grokflask.errors import StreamBrokenError, UpstreamProtocolError

MAX_LINE_BYTES = 8192
_HEX = b"0123456789abcdefABCDEF"


class Framing(Protocol):
    """What each framing can do."""

    @property
    def ended(self) -> bool:
        """The body is complete; the connection may be used again."""

    @property
    def surplus(self) -> bool:
        """Bytes have come behind the end of the body: the connection is not fit for another request."""

    @property
    def error(self) -> UpstreamProtocolError | None:
        """What broke the framing behind the bytes that `feed` has given out."""

    def feed(self, data: bytes) -> bytes:
        """Body bytes in `data`.

        Raises UpstreamProtocolError on broken framing; where good bytes came before the fault they are
        given out first, and the fault is in `error` and raised by the next call.
        """

    def feed_eof(self) -> None:
        """The connection has closed. Raises StreamBrokenError where the body is not complete."""


class UntilCloseFraming:
    """All bytes until the connection closes: a cut cannot be told from an end."""

    error = None
    surplus = False

    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """All of `data`."""
        return data

    def feed_eof(self) -> None:
        """Closing is the end."""
        self.ended = True


class LengthFraming:
    """A body of `length` bytes, as Content-Length says."""

    error = None

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        """`data` up to the stated length; what comes after it is not ours."""
        body = data[: self._left]
        self.surplus = len(data) > self._left
        self._left -= len(body)
        self.ended = self._left == 0
        return body

    def feed_eof(self) -> None:
        """Closing before the stated length breaks the body."""
        if not self.ended:
            raise StreamBrokenError


class ChunkedFraming:
    """The chunked transfer coding (RFC 9112, section 7.1). Extensions and trailers are skipped."""

    def __init__(self) -> None:
        self.ended = False
        self.error: UpstreamProtocolError | None = None
        self.surplus = False
        self._rest = b""  # an unfinished size line, chunk end or trailer
        self._left = 0  # bytes still to come of the chunk that is open
        self._in_trailer = False
        self._chunk_open = False  # its CR LF is still to come

    def feed(self, data: bytes) -> bytes:
        """The data of all chunks in `data`, also of one that is not complete yet."""
        if self.error:
            raise self.error
        if self._rest:
            data, self._rest = self._rest + data, b""
        parts: list[bytes] = []
        if not (self._left or self._chunk_open or self._in_trailer):
            at = _take_whole_chunks(data, 0, parts)
            if at == len(data):  # what nearly every read brings
                return parts[0] if len(parts) == 1 else b"".join(parts)
            data = data[at:]
        try:
            self._take(data, parts)
        except UpstreamProtocolError as error:
            self.error = error
            if not parts:
                raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self, data: bytes, parts: list[bytes]) -> None:
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                continue
            if not (self._chunk_open or self._in_trailer):
                at = _take_whole_chunks(data, at, parts)
            end = data.find(b"\n", at)
            if end < 0:
                self._keep(data[at:])
                break
            self._take_line(data[at:end])
            at = end + 1
        self.surplus = self.ended and at < len(data)

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_LINE_BYTES:
            raise UpstreamProtocolError("The upstream API sent a chunk line that is too long.")
        self._rest = rest

    def _take_line(self, line: bytes) -> None:
        """A line between chunks, without its LF."""
        line = line.removesuffix(b"\r")
        if self._in_trailer:
            self.ended = not line
        elif self._chunk_open:
            if line:
                raise UpstreamProtocolError("The upstream API sent a chunk longer than it said.")
            self._chunk_open = False
        else:
            size = line.split(b";", 1)[0].strip(b" \t")
            if not size or size.strip(_HEX) or len(size) > 16:
                raise UpstreamProtocolError("The upstream API sent a chunk with a malformed size.")
            self._left = int(size, 16)
            self._chunk_open = self._left > 0
            self._in_trailer = self._left == 0

    def feed_eof(self) -> None:
        """Closing before the last chunk breaks the body."""
        if not self.ended:
            raise StreamBrokenError


def _take_whole_chunks(data: bytes, at: int, parts: list[bytes]) -> int:
    """Puts the chunks that lie whole in `data` from `at` on into `parts`; where the first other thing begins.

    Nearly all are such chunks, often hundreds in a read. What is odd in any way is left to its caller.
    """
    while True:
        start = data.find(b"\r\n", at) + 2
        size = data[at : start - 2]
        if start == 1 or not 0 < len(size) <= 16 or size.strip(_HEX):
            return at
        end = start + int(size, 16)
        if end == start or data[end : end + 2] != b"\r\n":
            return at
        parts.append(data[start:end])
        at = end + 2


class InflateFraming:
    """gzip or deflate over another framing. What has come is given out at once, never held for more.

    One `feed` gives out at most `MAX_BURST_BYTES`, so a small body cannot unpack into all memory.
    """

    MAX_BURST_BYTES = 64 * 2**20

    def __init__(self, inner: Framing) -> None:
        self._inner = inner
        self._error: UpstreamProtocolError | None = None
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header

    @property
    def ended(self) -> bool:
        """As the framing below, once the packed data are complete as well."""
        return self._inner.ended and self._inflate.eof

    @property
    def surplus(self) -> bool:
        """As the framing below."""
        return self._inner.surplus

    @property
    def error(self) -> UpstreamProtocolError | None:
        """As the framing below, or that the packed data are cut off."""
        return self._error or self._inner.error

    def feed(self, data: bytes) -> bytes:
        """The unpacked bytes."""
        packed = self._inner.feed(data)
        try:
            body = self._inflate.decompress(packed, self.MAX_BURST_BYTES)
            while self._inflate.eof and self._inflate.unused_data and len(body) < self.MAX_BURST_BYTES:
                packed = self._inflate.unused_data  # the next member (RFC 1952, section 2.2)
                self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
                body += self._inflate.decompress(packed, self.MAX_BURST_BYTES - len(body))
        except zlib.error as error:
            raise UpstreamProtocolError("The upstream API sent a damaged compressed body.") from error
        if self._inner.ended and not self._inflate.eof:
            self._error = UpstreamProtocolError("The upstream API sent a compressed body that is cut off.")
        if self._inflate.unconsumed_tail:
            raise UpstreamProtocolError("The upstream API sent a compressed body that unpacks too far.")
        return body

    def feed_eof(self) -> None:
        """As the framing below; and the packed data must have come to their own end."""
        self._inner.feed_eof()
        if not self._inflate.eof:
            raise StreamBrokenError


def choose_framing(*, chunked: bool, length: int | None, encoding: str | None) -> Framing:
    """The framing that a response's headers ask for.

    Raises UpstreamProtocolError for a content coding other than gzip and deflate (none was asked for).
    """
    framing: Framing
    if chunked:
        framing = ChunkedFraming()
    elif length is not None:
        framing = LengthFraming(length)
    else:
        framing = UntilCloseFraming()
    if encoding in (None, "", "identity"):
        return framing
    if encoding in ("gzip", "x-gzip", "deflate"):
        return InflateFraming(framing)
    raise UpstreamProtocolError(f"The upstream API compressed its answer as {encoding!r}, unasked.")
