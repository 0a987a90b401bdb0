"""The head of an answer: complete or not, what its body is, and whether the connection can be used again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.errors import UpstreamProtocolError
from grokflask.upstream.framing import ChunkedFraming, InflateFraming, LengthFraming, UntilCloseFraming
from grokflask.upstream.head import MAX_HEAD_BYTES, AnswerHead, parse_head

OK = b"HTTP/1.1 200 OK\r\n"


def read(*lines: str, status: str = "HTTP/1.1 200 OK") -> AnswerHead:
    """The head with these lines."""
    parsed = parse_head("\r\n".join([status, *lines, "", ""]).encode("latin-1"))
    assert parsed is not None
    return parsed[0]


def test_the_bytes_behind_it_are_the_bodys() -> None:
    """They are given back, whatever they are."""
    parsed = parse_head(OK + b"Content-Length: 5\r\n\r\nhe\x00\r\n\r\n")
    assert parsed is not None
    head, rest = parsed
    assert (head.status, rest) == (200, b"he\x00\r\n\r\n")


@given(st.integers(0, 200))
def test_a_part_of_it_is_not_enough(at: int) -> None:
    """Cut anywhere before its end it is not complete, and complete at once with its last byte."""
    head = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX: \xe4\r\n\r\n"
    parsed = parse_head(head[: min(at, len(head))])
    assert (parsed is None) == (at < len(head))


@pytest.mark.parametrize(
    ("lines", "framing"),
    [
        (["Content-Length: 0"], LengthFraming),
        (["Content-Length: 5, 5"], LengthFraming),
        (["Content-Length: 5", "content-length: 5"], LengthFraming),
        (["Transfer-Encoding: Chunked"], ChunkedFraming),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], ChunkedFraming),  # RFC 9112: chunked wins
        (["Content-Encoding: gzip", "Content-Length: 5"], InflateFraming),
        ([], UntilCloseFraming),
    ],
)
def test_how_the_body_is_framed(lines: list[str], framing: type) -> None:
    """By RFC 9112, section 6.3."""
    assert type(read(*lines).framing) is framing


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    """They have none, whatever length they state."""
    head = read("Content-Length: 5", status=f"HTTP/1.1 {status} X")
    assert head.framing.ended
    assert head.keeps


@pytest.mark.parametrize(
    ("lines", "status", "keeps"),
    [
        (["Content-Length: 5"], "HTTP/1.1 200 OK", True),
        (["Transfer-Encoding: chunked"], "HTTP/1.1 200 OK", True),
        (["Content-Length: 5", "Connection: Close"], "HTTP/1.1 200 OK", False),
        (["Content-Length: 5"], "HTTP/1.0 200 OK", False),
        (["Content-Length: 5", "Connection: keep-alive"], "HTTP/1.0 200 OK", True),
        ([], "HTTP/1.1 200 OK", False),
    ],
)
def test_which_connections_are_kept(lines: list[str], status: str, keeps: bool) -> None:
    """Those whose body has an end of its own, unless one side has said otherwise."""
    assert read(*lines, status=status).keeps is keeps


def test_interim_answers_are_skipped() -> None:
    """100 and 103 come before the answer; while only they have come there is none."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert parse_head(interim) is None
    parsed = parse_head(interim + b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    assert parsed is not None
    assert (parsed[0].status, "link" in parsed[0].headers) == (201, False)


def test_headers_that_come_twice_and_over_two_lines() -> None:
    """Values of one name are joined; a line that begins with white space goes on with the one before."""
    head = read("X-A: 1", "x-a: 2", "X-B: long", "  value", "Content-Length: 0")
    assert (head.headers["x-a"], head.headers["x-b"]) == ("1, 2", "long value")


@pytest.mark.parametrize("odd", [b"Retry-After: 1\x01", b"X-(A): 1", b"X-A : 1", b": 1", b"\xe4: 1"])
def test_an_odd_header_spoils_itself_only(odd: bytes) -> None:
    """It is left out; the others and the bytes of the body stay as they are."""
    parsed = parse_head(OK + odd + b"\r\nX-B: 2\r\nContent-Length: 2\r\n\r\n\x01\x02")
    assert parsed is not None
    head, rest = parsed
    assert (head.headers, rest) == ({"x-b": "2", "content-length": "2"}, b"\x01\x02")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Content-Length : 5\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\x01\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Content-Encoding: br\r\n\r\n",
        OK + b"X: " + b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    """An error of upstream's, not a guess."""
    with pytest.raises(UpstreamProtocolError):
        parse_head(data)
