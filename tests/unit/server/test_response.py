"""The response over real sockets, which keep each send apart, and beside gunicorn's own."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi

from grokflask.server.response import Response, write_error

Act = Callable[[Any], None]
"""What an app and gunicorn do with a response that has been started."""


def exchange(make: type[Any], act: Act, *, method: str = "GET", version: str = "1.1") -> list[bytes]:
    """What each of the server's sends brings to a client that asks once."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(f"{method} / HTTP/{version}\r\nHost: x\r\n\r\n".encode())
        cfg = Config()
        request = next(get_parser(cfg, ours, ("127.0.0.1", 1)))
        act(make(request, ours, cfg))
        ours.shutdown(socket.SHUT_WR)
        return list(iter(lambda: theirs.recv(65536), b""))


def split(first: bytes) -> tuple[list[str], bytes]:
    """The lines of the head, and what stands behind it."""
    head, _, body = first.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), body


def say(*pieces: bytes, status: str = "200 OK", length: int | None = None) -> Act:
    """Answers with these pieces."""

    def act(response: Any) -> None:
        headers = [("Content-Type", "text/plain; charset=\xe4")]
        headers += [] if length is None else [("Content-Length", str(length))]
        response.start_response(status, headers)
        for piece in pieces:
            response.write(piece)
        response.close()

    return act


def test_the_head_goes_with_the_first_bytes() -> None:
    first, second = exchange(Response, say(b"hello", b" world", length=11))
    lines, body = split(first)
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[-2:] == ["Content-Type: text/plain; charset=\xe4", "Content-Length: 11"]
    assert [body, second] == [b"hello", b" world"]


def test_chunks() -> None:
    """The head is in the send of the first chunk; the last chunk has its own."""
    first, *others = exchange(Response, say(b"hello", b"x" * 20))
    lines, body = split(first)
    assert "Transfer-Encoding: chunked" in lines
    assert [body, *others] == [b"5\r\nhello\r\n", b"14\r\n" + b"x" * 20 + b"\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("pieces", [(), (b"",)])
def test_a_head_alone(pieces: tuple[bytes, ...]) -> None:
    """Without a body it goes at the end, with an empty piece at once; either way one send."""
    (only,) = exchange(Response, say(*pieces, length=0))
    assert only.endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_chunks_without_any() -> None:
    """Nothing was written: head and last chunk in one send."""
    (only,) = exchange(Response, say())
    assert split(only)[1] == b"0\r\n\r\n"


def test_an_empty_piece_sends_the_head_of_a_stream() -> None:
    """Before the first event, so that a client sees that it was accepted."""

    def act(response: Any) -> None:
        response.start_response("200 OK", [])
        response.write(b"")
        assert response.headers_sent

    (only,) = exchange(Response, act)
    assert only.endswith(b"\r\n\r\n")


CASES: list[tuple[Act, dict[str, str]]] = [
    (say(b"hello", b" world", length=11), {}),
    (say(b"hello", b"", b" world"), {}),
    (say(b"hello", b" world"), {"version": "1.0"}),
    (say(b"more than was said", length=4), {}),
    (say(), {}),
    (say(length=0), {}),
    (say(b"dropped", length=7), {"method": "HEAD"}),
    (say(b"dropped"), {"method": "HEAD"}),
    (say(b"dropped", status="204 No Content"), {}),
    (say(status="304 Not Modified"), {}),
]


@pytest.mark.parametrize(("act", "options"), CASES)
def test_it_sends_what_gunicorn_would(act: Act, options: dict[str, str]) -> None:
    """The same bytes in no more sends, whatever the request and the body."""
    ours, gunicorns = (exchange(make, act, **options) for make in (Response, wsgi.Response))
    with_no_date = [re.sub(rb"Date: [^\r]+", b"", b"".join(sends)) for sends in (ours, gunicorns)]
    assert with_no_date[0] == with_no_date[1]
    assert len(ours) <= len(gunicorns)


def test_a_file_is_never_sent_by_the_kernel(tmp_path: Path) -> None:
    """`sendfile` would overtake the head: a file is read and written like any other body."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)

    def act(response: Any) -> None:
        with path.open("rb") as file:
            response.start_response("200 OK", [("Content-Length", "10000")])
            wrapped = wsgi.FileWrapper(file)
            assert response.sendfile(wrapped) is False
            response.write_file(wrapped)
            response.close()

    sends = exchange(Response, act)
    assert split(b"".join(sends))[1] == b"x" * 10_000
    assert split(sends[0])[1] == b"x" * 8192


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("status", "reason", "message", "expected"),
    [
        (400, "Bad Request", "Invalid “line”", ("invalid_request_error", "malformed_request")),
        (431, "Request Header Fields Too Large", "", ("invalid_request_error", "malformed_request")),
        (500, "Internal Server Error", "", ("server_error", "internal_error")),
    ],
)
def test_errors_are_json(
    pair: tuple[socket.socket, socket.socket],
    status: int,
    reason: str,
    message: str,
    expected: tuple[str, str],
) -> None:
    """In the API's form, with the reason where gunicorn has no message."""
    ours, theirs = pair
    write_error(ours, status, reason, message)
    assert ours.gettimeout() is None  # as it was
    ours.close()
    lines, body = split(theirs.recv(65536))
    assert lines[0] == f"HTTP/1.1 {status} {reason}"
    assert set(lines[1:]) == {
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    }
    kind, code = expected
    error = {"message": message or reason, "type": kind, "param": None, "code": code}
    assert json.loads(body) == {"error": error}
