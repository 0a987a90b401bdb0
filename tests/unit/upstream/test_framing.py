"""HTTP/1.1 bodies: chunked, by length, until close, and compressed; cut anywhere, whole or broken."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.errors import StreamBrokenError, UpstreamProtocolError
from grokflask.upstream.framing import (
    MAX_LINE_BYTES,
    ChunkedFraming,
    Framing,
    InflateFraming,
    LengthFraming,
    UntilCloseFraming,
    choose_framing,
)


def feed_all(framing: Framing, pieces: Iterable[bytes]) -> bytes:
    return b"".join([framing.feed(piece) for piece in pieces])


def feed_faulty(framing: Framing, pieces: Iterable[bytes]) -> tuple[bytes, str]:
    """The body before a fault, and what the fault was: raised, and in `error` as soon as it is known."""
    body = b""
    try:
        for piece in pieces:
            body += framing.feed(piece)
            if framing.error:
                framing.feed(b"")
    except UpstreamProtocolError as error:
        return body, error.message
    return body, ""


def cut_everywhere(data: bytes) -> list[list[bytes]]:
    """`data` byte by byte, and in two pieces for every position."""
    bytewise = [data[at : at + 1] for at in range(len(data))]
    return [bytewise, *([data[:at], data[at:]] for at in range(len(data) + 1))]


def assert_body(make: Callable[[], Framing], data: bytes, body: bytes) -> None:
    """However `data` is cut, `make()` gives `body` and then knows that it has ended."""
    for pieces in cut_everywhere(data):
        framing = make()
        assert feed_all(framing, pieces) == body, pieces
        assert framing.ended, pieces
        framing.feed_eof()


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one"),
        pytest.param(b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n", b"hello world", id="several"),
        pytest.param(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, id="hex-case"),
        pytest.param(b"0000005\r\nhello\r\n000\r\n\r\n", b"hello", id="leading-zeros"),
        pytest.param(b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", id="16-digits"),
        pytest.param(b'5;a=b;c="d"\r\nhello\r\n0;last\r\n\r\n', b"hello", id="extensions"),
        pytest.param(b"5 \t;a\r\nhello\r\n0 \r\n\r\n", b"hello", id="space-after-size"),
        pytest.param(b"5\r\nhello\r\n0\r\nExpires: 0\r\nX: y\r\n\r\n", b"hello", id="trailers"),
        pytest.param(b"5\nhello\n0\n\n", b"hello", id="bare-LF"),
        pytest.param(b"6\r\n0\r\n\r\n\r\r\n0\r\n\r\n", b"0\r\n\r\n\r", id="data-looks-like-framing"),
        pytest.param(b"4\r\n\xff\x00\r\n\r\n0\r\n\r\n", b"\xff\x00\r\n", id="binary"),
    ],
)
def test_chunked_body_cut_anywhere(wire: bytes, body: bytes) -> None:
    """Chunks give their data and nothing else, wherever the reads fall."""
    assert_body(ChunkedFraming, wire, body)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 500), max_size=8),
    st.sampled_from([b"%x\r\n", b"%X\r\n", b"%04x;ext=1\r\n"]),
)
def test_chunked_round_trip(chunks: list[bytes], cuts: list[int], size_line: bytes) -> None:
    """Any body, chunked and cut at any places, comes back."""
    wire = b"".join(size_line % len(chunk) + chunk + b"\r\n" for chunk in chunks) + b"0\r\n\r\n"
    edges = [0, *sorted(at % (len(wire) + 1) for at in cuts), len(wire)]
    framing = ChunkedFraming()
    pieces = [wire[start:end] for start, end in pairwise(edges)]
    assert feed_all(framing, pieces) == b"".join(chunks)
    assert framing.ended


def test_data_of_an_open_chunk_is_given_out_at_once() -> None:
    """An event inside a chunk does not wait for the chunk's end."""
    framing = ChunkedFraming()
    assert framing.feed(b"64\r\ndata: 1\n\n") == b"data: 1\n\n"
    assert not framing.ended


