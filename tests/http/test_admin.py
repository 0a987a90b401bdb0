"""The admin API: keys and the ledger for the holder of its token, and nothing for anybody else."""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from support.scripted import USAGE

from grokflask.config import Settings
from grokflask.keys.ring import KeyRing
from grokflask.ledger.row import LedgerRow, make_id
from grokflask.times import to_day

TOKEN = "admin-token-0123456789"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
CHAT = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hi"}]}

PATHS = [
    *(("GET", "keys"), ("POST", "keys"), ("GET", "keys/bob"), ("PATCH", "keys/bob"), ("DELETE", "keys/bob")),
    *(("POST", "keys/bob/rotate"), ("GET", "ledger"), ("GET", "summary"), ("GET", ""), ("PUT", "keys")),
    *(("GET", "streams"), ("DELETE", "streams/x"), ("GET", "streams/x")),
    *(("GET", "nothing"), ("OPTIONS", "keys"), ("GET", "keys/bob/"), ("POST", "ledger"), ("GET", "/keys")),
]


@pytest.fixture
def admin(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """The app with an admin token."""
    return make_client(GROKFLASK_ADMIN_TOKEN=TOKEN)


def call(client: FlaskClient, method: str, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
    """The JSON that the admin API answers with `status`."""
    response = client.open(f"/admin/api/{path}", method=method, headers=ADMIN, json=body)
    assert response.status_code == status, response.text
    assert response.mimetype == "application/json"
    document: dict[str, Any] = response.json or {}
    return document


def refuse(
    client: FlaskClient, method: str, path: str, body: Any = None, status: int = 400
) -> dict[str, Any]:
    """The error that it answers."""
    error: dict[str, Any] = call(client, method, path, body, status)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def chat(client: FlaskClient, secret: str, **body: Any) -> int:
    headers = {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    response = client.post("/v1/chat/completions", json={**CHAT, **body}, headers=headers)
    _ = response.data
    return response.status_code


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("header", [None, f"Bearer {TOKEN}"])
def test_there_is_no_admin_api_without_its_token(
    client: FlaskClient, method: str, path: str, header: str | None
) -> None:
    """Without GROKFLASK_ADMIN_TOKEN every path is a 404, whatever the method and whoever asks."""
    headers = {"Authorization": header} if header else {}
    response = client.open(f"/admin/api/{path}", method=method, headers=headers, json={"name": "bob"})
    assert response.status_code == 404
    assert response.json is not None
    assert response.json["error"]["code"] == "not_found"
    assert "Allow" not in response.headers


HEADERS = [
    *("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", TOKEN),
    *(f"Basic {TOKEN}", f"Bearer {CLIENT_KEY}", f"Bearer {UPSTREAM_KEY}", "Bearer \u00e9"),
]


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [*((*path, None) for path in PATHS), *(("POST", "keys", header) for header in HEADERS)],
)
def test_the_token_guards_every_path(admin: FlaskClient, method: str, path: str, header: str | None) -> None:
    """Anything but the token is a 401, also where there is nothing, and nothing is done."""
    headers = {} if header is None else {"Authorization": header}
    response = admin.open(f"/admin/api/{path}", method=method, headers=headers, json={"name": "bob"})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json is not None
    assert response.json["error"]["code"] == "invalid_api_key"
    assert TOKEN not in response.text
    assert call(admin, "GET", "keys") == {"keys": []}


def test_the_admin_token_is_no_key(admin: FlaskClient) -> None:
    """It opens the admin API and nothing else."""
    assert chat(admin, TOKEN) == 401


def test_unknown_paths_and_methods(admin: FlaskClient) -> None:
    """With the token a wrong path is a 404 and a wrong method a 405, in JSON."""
    assert refuse(admin, "GET", "nothing", status=404)["code"] == "not_found"
    assert refuse(admin, "PUT", "keys", status=405)["code"] == "method_not_allowed"


def test_a_key_from_its_making_to_its_end(admin: FlaskClient) -> None:
    """Made, used, listed, changed, rotated, revoked: each answer is what is stored."""
    response = admin.post("/admin/api/keys", json={"name": "bob", "streams": 3}, headers=ADMIN)
    assert response.status_code == 201
    assert response.headers["Cache-Control"] == "no-store"
    made = dict(response.json or {})
    secret = made.pop("secret")
    assert made == call(admin, "GET", "keys/bob")
    assert call(admin, "GET", "keys") == {"keys": [made]}
    assert chat(admin, secret) == 200

    changed = call(admin, "PATCH", "keys/bob", {"models": ["grok-4*"], "streams": None})
    assert (changed["models"], changed["streams"]) == (["grok-4*"], None)
    assert changed == call(admin, "GET", "keys/bob")

    rotated = call(admin, "POST", "keys/bob/rotate", {"overlap": "0s"})
    newer = rotated.pop("secret")
    assert rotated == call(admin, "GET", "keys/bob")
    assert [each["expires_at"] is None for each in rotated["secrets"]] == [True, False]
    assert chat(admin, newer) == 200

    revoked = call(admin, "DELETE", "keys/bob")
    assert (revoked["status"], revoked["name"]) == ("revoked", "bob")
    assert call(admin, "DELETE", "keys/bob") == revoked == call(admin, "GET", "keys/bob")
    assert refuse(admin, "POST", "keys", {"name": "bob"}, 409)["code"] == "key_exists"
    for method, path, body in (("PATCH", "keys/bob", {"streams": 1}), ("POST", "keys/bob/rotate", None)):
        assert refuse(admin, method, path, body, 409)["code"] == "key_revoked"


def test_rotation_without_a_body(admin: FlaskClient) -> None:
    """Then the old secret goes on for an hour, and an empty object says the same."""
    for body in (None, {}):
        name = "bob" if body is None else "carl"
        call(admin, "POST", "keys", {"name": name}, 201)
        old = call(admin, "POST", f"keys/{name}/rotate", body)["secrets"][1]
        assert old["expires_at"] > old["created_at"]


def test_a_revoked_key_is_refused(make_client: Callable[..., FlaskClient]) -> None:
    """A revocation by the admin API shuts the key for chats; without a cache at once."""
    admin = make_client(GROKFLASK_ADMIN_TOKEN=TOKEN, GROKFLASK_KEY_CACHE_S="0")
    secret = call(admin, "POST", "keys", {"name": "bob"}, 201)["secret"]
    assert chat(admin, secret) == 200
    call(admin, "DELETE", "keys/bob")
    assert chat(admin, secret) == 403


FIELDS: list[tuple[str, Any, Any]] = [
    ("requests", "5/minute", "5/minute"),
    ("tokens_per_minute", 1000, 1000),
    ("tokens_per_minute", "1000", 1000),
    ("streams", 0, 0),
    ("budget_day", 2.5, 2.5),
    ("budget_day", "2.50", 2.5),
    ("budget_month", 100_000_000, 100_000_000),
    ("models", ["grok-4*", "grok-3"], ["grok-4*", "grok-3"]),
    ("expires_at", "2099-01-31T12:00Z", "2099-01-31T12:00:00.000Z"),
]


@pytest.mark.parametrize(("field", "value", "stored"), FIELDS)
def test_each_limit_is_stored_and_echoed(admin: FlaskClient, field: str, value: Any, stored: Any) -> None:
    """POST and PATCH store the same, say so, and null takes it away again."""
    made = call(admin, "POST", "keys", {"name": "bob", field: value}, 201)
    call(admin, "POST", "keys", {"name": "carl"}, 201)
    changed = call(admin, "PATCH", "keys/carl", {field: value})
    for answer in (made, changed, call(admin, "GET", "keys/bob"), call(admin, "GET", "keys/carl")):
        assert answer[field] == stored
    assert call(admin, "PATCH", "keys/bob", {field: None})[field] in (None, [])


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "keys", {}, "name"),
        ("POST", "keys", {"name": None}, "name"),
        ("POST", "keys", {"name": 5}, "name"),
        ("POST", "keys", {"name": "a b"}, "name"),
        ("POST", "keys", {"name": "../bob"}, "name"),
        ("POST", "keys", {"name": "b\u0000b"}, "name"),
        ("POST", "keys", {"name": "new", "budget": 5}, "budget"),
        ("POST", "keys", {"name": "new", "secret": "mine"}, "secret"),
        ("POST", "keys", {"name": "new", "streams": -1}, "streams"),
        ("POST", "keys", {"name": "new", "streams": 10**30}, "streams"),
        ("POST", "keys", {"name": "new", "streams": 1.5}, "streams"),
        ("POST", "keys", {"name": "new", "streams": True}, "streams"),
        ("POST", "keys", {"name": "new", "budget_day": 1e300}, "budget_day"),
        ("POST", "keys", {"name": "new", "models": "grok-4"}, "models"),
        ("POST", "keys", {"name": "new", "expires_at": "2001-01-01"}, "expires_at"),
        ("PATCH", "keys/bob", {}, None),
        ("PATCH", "keys/bob", {"name": "carl"}, "name"),
        ("PATCH", "keys/bob", {"streams": 2, "budget_dya": 1}, "budget_dya"),
        ("PATCH", "keys/bob", {"streams": 2, "requests": []}, "requests"),
        ("POST", "keys/bob/rotate", {"overlap": 5}, "overlap"),
        ("POST", "keys/bob/rotate", {"overlap": "9999w"}, "overlap"),
        ("POST", "keys/bob/rotate", {"overlap_s": "5s"}, "overlap_s"),
        ("POST", "keys", [], None),
        ("POST", "keys", "bob", None),
        ("POST", "keys", None, None),
        ("GET", "keys?limit=5", None, "limit"),
        ("GET", "keys/bob?x=1", None, "x"),
        ("POST", "keys?name=new", {"name": "new"}, "name"),
        ("DELETE", "keys/bob?really=no", None, "really"),
        ("POST", "keys", {"name": "new", "x" * 9999: 1}, "x" * 64),
        ("POST", "keys/bob/rotate", {"x" * 9999: 1}, "x" * 64),
        ("GET", f"keys?{'x' * 3000}=1", None, "x" * 64),
    ],
)
def test_what_is_not_known_is_refused(
    admin: FlaskClient, method: str, path: str, body: Any, param: str | None
) -> None:
    """A wrong value, unknown field or parameter is a 400 that names it (415: no JSON); nothing changes."""
    call(admin, "POST", "keys", {"name": "bob", "streams": 1}, 201)
    before = call(admin, "GET", "keys")
    status = 415 if (method, path, body) == ("POST", "keys", None) else 400
    error = refuse(admin, method, path, body, status)
    assert error["param"] == param
    assert call(admin, "GET", "keys") == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b'{"name": "\xff"}', 400),
        (b"[" * 60_000, 400),
        (b'{"name": "new", "streams": ' + b"9" * 9000 + b"}", 400),
        (b'{"name": "new"}' + b" " * 65_536, 413),
    ],
    ids=["nothing", "cut", "null", "not UTF-8", "deep", "long number", "too large"],
)
def test_bodies_that_are_no_json_object(admin: FlaskClient, body: bytes, status: int) -> None:
    """Neither broken nor huge bodies make a key or a 500."""
    headers = {**ADMIN, "Content-Type": "application/json"}
    response = admin.post("/admin/api/keys", data=body, headers=headers)
    assert response.status_code == status
    assert call(admin, "GET", "keys") == {"keys": []}


