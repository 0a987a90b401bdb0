"""Exchanges over kept connections: which are used again, what a failure means, how names are looked up."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.ports import refuse_port
from support.processes import wait_for
from support.scripted import WAIT_S, ScriptedUpstream

from grokflask.errors import (
    NoAnswerError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from grokflask.shaping.request import UpstreamRequest
from grokflask.upstream.client import UpstreamClient
from grokflask.upstream.connections import Attempt
from grokflask.upstream.stream import UpstreamStream
from grokflask.upstream.transport import JOINED_BYTES

ASK = UpstreamRequest("POST", "/chat/completions", b"{}", {})


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    server = ScriptedUpstream(lambda exchange: exchange.reply({"n": len(exchange.body)}))
    yield server
    server.close()


@pytest.fixture
def client(upstream: ScriptedUpstream) -> Iterator[UpstreamClient]:
    client = make_client(upstream.base_url)
    yield client
    client.close()


def make_client(url: str, pool_size: int = 10, header_timeout_s: float = WAIT_S) -> UpstreamClient:
    return UpstreamClient(
        url, connect_timeout_s=WAIT_S, header_timeout_s=header_timeout_s, pool_size=pool_size
    )


def ask(client: UpstreamClient, request: UpstreamRequest = ASK) -> bytes:
    with client.send(request, "key", Attempt()) as stream:
        return stream.read_what_comes(WAIT_S, 10**7)


def test_a_connection_is_used_again(client: UpstreamClient, upstream: ScriptedUpstream) -> None:
    """One after the other need one connection; side by side each has its own."""
    assert [ask(client) for _ in range(3)] == [b'{"n": 2}'] * 3
    assert upstream.connections == 1
    streams: list[UpstreamStream] = [client.send(ASK, None, Attempt()) for _ in range(2)]
    assert upstream.connections == 2
    for stream in streams:
        stream.read_what_comes(WAIT_S, 10**7)
        stream.close()
    client.close()
    ask(client)
    assert upstream.connections == 3


def test_no_more_connections_are_kept_than_may(upstream: ScriptedUpstream) -> None:
    """Above its size the pool closes what comes back."""
    client = make_client(upstream.base_url, pool_size=1)
    streams = [client.send(ASK, None, Attempt()) for _ in range(3)]
    for stream in streams:
        stream.read_what_comes(WAIT_S, 10**7)
        stream.close()
    again = [client.send(ASK, None, Attempt()) for _ in range(2)]
    assert upstream.connections == 4
    for stream in again:
        stream.close()
    client.close()


def test_an_answer_left_unread_takes_its_connection_along(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """The rest of its body must never be taken for the next answer."""
    upstream.handler = lambda exchange: exchange.reply(b"x" * 200_000)
    client.send(ASK, None, Attempt()).close()
    assert ask(client) == b"x" * 200_000
    assert upstream.connections == 2


def test_bytes_that_nobody_asked_for_spoil_a_kept_connection(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """An answer that comes between two requests is not the next one's."""
    ask(client)
    upstream.exchanges[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    wait_until_readable(client, upstream.base_url)
    assert ask(client) == b'{"n": 2}'
    assert upstream.connections == 2


def test_the_kernel_looks_for_an_upstream_that_vanished(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """While nothing is sent either way."""
    ask(client)
    sock = find_kept(client, upstream.base_url)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def find_kept(client: UpstreamClient, base_url: str) -> socket.socket:
    """The one kept connection's socket."""
    adapter: Any = client._session.get_adapter(base_url)
    sock: socket.socket = adapter._idle[0].sock
    return sock


def wait_until_readable(client: UpstreamClient, base_url: str) -> None:
    """Until something has come on the one kept connection."""
    sock = find_kept(client, base_url)
    sock.settimeout(WAIT_S)
    sock.recv(1, socket.MSG_PEEK)


def test_a_large_body_goes_out_whole(client: UpstreamClient) -> None:
    """In one piece with its head or not."""
    for size in (JOINED_BYTES, JOINED_BYTES + 1, 3_000_000):
        request = UpstreamRequest("POST", "/chat/completions", b"x" * size, {})
        assert ask(client, request) == b'{"n": %d}' % size


def test_a_refusal_that_comes_before_the_body_is_through(upstream: ScriptedUpstream) -> None:
    """Upstream may answer, and hang up, before it has taken all: its answer counts, if it got here."""

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Type: application/json\r\n")
            sock.sendall(b'Content-Length: 14\r\n\r\n{"error":"no"}')
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # as we end it
                while sock.recv(1_000_000):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        client = make_client(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        with pytest.raises(UpstreamError) as caught:
            ask(client, UpstreamRequest("POST", "/x", b"x" * 3_000_000, {}))
        thread.join(WAIT_S)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", NoAnswerError),
        (b"HTTP/1.1 200 OK\r\nContent-Le", NoAnswerError),
        (b"nonsense\r\n\r\n", UpstreamProtocolError),
    ],
)
def test_what_is_no_answer(
    client: UpstreamClient, upstream: ScriptedUpstream, answer: bytes, kind: type[UpstreamError]
) -> None:
    """Each says what it is."""

    def handler(exchange: Any) -> None:
        exchange.send(answer)
        exchange.close()

    upstream.handler = handler
    with pytest.raises(kind):
        ask(client)


def test_silence_where_the_head_should_be(upstream: ScriptedUpstream) -> None:
    """It is waited for as long as was said."""
    upstream.handler = lambda exchange: exchange.wait_until_left() and None
    client = make_client(upstream.base_url, header_timeout_s=0.2)
    with pytest.raises(UpstreamTimeoutError):
        ask(client)
    client.close()


def test_a_name_is_looked_up_once_for_many_connections(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up serves all connections of the next seconds; a failure to connect asks anew."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def note(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return look_up("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    client = make_client(f"http://upstream.example:{upstream.port}/v1")
    streams = [client.send(ASK, None, Attempt()) for _ in range(3)]
    assert asked == ["upstream.example"]
    assert upstream.exchanges[0].headers["host"] == f"upstream.example:{upstream.port}"
    for stream in streams:
        stream.close()

    nobody = make_client(f"http://nobody.example:{refuse_port()}/v1")
    for _ in range(2):
        with pytest.raises(UpstreamConnectError):
            ask(nobody)
    assert asked == ["upstream.example", "nobody.example", "nobody.example"]


def test_a_name_with_several_addresses(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is tried when the first takes no connection."""
    dead = refuse_port()
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (dead, upstream.port)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    client = make_client("http://upstream.example/v1")
    assert ask(client) == b'{"n": 2}'
    client.close()


def test_no_header_can_become_two(client: UpstreamClient, upstream: ScriptedUpstream) -> None:
    """What would not stay one line, or in its path, never goes out."""
    for request in (
        UpstreamRequest("POST", "/x", b"{}", {"x-grok-conv-id": "a\r\nX-Forged: b"}),
        UpstreamRequest("GET", "/models/a HTTP/1.1\r\nX-Forged: b\r\n", None, {}),
        UpstreamRequest("GET", "/models/a b", None, {}),
    ):
        with pytest.raises(ValueError, match="one line"):
            ask(client, request)
    assert upstream.exchanges == []


def test_a_cancelled_attempt_sends_nothing(client: UpstreamClient, upstream: ScriptedUpstream) -> None:
    """Neither over a new connection nor over a kept one."""
    ask(client)
    attempt = Attempt()
    attempt.cancel()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whoever has cancelled does not ask
        client.send(ASK, None, attempt)
    assert len(upstream.exchanges) == 1
    wait_for(lambda: ask(client) == b'{"n": 2}', "the next one")


@pytest.mark.parametrize(
    ("name", "is_trusted", "works"),
    [("127.0.0.1", True, True), ("other.example", True, False), ("127.0.0.1", False, False)],
)
def test_certificates_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_trusted: bool, works: bool
) -> None:
    """A connection needs an authority that is trusted, and the server's own name."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    server = ScriptedUpstream(lambda exchange: exchange.reply({"n": 0}), tls=context)
    client = make_client(f"https://127.0.0.1:{server.port}/v1")
    if works:
        assert ask(client) == b'{"n": 0}'
    else:
        with pytest.raises(UpstreamConnectError) as caught:
            ask(client)
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.detail)
        assert server.exchanges == []
    client.close()
    server.close()
