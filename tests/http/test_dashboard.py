"""The dashboard's pages, parts and forms for the operator who has signed in, and the same figures as JSON."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY
from support.seeding import seed_ledger
from werkzeug.test import TestResponse

from grokflask.errors import StoreUnavailableError
from grokflask.ledger.row import FIELDS, MORE_FIELDS, LedgerRow, make_id
from grokflask.ledger.statements import read_fields, store
from grokflask.web.dashboard.overview import SECTIONS

TOKEN = "admin-token-0123456789"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
CHAT = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hi"}]}
HOSTILE = "<script>alert(1)</script>'\"&{{7*7}}" + "x" * 150


@pytest.fixture
def admin(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """The app, somebody being signed in; what keys may is looked up each time."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=TOKEN, GROKFLASK_KEY_CACHE_S="0")
    post(client, "/login", page="/login", token=TOKEN)
    return client


def get(client: FlaskClient, path: str, status: int = 200) -> str:
    response = client.get(f"/admin{path}", headers={"Accept": "text/html"})
    assert response.status_code == status, response.text
    assert response.headers["Cache-Control"] == "no-store"
    return response.text


def post(client: FlaskClient, path: str, page: str = "/keys/new", **fields: str) -> TestResponse:
    """Sends a form with the token of `page`."""
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get(f"/admin{page}").text)
    assert token
    return client.post(f"/admin{path}", data={**fields, "csrf_token": token[1]})


def make_key(client: FlaskClient, name: str, **fields: str) -> str:
    """Its secret, off the page."""
    response = post(client, "/keys", name=name, **fields)
    assert response.status_code == 200, response.text
    return find_secret(response.text)


def find_secret(page: str) -> str:
    found = re.search(r'<pre class="code" id="secret"[^>]*>(gf-[\w-]{43})</pre>', page)
    assert found, page
    return found[1]


def show(client: FlaskClient, name: str) -> dict[str, Any]:
    response = client.get(f"/admin/api/keys/{name}", headers=ADMIN)
    assert response.status_code == 200
    return dict(response.json or {})


def chat(client: FlaskClient, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    response = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    _ = response.data
    return response.status_code


def seed(client: FlaskClient, *rows: LedgerRow) -> None:
    """Puts rows into the ledger; many varied ones when none are given."""
    database = client.application.extensions["database"]
    if rows:
        database.write(lambda connection: store(connection, [read_fields(row) for row in rows]))
    else:
        seed_ledger(database, 300, days=20)


def test_an_empty_gateway_says_how_to_begin(admin: FlaskClient) -> None:
    """With the line that makes the first call; figures are zeros."""
    page = unescape(get(admin, ""))
    assert "No exchanges yet" in page
    assert "curl -N http://localhost/api/v1/chat/completions" in page
    assert "environment" in page  # alice is fixed by GROKFLASK_KEYS
    assert "No stream is open" in page


def test_a_key_from_its_making_to_its_end(admin: FlaskClient) -> None:
    """By forms alone: made, used, changed, rotated, revoked. Its secret is on one page and nowhere else."""
    fields = {"budget_day": "2.50", "models": "grok-4* grok-3", "tools": "client", "streams": ""}
    secret = make_key(admin, "bob", **fields)
    shown = show(admin, "bob")
    assert (shown["budget_day"], shown["models"], shown["tools"]) == (2.5, ["grok-4*", "grok-3"], "client")
    assert (shown["streams"], shown["requests"]) == (None, None)
    assert chat(admin, secret) == 200
    for path in ("", "/keys/bob", "/parts/keys", "/keys/new"):
        assert secret not in get(admin, path)
    assert re.search(r'name="budget_day" value="2.5"', get(admin, "/keys/bob"))
    limits = re.findall(r'<span class="breaks">([^<]+)</span>', get(admin, "/parts/keys"))
    assert limits == ["grok-4* grok-3", "tools: client"]

    kept = {"budget_day": "2.5", "models": "grok-4*, grok-3", "tools": "client"}
    response = post(admin, "/keys/bob", **kept)
    assert (response.status_code, response.headers["Location"]) == (303, "/admin/keys/bob?saved=0")
    response = post(admin, "/keys/bob", **{**kept, "models": "", "streams": "3", "expires_at": "30d"})
    assert response.headers["Location"] == "/admin/keys/bob?saved=3"
    shown = show(admin, "bob")
    assert (shown["models"], shown["streams"], shown["budget_day"]) == ([], 3, 2.5)
    assert shown["expires_at"] is not None

    response = post(admin, "/keys/bob/rotate", overlap="1h")
    newer = find_secret(response.text)
    assert [chat(admin, secret), chat(admin, newer)] == [200, 200]
    last = find_secret(post(admin, "/keys/bob/rotate", overlap="0s").text)
    assert [chat(admin, newer), chat(admin, last)] == [403, 200]

    assert "Revoke the key “bob”?" in unescape(get(admin, "/keys/bob/revoke"))
    assert chat(admin, last) == 200  # asking has done nothing
    response = post(admin, "/keys/bob/revoke", page="/keys/bob/revoke")
    assert response.headers["Location"] == "/admin?notice=revoked#keys"
    assert chat(admin, last) == 403
    assert "The key has been revoked" in get(admin, "?notice=revoked")
    assert 'action="/admin/keys/bob"' not in get(admin, "/keys/bob")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": "a b"}, 400),
        ({"name": ""}, 400),
        ({"name": "alice"}, 409),
        ({"name": "new", "budget_day": "much"}, 400),
        ({"name": "new", "streams": "-1"}, 400),
        ({"name": "new", "models": "<b>"}, 400),
        ({"name": "new", "expires_at": "2001-01-01"}, 400),
        ({"name": "new", "requests": "5 apples"}, 400),
        ({"name": "new", "tools": "some"}, 400),
    ],
)
def test_what_is_wrong_with_a_new_key(admin: FlaskClient, fields: dict[str, str], status: int) -> None:
    """The form comes back with what was typed and what is wrong; nothing has been made."""
    response = post(admin, "/keys", **{"streams": "7", **fields})
    assert response.status_code == status
    assert 'role="alert"' in response.text
    assert f'name="streams" value="{fields.get("streams", "7")}"' in response.text
    assert admin.get("/admin/api/keys", headers=ADMIN).json == {"keys": []}


