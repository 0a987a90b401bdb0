"""HTTP/1.1 answers, cut anywhere, whole or broken: heads, chunks, lengths, closing, and compressed bodies."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.errors import StreamBrokenError, UpstreamProtocolError
from grokflask.upstream import parser as parser_module
from grokflask.upstream.parser import (
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_ANSWERS,
    UNPACKED_BYTES,
    AnswerHead,
    AnswerParser,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = "Transfer-Encoding: chunked"


def write_head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *lines, "", ""]).encode("latin-1")


def parse(head: bytes) -> tuple[AnswerParser, AnswerHead]:
    """A parser that has been given a complete head."""
    parser = AnswerParser()
    parsed = parser.feed_head(head)
    assert parsed is not None
    return parser, parsed


def start(*lines: str, status: str = "HTTP/1.1 200 OK") -> AnswerParser:
    """A parser that waits for the body behind such a head."""
    parser, head = parse(write_head(*lines, status=status))
    assert head.rest == b""
    return parser


def feed(parser: AnswerParser, piece: bytes) -> bytes:
    """All of the body that is in `piece`."""
    body = parser.feed(piece)
    while parser.is_packed:
        body += parser.unpack()
    return body


def feed_all(parser: AnswerParser, pieces: Iterable[bytes]) -> bytes:
    return b"".join([feed(parser, piece) for piece in pieces])


def feed_faulty(parser: AnswerParser, pieces: Iterable[bytes]) -> tuple[bytes, str]:
    """The body before a fault, and the fault."""
    body = b""
    for piece in pieces:
        body += feed(parser, piece)
        if parser.error:
            return body, parser.error.message
    return body, ""


def cut_everywhere(data: bytes) -> list[list[bytes]]:
    """`data` byte by byte, and in two pieces for every position."""
    bytewise = [data[at : at + 1] for at in range(len(data))]
    return [bytewise, *([data[:at], data[at:]] for at in range(len(data) + 1))]


def assert_body(lines: list[str], data: bytes, body: bytes) -> None:
    """However `data` is cut, the parser returns `body` behind such a head, and knows that it has ended."""
    for pieces in cut_everywhere(data):
        parser = start(*lines)
        assert feed_all(parser, pieces) == body, pieces
        assert parser.ended, pieces
        assert parser.error is None, pieces
        parser.feed_eof()


# Heads


def test_bytes_behind_the_head_belong_to_the_body() -> None:
    """They are returned as they are."""
    _, head = parse(OK + b"Content-Length: 5\r\n\r\nhe\x00\r\n\r\n")
    assert (head.status, head.rest) == (200, b"he\x00\r\n\r\n")


@given(st.integers(0, 200))
def test_a_part_of_a_head_is_not_enough(at: int) -> None:
    """Cut anywhere before its end it is not complete, and complete at once with its last byte."""
    head = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX: \xe4\r\n\r\n"
    parser = AnswerParser()
    first = parser.feed_head(head[:at])
    assert (first is None) == (at < len(head))
    if first is None:
        rest = parser.feed_head(head[at:])
        assert rest is not None
        assert rest.headers == {
            "content-type": "text/event-stream",
            "transfer-encoding": "chunked",
            "x": "\xe4",
        }


def test_a_head_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, llhttp sees it when it is complete, so the time grows with its length only."""
    made: list[object] = []

    def make(protocol: object) -> httptools.HttpResponseParser:
        made.append(protocol)
        return httptools.HttpResponseParser(protocol)

    monkeypatch.setattr(parser_module, "HttpResponseParser", make)
    parser = AnswerParser()
    head = write_head(*[f"X-{number}: {'x' * 200}" for number in range(200)])
    assert [parser.feed_head(head[at : at + 1]) for at in range(len(head) - 1)] == [None] * (len(head) - 1)
    assert made == []
    last = parser.feed_head(head[-1:])
    assert last is not None
    assert (len(last.headers), len(made)) == (200, 1)


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("line", ["Content-Length: 5", CHUNKED, "Content-Encoding: br"])
def test_answers_without_a_body(status: int, line: str) -> None:
    """They have none, whatever their headers say."""
    parser, head = parse(write_head(line, status=f"HTTP/1.1 {status} X"))
    assert parser.ended
    assert head.keeps