@pytest.mark.parametrize(
    "name", ["nobody", "alice", "%00", "a%2Fb", "%ED%A0%80", "%F0%9F%A6%8A", "x" * 200, "-"]
)
def test_keys_that_do_not_exist(admin: FlaskClient, name: str) -> None:
    """They are a 404, whatever is in the name; a key of GROKFLASK_KEYS is not in the database either."""
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"streams": 1}),
        ("DELETE", "", None),
        ("POST", "/rotate", None),
    ):
        code = refuse(admin, method, f"keys/{name}{path}", body, 404)["code"]
        assert code == ("not_found" if "%2F" in name else "key_not_found")
    assert call(admin, "GET", "keys") == {"keys": []}  # and the database is not thought to be away


def test_reserved_name(admin: FlaskClient) -> None:
    """A name of GROKFLASK_KEYS is taken."""
    assert refuse(admin, "POST", "keys", {"name": "alice"}, 409)["code"] == "key_exists"


def test_ledger_pages(admin: FlaskClient) -> None:
    """Rows come newest first, a page at a time, each once; an exchange that has just ended is among them."""
    for number in range(5):
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", "X-Request-ID": f"r{number}"}
        assert admin.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
        time.sleep(0.002)  # ids sort by the millisecond in which a request began
    pages, before = [], ""
    while True:
        page = call(admin, "GET", f"ledger?limit=2{before}")
        pages.append([row["request_id"] for row in page["rows"]])
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert pages == [["r4", "r3"], ["r2", "r1"], ["r0"]]
    assert call(admin, "GET", "ledger?limit=5")["next"] is None
    [row] = call(admin, "GET", "ledger?request_id=r3")["rows"]
    assert list(row)[:4] == ["request_id", "key", "route", "model"]
    assert (row["key"], row["model"], row["outcome"], row["cost_ticks"]) == (
        "alice",
        "grok-4.3",
        "complete",
        8750,
    )