def test_a_wrong_limit(admin: FlaskClient) -> None:
    """The key's page comes back with it, and the key is as it was."""
    make_key(admin, "bob", streams="2")
    before = show(admin, "bob")
    response = post(admin, "/keys/bob", streams="2", tools="all", requests="100 hours")
    assert response.status_code == 400
    assert 'value="100 hours"' in response.text
    assert show(admin, "bob") == before
    assert post(admin, "/keys/bob/rotate", overlap="soon").status_code == 400
    assert post(admin, "/keys/bob/rotate").status_code == 400


@pytest.mark.parametrize("path", ["/keys/nobody", "/keys/alice", "/keys/%00", "/keys/nobody/revoke"])
def test_keys_that_are_not_there(admin: FlaskClient, path: str) -> None:
    """They are a page that says so; those of the environment cannot be changed here."""
    assert "There is no key named" in unescape(get(admin, path, 404))
    assert post(admin, "/keys/nobody/revoke").status_code == 404


@pytest.mark.parametrize(
    "path", ["/exchanges/x", f"/exchanges/{'0' * 28}", "/streams/x/end", "/parts/nothing"]
)
def test_things_that_are_not_there(admin: FlaskClient, path: str) -> None:
    """They are a 404."""
    get(admin, path, 404)
    assert post(admin, "/streams/nothing/end").status_code == 404


def test_hostile_names_are_only_text(admin: FlaskClient) -> None:
    """Markup in keys, models and request ids of the ledger is shown as it is, and runs nowhere."""
    row = LedgerRow(make_id(), HOSTILE, HOSTILE, "chat", HOSTILE, time.time(), model_served=HOSTILE + "s")
    row.outcome, row.status, row.cost_ticks, row.code = "complete", 200, 10**10, HOSTILE
    seed(admin, row)
    for path in ("", "?by=model", *(f"/parts/{name}" for name in SECTIONS), f"/exchanges/{row.id}"):
        page = get(admin, path)
        assert "<script>alert" not in page
        assert "49" + "x" * 150 not in page
    assert HOSTILE in unescape(get(admin, f"/exchanges/{row.id}"))
    for path in (
        "?key=%3Cscript%3E",
        "?find=%3Cscript%3E",
        "?days=%3Cscript%3E",
        "?before=%22%3E%3Cscript%3E",
    ):
        assert "<script>" not in get(admin, path).replace('<script src="/static/theme', "")