@pytest.mark.parametrize(
    ("lines", "status", "keeps"),
    [
        (["Content-Length: 5"], "HTTP/1.1 200 OK", True),
        (["Content-Length: 0"], "HTTP/1.1 200 OK", True),
        ([CHUNKED], "HTTP/1.1 200 OK", True),
        (["Content-Length: 5", "Connection: Close"], "HTTP/1.1 200 OK", False),
        (["Content-Length: 5"], "HTTP/1.0 200 OK", False),
        (["Content-Length: 5", "Connection: keep-alive"], "HTTP/1.0 200 OK", True),
        ([], "HTTP/1.1 200 OK", False),
    ],
)
def test_which_connections_are_kept(lines: list[str], status: str, keeps: bool) -> None:
    """Those whose body has an end of its own, unless one side has said otherwise."""
    _, head = parse(write_head(*lines, status=status))
    assert head.keeps is keeps


def test_interim_answers_are_skipped() -> None:
    """100 and 103 come before the answer; while only they have come there is none."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    for pieces in cut_everywhere(interim + b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"):
        parser = AnswerParser()
        (head,) = [head for piece in pieces if (head := parser.feed_head(piece))]
        assert (head.status, "link" in head.headers, parser.ended) == (201, False, True)


def test_endless_interim_answers_are_given_up() -> None:
    """In one read, and in many."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    allowed, head = parse(interim * MAX_INTERIM_ANSWERS + write_head("Content-Length: 0"))
    assert (head.status, allowed.ended) == (200, True)
    with pytest.raises(UpstreamProtocolError, match="too many interim"):
        AnswerParser().feed_head(interim * (MAX_INTERIM_ANSWERS + 1))
    parser = AnswerParser()
    for _ in range(MAX_INTERIM_ANSWERS):
        assert parser.feed_head(interim) is None
    with pytest.raises(UpstreamProtocolError, match="too many interim"):
        parser.feed_head(interim)


