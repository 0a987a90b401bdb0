"""The doctor's judgements, and what it says of settings, upstream and stores, in this process."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from flask.testing import FlaskClient
from support.ports import refuse_port
from support.processes import CLIENT_KEY, UPSTREAM_KEY, RedisServer
from support.scripted import Exchange, ScriptedUpstream
from support.stores import ADMIN_TOKEN

from grokflask.cli.caller import is_safe
from grokflask.cli.doctor.findings import Finding, redact
from grokflask.cli.doctor.place import judge_place
from grokflask.cli.doctor.stores import judge_eviction
from grokflask.cli.doctor.upstream import judge_clock
from grokflask.cli.doctor.url import (
    Passage,
    judge_compression,
    judge_forwarding,
    judge_reach,
    judge_request_id,
    judge_stream,
    name_proxy,
)

MODELS = {"object": "list", "data": [{"id": "grok-4.3", "object": "model"}]}
SENT = [0.0, 300.0, 600.0, 900.0, 1200.0]


def see(client: FlaskClient, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by the names of their checks, the gravest of each."""
    result = client.application.test_cli_runner().invoke(args=["doctor", "--json", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert UPSTREAM_KEY not in result.output
    assert CLIENT_KEY not in result.output
    document = json.loads(result.stdout)
    assert document["healthy"] is (code == 0)
    grave = ["skipped", "ok", "warn", "FAIL"]
    return {
        each["check"]: each
        for each in sorted(document["findings"], key=lambda each: grave.index(each["state"]))
    }


def reply_models(exchange: Exchange) -> None:
    assert exchange.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    exchange.reply(MODELS, 200, f"Date: {formatdate(usegmt=True)}")


def test_all_is_well(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Nothing to do: exit code 0, and each check told."""
    upstream.handler = reply_models
    seen = see(client)
    states = {name: each["state"] for name, each in seen.items()}
    for name in ("open files", "place"):
        assert states.pop(name) in ("ok", "warn")  # this machine's own
    assert states == {
        **dict.fromkeys(("settings", "xAI key", "upstream", "models", "clock", "database", "keys"), "ok"),
        **dict.fromkeys(("workers", "file modes", "secrets"), "ok"),
        "redis": "skipped",
        "url": "skipped",
    }
    assert "can use 1 models" in seen["models"]["text"]


def test_for_people(client: FlaskClient, upstream: ScriptedUpstream) -> None:
    """A line for each check with a sign and a word; what to do stands indented below; counts at the end."""
    upstream.handler = lambda exchange: exchange.reply({"error": "Incorrect API key provided"}, 400)
    result = client.application.test_cli_runner().invoke(args=["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("x FAIL    models"))
    assert lines[at].endswith("upstream refuses the key (400)")
    assert lines[at + 1].startswith("                       Set XAI_API_KEY")
    assert "1 FAIL" in lines[-1]
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("status", "document", "state", "words"),
    [
        (401, {"error": "no"}, "FAIL", "refuses the key (401)"),
        (403, {"error": "no"}, "FAIL", "refuses the key (403)"),
        (404, {"error": "no"}, "FAIL", "does not return a list of models (404)"),
        (301, {"error": "no"}, "FAIL", "does not return a list of models (301)"),
        (200, {"data": 5}, "FAIL", "does not return a list of models (200)"),
        (200, [], "FAIL", "does not return a list of models (200)"),
        (503, {"error": "no"}, "warn", "does not return a list of models (503)"),
        (429, {"error": "no"}, "warn", "limits this key"),
    ],
)
def test_upstream_answers_otherwise(
    client: FlaskClient, upstream: ScriptedUpstream, status: int, document: Any, state: str, words: str
) -> None:
    """What a refusal of GET /models means."""
    upstream.handler = lambda exchange: exchange.reply(document, status)
    found = see(client, code=int(state == "FAIL"))["models"]
    assert (found["state"], words in found["text"], bool(found["remedy"])) == (state, True, True), found


def test_upstream_cannot_be_reached(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """Nothing listens, no TLS, an answer that never comes: the step that failed is named."""
    refused = make_client(XAI_API_BASE=f"http://127.0.0.1:{refuse_port()}/v1")
    assert "no connection to 127.0.0.1" in see(refused, code=1)["upstream"]["text"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        client = make_client(XAI_API_BASE=f"https://127.0.0.1:{port}/v1", GROKFLASK_CONNECT_TIMEOUT_S="0.2")
        assert see(client, code=1)["upstream"]["state"] == "FAIL"
    upstream.handler = lambda exchange: exchange.close()
    assert "GET /models gets no answer" in see(make_client(), code=1)["models"]["text"]


def test_redis_is_dead(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """It fails, and the password in its URL is not told."""
    upstream.handler = reply_models
    client = make_client(REDIS_URL=f"redis://:redis-password@127.0.0.1:{refuse_port()}/0")
    found = see(client, code=1)["redis"]
    assert found["text"].startswith("not usable: ")
    assert "REDIS_URL" in found["remedy"]
    assert "redis-password" not in str(found)


def test_redis_forgets(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    """A Redis that evicts any key when it is full would lose counters."""
    from redis import Redis

    upstream.handler = reply_models
    client = make_client(REDIS_URL=redis_server.url)
    seen = see(client)
    assert (seen["redis"]["state"] in ("ok", "warn"), seen["eviction"]["state"]) == (True, "ok")
    with Redis.from_url(redis_server.url) as redis:
        redis.config_set("maxmemory", 50_000_000)
        redis.config_set("maxmemory-policy", "allkeys-lru")
    assert "noeviction" in see(client, code=1)["eviction"]["remedy"]


@pytest.mark.parametrize(
    ("policy", "max_bytes", "state"),
    [
        ("noeviction", 9, "ok"),
        ("allkeys-lfu", 9, "FAIL"),
        ("allkeys-lfu", 0, "warn"),
        ("volatile-ttl", 9, "warn"),
        ("", 0, "skipped"),
    ],
)
def test_eviction(policy: str, max_bytes: int, state: str) -> None:
    """Without a limit of memory nothing is evicted yet."""
    assert judge_eviction(policy, max_bytes).state == state


def test_the_database_takes_no_writes(
    make_client: Callable[..., FlaskClient],
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path that leads nowhere fails; SQLite on Heroku does as well, though it works."""
    upstream.handler = reply_models
    (tmp_path / "file").write_text("not a folder")
    client = make_client(DATABASE_URL=f"sqlite:///{tmp_path}/file/x.db")
    assert "DATABASE_URL" in see(client, code=1)["database"]["remedy"]
    monkeypatch.setenv("DYNO", "web.1")
    assert "is lost" in see(make_client(), code=1)["database"]["text"]


def test_databases(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, database_url: str
) -> None:
    """Both kinds: its tables are made, and it can be written to."""
    upstream.handler = reply_models
    found = see(make_client(DATABASE_URL=database_url))["database"]
    assert "tables up to date, writable" in found["text"]


def test_keys(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """None at all, and a door that is open to everybody, are told."""
    upstream.handler = reply_models
    assert "every call gets a 401" in see(make_client(GROKFLASK_KEYS=""))["keys"]["text"]
    found = see(make_client(GROKFLASK_KEYS="", GROKFLASK_AUTH="open"))["keys"]
    assert (found["state"], "your money" in found["text"]) == ("warn", True)


def test_weak_secrets(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """They are named, and not told."""
    upstream.handler = reply_models
    found = see(make_client(GROKFLASK_KEYS=f"alice:{CLIENT_KEY},bob:bobs-key1"))["secrets"]
    assert (found["state"], "'bob'" in found["text"], "openssl" in found["remedy"]) == ("warn", True, True)
    assert "bobs-key1" not in str(found)


def test_files_of_others(
    make_client: Callable[..., FlaskClient],
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who may read the settings is told; who may replace the database is a failure."""
    upstream.handler = reply_models
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").touch(0o644)
    found = see(make_client())["file modes"]
    assert (found["state"], found["remedy"]) == ("warn", "chmod 600 .env")
    (tmp_path / ".env").chmod(0o600)
    assert see(make_client())["file modes"]["state"] == "ok"
    tmp_path.chmod(0o777)
    assert "can replace" in see(make_client(), code=1)["file modes"]["text"]
    tmp_path.chmod(0o1777)
    assert see(make_client())["file modes"]["state"] == "ok"  # only owners replace files there, as in /tmp


def test_a_file_that_cannot_be_closed(
    make_client: Callable[..., FlaskClient],
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one of another user's."""
    upstream.handler = reply_models
    client = make_client()
    (tmp_path / "ledger.db").chmod(0o644)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    found = see(client)["file modes"]
    assert (found["state"], found["remedy"]) == ("warn", f"chmod 600 {tmp_path}/ledger.db")


@pytest.mark.parametrize(
    ("name", "status", "is_near", "state"),
    [
        *(("/admin", status, False, "ok") for status in (403, 404)),
        *(("/admin", status, False, "warn") for status in (200, 401, 303, 503)),
        *(("/metrics", status, False, "warn") for status in (200, 401, 429)),
        *((name, 200, True, "ok") for name in ("/admin", "/metrics")),
    ],
)
def test_reach(name: str, status: int, is_near: bool, state: str) -> None:
    """What is for the operator alone had better not be there for all."""
    found = judge_reach(name, status, is_near)
    assert (found.state, bool(found.remedy)) == (state, state != "ok")
    assert ("everybody can read" in found.text) is (name == "/metrics" and status == 200 and not is_near)


@pytest.mark.parametrize("key", ["'xai-0123456789'", "Bearer"])
def test_a_key_that_is_none(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, key: str
) -> None:
    """Quotes that were meant for the shell are part of what upstream gets."""
    upstream.handler = lambda exchange: exchange.reply(MODELS)
    assert see(make_client(XAI_API_KEY=key), code=1)["xAI key"]["state"] == "FAIL"


def test_names_that_are_no_settings(
    client: FlaskClient, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name is told; GROKFLASK_KEY is read by the commands that call a gateway."""
    upstream.handler = reply_models
    monkeypatch.setenv("GROKFLASK_KEY", CLIENT_KEY)
    assert see(client)["settings"]["state"] == "ok"
    monkeypatch.setenv("GROKFLASK_HARTBEAT_S", "3")
    assert "GROKFLASK_HEARTBEAT_S meant" in see(client)["settings"]["text"]


def make_passage(arrived_ms: list[float], complete: bool = True, **headers: str) -> Passage:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Passage(named, "r1", {"request_id": "r1"}, SENT[: len(arrived_ms)], arrived_ms, complete)


@pytest.mark.parametrize(
    ("arrived_ms", "complete", "state"),
    [
        ([7.0, 307.0, 607.0, 907.0, 1207.0], True, "ok"),
        ([7.0, 307.0, 607.0, 907.0, 2000.0], True, "ok"),
        ([1207.0] * 5, True, "FAIL"),
        ([900.0, 900.0, 900.0, 900.0, 1207.0], True, "FAIL"),
        ([7.0, 307.0], False, "FAIL"),
        ([], False, "FAIL"),
        ([7.0], True, "FAIL"),
    ],
)
def test_what_arrivals_tell(arrived_ms: list[float], complete: bool, state: str) -> None:
    """Events that arrive in one burst have been held back; late ones have not."""
    found = judge_stream(make_passage(arrived_ms, complete))
    assert (found.state, bool(found.remedy)) == (state, state == "FAIL")


@pytest.mark.parametrize(
    ("headers", "name", "words"),
    [
        ({"Server": "nginx/1.22"}, "nginx", "proxy_buffering off"),
        ({"Server": "Apache/2.4 (Debian)"}, "apache", "flushpackets=on"),
        ({"Server": "cloudflare", "CF_RAY": "1"}, "cloudflare", "compression"),
        ({"Via": "1.1 vegur"}, "heroku", "check what else"),
        ({"Server": "x"}, None, "proxy_buffering off"),
    ],
)
def test_what_to_change(headers: dict[str, str], name: str | None, words: str) -> None:
    """The proxy that has left its name is the one whose setting is told."""
    passage = make_passage([9.0] * 5, **headers)
    assert name_proxy(passage.headers) == name
    remedy = judge_stream(passage).remedy
    assert words in remedy
    assert ("Apache:" in remedy) == (name in (None, "apache"))


def test_what_headers_tell() -> None:
    """Compression, and request ids that get lost on either way."""
    assert judge_compression(make_passage([], Content_Encoding="br")).state == "warn"
    assert judge_compression(make_passage([])).state == "ok"
    assert judge_request_id(make_passage([], X_Request_ID="r1")).state == "ok"
    assert "way out" in judge_request_id(make_passage([])).text
    passage = make_passage([], X_Request_ID="r2")
    passage.event["request_id"] = "r2"
    assert "way in" in judge_request_id(passage).text


@pytest.mark.parametrize(
    ("told", "states"),
    [
        ({"forwarded_for": 1, "trusted_proxies": 1, "scheme": "https"}, ["ok"]),
        ({"forwarded_for": 0, "trusted_proxies": 0, "scheme": "http"}, ["ok", "warn"]),
        ({"forwarded_for": 2, "trusted_proxies": 1, "scheme": "https"}, ["warn"]),
        ({"forwarded_for": 0, "trusted_proxies": 1, "scheme": "https"}, ["FAIL"]),
    ],
)
def test_forwarding(told: dict[str, Any], states: list[str]) -> None:
    """As many proxies are to be trusted as send addresses; fewer addresses let callers choose their own."""
    passage = make_passage([])
    passage.event = told
    assert [each.state for each in judge_forwarding(passage, "https")] == states


@pytest.mark.parametrize(
    ("date", "state"),
    [
        (formatdate(1_000_000, usegmt=True), "ok"),
        (formatdate(1_000_090, usegmt=True), "warn"),
        (formatdate(999_000, usegmt=True), "warn"),
        ("yesterday", "skipped"),
        (None, "skipped"),
    ],
)
def test_clock(date: str | None, state: str) -> None:
    """Half a minute is as much as it may be off."""
    assert judge_clock(date, 1_000_000.0).state == state


def test_redacted() -> None:
    """Secrets are cut out, the longer first, and no finding is more than its line."""
    [found] = redact([Finding("x", "ok", "a secret-long\n\x1b[2J", "secret")], ["secret", "secret-long"])
    assert (found.text, found.remedy) == ("a [redacted] ?[2J", "[redacted]")


LOCAL = "/dev/sda1 / ext4 rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "state"),
    [
        (LOCAL, "ok"),
        ("", "ok"),
        ("nonsense\n", "ok"),
        (LOCAL + "server:/x /srv nfs4 rw 0 0\n", "ok"),
        (LOCAL + "server:/x {folder} nfs4 rw 0 0\n", "FAIL"),
        ("overlay / overlay rw 0 0\n", "warn"),
        ("overlay / overlay rw 0 0\n/dev/sdb {folder} ext4 rw 0 0\n", "ok"),
    ],
)
def test_where_a_sqlite_file_lies(tmp_path: Path, mounts: str, state: str) -> None:
    """Network shares and what vanishes with a container are no place for it; the nearest mount counts."""
    path = tmp_path / "var" / "grokflask.db"
    assert judge_place(path, mounts.format(folder=tmp_path)).state == state


def test_redis_takes_no_writes(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    """A replica would be an outage for every limit; a primary is left as it was."""
    upstream.handler = reply_models
    client = make_client(REDIS_URL=redis_server.url)
    assert see(client)["redis"]["state"] == "ok"
    with redis.Redis(port=redis_server.port) as connection:
        assert connection.keys() == []
        connection.replicaof("127.0.0.1", refuse_port())
    assert "refuses writes" in see(client, code=1)["redis"]["text"]


def test_the_admin_token_stays_here(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream
) -> None:
    """Without a key it is sent, to this machine; over http to another nothing is."""
    sent: list[str | None] = []

    def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/diagnose"):
            sent.append(exchange.headers.get("authorization"))
        exchange.reply(MODELS)

    upstream.handler = answer
    client = make_client(GROKFLASK_KEYS="", GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    see(client, "--url", f"http://127.0.0.1:{upstream.port}", code=1)
    assert sent == [f"Bearer {ADMIN_TOKEN}"]
    assert not is_safe("http://gateway.example")
    assert is_safe("https://gateway.example")


def test_long_needs_an_address(client: FlaskClient) -> None:
    """There is nothing to be silent without one."""
    result = client.application.test_cli_runner().invoke(args=["doctor", "--long"])
    assert (result.exit_code, "--long needs --url" in result.stderr) == (2, True)


def test_upstream_with_a_certificate_of_ones_own(
    make_client: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that nobody vouches for fails; what the gateway trusts by SSL_CERT_FILE the doctor trusts too."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ScriptedUpstream(reply_models, tls=context)
    try:
        found = see(make_client(XAI_API_BASE=server.base_url), code=1)["upstream"]
        assert "no TLS with localhost" in found["text"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        seen = see(make_client(XAI_API_BASE=server.base_url))
        assert (seen["upstream"]["state"], seen["models"]["state"]) == ("ok", "ok")
    finally:
        server.close()
