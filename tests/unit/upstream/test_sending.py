"""How far a request came: upstream that answers, stalls or leaves while it is being sent."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from support.ports import black_hole, count_connecting
from support.processes import wait_for
from support.scripted import WAIT_S, Exchange, ScriptedUpstream

from grokflask.errors import NoAnswerError, UpstreamStatusError, UpstreamTimeoutError
from grokflask.shaping.request import UpstreamRequest
from grokflask.sockets import is_gone
from grokflask.upstream import connections
from grokflask.upstream.client import UpstreamClient
from grokflask.upstream.connections import RESEND_S, Attempt
from grokflask.upstream.transport import JOINED_BYTES

SMALL = UpstreamRequest("POST", "/chat/completions", b"{}", {})
LARGE = UpstreamRequest("POST", "/chat/completions", b"x" * 8_000_000, {})
FITTING = UpstreamRequest("POST", "/chat/completions", b"x" * 1_000_000, {})
"""The kernel has room for all of it, though upstream reads nothing."""


@pytest.fixture(params=["plain", "tls"])
def upstream(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ScriptedUpstream]:
    """Its handlers are called before the body is read."""
    context = None
    if request.param == "tls":
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = ScriptedUpstream(tls=context)
    server.early = True
    yield server
    server.close()


@pytest.fixture
def client(upstream: ScriptedUpstream) -> Iterator[UpstreamClient]:
    client = make_client(upstream.base_url)
    yield client
    client.close()


def make_client(url: str, header_timeout_s: float = WAIT_S) -> UpstreamClient:
    return UpstreamClient(url, connect_timeout_s=600, header_timeout_s=header_timeout_s, pool_size=10)


def ask(client: UpstreamClient, request: UpstreamRequest, attempt: Attempt) -> bytes:
    with client.send(request, None, attempt) as stream:
        return stream.read_what_comes(WAIT_S, 10**7)


def answer(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.reply({"n": len(exchange.body)})


@pytest.mark.parametrize("ending", ["open", "close", "reset"])
def test_an_answer_that_comes_first(client: UpstreamClient, upstream: ScriptedUpstream, ending: str) -> None:
    """It is read at once, whatever upstream does afterwards, and its connection is not used again."""
    done = threading.Event()

    def refuse(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        exchange.reply({"error": {"message": "Too large."}}, 413)
        if ending == "open":
            assert done.wait(WAIT_S)
            wait_for(lambda: is_gone(exchange.sock), "the end of the connection")
        if ending == "reset":
            exchange.reset()
        exchange.close()

    upstream.handler = refuse
    for number in range(2):
        attempt = Attempt()
        with pytest.raises(UpstreamStatusError) as caught:
            ask(client, LARGE, attempt)
        assert (caught.value.status, caught.value.message) == (413, "Too large.")
        assert attempt.reached == "no"
        assert upstream.connections == number + 1
        done.set()


def test_an_interim_answer_does_not_end_the_sending(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """Nor does a head that is not complete. What was sent is all of the request."""

    def hint(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        exchange.read_body()
        exchange.send(b"Content-Type: application/json\r\nContent-Length: 7\r\n\r\n%d" % len(exchange.body))

    upstream.handler = hint
    for _ in range(2):
        attempt = Attempt()
        assert ask(client, LARGE, attempt) == b"8000000"
        assert attempt.reached == "answered"
    assert upstream.connections == 1


@pytest.mark.parametrize("request_", [LARGE, FITTING], ids=["large", "fitting"])
def test_a_call_cancelled_while_upstream_reads_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream, request_: UpstreamRequest
) -> None:
    """Upstream did not have the request, and its connection is reset although much waits to be sent."""
    asked, seen = threading.Event(), threading.Event()

    def stall(exchange: Exchange) -> None:
        asked.set()
        wait_for(lambda: is_gone(exchange.sock), "the reset")
        seen.set()
        exchange.close()

    upstream.handler = stall
    call = client.call(request_, None)
    assert asked.wait(WAIT_S)
    call.cancel(UpstreamTimeoutError())
    assert call.reached == "no"
    assert seen.wait(WAIT_S)


def test_an_upstream_that_reads_nothing(upstream: ScriptedUpstream) -> None:
    """It is waited for as long as was said, and did not have the request."""
    upstream.handler = lambda exchange: wait_for(lambda: is_gone(exchange.sock), "the reset")
    client = make_client(upstream.base_url, header_timeout_s=0.3)
    attempt = Attempt()
    with pytest.raises(UpstreamTimeoutError):
        ask(client, FITTING, attempt)
    assert attempt.reached == "no"
    client.close()


def test_an_upstream_that_leaves_while_it_is_sent_to(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """A new connection: upstream did not have all, but may have acted on a part, so it is not sent again."""
    upstream.handler = Exchange.reset
    attempt = Attempt()
    with pytest.raises(NoAnswerError):
        ask(client, LARGE, attempt)
    assert attempt.reached == "no"
    assert len(upstream.exchanges) == 1


def test_a_large_body_goes_out_whole(client: UpstreamClient, upstream: ScriptedUpstream) -> None:
    """Also over a kept connection, and in pieces."""
    upstream.handler = answer
    for size in (JOINED_BYTES, JOINED_BYTES + 1, 3_000_000, 2):
        attempt = Attempt()
        request = UpstreamRequest("POST", "/chat/completions", b"x" * size, {})
        assert ask(client, request, attempt) == b'{"n": %d}' % size
        assert attempt.reached == "answered"
    assert upstream.connections == 1


def die(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.close()


def work_and_die(exchange: Exchange) -> None:
    exchange.read_body()
    threading.Event().wait(RESEND_S + 0.3)
    exchange.close()


def hint_and_die(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    exchange.close()


@pytest.mark.parametrize(
    ("request_", "ending", "once", "is_resent"),
    [
        pytest.param(SMALL, die, False, True, id="closed-at-once"),
        pytest.param(SMALL, die, True, False, id="closed-at-once-with-a-key"),
        pytest.param(LARGE, Exchange.reset, False, True, id="while-sending"),
        pytest.param(LARGE, Exchange.reset, True, True, id="while-sending-with-a-key"),
        pytest.param(SMALL, hint_and_die, False, False, id="after-a-sign-of-life"),
        pytest.param(SMALL, work_and_die, False, False, id="after-work"),
    ],
)
def test_when_a_request_is_sent_again(
    client: UpstreamClient,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    request_: UpstreamRequest,
    ending: Callable[[Exchange], None],
    once: bool,
    is_resent: bool,
) -> None:
    """Only over a kept connection, and only if upstream cannot have worked on it."""
    if ending is not work_and_die:
        monkeypatch.setattr(connections, "RESEND_S", WAIT_S)  # for a busy machine

    def fail_once(exchange: Exchange) -> None:
        upstream.handler = answer
        ending(exchange)

    upstream.handler = answer
    ask(client, SMALL, Attempt())
    upstream.handler = fail_once
    attempt = Attempt(once=once)
    if is_resent:
        assert ask(client, request_, attempt) == b'{"n": %d}' % len(request_.body or b"")
        assert attempt.reached == "answered"
    else:
        with pytest.raises(NoAnswerError):
            ask(client, request_, attempt)
        assert attempt.reached == ("answered" if ending is hint_and_die else "sent")
    assert len(upstream.exchanges) == 2 + is_resent


def test_a_new_connection_that_dies_is_no_reason_to_send_again(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """Upstream may have worked on the request however soon it closes."""
    upstream.handler = die
    attempt = Attempt()
    with pytest.raises(NoAnswerError):
        ask(client, SMALL, attempt)
    assert (attempt.reached, len(upstream.exchanges)) == ("sent", 1)


def test_a_call_cancelled_while_it_connects() -> None:
    """TCP's handshake ends with it; it would go on for as long as a connection may take."""
    with black_hole() as port:
        client = make_client(f"http://127.0.0.1:{port}/v1")
        others = count_connecting(port)
        call = client.call(SMALL, None)
        wait_for(lambda: count_connecting(port) > others, "the handshake's beginning")
        call.cancel(UpstreamTimeoutError())
        wait_for(lambda: count_connecting(port) == others, "the handshake's end")
        assert call.reached == "no"


def test_a_call_cancelled_while_its_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over at once. The look-up cannot be ended, but nothing follows it."""
    asked, go, found = threading.Event(), threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        asked.set()
        assert go.wait(WAIT_S)
        found.set()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname())]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        call = make_client("http://upstream.example/v1").call(SMALL, None)
        assert asked.wait(WAIT_S)
        call.cancel(UpstreamTimeoutError())
        with pytest.raises(UpstreamTimeoutError):
            call.wait(0)
        assert call.reached == "no"
        go.set()
        assert found.wait(WAIT_S)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_call_cancelled_before_it_connects() -> None:
    """Not even the handshake begins."""
    with black_hole() as port:
        attempt = Attempt()
        attempt.cancel()
        with pytest.raises(Exception):  # noqa: B017, PT011 - whoever has cancelled does not ask
            make_client(f"http://127.0.0.1:{port}/v1").send(SMALL, None, attempt)