@pytest.mark.parametrize(
    "size",
    [
        *(b"0x5", b"+5", b"-1", b"-0", b"5_0", b"", b";ext", b"g", b"5 5", b"5,5", b"5.0", b"\xb2", b"5\r"),
        *(b"1" * 17, b"0" * 17, b"0" * 16 + b"5"),
    ],
)
def test_malformed_chunk_size(size: bytes) -> None:
    """Only 1 to 16 hexadecimal digits are a size; what Python's int() takes besides is not."""
    for pieces in cut_everywhere(b"1\r\nx\r\n" + size + b"\r\nhello\r\n0\r\n\r\n"):
        body, fault = feed_faulty(ChunkedFraming(), pieces)
        assert body == b"x"
        assert "malformed size" in fault


def test_chunk_longer_than_it_said() -> None:
    """Data where the chunk's CR LF should be is an error, not the next size."""
    for pieces in cut_everywhere(b"3\r\nhello\r\n0\r\n\r\n"):
        body, fault = feed_faulty(ChunkedFraming(), pieces)
        assert body == b"hel"
        assert "longer than it said" in fault


def test_fault_behind_good_bytes_comes_after_them() -> None:
    """What came before a fault in the same read is given out; the next call, and each one after, raises."""
    framing = ChunkedFraming()
    assert framing.feed(b"3\r\nabc\r\nxyz\r\n") == b"abc"
    assert framing.error is not None
    for data in (b"", b"3\r\nabc\r\n"):
        with pytest.raises(UpstreamProtocolError, match="malformed size"):
            framing.feed(data)
    assert not framing.ended


def test_endless_chunk_line_is_given_up() -> None:
    """A size line without an end is not collected for ever."""
    framing = ChunkedFraming()
    framing.feed(b"5;" + b"x" * (MAX_LINE_BYTES - 2))
    with pytest.raises(UpstreamProtocolError, match="too long"):
        framing.feed(b"x")