def test_the_page_and_its_parts(admin: FlaskClient) -> None:
    """Each section is in the page as it is served by itself; none has inline style or script."""
    seed(admin)
    page = get(admin, "")
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", page)
    for name in SECTIONS:
        part = get(admin, f"/parts/{name}")
        assert f'data-part="{name}"' in page
        assert len(part) > 100
        assert "<html" not in part
    numbers = get(admin, "/parts/numbers")
    assert numbers.strip() in page


def test_each_day_has_its_place_in_the_chart(admin: FlaskClient) -> None:
    """Bars stand in the strip of their day, and the last strip ends at the chart's edge."""
    seed(admin)
    days = re.findall(r'<g class="day">(.*?)</g>', get(admin, "/parts/spend?days=7"), re.DOTALL)
    assert len(days) == 7
    for place, day in enumerate(days):
        rects = re.findall(r'<rect class="([\w-]+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', day)
        assert rects[0] == ("strip", str(place), "1")
        assert len(rects) > 1
        assert all(place < float(x) < float(x) + float(width) < place + 1 for _, x, width in rects[1:])


def test_filters_and_pages(admin: FlaskClient) -> None:
    """Rows are those that are asked for; pages go on where the last one ended; links keep the filter."""
    seed(admin)
    rows = admin.get("/admin/api/ledger?limit=1000", headers=ADMIN).json
    assert rows
    wanted = [row["id"] for row in rows["rows"] if row["outcome"] == "complete" and row["key"] == "alice"]
    path, found = "?outcome=complete&key=alice", []
    while path:
        page = get(admin, f"/parts/exchanges{path}")
        found += re.findall(r'<tr data-id="([0-9a-f]{28})"', page)
        older = re.search(r'href="/admin(\?[^"#]*)#exchanges">Older', page)
        path = unescape(older[1]) if older else ""
    assert found == wanted
    assert len(wanted) > 25
    [row_id] = re.findall(
        r'<tr data-id="([0-9a-f]{28})"', get(admin, f"?request_id={rows['rows'][5]['request_id']}")
    )
    assert row_id == rows["rows"][5]["id"]
    assert "No exchange matches" in get(admin, "?model=nothing")
    for query in ("outcome=done", "since=yesterday", "key=%00", "before=x"):
        page = get(admin, f"?{query}")
        assert "expects" in unescape(page)


def test_an_exchange(admin: FlaskClient) -> None:
    """All fields of a row are on its page."""
    assert chat(admin, CLIENT_KEY) == 200
    [row_id] = re.findall(r'<tr data-id="([0-9a-f]{28})"', get(admin, "/parts/exchanges"))
    page = unescape(get(admin, f"/exchanges/{row_id}"))
    for name in (*FIELDS, *MORE_FIELDS):
        assert f"<dt>{name.replace('_', ' ')}</dt>" in page
    assert row_id in page


@pytest.mark.parametrize("path", ["/admin/exchanges.csv", "/admin/api/ledger.csv"])
def test_the_export(admin: FlaskClient, path: str) -> None:
    """The file has the rows of the same filter, in the ledger's order, and no formulas."""
    seed(admin)
    row = LedgerRow(make_id(), "=1+1", "alice", "chat", "+SUM(A1)", time.time(), outcome="complete")
    seed(admin, row)
    response = admin.get(f"{path}?outcome=complete&key=alice", headers=ADMIN)
    assert (response.status_code, response.mimetype) == (200, "text/csv")
    assert "attachment" in response.headers["Content-Disposition"]
    lines = list(csv.DictReader(io.StringIO(response.text)))
    rows = admin.get("/admin/api/ledger?outcome=complete&key=alice&limit=1000", headers=ADMIN).json
    assert rows
    assert [line["id"] for line in lines] == [row["id"] for row in rows["rows"]]
    assert [line["cost_ticks"] or "0" for line in lines] == [
        str(row["cost_ticks"] or 0) for row in rows["rows"]
    ]
    [line] = [line for line in lines if line["id"] == row.id]
    assert (line["request_id"], line["model"]) == ("'=1+1", "'+SUM(A1)")
    assert admin.get(f"{path}?outcome=done", headers=ADMIN).status_code == 400


def test_many_rows_are_exported_in_pieces(admin: FlaskClient) -> None:
    """What is in memory is a page of rows, and not the file."""
    database = admin.application.extensions["database"]
    now = time.time()
    rows = [
        LedgerRow(make_id(now - n), str(n), "k", "chat", "m", now, outcome="complete") for n in range(2500)
    ]
    database.write(lambda connection: store(connection, [read_fields(row) for row in rows]))
    response = admin.get("/admin/exchanges.csv", buffered=False)
    pieces = list(response.response)
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 40_000
    assert (
        b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces).count(b"\n")
        == 2501
    )


