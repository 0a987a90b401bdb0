"""Heads that try to change what the app sees of the server, over real sockets and through real gunicorn."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import GUNICORN, GatewayServer, Server
from support.wire import connect, read_all

FORGED = [
    *("SCRIPT_NAME: /health", "SCRIPT_NAME: x", "Script-Name: /v1", "script_name: /v1", "Script_Name:"),
    *("PATH_INFO: /admin", "Path-Info: /admin", "PATH-INFO: /admin"),
    *("REMOTE_USER: admin", "REMOTE-USER: admin", "REMOTE_ADDR: 10.9.8.7", "REMOTE-ADDR: 10.9.8.7"),
    *("REMOTE_PORT: 7", "SERVER_NAME: evil", "Server-Port: 1", "REQUEST_METHOD: DELETE", "Query-String: a=b"),
    *("X-Forwarded-Proto: https", "X-Forwarded-Protocol: ssl", "X-Forwarded-Ssl: on"),
    "X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off",
    *("X-Forwarded-For: 10.9.8.7", "X-Forwarded-Host: evil", "X-Forwarded-Prefix: /evil"),
    *("Forwarded: for=10.9.8.7;proto=https", "X_Forwarded_For: 10.9.8.7", "wsgi.url_scheme: https"),
    *("HTTP_AUTHORIZATION: Bearer x", "Content_Length: 5", "Content_Type: a/b", "Transfer_Encoding: chunked"),
    *(
        "Proxy: http://evil",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ),
]


@pytest.fixture(scope="module", params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | int]:
    """Where gunicorn listens, with our settings and an app that shows its environment.

    An operator's variables that trust everybody change nothing.
    """
    cwd = tmp_path_factory.mktemp("environ")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
    place: str | int = str(cwd / "sock") if request.param == "unix" else port
    bind = f"unix:{place}" if request.param == "unix" else f"127.0.0.1:{port}"
    root = Path(__file__).resolve().parents[1]
    env = {"FORWARDED_ALLOW_IPS": "*", "PYTHONPATH": f"{root.parent}:{root}"}
    server = Server([*GUNICORN, "-b", bind, "support.environ_wsgi:app"], env, cwd)
    try:
        server.wait_until_ready(lambda: "Listening at" in server.log)
        yield place
    finally:
        server.leave()


def send(address: str | int, request: bytes) -> bytes:
    """What is answered, until the server closes."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
    else:
        sock = socket.create_connection(("127.0.0.1", address))
    with sock:
        sock.settimeout(60)
        sock.sendall(request)
        return read_all(sock)


def get_environ(address: str | int, *lines: str) -> dict[str, str]:
    """The environment of a request with these further lines in its head."""
    head = "\r\n".join(["GET /a%20b?c=d HTTP/1.1", "Host: x", "Connection: close", *lines])
    head, _, body = send(address, head.encode() + b"\r\n\r\n").decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), (lines, head)
    environ: dict[str, str] = json.loads(body)
    environ.pop("REMOTE_PORT", None)  # the kernel's choice
    return environ


@pytest.mark.parametrize("forged", FORGED)
def test_a_header_is_a_header(address: str | int, forged: str) -> None:
    """It changes nothing of the environment but HTTP_*, and is never an error."""
    plain, changed = get_environ(address), get_environ(address, forged)
    outside = [
        {name: value for name, value in environ.items() if not name.startswith("HTTP_")}
        for environ in (plain, changed)
    ]
    assert outside[0] == outside[1]
    assert (plain["SCRIPT_NAME"], plain["PATH_INFO"], plain["wsgi.url_scheme"]) == ("", "/a b", "http")
    assert "HTTP_AUTHORIZATION" not in changed
    assert "HTTP_X_FORWARDED_FOR" not in changed or forged.startswith("X-Forwarded-For:")


POST = "POST / HTTP/1.1\r\nHost: x\r\n"
GET = "GET / HTTP/1.1\r\nHost: x\r\n"

REFUSED = {
    "two lengths": POST + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": POST + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + "Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": POST + "Content-Length: +5\r\n\r\nhello",
    "a length of another script": POST + "Content-Length: \xb2\r\n\r\nhello",
    "a length of 5,000 digits": POST + f"Content-Length: {'9' * 5000}\r\n\r\nhello",
    "length and chunks": POST + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then more": POST + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + "Content-Length : 5\r\n\r\nhello",
    "a folded line": POST + "A: b\r\n Content-Length: 5\r\n\r\nhello",
    "two hosts": GET + "Host: y\r\n\r\n",
    "a zero byte": GET + "A: b\x00\r\n\r\n",
    "an unknown expectation": POST + "Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
    "no method": " / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a path that is none": "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long line": f"GET /{'a' * 10_000} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": GET + f"A: {'a' * 10_000}\r\n\r\n",
    "many headers": GET + "A: b\r\n" * 200 + "\r\n",
    "empty lines": "\r\n" * 10_000,
    "the proxy's protocol": "PROXY TCP4 10.9.8.7 10.9.8.7 1 2\r\n" + GET + "\r\n",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_heads_that_are_refused(gateway: GatewayServer, kind: str) -> None:
    """With an error of the API, then the connection ends; what stands behind is never taken for a request."""
    with connect(gateway) as sock:
        sock.sendall(REFUSED[kind].encode("latin-1") + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        got = read_all(sock)
    assert len(re.findall(rb"HTTP/1\.1 \d", got)) == 1
    head, _, body = got.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (400|417|431|501) ", head), head
    assert b"Connection: close" in head
    assert json.loads(body)["error"]["message"]


def test_an_endless_head(gateway: GatewayServer) -> None:
    """It is refused after 64 KiB, and the client gets to know."""
    with connect(gateway) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: bcdefgh\r\n" * 500_000)
        got = read_all(sock)
    assert got.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "OPTIONS * HTTP/1.1",
            "CONNECT x:443 HTTP/1.1",
            "GET http://evil/admin HTTP/1.1",
            "GET //admin HTTP/1.1",
        ),
        *("GET /%00 HTTP/1.1", "GET /%ff%fe HTTP/1.1", "GET /\xe4?\xf6 HTTP/1.1", "GET /?%zz=%1 HTTP/1.1"),
        *("GET /health#x HTTP/1.1", "GET /../admin HTTP/1.1", "HEAD /health HTTP/1.1", "QUERY / HTTP/1.1"),
        *("GET http:// HTTP/1.1", "GET http://[ HTTP/1.1", "GET /health HTTP/1.0"),
    ],
)
@pytest.mark.parametrize(
    "extra", ["", "SCRIPT_NAME: /v1\r\n", "Host: a b\r\n", "Host: [\r\n", "Host: \xff\r\n"]
)
def test_odd_requests_are_never_our_fault(gateway: GatewayServer, line: str, extra: str) -> None:
    """They get an answer below 500."""
    with connect(gateway) as sock:
        sock.sendall(f"{line}\r\n{extra}Connection: close\r\n\r\n".encode("latin-1"))
        got = read_all(sock)
    assert re.match(rb"HTTP/1\.[01] [234]", got), got[:200]


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO"])
def test_a_path_cannot_be_hidden(gateway: GatewayServer, name: str) -> None:
    """From a proxy in front, which looks at the request's line."""
    with connect(gateway) as sock:
        sock.sendall(
            f"GET /v1/health HTTP/1.1\r\nHost: x\r\n{name}: /v1\r\nConnection: close\r\n\r\n".encode()
        )
        assert read_all(sock).startswith(b"HTTP/1.1 404 ")
