"""Strangers at the door of real gunicorn: guesses, forged addresses, foreign pages, other users."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests
from support.processes import CLIENT_KEY, GatewayServer, wait_for
from support.scripted import WAIT_S, ScriptedUpstream, answer_chat
from support.stores import ADMIN, KeyedGateway
from support.wire import CHAT, connect, read_until

from grokflask.web.attempts import LIMITS

BODY = b'{"messages":[{"role":"user","content":"hello"}]}'


def get(url: str, token: str, **headers: str) -> requests.Response:
    return requests.get(url, headers={"Authorization": f"Bearer {token}", **headers}, timeout=WAIT_S)


def send(gateway: GatewayServer, *headers: str, target: str = CHAT, body: bytes = BODY) -> int:
    """The status of a POST with exactly these headers."""
    lines = [f"POST {target} HTTP/1.1", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    with connect(gateway) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(read_until(sock, b"\r\n").split()[1])


def test_nobody_locks_the_operator_out(keyed: KeyedGateway) -> None:
    """Wrong tokens of a stale scraper and of a guesser at the same address; the right one always passes."""
    api, metrics = f"{keyed.url}/admin/api/keys", f"{keyed.url}/metrics"
    most = LIMITS["admin token"][0].amount
    for url in (metrics, api):
        replies = [get(url, f"wrong-token-{number:016}") for number in range(3 * most)]
        statuses = [reply.status_code for reply in replies]
        # A little more where a window of a quarter of an hour ends just now.
        assert set(statuses) == {401, 429}
        assert most <= statuses.count(401) <= 2 * most
        assert 1 <= int(replies[-1].headers["Retry-After"]) <= 30 * 60
        for each in (api, metrics):
            assert requests.get(each, headers=ADMIN, timeout=WAIT_S).status_code == 200


def test_guesses_of_keys(keyed: KeyedGateway, upstream: ScriptedUpstream) -> None:
    """Of 600 from one address a generous number gets a 401, the rest a 429; right keys pass, used or new."""
    upstream.handler = answer_chat
    used, unused = keyed.make_key("used"), keyed.make_key("unused")

    def ask(key: dict[str, str]) -> int:
        headers = {**key, "Content-Type": "application/json"}
        return requests.post(f"{keyed.url}{CHAT}", data=BODY, headers=headers, timeout=WAIT_S).status_code

    assert ask(used) == 200
    began = time.monotonic()
    statuses = [get(f"{keyed.url}/v1/usage", f"gf-{number}").status_code for number in range(600)]
    minutes = (time.monotonic() - began) / 60
    most = LIMITS["API key"][0].amount
    assert set(statuses) == {401, 429}
    assert most <= statuses.count(401) <= (2 + minutes) * most
    assert [ask(used), ask(unused)] == [200, 200]
    new = keyed.make_key("new")
    wait_for(lambda: ask(new) == 200, "the new key, of which a worker learns within a second")


@pytest.mark.parametrize(
    "entries",
    [
        ["203.0.113.9:4711", "203.0.113.9:4712", "203.0.113.9"],
        ["[2001:db8::1]:4711", "2001:db8::ffff", "2001:0DB8::2"],
        ['"x1, 198.51.100.7', "198.51.100.7", '"x2, 198.51.100.7'],
    ],
)
def test_one_caller_is_one(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream, entries: list[str]
) -> None:
    """Behind a proxy that appends, by whatever port, address of a /64, or text of the client's before it."""
    upstream.handler = answer_chat
    gateway = make_gateway(
        GROKFLASK_AUTH="open", GROKFLASK_KEYS="", GROKFLASK_TRUSTED_PROXIES="1", GROKFLASK_RATE_LIMIT="2/day"
    )
    head = ("Host: localhost", "Content-Type: application/json")
    assert [send(gateway, *head, f"X-Forwarded-For: {entry}") for entry in entries] == [200, 200, 429]


def test_foreign_pages(make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream) -> None:
    """An open gateway serves programs of this machine and its own pages, and no other page."""
    upstream.handler = answer_chat
    gateway = make_gateway(GROKFLASK_AUTH="open", GROKFLASK_KEYS="")
    own, json, form = (
        f"Host: localhost:{gateway.port}",
        "Content-Type: application/json",
        "Content-Type: text/plain",
    )
    origin = f"Origin: http://localhost:{gateway.port}"
    assert send(gateway, own, json) == 200
    assert send(gateway, own, json, origin, "Sec-Fetch-Site: same-origin") == 200
    before = len(upstream.exchanges)
    for host in (
        f"evil.example:{gateway.port}",
        "evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
    ):
        assert send(gateway, f"Host: {host}", json) == 403
    cancel = "/v1/batches/b-1/cancel"
    for headers in (
        ["Origin: https://evil.example"],
        ["Origin: null"],
        [origin, "Sec-Fetch-Site: cross-site"],
    ):
        assert send(gateway, own, form, *headers) == 403
        assert send(gateway, own, *headers, target=cancel, body=b"") == 403
    assert len(upstream.exchanges) == before
    # curl as people type it, and a form of curl's.
    assert requests.post(f"{gateway.url}{CHAT}", data=BODY, headers={"Content-Type": "application/json"},
                         timeout=WAIT_S).status_code == 200  # fmt: skip
    upstream.handler = lambda exchange: exchange.reply({"id": "f-1", "object": "file"})
    files = {"file": ("a.txt", b"hello")}
    reply = requests.post(f"{gateway.url}/v1/files", data={"purpose": "x"}, files=files, timeout=WAIT_S)
    assert reply.status_code != 403


def find_modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o777:o}" for path in [folder, *folder.iterdir()]}


@pytest.mark.parametrize("is_old", [False, True])
def test_other_users_of_the_machine(
    make_gateway: Callable[..., GatewayServer], upstream: ScriptedUpstream, tmp_path: Path, is_old: bool
) -> None:
    """They read neither the database nor its log, whatever the umask is (gunicorn's is 0) and was."""
    upstream.handler = answer_chat
    path = tmp_path / "deep" / "var" / "grokflask.db"
    if is_old:
        path.parent.mkdir(parents=True, mode=0o755)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE other (id)")
            connection.commit()
            for name in os.listdir(path.parent):
                (path.parent / name).chmod(0o666)
            gateway = make_gateway(DATABASE_URL=f"sqlite:///{path}")
            ask_once(gateway)
    else:
        gateway = make_gateway(DATABASE_URL=f"sqlite:///{path}")
        ask_once(gateway)
    files = dict.fromkeys(("grokflask.db", "grokflask.db-wal", "grokflask.db-shm"), "600")
    wanted = {**files, "var": "700"}
    wait_for(lambda: find_modes(path.parent) == wanted, f"{wanted} when the row is written")
    if not is_old:
        assert path.parents[1].stat().st_mode & 0o777 == 0o700
    for folder in tmp_path.glob("grokflask-metrics-*"):
        assert folder.stat().st_mode & 0o777 == 0o700


def ask_once(gateway: GatewayServer) -> None:
    json = "Content-Type: application/json"
    assert send(gateway, "Host: x", json, f"Authorization: Bearer {CLIENT_KEY}") == 200
    gateway.wait_for_line("msg=exchange")