def test_interim_answers_share_the_bytes_of_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of large ones is given up as a large head is, and no byte of it is parsed twice."""
    fed: list[int] = []

    class Counting(httptools.HttpResponseParser):  # type: ignore[misc]
        def feed_data(self, data: bytes) -> None:
            fed.append(len(data))
            super().feed_data(data)

    monkeypatch.setattr(parser_module, "HttpResponseParser", Counting)
    interim = write_head(*["X-Filler: " + "x" * 90] * 100, status="HTTP/1.1 103 X")
    parser = AnswerParser()
    given = 0
    with pytest.raises(UpstreamProtocolError, match="too long"):
        while True:
            at, given = given % len(interim), given + 100
            parser.feed_head((interim + interim)[at : at + 100])
    assert given <= MAX_HEAD_BYTES + 100
    assert sum(fed) <= given


def test_too_many_headers() -> None:
    """A head is limited in headers as well as in bytes."""
    _, head = parse(write_head(*["X: 1"] * (MAX_HEADERS - 2)))
    assert head.headers["x"].count("1") == MAX_HEADERS - 2
    with pytest.raises(UpstreamProtocolError, match="too many headers"):
        AnswerParser().feed_head(write_head(*["X: 1"] * MAX_HEADERS))


def test_headers_that_come_twice_and_over_two_lines() -> None:
    """Values of one name are joined; a line that begins with white space continues the one before."""
    _, head = parse(write_head("X-A: 1", "x-a: 2  ", "X-B: long", "  value", "Content-Length: 0"))
    assert (head.headers["x-a"], head.headers["x-b"]) == ("1, 2", "long value")


def test_values_are_latin_1() -> None:
    """No byte of a value is lost, nor taken for white space."""
    _, head = parse(OK + b"X: \xa0\xe4\x85\r\nContent-Length: 0\r\n\r\n")
    assert head.headers["x"] == "\xa0\xe4\x85"


@pytest.mark.parametrize("odd", [b"Retry-After: 1\x01", b"X-(A): 1", b"X-A : 1", b": 1", b"\xe4: 1"])
def test_an_odd_header_spoils_itself_only(odd: bytes) -> None:
    """It is left out; the others and the bytes of the body stay as they are."""
    parser, head = parse(OK + odd + b"\r\nX-B: 2\r\nContent-Length: 2\r\n\r\n\x01\x02")
    assert (head.headers, head.rest) == ({"x-b": "2", "content-length": "2"}, b"\x01\x02")
    assert (parser.feed(head.rest), parser.ended, parser.surplus) == (b"\x01\x02", True, False)


@pytest.mark.parametrize("status_line", ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 \xe4"])
def test_odd_status_lines(status_line: str) -> None:
    """The reason phrase may be missing, and may be any text."""
    _, head = parse(write_head("Content-Length: 0", status=status_line))
    assert head.status == 200


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Connection: upgrade", "Upgrade: h2", "Content-Length: 2"], id="length"),
        pytest.param(["Connection: upgrade", "Upgrade: h2"], id="until-close"),
    ],
)
def test_an_offer_to_upgrade_is_ignored(lines: list[str]) -> None:
    """Only status 101 changes the protocol; a 200 has its own body."""
    parser = start(*lines)
    assert parser.feed(b"hi") == b"hi"
    assert parser.ended is (len(lines) == 3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/2 200\r\n\r\n", id="version-2"),
        pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", id="version-2.0"),
        pytest.param(b"HTTP/1.2 200 OK\r\n\r\n", id="version-1.2"),
        pytest.param(b"http/1.1 200 OK\r\n\r\n", id="lower-case"),
        pytest.param(b"RTSP/1.0 200 OK\r\n\r\n", id="RTSP"),
        pytest.param(b"\r\nHTTP/1.1 200 OK\r\n\r\n", id="blank-line-first"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="SSH"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="status-of-letters"),
        pytest.param(b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\n", id="status-000"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="status-of-four-digits"),
        pytest.param(OK + b"no colon\r\n\r\n", id="no-colon"),
        pytest.param(OK + b"Content-Length : 5\r\n\r\n", id="space-before-colon"),
        pytest.param(OK + b"Transfer-Encoding : chunked\r\n\r\n", id="space-before-colon-of-coding"),
        pytest.param(OK + b"Transfer-Encoding: chunked\x01\r\n\r\n", id="odd-coding"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", id="101"),
        pytest.param(b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101-upgrade"),
        pytest.param(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two-lengths"),
        pytest.param(OK + b"Content-Length: 5, 6\r\n\r\n", id="list-of-lengths"),
        pytest.param(OK + b"Content-Length: 5,\r\n\r\n", id="half-a-list"),
        pytest.param(OK + b"Content-Length: -1\r\n\r\n", id="minus"),
        pytest.param(OK + b"Content-Length: +1\r\n\r\n", id="plus"),
        pytest.param(OK + b"Content-Length: 1_0\r\n\r\n", id="underscore"),
        pytest.param(OK + b"Content-Length: 1 0\r\n\r\n", id="space-inside"),
        pytest.param(OK + b"Content-Length: 1\r\n 0\r\n\r\n", id="folded-length"),
        pytest.param(OK + b"Content-Length: 0x10\r\n\r\n", id="hexadecimal"),
        pytest.param(OK + b"Content-Length: \r\n\r\n", id="no-length"),
        pytest.param(OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", id="30-digits"),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", id="two-codings"),
        pytest.param(OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n", id="chunked-first"),
        pytest.param(OK + b'Transfer-Encoding: "chunked"\r\n\r\n', id="quoted-coding"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", id="chunked-twice"),
        pytest.param(OK + b"Transfer-Encoding: chunked\t\r\n\r\n", id="tab-behind-chunked"),
        pytest.param(
            OK + b"X\x01: 1\r\nTransfer-Encoding: chunked \t\r\n\r\n", id="tab-behind-chunked-repaired"
        ),
        pytest.param(OK + b"Transfer-Encoding: chunked;q=1\r\n\r\n", id="parameter-of-chunked"),
        pytest.param(OK + b"Transfer-Encoding: identity\r\n\r\n", id="identity"),
        pytest.param(OK + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\n", id="empty-coding"),
        pytest.param(OK + b"Content-Encoding: br\r\n\r\n", id="unknown-content-coding"),
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 5\n\n", id="bare-LF"),
        pytest.param(OK + b"X: 1\nContent-Length: 5\r\n\r\n", id="bare-LF-hides-length"),
        pytest.param(OK + b"X: 1\rContent-Length: 5\r\n\r\n", id="bare-CR-hides-length"),
        pytest.param(OK + b"Content-Length: 15\n\r\nhello", id="bare-LF-before-end"),
        pytest.param(OK + b"X: " + b"x" * (MAX_HEAD_BYTES + 1), id="too-long"),
        pytest.param(OK + b"X: " + b"x" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n", id="too-long-but-whole"),
    ],
)
def test_invalid_heads(data: bytes) -> None:
    """An error of upstream's, not a guess."""
    with pytest.raises(UpstreamProtocolError):
        AnswerParser().feed_head(data)
    parser = AnswerParser()
    with pytest.raises(UpstreamProtocolError):
        for at in range(len(data)):
            parser.feed_head(data[at : at + 1])


