"""The dashboard's door: who is let in, for how long, and how guessing and forging fail."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from itsdangerous import URLSafeTimedSerializer
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from werkzeug.test import TestResponse

from grokflask.web.attempts import LIMITS
from grokflask.web.dashboard.sessions import COOKIE, SESSION_S

pytestmark = pytest.mark.usefixtures("standing_windows")

TOKEN = "admin-token-0123456789"
BY_ADDRESS, IN_TOTAL = LIMITS["admin token"]
HTML = {"Accept": "text/html"}

GETS = [
    *("", "/keys/new", "/keys/bob", "/keys/bob/revoke", "/exchanges/0123456789abcdef0123456789ab"),
    *("/exchanges.csv", "/streams/x/end", "/parts/numbers", "/parts/keys", "/parts/nothing"),
]
POSTS = ["/logout", "/keys", "/keys/bob", "/keys/bob/rotate", "/keys/bob/revoke", "/streams/x/end"]


@pytest.fixture
def admin(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """The app with an admin token; nobody is signed in."""
    return make_client(GROKFLASK_ADMIN_TOKEN=TOKEN)


def find_token(page: str) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found, page
    return found[1]


def sign_in(client: FlaskClient, token: str = TOKEN, **options: Any) -> TestResponse:
    """Sends the form as a browser does."""
    csrf_token = find_token(client.get("/admin/login", **options).text)
    return client.post("/admin/login", data={"token": token, "csrf_token": csrf_token}, **options)


def is_signed_in(client: FlaskClient) -> bool:
    response = client.get("/admin", headers=HTML)
    assert response.status_code in (200, 303)
    return response.status_code == 200


def read_cookie(response: TestResponse) -> str:
    (cookie,) = [each for each in response.headers.getlist("Set-Cookie") if each.startswith(COOKIE)]
    return cookie


@pytest.mark.parametrize("path", [*GETS, "/login", "/nothing", "/"])
def test_there_is_no_dashboard_without_the_token(client: FlaskClient, path: str) -> None:
    """Without GROKFLASK_ADMIN_TOKEN every path is a 404, and no cookie is set."""
    for method in ("GET", "POST"):
        response = client.open(f"/admin{path}", method=method, headers=HTML, data={"token": ""})
        assert response.status_code == 404
        assert "Set-Cookie" not in response.headers
    assert 'href="/admin"' not in response.text


@pytest.mark.parametrize("path", GETS)
def test_every_page_is_guarded(admin: FlaskClient, path: str) -> None:
    """Who is not signed in gets the login form instead of a page, and a 401 instead of a part or a file."""
    for headers in (HTML, {"Accept": "*/*"}):
        response = admin.get(f"/admin{path}", headers=headers)
        if response.status_code == 303:
            assert response.headers["Location"] == "/admin/login"
            assert "/parts/" not in path
        else:
            assert response.status_code == 401
            assert response.mimetype == "text/html"
            assert "Sign in" in response.text


@pytest.mark.parametrize("path", POSTS)
def test_every_change_is_guarded(admin: FlaskClient, path: str) -> None:
    """Without a session nothing is done, even with a good form token, and with bearer or basic as well."""
    token = find_token(admin.get("/admin/login").text)
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
        response = admin.post(f"/admin{path}", data={"csrf_token": token, "name": "mallory"}, headers=headers)
        assert response.status_code == 401
    keys = admin.get("/admin/api/keys", headers={"Authorization": f"Bearer {TOKEN}"}).json
    assert keys == {"keys": []}


def test_signing_in_and_out(admin: FlaskClient, logged: io.StringIO) -> None:
    """The token opens the dashboard until the session is ended; neither logs nor pages have it."""
    assert not is_signed_in(admin)
    response = sign_in(admin)
    assert (response.status_code, response.headers["Location"]) == (303, "/admin")
    page = admin.get("/admin", headers=HTML)
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    assert TOKEN not in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert admin.get("/admin/login").status_code == 303
    admin.post("/admin/logout", data={"csrf_token": find_token(page.text)})
    assert not is_signed_in(admin)
    assert TOKEN not in logged.getvalue()


@pytest.mark.parametrize("https", [False, True])
def test_the_cookie(admin: FlaskClient, https: bool) -> None:
    """Scripts cannot read it nor other sites send it, https keeps it, only the dashboard gets it."""
    options = {"base_url": "https://gateway.example"} if https else {}
    cookie = read_cookie(sign_in(admin, **options))
    attributes = {
        each.strip().partition("=")[0]: each.strip().partition("=")[2] for each in cookie.split(";")
    }
    assert {"HttpOnly", "Path", "SameSite", "Expires"} <= attributes.keys()
    assert (attributes["SameSite"], attributes["Path"]) == ("Strict", "/admin")
    assert ("Secure" in attributes) is https
    assert "Domain" not in attributes
    assert TOKEN not in cookie


def test_using_a_session_does_not_lengthen_it(admin: FlaskClient) -> None:
    """Pages do not set the cookie anew."""
    sign_in(admin)
    assert "Set-Cookie" not in admin.get("/admin", headers=HTML).headers
    assert "Set-Cookie" not in admin.get("/admin/parts/keys").headers


def test_the_rest_has_no_sessions(admin: FlaskClient) -> None:
    """Neither the API nor the admin API nor other pages read or set a cookie."""
    sign_in(admin)
    cookie = admin.get_cookie(COOKIE, path="/admin")
    assert cookie is not None
    for path in ("/health", "/admin/api/keys", "/v1/models", "/administrator"):
        response = admin.get(path, headers={"Cookie": f"{COOKIE}={cookie.value}"})
        assert "Set-Cookie" not in response.headers
        assert "Cookie" not in response.headers.get("Vary", "")
    assert admin.get("/admin/api/keys").status_code == 401  # the session is no bearer token


@pytest.mark.parametrize(
    "wrong", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), CLIENT_KEY, UPSTREAM_KEY, "\u00e9\udcff"]
)
def test_wrong_tokens(admin: FlaskClient, wrong: str, logged: io.StringIO) -> None:
    """They open nothing, are said to be wrong, and are not repeated, neither on the page nor in the log."""
    csrf_token = find_token(admin.get("/admin/login").text)
    data = {"token": wrong.encode("utf-8", "replace"), "csrf_token": csrf_token}
    response = admin.post("/admin/login", data=data)
    assert response.status_code == 401
    assert "not the admin token" in response.text
    assert not is_signed_in(admin)
    if len(wrong) > 3:
        assert wrong not in response.text + logged.getvalue()
    assert '"who":"127.0.0.1"' in logged.getvalue().replace(" ", "") or "who=127.0.0.1" in logged.getvalue()


def test_forms_need_their_token(admin: FlaskClient, make_client: Callable[..., FlaskClient]) -> None:
    """A missing, wrong, or foreign form token is refused in words, for signing in and for all else."""
    stranger = admin.application.test_client()
    foreign = find_token(stranger.get("/admin/login").text)
    for data in ({}, {"csrf_token": ""}, {"csrf_token": "x"}, {"csrf_token": foreign}):
        response = admin.post("/admin/login", data={"token": TOKEN, **data})
        assert response.status_code == 400
        assert "another session" in response.text
    assert not is_signed_in(admin)

    before = find_token(admin.get("/admin/login").text)
    sign_in(admin)
    sign_in(stranger)
    foreign = find_token(stranger.get("/admin", headers=HTML).text)
    for token in ("", "x", before, foreign):
        for path in POSTS:
            response = admin.post(
                f"/admin{path}", data={"csrf_token": token, "name": "mallory", "overlap": "1h"}
            )
            assert response.status_code == 400, path
            assert response.mimetype == "text/html"
    assert is_signed_in(admin)
    assert "mallory" not in admin.get("/admin", headers=HTML).text


def test_no_session_is_taken_over(admin: FlaskClient) -> None:
    """A cookie from before the login, which somebody may have planted, is worth nothing after it."""
    admin.get("/admin/login")
    planted = admin.get_cookie(COOKIE, path="/admin")
    assert planted is not None
    sign_in(admin)
    now = admin.get_cookie(COOKIE, path="/admin")
    assert now is not None
    assert now.value != planted.value
    other = admin.application.test_client()
    other.set_cookie(COOKIE, planted.value, path="/admin")
    assert not is_signed_in(other)


def forge(secret: Any, data: dict[str, Any]) -> str:
    import hashlib

    options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    serializer = URLSafeTimedSerializer(secret, salt="grokflask-dashboard", signer_kwargs=options)
    text: str = serializer.dumps(data)
    return text


def test_forged_and_old_sessions(admin: FlaskClient, make_client: Callable[..., FlaskClient]) -> None:
    """Only what this token's key has signed counts, and only until its end; another token ends it."""
    key, until = admin.application.secret_key, int(time.time()) + 60
    other = make_client(GROKFLASK_ADMIN_TOKEN=TOKEN + "-new")
    good = forge(key, {"until": until})
    admin.set_cookie(COOKIE, good, path="/admin")
    assert is_signed_in(admin)
    again = make_client(GROKFLASK_ADMIN_TOKEN=TOKEN)  # another worker, or after a restart
    again.set_cookie(COOKIE, good, path="/admin")
    assert is_signed_in(again)
    for text in (
        forge(key, {"until": int(time.time()) - 1}),
        forge(key, {"until": None}),
        forge(key, {"until": "x"}),
        forge(key, {"until": [9**20]}),
        forge(TOKEN, {"until": until}),
        "x.y.z",
        good[:-1],
        good + "x",
        forge(other.application.secret_key, {"until": until}),
        "\u00ff",
        "",
    ):
        admin.set_cookie(COOKIE, text, path="/admin")
        assert not is_signed_in(admin), text
    other.set_cookie(COOKIE, good, path="/admin")
    assert not is_signed_in(other)


