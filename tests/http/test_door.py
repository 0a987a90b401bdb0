"""Who is let in where no key is needed, how wrong keys are slowed, and what strangers see."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from support.scripted import ScriptedUpstream, answer_chat
from support.stores import ADMIN, ADMIN_TOKEN

from grokflask.web.attempts import LIMITS

pytestmark = pytest.mark.usefixtures("standing_windows")

CHAT = "/api/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def make_open(make_client: Callable[..., FlaskClient]) -> Callable[..., FlaskClient]:
    """The app without keys."""

    def make(**environ: str) -> FlaskClient:
        return make_client(GROKFLASK_AUTH="open", GROKFLASK_KEYS="", **environ)

    return make


def ask(client: FlaskClient, **headers: str) -> tuple[int, str | None]:
    """The status and the error's code of a chat with these headers."""
    reply = client.post(CHAT, json=BODY, headers={"Accept": "application/json", **headers})
    return reply.status_code, None if reply.status_code == 200 else reply.json["error"]["code"]


@pytest.mark.parametrize(
    ("host", "hosts", "is_let_in"),
    [
        *((host, "", True) for host in ("localhost", "localhost:8000", "LOCALHOST.:80")),
        *((host, "", True) for host in ("127.0.0.1:9", "[::1]:8000")),
        *((host, "", False) for host in ("evil.example", "evil.example:8000", "localhost.evil.example")),
        *((host, "", False) for host in ("127.0.0.1.evil.example", "evil.example:80:localhost", "0.0.0.0")),
        *((host, "", False) for host in ("[::2]", "192.168.1.5:8000", "localhost:80@evil.example")),
        *((host, "", False) for host in ("@localhost", "x." * 80)),
        *((host, "grok.lan, [fd00::5]", True) for host in ("grok.lan", "Grok.LAN:8000", "[fd00::5]:80")),
        *((host, "grok.lan", False) for host in ("a.grok.lan", "grok.lan.evil.example", "groklan")),
        ("anything.example", "*", True),
    ],
)  # fmt: skip
def test_names_of_an_open_gateway(
    make_open: Callable[..., FlaskClient], host: str, hosts: str, is_let_in: bool
) -> None:
    """Names of this machine and listed ones, with any port; else the error says what to set."""
    client = make_open(GROKFLASK_HOSTS=hosts)
    assert ask(client, Host=host) == ((200, None) if is_let_in else (403, "host_not_allowed"))
    reply = client.post("/playground/render", json={"text": "a"}, headers={"Host": host})
    assert reply.status_code == (200 if is_let_in else 403)
    if not is_let_in:
        refused = client.get("/v1/models", headers={"Host": host})
        assert "GROKFLASK_HOSTS" in refused.text
        assert len(refused.text) < 1000
        assert client.get("/diagnose/stream", headers={"Host": host}).status_code == 403
    assert client.get("/ready", headers={"Host": host}).status_code == 200  # load balancers send any name


def test_a_client_of_http_1_0(make_open: Callable[..., FlaskClient]) -> None:
    """No Host header at all: that is no browser."""
    reply = make_open().post(CHAT, json=BODY, environ_overrides={"HTTP_HOST": ""})
    assert reply.status_code == 200


def test_with_keys_the_name_does_not_matter(client: FlaskClient) -> None:
    """A page has no key to send."""
    assert ask(client, Host="any.example", Authorization=f"Bearer {CLIENT_KEY}") == (200, None)


OWN, FOREIGN = "http://localhost:8000", "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "origins", "is_let_in"),
    [
        ({}, "", True),  # curl and SDKs
        ({"Origin": OWN}, "", True),
        ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, "", True),
        ({"Sec-Fetch-Site": "none"}, "", True),
        ({"Origin": FOREIGN}, "", False),
        ({"Origin": "http://localhost:3000"}, "", False),
        ({"Origin": "null"}, "", False),
        ({"Origin": f"{FOREIGN}/localhost:8000"}, "", False),
        ({"Sec-Fetch-Site": "cross-site"}, "", False),
        ({"Sec-Fetch-Site": "same-site"}, "", False),
        ({"Origin": OWN, "Sec-Fetch-Site": "cross-site"}, "", False),
        ({"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site"}, FOREIGN, True),
        ({"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site"}, "*", True),
        ({"Origin": "https://other.example"}, FOREIGN, False),
    ],
)
def test_forms_of_other_pages(
    make_open: Callable[..., FlaskClient],
    upstream: ScriptedUpstream,
    headers: dict[str, str],
    origins: str,
    is_let_in: bool,
) -> None:
    """What a browser sends for any page without asking: a form with a file, and one without a body."""
    client = make_open(GROKFLASK_CORS_ORIGINS=origins)
    upstream.handler = lambda exchange: exchange.reply({"id": "f-1", "object": "file"})
    for path, options in (
        ("/v1/files", {"data": {"purpose": "assistants", "file": (io.BytesIO(b"x"), "a.txt")}}),
        ("/v1/batches/b-1:cancel", {"content_type": "application/x-www-form-urlencoded"}),
    ):
        reply = client.post(path, headers={"Host": "localhost:8000", **headers}, **options)
        if is_let_in:
            assert reply.status_code != 403
        else:
            assert (reply.status_code, reply.json["error"]["code"]) == (403, "cross_site")
    assert bool(upstream.exchanges) is is_let_in


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_in_disguise(
    make_open: Callable[..., FlaskClient], upstream: ScriptedUpstream, media_type: str
) -> None:
    """A page may send JSON as plain text to anywhere, but it is not read; named as JSON, it asks first."""
    client = make_open()
    headers = {"Origin": FOREIGN, "Content-Type": media_type}
    assert client.post(CHAT, data=b'{"messages":[]}', headers=headers).status_code == 403
    preflight = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
    assert "Access-Control-Allow-Origin" not in client.options(CHAT, headers=preflight).headers
    assert upstream.exchanges == []