# Bodies


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one"),
        pytest.param(b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n", b"hello world", id="several"),
        pytest.param(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, id="hex-case"),
        pytest.param(b"0000005\r\nhello\r\n000\r\n\r\n", b"hello", id="leading-zeros"),
        pytest.param(b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", id="16-digits"),
        pytest.param(b"00000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", id="17-digits"),
        pytest.param(b'5;a=b;c="d"\r\nhello\r\n0;last\r\n\r\n', b"hello", id="extensions"),
        pytest.param(b"5 \t;a\r\nhello\r\n0 \r\n\r\n", b"hello", id="space-after-size"),
        pytest.param(b"5\r\nhello\r\n0\r\nExpires: 0\r\nX: y\r\n\r\n", b"hello", id="trailers"),
        pytest.param(b"6\r\n0\r\n\r\n\r\r\n0\r\n\r\n", b"0\r\n\r\n\r", id="data-looks-like-framing"),
        pytest.param(b"4\r\n\xff\x00\r\n\r\n0\r\n\r\n", b"\xff\x00\r\n", id="binary"),
    ],
)
def test_chunked_body_cut_anywhere(wire: bytes, body: bytes) -> None:
    """Chunks give their data and nothing else, wherever the reads fall."""
    assert_body([CHUNKED], wire, body)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 500), max_size=8),
    st.sampled_from([b"%x\r\n", b"%X\r\n", b"%04x;ext=1\r\n"]),
)
def test_chunked_round_trip(chunks: list[bytes], cuts: list[int], size_line: bytes) -> None:
    """Any body, chunked and cut at any places, comes back."""
    wire = b"".join(size_line % len(chunk) + chunk + b"\r\n" for chunk in chunks) + b"0\r\n\r\n"
    edges = [0, *sorted(at % (len(wire) + 1) for at in cuts), len(wire)]
    parser = start(CHUNKED)
    pieces = [wire[start:end] for start, end in pairwise(edges)]
    assert feed_all(parser, pieces) == b"".join(chunks)
    assert parser.ended


def test_a_burst_comes_out_in_one_step() -> None:
    """All chunks of a read together."""
    parser = start(CHUNKED)
    assert parser.feed(b"9\r\ndata: 1\n\n\r\n" * 500) == b"data: 1\n\n" * 500


def test_data_of_an_open_chunk_is_given_out_at_once() -> None:
    """An event inside a chunk does not wait for the chunk's end."""
    parser = start(CHUNKED)
    assert parser.feed(b"64\r\ndata: 1\n\n") == b"data: 1\n\n"
    assert not parser.ended


@pytest.mark.parametrize(
    "size",
    [*b"0x5 +5 -1 -0 5_0 g 5,5 5.0 \xb2".split(), b"", b";ext", b"5 5", b"5\r", b"1" * 17, b"5\nhello"],
)
def test_malformed_chunk_size(size: bytes) -> None:
    """Only hexadecimal digits before CR LF are a size; what Python's int() takes besides is not."""
    for pieces in cut_everywhere(b"1\r\nx\r\n" + size + b"\r\nhello\r\n0\r\n\r\n"):
        body, fault = feed_faulty(start(CHUNKED), pieces)
        assert body == b"x"
        assert "chunk" in fault.lower()


@pytest.mark.parametrize("end", [b"lo\r\n", b"\n", b"\r\r\n", b"0\r\n"])
def test_chunk_longer_than_it_said(end: bytes) -> None:
    """Anything but CR LF behind a chunk is an error, not the next size."""
    for pieces in cut_everywhere(b"3\r\nhel" + end + b"0\r\n\r\n"):
        body, fault = feed_faulty(start(CHUNKED), pieces)
        assert body == b"hel"
        assert "after chunk data" in fault


@pytest.mark.parametrize("trailer", [b"no colon", b"X : y", b"Content-Length: 5", b"X: \x01"])
def test_invalid_trailer(trailer: bytes) -> None:
    """The body before it comes out; the answer does not end."""
    for pieces in cut_everywhere(b"2\r\nhi\r\n0\r\n" + trailer + b"\r\n\r\n"):
        parser = start(CHUNKED)
        body, fault = feed_faulty(parser, pieces)
        assert body == b"hi"
        assert fault
        assert not parser.ended


