"""What the server's code replaces in gunicorn and uses of gevent is still there, and still used."""

from __future__ import annotations

import inspect
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders, ObsoleteFolding
from gunicorn.workers.base_async import AsyncWorker

from grokflask.runtime import REQUEST_ID
from grokflask.server import private
from grokflask.server.bodies import Body, ChunkedBody, LengthBody
from grokflask.server.response import Response


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.usefixtures("installed")
def test_gunicorn_makes_our_response(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    cfg = Config()
    request = next(get_parser(cfg, ours, ("127.0.0.1", 1)))
    response, _ = wsgi.create(request, ours, ("127.0.0.1", 1), ("127.0.0.1", 2), cfg)
    assert type(response) is Response, "gunicorn.http.wsgi.create no longer makes gunicorn.http.wsgi.Response"


@pytest.mark.parametrize(
    "name", ["default_headers", "send_headers", "_emit_body", "sendfile", "write", "close"]
)
def test_the_response_has_the_methods_that_ours_replaces(name: str) -> None:
    assert callable(getattr(wsgi.Response, name, None)), f"gunicorn's Response no longer has {name}()"


def test_the_response_writes_as_ours_expects() -> None:
    """Heads by `send_headers`, bodies by `_emit_body`."""
    names = wsgi.Response.write.__code__.co_names
    assert {"send_headers", "_emit_body"} <= set(names), "gunicorn's Response.write calls other methods now"


@pytest.mark.parametrize(
    ("framing", "kind"), [("Content-Length: 5", LengthBody), ("Transfer-Encoding: chunked", ChunkedBody)]
)
def test_requests_take_our_bodies(
    pair: tuple[socket.socket, socket.socket], framing: str, kind: type[Body]
) -> None:
    """They say what kind they have, hand over what came behind their heads, and give the body to the app."""
    ours, theirs = pair
    sent = b"hello" if kind is LengthBody else b"5\r\nhello\r\n0\r\n\r\n"
    head = f"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{framing}\r\n\r\n".encode()
    theirs.send(head + sent[:2])
    cfg = Config()
    parser = get_parser(cfg, ours, ("127.0.0.1", 1))
    body = private.replace_body(request := next(parser))
    assert type(body) is kind, "gunicorn's requests no longer say what kind of body they have"
    _, environ = wsgi.create(request, ours, ("127.0.0.1", 1), ("127.0.0.1", 2), cfg)
    assert environ["wsgi.input"] is body, "gunicorn no longer takes wsgi.input from request.body"
    theirs.send(sent[2:] + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert body.read() == b"hello", "gunicorn's unreader has lost its bytes"
    assert theirs.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n", "gunicorn sends `100 Continue` by itself"
    assert next(parser).path == "/next", "gunicorn's parser does not find the next request"


@pytest.mark.usefixtures("installed")
def test_heads_have_a_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each of its own, however many requests a connection has."""
    ours, theirs = pair
    parser = get_parser(Config(), ours, ("127.0.0.1", 1))
    for _ in range(3):
        head = b"".join(b"A%d: %s\r\n" % (number, b"x" * 5000) for number in range(10))
        theirs.send(b"GET / HTTP/1.1\r\n" + head + b"\r\n")
        request = next(parser)
        assert len(request.headers) == 10
        private.replace_body(request)
    theirs.send(b"GET / HTTP/1.1\r\n" + head * 2)
    with pytest.raises(LimitRequestHeaders, match="65536"):
        next(parser)
        pytest.fail("gunicorn.http.parser.Parser no longer reads by gunicorn.http.parser.SocketUnreader")


def test_folded_lines_are_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n")
    with pytest.raises(ObsoleteFolding):
        private.replace_body(next(get_parser(Config(), ours, ("127.0.0.1", 1))))


def test_requests_are_numbered(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    parser = get_parser(Config(), ours, ("127.0.0.1", 1))
    assert [next(parser).req_number for _ in range(2)] == [1, 2], "gunicorn's requests have no number"


@pytest.mark.usefixtures("installed")
def test_gunicorn_writes_our_errors(
    pair: tuple[socket.socket, socket.socket], make_worker: Callable[..., Any]
) -> None:
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_WR)  # so nothing more is waited for
    make_worker().handle_error(None, ours, ("127.0.0.1", 1), InvalidRequestLine("x"))
    got = theirs.recv(65536)
    assert b'"malformed_request"' in got, "gunicorn's workers no longer answer by gunicorn.util.write_error"


def test_settings_are_the_same_when_fixed() -> None:
    """Every one is an attribute then, and as it was."""
    cfg = Config()
    cfg.set("keepalive", 95)
    before = {name: getattr(cfg, name) for name in cfg.settings}
    private.fix_settings(cfg)
    message = "gunicorn's Config no longer reads settings by __getattr__, so attributes do not replace it"
    assert {name: getattr(cfg, name) for name in cfg.settings} == before, message
    assert vars(cfg)["keepalive"] == 95, message


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("handle", ["self", "listener", "client", "addr"]),
        ("handle_request", ["self", "listener_name", "req", "sock", "addr"]),
    ],
)
def test_the_worker_is_called_as_ever(name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(AsyncWorker, name)).parameters)
    assert found == parameters, f"gunicorn's AsyncWorker.{name} takes other arguments now"


def test_the_loop_makes_watchers(pair: tuple[socket.socket, socket.socket]) -> None:
    hub = gevent.get_hub()
    for watcher in (hub.loop.io(pair[0].fileno(), 1), hub.loop.timer(1.0)):
        watcher.start(hub.switch)
        assert watcher.active, "gevent's loop no longer starts watchers by start(callback)"
        watcher.stop()
        assert not watcher.active, "gevent's loop no longer stops watchers by stop()"


def test_the_watchdog_knows_the_loop_and_the_request(
    pair: tuple[socket.socket, socket.socket], make_worker: Callable[..., Any]
) -> None:
    """Of all frames on a stack, one waits in the loop, or one handles a request."""
    ours, theirs = pair
    found: list[str | None] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ[REQUEST_ID] = "r1"
        each = inspect.currentframe()
        while each is not None:
            found.append(private.find_request_id(each))
            each = each.f_back
        start_response("200 OK", [])
        return []

    theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    make_worker(app).handle(ours, ours, ("127.0.0.1", 1))
    message = "gunicorn's AsyncWorker.handle_request no longer has the request's `environ`"
    assert [each for each in found if each] == ["r1"], message
    hub = gevent.get_hub()
    seen: list[bool] = []
    timer = hub.loop.timer(0.0)
    timer.start(lambda: seen.append(private.is_waiting(sys._getframe(1))))
    gevent.sleep(0.01)
    assert seen == [True], "gevent no longer waits in Hub.run"