@pytest.mark.parametrize(
    ("query", "count"),
    [
        *(
            ("key=alice", 1),
            ("key=bob", 0),
            ("model=grok-4.3", 1),
            ("model=grok", 0),
            ("outcome=complete", 1),
        ),
        *(("outcome=lost", 0), ("since=1h", 1), ("since=0s", 0), ("until=1h", 0), ("until=2099-01-01", 1)),
        *(("key=&model=", 1), ("since=1h&until=2099-01-01&key=alice&outcome=complete&model=grok-4.3", 1)),
    ],
)
def test_ledger_filters(admin: FlaskClient, query: str, count: int) -> None:
    """Each filter keeps what it asks for and drops the rest."""
    assert chat(admin, CLIENT_KEY) == 200
    assert len(call(admin, "GET", f"ledger?{query}")["rows"]) == count


@pytest.mark.parametrize(
    ("path", "param"),
    [
        *(("ledger?limit=0", "limit"), ("ledger?limit=1001", "limit"), ("ledger?limit=x", "limit")),
        *(("ledger?limit=1&limit=2", "limit"), ("ledger?limit=", "limit"), ("ledger?limit=%D9%A3", "limit")),
        *(("ledger?before=x", "before"), ("ledger?before=", "before"), ("ledger?keys=alice", "keys")),
        *(("ledger?since=yesterday", "since"), ("ledger?outcome=done", "outcome"), ("ledger?key=%00", "key")),
        *(("summary?by=week", "by"), ("summary?key=alice", "key"), ("summary?until=x", "until")),
    ],
)
def test_wrong_questions(admin: FlaskClient, path: str, param: str) -> None:
    """A question that cannot be meant is a 400 that names the parameter, not an answer to another one."""
    assert refuse(admin, "GET", path)["param"] == param
    call(admin, "GET", "ledger?limit=1000")