def test_fault_behind_good_bytes_comes_after_them() -> None:
    """What came before a fault in the same read is given out, and the fault stays."""
    parser = start(CHUNKED)
    assert parser.feed(b"3\r\nabc\r\nxyz\r\n") == b"abc"
    assert parser.error is not None
    fault = parser.error.message
    assert fault == "The upstream API sent invalid HTTP: Invalid character in chunk size."
    assert parser.feed(b"3\r\nabc\r\n") == b""
    assert parser.error.message == fault
    assert not parser.ended


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        pytest.param(b"5;", b"x", id="extension"),
        pytest.param(b"0", b"0", id="zeros"),
        pytest.param(b"0\r\nX: ", b"x", id="trailer"),
        pytest.param(b"0\r\n", b"X: 1\r\n", id="trailers"),
    ],
)
def test_endless_framing_is_given_up(begin: bytes, more: bytes) -> None:
    """A size line or a trailer without an end is not collected for ever."""
    parser = start(CHUNKED)
    count, room = 0, MAX_FRAMING_BYTES - len(begin)
    parser.feed(begin)
    while not parser.error:
        parser.feed(more)
        count += 1
    assert count == room // len(more) + 1
    assert "too long" in parser.error.message


@pytest.mark.parametrize("wire", [b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nX: y\r\n"])
def test_chunked_body_cut_short(wire: bytes) -> None:
    """A connection that closes before the last chunk and its blank line has broken the body."""
    parser = start(CHUNKED)
    parser.feed(wire)
    assert not parser.ended
    with pytest.raises(StreamBrokenError):
        parser.feed_eof()


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", b"\r\nx", b"0"])
@pytest.mark.parametrize(
    ("lines", "wire"),
    [
        ([CHUNKED], b"2\r\nhi\r\n0\r\n\r\n"),
        ([CHUNKED, "Connection: close"], b"2\r\nhi\r\n0\r\n\r\n"),
        (["Content-Length: 2"], b"hi"),
    ],
)
def test_bytes_behind_the_body(lines: list[str], wire: bytes, surplus: bytes) -> None:
    """They belong to something else: they are not body, and the connection is not used again."""
    for pieces in cut_everywhere(wire + surplus):
        parser = start(*lines)
        assert feed_all(parser, pieces) == b"hi"
        assert (parser.ended, parser.surplus, parser.error) == (True, True, None)


def test_bytes_behind_an_answer_without_a_body() -> None:
    """They are no body either."""
    parser, head = parse(b"HTTP/1.1 204 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    assert parser.ended
    assert (parser.feed(head.rest), parser.surplus) == (b"", True)


@pytest.mark.parametrize("body", [b"", b"x", b"hello world"])
def test_length_cut_anywhere(body: bytes) -> None:
    """A body of a stated length ends with its last byte, and what follows is not part of it."""
    assert_body([f"Content-Length: {len(body)}"], body + b"HTTP/1.1", body)


@pytest.mark.parametrize(
    ("lines", "wire", "body"),
    [
        (["Content-Length: 5, 5"], b"hello", b"hello"),
        (["Content-Length: 5", "X: 1", "content-length: 5"], b"hello", b"hello"),
        (["Content-Length: 005 "], b"hello", b"hello"),
        (["Content-Length:\t5\t"], b"hello", b"hello"),
        (["Transfer-Encoding:\t chunked  "], b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (["Transfer-Encoding: Chunked"], b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (["Transfer-Encoding:", " chunked"], b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
        ([CHUNKED, "Content-Length: 5"], b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (["Content-Length: 5", CHUNKED], b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
    ],
)
def test_which_framing_counts(lines: list[str], wire: bytes, body: bytes) -> None:
    """A length that is stated twice alike counts once; chunks go before a length (RFC 9112, section 6.3)."""
    assert_body(lines, wire, body)
    assert parse(write_head(*lines))[1].keeps


def test_length_cut_short() -> None:
    """A connection that closes one byte early has broken the body."""
    parser = start("Content-Length: 5")
    assert parser.feed(b"hell") == b"hell"
    assert not parser.ended
    with pytest.raises(StreamBrokenError):
        parser.feed_eof()


def test_until_close() -> None:
    """Without length or chunks, all is body until the connection closes, which is the end."""
    for status in ("HTTP/1.1 200 OK", "HTTP/1.0 200 OK"):
        parser = start(status=status)
        assert feed_all(parser, [b"a", b"", b"b", b"HTTP/1.1 200 OK\r\n\r\n"]) == b"abHTTP/1.1 200 OK\r\n\r\n"
        assert not parser.ended
        parser.feed_eof()
        assert parser.ended


# Compressed bodies

BODY = 'data: {"a": "Grüße"}\n\n'.encode() * 3
PACKED = [
    pytest.param("gzip", gzip.compress(BODY), id="gzip"),
    pytest.param("x-gzip", gzip.compress(BODY), id="x-gzip"),
    pytest.param("deflate", zlib.compress(BODY), id="deflate"),
]


@pytest.mark.parametrize(("encoding", "packed"), PACKED)
def test_compressed_body_cut_anywhere(encoding: str, packed: bytes) -> None:
    """gzip and deflate that nobody asked for are unpacked, wherever the reads fall."""
    assert_body([f"Content-Encoding: {encoding}", f"Content-Length: {len(packed)}"], packed, BODY)


@pytest.mark.parametrize(("encoding", "packed"), PACKED)
def test_compressed_and_chunked(encoding: str, packed: bytes) -> None:
    """The two layers work together."""
    wire = b"%x\r\n%b\r\n" % (10, packed[:10]) + b"%x\r\n%b\r\n" % (len(packed) - 10, packed[10:])
    assert_body([f"Content-Encoding: {encoding}", CHUNKED], wire + b"0\r\n\r\n", BODY)


def test_flushed_event_is_unpacked_at_once() -> None:
    """A compressor that flushes after each event has its events given out one by one."""
    packer = zlib.compressobj(wbits=31)
    parser = start("Content-Encoding: gzip")
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        assert parser.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event


def test_gzip_of_several_members() -> None:
    """RFC 1952, section 2.2: a gzip body is a series of members, all of which are data."""
    packed = gzip.compress(b"data: 1\n\n") + gzip.compress(b"data: 2\n\n")
    lines = ["Content-Encoding: gzip", f"Content-Length: {len(packed)}"]
    assert_body(lines, packed, b"data: 1\n\ndata: 2\n\n")


def test_compressed_bomb() -> None:
    """A few packed bytes that become millions come out in steps, each of bounded size and linear in it."""
    parser = start("Content-Encoding: gzip", CHUNKED)
    bomb = gzip.compress(b"x" * 10_000_000)
    pieces = [parser.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (len(bomb), bomb))]
    while parser.is_packed:
        assert not parser.ended
        pieces.append(parser.unpack())
    assert parser.ended
    assert sum(map(len, pieces)) == 10_000_000
    assert max(map(len, pieces)) == UNPACKED_BYTES
    assert len(pieces) <= 10_000_000 // UNPACKED_BYTES + 2


@pytest.mark.parametrize("size", [UNPACKED_BYTES - 1, UNPACKED_BYTES, UNPACKED_BYTES + 1, 3 * UNPACKED_BYTES])
def test_a_step_that_ends_with_the_body(size: int) -> None:
    """Nothing is left inside of zlib, and the end is known."""
    packed = gzip.compress(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    parser = start("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
    body = feed_all(parser, [packed])
    assert (len(body), parser.ended, parser.error) == (size, True, None)


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
    _, fault = feed_faulty(start("Content-Encoding: gzip"), [packed])
    assert "damaged" in fault


@pytest.mark.parametrize("line", [CHUNKED, ""])
def test_compressed_body_whose_connection_closes_early(line: str) -> None:
    """The framing below and the packed data must both be complete."""
    parser = start("Content-Encoding: gzip", *([line] if line else []))
    packed = gzip.compress(BODY)[:10]
    parser.feed(b"a\r\n" + packed + b"\r\n" if line else packed)
    assert not parser.ended
    with pytest.raises(StreamBrokenError):
        parser.feed_eof()


def test_compressed_body_that_is_cut_off_inside_its_framing() -> None:
    """The bytes that could be unpacked come out; the answer does not count as complete."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(BODY) + packer.flush(zlib.Z_SYNC_FLUSH)
    parser = start("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
    body, fault = feed_faulty(parser, [packed])
    assert (body, "cut off" in fault, parser.ended) == (BODY, True, False)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip"])
def test_unknown_content_coding(encoding: str) -> None:
    """The message names a coding that cannot be unpacked; an error in one is still that error."""
    with pytest.raises(UpstreamProtocolError, match=encoding):
        start(f"Content-Encoding: {encoding}", CHUNKED)
    assert start(f"Content-Encoding: {encoding}", CHUNKED, status="HTTP/1.1 500 X").feed(b"2\r\nhi") == b"hi"