def test_wrong_keys_are_slowed(client: FlaskClient) -> None:
    """By address and a minute; the right key of the same address passes, and so do others' wrong ones."""
    most = LIMITS["API key"][0].amount
    answers = [ask(client, Authorization=f"Bearer gf-wrong-{number}") for number in range(most + 20)]
    assert answers == [(401, "invalid_api_key")] * most + [(429, "rate_limit_exceeded")] * 20
    reply = client.get("/v1/models", headers={"Authorization": "Bearer gf-wrong"})
    assert reply.status_code == 429
    assert 1 <= int(reply.headers["Retry-After"]) <= 60
    assert "the right one is accepted" in reply.json["error"]["message"]
    assert ask(client, Authorization=f"Bearer {CLIENT_KEY}") == (200, None)
    assert ask(client)[0] == 401  # a missing key is no guess
    other = client.get(
        "/v1/models", headers={"Authorization": "Bearer gf-wrong"}, environ_base={"REMOTE_ADDR": "192.0.2.9"}
    )
    assert other.status_code == 401


def test_a_port_is_no_caller(make_open: Callable[..., FlaskClient]) -> None:
    """Each connection has another port, and an IPv6 subscriber has any number of addresses."""
    client = make_open(GROKFLASK_TRUSTED_PROXIES="1", GROKFLASK_RATE_LIMIT="2/hour")
    for callers in (
        ["203.0.113.9:4711", "203.0.113.9:4712", "::ffff:203.0.113.9"],
        ["[2001:db8::1]:4711", "2001:db8::2", '"[2001:db8::3%eth0]"'],
        ['"a, 198.51.100.1', "198.51.100.1", '"b, 198.51.100.1'],  # with the client's open quote
        ["garbage", "", "unknown"],
    ):
        seen = [ask(client, **{"X-Forwarded-For": text})[0] for text in callers]
        assert seen == [200, 200, 429], callers
    assert ask(client, **{"X-Forwarded-For": "[2001:db8:0:1::1]:4711"})[0] == 200


def test_what_ready_shows(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """States to strangers; numbers and upstream's address to the operator."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    shown = {
        "status": "ready",
        "rate_limits": {"store": "memory"},
        "limits": {"store": "memory"},
        "database": {"state": "up"},
    }
    wrong = {"Authorization": "Bearer wrong-token-0123456789"}
    for headers in ({}, wrong, {"Authorization": f"Bearer {CLIENT_KEY}"}):
        assert client.get("/ready", headers=headers).json == shown
    full = client.get("/ready", headers=ADMIN).json
    assert full["upstream"] == upstream.base_url
    assert full["ledger"] == {"waiting": 0, "dropped": 0, "lost": 0}
    assert full["open"] == 0


STRANGERS = [
    "/",
    "/docs/",
    "/openapi.json",
    "/health",
    "/ready",
    "/metrics",
    "/admin",
    "/admin/login",
    "/admin/api",
]


@pytest.mark.parametrize(
    "path", [*STRANGERS, CHAT, "/diagnose/stream", "/usage", "/nothing", "/playground/render"]
)
def test_what_strangers_learn(
    make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream, path: str
) -> None:
    """No answer without a key or token names upstream's address, a key, a file or another caller."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    upstream.handler = answer_chat
    for method in ("GET", "POST", "OPTIONS"):
        reply = client.open(path, method=method, headers={"Accept": "text/html, */*"})
        shown = f"{reply.headers}{reply.text}"
        port = upstream.base_url.rpartition(":")[2].partition("/")[0]
        for secret in (upstream.base_url, f"127.0.0.1:{port}", UPSTREAM_KEY, CLIENT_KEY, ADMIN_TOKEN, "alice",
                       "ledger.db", "Traceback", "Werkzeug", "gunicorn/", "site-packages"):  # fmt: skip
            assert secret not in shown


@pytest.mark.parametrize("secret", ["short-key", "aaaaaaaaaaaaaaaaaaaaaaaa", "change-me-please"])
def test_weak_secrets_are_warned_of(
    make_client: Callable[..., FlaskClient], logged: io.StringIO, secret: str
) -> None:
    """The log has a line at the start that names the key and not its secret; the key works."""
    client = make_client(GROKFLASK_KEYS=f"bob:{secret},alice:{CLIENT_KEY}")
    lines = [line for line in logged.getvalue().splitlines() if "may be guessed" in line]
    assert len(lines) == 1
    assert "'bob' in GROKFLASK_KEYS" in lines[0]
    assert secret not in logged.getvalue()
    assert ask(client, Authorization=f"Bearer {secret}") == (200, None)


@pytest.mark.parametrize("header", ["If-Modified-Since", "If-Unmodified-Since", "If-Range"])
@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:99999999999999999999 GMT",
    ],
)
def test_dates_that_nobody_can_read(client: FlaskClient, header: str, date: str) -> None:
    """A condition with such a date does not count, whatever the route."""
    paths = [rule.rule for rule in client.application.url_map.iter_rules() if not rule.arguments]
    for path in [*paths, "/static/base.css", "/nothing"]:
        plain = client.get(path, headers={"Range": "bytes=0-9"})
        reply = client.get(path, headers={"Range": "bytes=0-9", header: date})
        assert reply.status_code == plain.status_code, path
        reply.close()
        plain.close()