def test_summary(admin: FlaskClient) -> None:
    """Sums are by key unless something else is asked for, over the days that are asked for."""
    assert [chat(admin, CLIENT_KEY), chat(admin, CLIENT_KEY)] == [200, 200]
    today = to_day(time.time())
    for grouping, name in (("key", "alice"), ("model", "grok-4.3"), ("outcome", "complete")):
        answer = call(admin, "GET", f"summary?by={grouping}&since=24h")
        [row] = answer["rows"]
        assert (answer["by"], row[grouping], row["exchanges"], row["cost_ticks"]) == (
            grouping,
            name,
            2,
            17500,
        )
    assert call(admin, "GET", "summary")["by"] == "key"
    days = call(admin, "GET", f"summary?by=day&until={to_day(time.time())}")["rows"]
    assert sum(row["exchanges"] for row in days) == 2
    assert days[-1]["day"] >= today
    assert call(admin, "GET", "summary?until=2001-01-01")["rows"] == []


def test_changes_are_logged_without_secrets(admin: FlaskClient, logged: io.StringIO) -> None:
    """Each change is one line that says who, what and which key; a wrong token is one as well."""
    secrets = [call(admin, "POST", "keys", {"name": "bob"}, 201)["secret"]]
    call(admin, "PATCH", "keys/bob", {"streams": 1, "models": None})
    secrets.append(call(admin, "POST", "keys/bob/rotate")["secret"])
    call(admin, "DELETE", "keys/bob")
    refuse(admin, "PATCH", "keys/bob", {"streams": 1}, 409)
    call(admin, "GET", "keys")
    admin.get("/admin/api/keys", headers={"Authorization": "Bearer wrong-token"})
    lines = [line for line in logged.getvalue().splitlines() if "logger=grokflask.admin" in line]
    assert ["action=" + word in line for word, line in zip(
        ("create", "change", "rotate", "revoke"), lines, strict=False)] == [True] * 4  # fmt: skip
    assert all("who=admin" in line and "key=bob" in line for line in lines[:4])
    assert 'fields="streams,models"' in lines[1] or "fields=streams,models" in lines[1]
    assert ["msg=refused" in line for line in lines[4:]] == [True]
    for secret in (*secrets, TOKEN, "wrong-token"):
        assert secret not in logged.getvalue()