def test_a_session_ends(admin: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve hours after the login."""
    sign_in(admin)
    now = time.time()
    monkeypatch.setattr("grokflask.web.dashboard.login.time.time", lambda: now + SESSION_S - 60)
    assert is_signed_in(admin)
    monkeypatch.setattr("grokflask.web.dashboard.login.time.time", lambda: now + SESSION_S + 1)
    assert not is_signed_in(admin)


def guess(
    client: FlaskClient, address: str, bearer: bool, token: str = "wrong-token-0123456789"
) -> TestResponse:
    options: dict[str, Any] = {"environ_base": {"REMOTE_ADDR": address}}
    if bearer:
        return client.get("/admin/api/keys", headers={"Authorization": f"Bearer {token}"}, **options)
    return sign_in(client, token, **options)


@pytest.mark.parametrize("bearer", [False, True])
def test_guessing_is_limited(admin: FlaskClient, bearer: bool) -> None:
    """By address, forms and bearer tokens together. The right token always passes."""
    for number in range(BY_ADDRESS.amount):
        assert guess(admin, "10.0.0.1", number % 2 == 0).status_code == 401
    for _ in range(3):
        response = guess(admin, "10.0.0.1", bearer, "wrong")
        assert response.status_code == 429
        assert 0 < int(response.headers["Retry-After"]) <= 30 * 60
        assert re.search(r"Try again in \d+ (s|minutes)", response.text)
        assert response.mimetype == ("application/json" if bearer else "text/html")
        if not bearer:
            assert 'name="token"' in response.text  # the form is there for another try
    assert guess(admin, "10.0.0.1", bearer, TOKEN).status_code == (200 if bearer else 303)
    assert guess(admin, "10.0.0.2", True).status_code == 401


def test_guessing_from_many_addresses(admin: FlaskClient) -> None:
    """All together are limited as well; the right token passes from everywhere."""
    statuses = [guess(admin, f"10.0.1.{number}", True).status_code for number in range(IN_TOTAL.amount + 5)]
    assert statuses == [401] * IN_TOTAL.amount + [429] * 5
    assert guess(admin, "10.0.3.1", True, TOKEN).status_code == 200


def test_an_ipv6_subscriber_is_one_guesser(admin: FlaskClient) -> None:
    """Who has a /64 has any number of addresses."""
    statuses = [
        guess(admin, f"2001:db8::{number:x}", True).status_code for number in range(BY_ADDRESS.amount + 1)
    ]
    assert statuses == [401] * BY_ADDRESS.amount + [429]
    assert guess(admin, "2001:db8:0:1::1", True).status_code == 401


def test_the_metrics_are_counted_apart(admin: FlaskClient) -> None:
    """A scraper with an old token is slowed, which the dashboard's users do not notice; nor the other way."""
    stale, right = ({"Authorization": f"Bearer {token}"} for token in ("stale-token-0123456789", TOKEN))
    for number in range(BY_ADDRESS.amount + 1):
        response = admin.get("/metrics", headers=stale)
        assert response.status_code == (401 if number < BY_ADDRESS.amount else 429)
    assert int(response.headers["Retry-After"]) > 0
    assert admin.get("/metrics", headers=right).status_code == 200
    assert guess(admin, "127.0.0.1", True).status_code == 401
    assert guess(admin, "127.0.0.1", False, TOKEN).status_code == 303


def test_right_and_missing_tokens_count_for_nothing(admin: FlaskClient) -> None:
    """Programs may call the admin API as often as they like, and a missing token is no guess."""
    for _ in range(BY_ADDRESS.amount + 2):
        assert guess(admin, "10.0.0.1", True, TOKEN).status_code == 200
        assert admin.get("/admin/api/keys").status_code == 401


def test_guesses_are_counted_while_redis_is_away(admin: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then in the worker's own memory."""
    storage = admin.application.extensions["request_limits"].storage

    def fail(*_: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(storage, "get_sliding_window", fail)
    monkeypatch.setattr(storage, "acquire_sliding_window_entry", fail)
    statuses = [guess(admin, "10.0.0.1", True).status_code for _ in range(BY_ADDRESS.amount + 1)]
    assert statuses == [401] * BY_ADDRESS.amount + [429]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {"token": TOKEN}}, 415),
        ({"data": b"x" * 70_000, "content_type": "application/x-www-form-urlencoded"}, 413),
        ({"data": b"&".join([b"a=b"] * 500), "content_type": "application/x-www-form-urlencoded"}, 400),
        ({"data": b"a=\xff", "content_type": "application/x-www-form-urlencoded"}, 400),
        ({"data": b"", "content_type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_odd_forms(admin: FlaskClient, options: dict[str, Any], status: int) -> None:
    """They are refused with a page."""
    response = admin.post("/admin/login", **options)
    assert response.status_code == status
    assert response.mimetype == "text/html"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/nothing", 404),
        ("GET", "/admin/keys/a/b", 404),
        ("PUT", "/admin", 405),
        ("GET", "/admin/logout", 405),
    ],
)
def test_errors_are_pages(admin: FlaskClient, method: str, path: str, status: int) -> None:
    """Also where there is nothing; the request's id is there to quote."""
    response = admin.open(path, method=method, headers={"X-Request-ID": "quote-me"})
    assert response.status_code == status
    assert response.mimetype == "text/html"
    assert "quote-me" in response.text
    assert response.headers["Cache-Control"] == "no-store"
    elsewhere = admin.open(path.replace("/admin", "/nowhere"), method=method)
    assert elsewhere.mimetype == "application/json"