def test_without_the_database(admin: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page comes all the same, with what is known, and says what is missing; changes are a page's 503."""
    make_key(admin, "bob")
    database = admin.application.extensions["database"]

    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailableError

    monkeypatch.setattr(database, "read", fail)
    monkeypatch.setattr(database, "write", fail)
    page = unescape(get(admin, ""))
    assert page.count("The database is unavailable") >= 3
    assert "Redis" in page
    for path in ("/keys/bob", "/exchanges.csv", f"/exchanges/{'0' * 28}"):
        assert "unavailable" in get(admin, path, 503)
    response = post(admin, "/keys", name="carl")
    assert (response.status_code, response.mimetype) == (503, "text/html")


def test_the_overview_as_json(admin: FlaskClient) -> None:
    """Spend, series, outcomes, percentiles and stores, which agree with the sums."""
    seed(admin)
    assert chat(admin, CLIENT_KEY) == 200
    response = admin.get("/admin/api/overview?days=90&by=model", headers=ADMIN)
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    document = dict(response.json or {})
    summary = admin.get("/admin/api/summary?by=model", headers=ADMIN).json
    assert summary
    assert document["exchanges"] == sum(row["exchanges"] for row in summary["rows"]) == 301
    series = document["series"]
    assert {row["model"]: row["cost_ticks"] for row in series["rows"]} == {
        row["model"]: row["cost_ticks"] for row in summary["rows"]
    }
    assert all(len(row["ticks_by_day"]) == len(series["days"]) == 90 for row in series["rows"])
    assert sum(each["exchanges"] for each in document["outcomes"]) == 301
    assert document["cancelled"]["saved_ticks"] > 0
    assert document["timings"]["ttft_ms"]["p50"] <= document["timings"]["ttft_ms"]["p99"]
    assert document["stores"]["database"]["state"] == "up"
    assert document["stores"]["upstream_state"] in ("up", "shaky")
    assert 0 < document["spend"]["day_ticks"] <= document["spend"]["month_ticks"]


@pytest.mark.parametrize(
    ("query", "param"), [("days=31", "days"), ("days=", "days"), ("by=day", "by"), ("key=alice", "key")]
)
def test_wrong_questions_to_the_overview(admin: FlaskClient, query: str, param: str) -> None:
    """They are a 400 that names the parameter."""
    response = admin.get(f"/admin/api/overview?{query}", headers=ADMIN)
    assert response.status_code == 400
    assert response.json is not None
    assert response.json["error"]["param"] == param
    assert admin.get(f"/admin/api/overview?{query}").status_code == 401


def test_many_keys(admin: FlaskClient) -> None:
    """They come in pages, and are found by a part of their name."""
    key_store = admin.application.extensions["key_store"]
    for number in range(30):
        key_store.create(f"key-{number:02d}", {})
    page = get(admin, "/parts/keys")
    assert len(re.findall("<tr data-id=", page)) == 25
    assert len(re.findall("<tr data-id=", get(admin, "/parts/keys?page=2"))) == 6
    assert re.findall('<tr data-id="([^"]+)"', get(admin, "/parts/keys?find=KEY-07")) == ["key-07"]
    assert "No key has" in get(admin, "/parts/keys?find=nothing")
    for page_number in ("0", "-1", "99", "x", "\u0663"):
        assert "<tr data-id=" in get(admin, f"/parts/keys?page={page_number}")


def test_stalls_of_the_event_loop(admin: FlaskClient) -> None:
    """The stalls of the last hour and the longest; nothing under a server whose loop is not watched."""
    tallies = admin.application.extensions["tallies"]
    assert "Event loop" not in get(admin, "/parts/stores")
    tallies.note_loop_delay(0.01)
    assert "no stalls" in get(admin, "/parts/stores")
    tallies.note_loop_delay(0.312)
    page = get(admin, "/parts/stores")
    assert "1 stall<" in page
    assert "in the last hour, the longest 312 ms" in page
    tallies.note_loop_delay(0.26)
    assert "2 stalls<" in get(admin, "/parts/stores")
    assert admin.get("/ready", headers=ADMIN).get_json()["loop"] == {"stalls": 2, "worst_ms": 312}