def test_the_admin_api_is_not_counted_and_not_for_other_pages(
    make_client: Callable[..., FlaskClient],
) -> None:
    """No rate limit applies to it, no browser may call it from elsewhere, and it sets no cookie."""
    admin = make_client(
        GROKFLASK_ADMIN_TOKEN=TOKEN, GROKFLASK_RATE_LIMIT="1/hour", GROKFLASK_CORS_ORIGINS="*"
    )
    for _ in range(3):
        response = admin.get("/admin/api/keys", headers={**ADMIN, "Origin": "https://app.example.com"})
        assert response.status_code == 200
    assert not [name for name, _ in response.headers if name.startswith(("Access-", "X-RateLimit"))]
    assert "Set-Cookie" not in response.headers
    assert response.headers["X-Request-ID"]


@pytest.mark.usefixtures("hasty")
def test_the_database_is_away(make_client: Callable[..., FlaskClient], tmp_path: Path) -> None:
    """Then every question is a 503 that says so, and the token is still asked for.

    But for this worker's streams, which are listed with a word that others' may be missing.
    """
    (tmp_path / "file").write_text("not a folder")
    url = f"sqlite:///{tmp_path}/file/x.db"
    admin = make_client(GROKFLASK_ADMIN_TOKEN=TOKEN, DATABASE_URL=url)
    for method, path, body in (
        ("GET", "keys", None),
        ("POST", "keys", {"name": "bob"}),
        ("DELETE", "keys/bob", None),
        ("GET", "ledger", None),
        ("GET", "summary", None),
        ("DELETE", "streams/x", None),
    ):
        assert refuse(admin, method, path, body, 503)["code"] == "store_unavailable"
    assert call(admin, "GET", "streams") == {"streams": [], "complete": False}
    assert admin.get("/admin/api/keys").status_code == 401
    assert chat(admin, CLIENT_KEY) == 200
    assert chat(admin, "gf-unknown") == 503


def test_keys_made_here_are_found_by_every_worker(admin: FlaskClient) -> None:
    """A key is in the database: another process that looks there lets it in."""
    secret = call(admin, "POST", "keys", {"name": "bob", "streams": 2}, 201)["secret"]
    settings: Settings = admin.application.extensions["settings"]
    ring = KeyRing(settings, admin.application.extensions["key_store"])
    assert ring.authenticate(f"Bearer {secret}", "192.0.2.1").limits.streams == 2
    assert secret not in json.dumps(call(admin, "GET", "keys"))


def test_no_streams_are_open(admin: FlaskClient) -> None:
    """Nothing open is an empty list; what is not open cannot be ended, whatever its name."""
    assert call(admin, "GET", "streams") == {"streams": [], "complete": True}
    for name in ("nothing", "%00", "x" * 300, "%F0%9F%94%91", "a%20b"):
        assert refuse(admin, "DELETE", f"streams/{name}", status=404)["code"] == "not_found"
    assert refuse(admin, "GET", "streams?key=alice")["param"] == "key"
    assert refuse(admin, "DELETE", "streams/x?force=1")["param"] == "force"


def test_a_stream_of_another_process_without_redis(admin: FlaskClient) -> None:
    """It is listed, without what only its worker knows; that it cannot be ended from here is said."""
    writer = admin.application.extensions["ledger_writer"]
    now = time.time()
    writer.open(LedgerRow(make_id(now), "far", "bob", "chat", "grok-4.3", now, worker="another", stream=True))
    assert writer.flush(10)
    (stream,) = call(admin, "GET", "streams")["streams"]
    named = ("request_id", "key", "model", "events", "bytes_out")
    assert [stream[name] for name in named] == ["far", "bob", "grok-4.3", None, None]
    assert stream.keys() == {*named, "id", "started_at", "age_s"}
    assert refuse(admin, "DELETE", "streams/far", status=409)["code"] == "stream_elsewhere"


@pytest.mark.usefixtures("hasty")
def test_spending_is_not_corrected_by_a_ledger_that_lacks_rows(admin: FlaskClient, tmp_path: Path) -> None:
    """What has been spent counts while its row waits for a locked database, also after a reload's end."""
    made = call(admin, "POST", "keys", {"name": "ann", "budget_day": 1}, 201)
    assert chat(admin, made["secret"]) == 200
    limits = admin.application.extensions["limits"]
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert chat(admin, made["secret"]) == 200
        admin.application.extensions["healer"].compare()
    (limit_id,) = limits._counters.list_keys()
    standing = limits.find_standing(limit_id, to_day(time.time()))
    assert standing.day_ticks == 2 * USAGE["cost_in_usd_ticks"]