@pytest.mark.parametrize("wire", [b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nX: y\r\n"])
def test_chunked_body_cut_short(wire: bytes) -> None:
    """A connection that closes before the last chunk and its blank line has broken the body."""
    framing = ChunkedFraming()
    framing.feed(wire)
    assert not framing.ended
    with pytest.raises(StreamBrokenError):
        framing.feed_eof()


def test_bytes_after_the_last_chunk_are_not_body() -> None:
    """What follows the end belongs to something else."""
    framing = ChunkedFraming()
    assert framing.feed(b"2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK") == b"hi"
    assert framing.ended
    assert framing.feed(b"more") == b""


@pytest.mark.parametrize("body", [b"", b"x", b"hello world"])
def test_length_cut_anywhere(body: bytes) -> None:
    """A body of a stated length ends with its last byte, and what follows is not part of it."""
    assert_body(lambda: LengthFraming(len(body)), body + b"HTTP/1.1", body)


def test_length_cut_short() -> None:
    """A connection that closes one byte early has broken the body."""
    framing = LengthFraming(5)
    assert framing.feed(b"hell") == b"hell"
    assert not framing.ended
    with pytest.raises(StreamBrokenError):
        framing.feed_eof()


def test_until_close() -> None:
    """Without length or chunks, all is body until the connection closes, which is the end."""
    framing = UntilCloseFraming()
    assert feed_all(framing, [b"a", b"", b"b"]) == b"ab"
    assert not framing.ended
    framing.feed_eof()
    assert framing.ended


BODY = 'data: {"a": "Grüße"}\n\n'.encode() * 3
PACKED = [
    pytest.param("gzip", gzip.compress(BODY), id="gzip"),
    pytest.param("x-gzip", gzip.compress(BODY), id="x-gzip"),
    pytest.param("deflate", zlib.compress(BODY), id="deflate"),
]


@pytest.mark.parametrize(("encoding", "packed"), PACKED)
def test_compressed_body_cut_anywhere(encoding: str, packed: bytes) -> None:
    """gzip and deflate that nobody asked for are unpacked, wherever the reads fall."""
    assert_body(lambda: choose_framing(chunked=False, length=len(packed), encoding=encoding), packed, BODY)


@pytest.mark.parametrize(("encoding", "packed"), PACKED)
def test_compressed_and_chunked(encoding: str, packed: bytes) -> None:
    """The two layers work together."""
    wire = b"%x\r\n%b\r\n" % (10, packed[:10]) + b"%x\r\n%b\r\n" % (len(packed) - 10, packed[10:])
    assert_body(
        lambda: choose_framing(chunked=True, length=None, encoding=encoding), wire + b"0\r\n\r\n", BODY
    )


def test_flushed_event_is_unpacked_at_once() -> None:
    """A compressor that flushes after each event has its events given out one by one."""
    packer = zlib.compressobj(wbits=31)
    framing = InflateFraming(UntilCloseFraming())
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        assert framing.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event


def test_gzip_of_several_members() -> None:
    """RFC 1952, section 2.2: a gzip body is a series of members, all of which are data."""
    packed = gzip.compress(b"data: 1\n\n") + gzip.compress(b"data: 2\n\n")
    assert_body(
        lambda: choose_framing(chunked=False, length=len(packed), encoding="gzip"),
        packed,
        b"data: 1\n\ndata: 2\n\n",
    )


def test_compressed_bomb() -> None:
    """A small body that unpacks into too much memory is refused."""
    framing = InflateFraming(UntilCloseFraming())
    framing.MAX_BURST_BYTES = 10_000
    assert len(framing.feed(gzip.compress(b"x" * 10_000))) == 10_000
    framing = InflateFraming(UntilCloseFraming())
    framing.MAX_BURST_BYTES = 10_000
    with pytest.raises(UpstreamProtocolError, match="unpacks too far"):
        framing.feed(gzip.compress(b"x" * 1_000_000))


def test_burst_limit_leaves_room_for_any_reply() -> None:
    """The limit for one read is tens of mebibytes: above any answer, below the memory of a small host."""
    assert 16 * 2**20 <= InflateFraming.MAX_BURST_BYTES <= 128 * 2**20


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"data: 1\n\n", id="not-compressed"),
        pytest.param(gzip.compress(BODY)[:-8] + b"\0" * 8, id="wrong-checksum"),
        pytest.param(gzip.compress(BODY)[:10] + b"\xff" * 40, id="damaged-inside"),
    ],
)
def test_damaged_compressed_body(packed: bytes) -> None:
    """Bytes that do not unpack are upstream's error, not a crash."""
    with pytest.raises(UpstreamProtocolError, match="damaged"):
        feed_all(InflateFraming(UntilCloseFraming()), [packed])


def test_compressed_body_whose_connection_closes_early() -> None:
    """The framing below decides whether the body is complete."""
    framing = choose_framing(chunked=True, length=None, encoding="gzip")
    framing.feed(b"a\r\n" + gzip.compress(BODY)[:10] + b"\r\n")
    assert not framing.ended
    with pytest.raises(StreamBrokenError):
        framing.feed_eof()


@pytest.mark.parametrize(
    ("chunked", "length", "encoding", "kind"),
    [
        (True, None, None, ChunkedFraming),
        (True, 5, None, ChunkedFraming),
        (False, 5, "", LengthFraming),
        (False, 0, "identity", LengthFraming),
        (False, None, None, UntilCloseFraming),
        (True, None, "gzip", InflateFraming),
    ],
)
def test_choice_of_framing(chunked: bool, length: int | None, encoding: str | None, kind: type) -> None:
    """Chunked goes before a length (RFC 9112, section 6.3), and a length before closing."""
    assert type(choose_framing(chunked=chunked, length=length, encoding=encoding)) is kind


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip"])
def test_unknown_content_coding(encoding: str) -> None:
    """A coding that cannot be unpacked is told by its name."""
    with pytest.raises(UpstreamProtocolError, match=encoding):
        choose_framing(chunked=True, length=None, encoding=encoding)
