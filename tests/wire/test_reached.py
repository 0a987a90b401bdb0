"""Whether upstream had a request decides what is sent again and what is booked, and its row says so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from support.ports import black_hole, count_connecting
from support.processes import wait_for
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, answer_chat
from support.stores import KeyedGateway
from support.wire import CHAT

from grokflask.sockets import is_gone
from grokflask.upstream.connections import RESEND_S

Make = Callable[..., KeyedGateway]


def chat(size: int = 5, *, stream: bool = True) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x" * size}], "stream": stream}


def post(gateway: KeyedGateway, key: dict[str, str], body: dict[str, Any], **headers: str) -> Any:
    return requests.post(gateway.url + CHAT, json=body, headers={**key, **headers}, timeout=WAIT_S)


def find_row(gateway: KeyedGateway) -> dict[str, Any]:
    """The newest row, settled."""
    return gateway.wait_for_rows(1)[0]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("ending", ["open", "close", "reset"])
def test_a_refusal_that_comes_while_the_body_is_sent(
    make_keyed: Make, upstream: ScriptedUpstream, ending: str, stream: bool
) -> None:
    """The client gets it at once, and it costs nothing; before, it could cost 5 USD and an hour."""
    done = threading.Event()

    def refuse(exchange: Exchange) -> None:
        exchange.reply({"error": {"message": "Too large.", "code": "too_large"}}, 413)
        if ending == "open":
            assert done.wait(WAIT_S)
        if ending == "reset":
            exchange.reset()
        exchange.close()

    upstream.handler, upstream.early = refuse, True
    gateway = make_keyed()
    reply = post(gateway, gateway.make_key("ann"), chat(8_000_000, stream=stream))
    done.set()
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    row = find_row(gateway)
    assert (row["reached"], row["cost_ticks"], row["estimated"]) == ("no", 0, False)
    assert (row["outcome"], row["status"]) == ("upstream_error", 413)


@pytest.mark.parametrize("size", [1_000_000, 8_000_000])
def test_a_client_that_leaves_while_upstream_reads_nothing(
    make_keyed: Make, upstream: ScriptedUpstream, size: int
) -> None:
    """Nothing is booked, and upstream's connection is reset although it has not read."""
    asked, seen = threading.Event(), threading.Event()

    def stall(exchange: Exchange) -> None:
        asked.set()
        wait_for(lambda: is_gone(exchange.sock), "the reset")
        seen.set()
        exchange.close()

    upstream.handler, upstream.early = stall, True
    gateway = make_keyed()
    key = gateway.make_key("ann")

    def leave() -> None:
        request = requests.Request("POST", gateway.url + CHAT, json=chat(size), headers=key).prepare()
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", *lines, "", ""]).encode()
        with socket.create_connection(("127.0.0.1", gateway.server.port), WAIT_S) as sock:
            assert isinstance(request.body, bytes)
            sock.sendall(head + request.body)
            assert asked.wait(WAIT_S)

    leave()
    assert seen.wait(WAIT_S)
    row = find_row(gateway)
    assert (row["outcome"], row["reached"], row["cost_ticks"]) == ("client_abort", "no", 0)
    assert gateway.show_usage(key)["spent"] == {"day_ticks": 0, "month_ticks": 0}


def test_a_client_that_leaves_while_a_connection_is_made(make_keyed: Make) -> None:
    """The handshake ends with it, and does not go on for the rest of the time that one may take."""
    with black_hole() as port:
        gateway = make_keyed(XAI_API_BASE=f"http://127.0.0.1:{port}/v1", GROKFLASK_CONNECT_TIMEOUT_S="120")
        key, others = gateway.make_key("ann"), count_connecting(port)
        with socket.create_connection(("127.0.0.1", gateway.server.port), WAIT_S) as sock:
            body = b'{"messages":[{"role":"user","content":"hello"}],"stream":true}'
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {key['Authorization']}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            wait_for(lambda: count_connecting(port) > others, "the handshake's beginning")
        wait_for(lambda: count_connecting(port) == others, "the handshake's end")
        row = find_row(gateway)
        assert (row["outcome"], row["reached"], row["cost_ticks"]) == ("client_abort", "no", 0)


def test_what_upstream_has_worked_on_is_not_sent_again(make_keyed: Make, upstream: ScriptedUpstream) -> None:
    """A kept connection that dies after more than a second was not dead before; it is booked, once."""
    gateway = make_keyed()
    key = gateway.make_key("ann")
    assert post(gateway, key, chat()).content.endswith(b"[DONE]\n\n")
    assert (find_row(gateway)["reached"], find_row(gateway)["cost_ticks"]) == ("answered", 8750)

    def work_and_die(exchange: Exchange) -> None:
        threading.Event().wait(RESEND_S + 0.5)
        exchange.close()

    upstream.handler = work_and_die
    reply = post(gateway, key, chat(stream=False))
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_no_answer")
    row = gateway.wait_for_rows(2)[0]
    assert (row["reached"], row["estimated"], row["cost_ticks"] > 0) == ("sent", True, True)
    assert (len(upstream.exchanges), upstream.connections) == (2, 1)


def test_an_idempotency_key_forbids_a_second_run(make_keyed: Make, upstream: ScriptedUpstream) -> None:
    """However soon a kept connection closes, upstream has had all of the request."""
    gateway = make_keyed()
    key = gateway.make_key("ann")
    post(gateway, key, chat())
    upstream.handler = Exchange.close
    reply = post(gateway, key, chat(stream=False), **{"Idempotency-Key": "one"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_no_answer")
    assert gateway.wait_for_rows(2)[0]["reached"] == "sent"
    assert len(upstream.exchanges) == 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["redirect", "page"])
def test_what_is_no_answer_of_the_api_costs_nothing(
    make_keyed: Make, upstream: ScriptedUpstream, kind: str, stream: bool
) -> None:
    """A redirect, or a page of HTML that says 200: the client is told that it cannot be read."""

    def answer(exchange: Exchange) -> None:
        if kind == "redirect":
            exchange.reply(b"", 302, "Location: https://elsewhere.example/")
        else:
            exchange.reply(b"<html>Sign in</html>", 200, "Content-Type: text/html; charset=utf-8")

    upstream.handler = answer
    gateway = make_keyed()
    reply = post(gateway, gateway.make_key("ann"), chat(stream=stream))
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_protocol_error")
    row = find_row(gateway)
    assert (row["reached"], row["cost_ticks"], row["estimated"]) == ("answered", 0, False)


def test_an_open_row_has_no_such_word_yet(make_keyed: Make, upstream: ScriptedUpstream) -> None:
    """It is known when the exchange is over."""
    go = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert go.wait(WAIT_S)
        answer_chat(exchange)

    upstream.handler = answer
    gateway = make_keyed()
    key = gateway.make_key("ann")
    thread = threading.Thread(target=post, args=(gateway, key, chat()))
    thread.start()
    wait_for(lambda: [row["reached"] for row in gateway.find_rows()] == [None], "the open row")
    go.set()
    thread.join(WAIT_S)
    assert (find_row(gateway)["reached"], find_row(gateway)["total_tokens"]) == (
        "answered",
        USAGE["total_tokens"],
    )
