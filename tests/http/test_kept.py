"""Files, batches and videos: relayed, each its key's alone, and booked with what upstream charged."""

from __future__ import annotations

import io
import json
from itertools import product
from typing import Any

import pytest
from support.kept import Door, door
from support.processes import UPSTREAM_KEY

from grokflask.kept.custody import MAX_NAMED
from grokflask.sandbox.kept import File
from grokflask.sandbox.models import VIDEO_TICKS

__all__ = ["door"]

LINE = {"method": "POST", "url": "/v1/chat/completions"}
CHAT = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hello"}]}
VIDEO = {"prompt": "a cat", "duration": 3}


def upload(door: Door, key: dict[str, str] | None = None, content: bytes = b"abc", **fields: str) -> str:
    """The id of a new file."""
    form = {"purpose": "assistants", **fields, "file": (io.BytesIO(content), "notes.txt")}
    reply = door.call("POST", "files", key, data=form)
    assert reply.status_code == 200, reply.data
    id: str = reply.json["id"]
    return id


def make_batch(door: Door, count: int = 2, key: dict[str, str] | None = None) -> str:
    """The id of a new batch of so many chats, by way of a file."""
    lines = [json.dumps({"custom_id": f"c{n}", **LINE, "body": CHAT}) for n in range(count)]
    file = upload(door, key, "\n".join(lines).encode(), purpose="batch")
    reply = door.call("POST", "batches", key, json={"name": "mine", "input_file_id": file})
    assert reply.status_code == 200, reply.data
    id: str = reply.json["batch_id"]
    return id


def start_video(door: Door, key: dict[str, str] | None = None, what: str = "generations", **more: Any) -> str:
    reply = door.call("POST", f"videos/{what}", key, json={**VIDEO, **more})
    assert reply.status_code == 200, reply.data
    id: str = reply.json["request_id"]
    return id


def test_a_file(door: Door) -> None:
    """Up, shown, listed, down byte for byte, and gone."""
    content = bytes(range(256)) * 50
    id = upload(door, content=content)
    shown = door.call("GET", f"files/{id}").json
    assert (shown["bytes"], shown["filename"], shown["purpose"]) == (len(content), "notes.txt", "assistants")
    assert [file["id"] for file in door.call("GET", "files").json["data"]] == [id]
    down = door.call("GET", f"files/{id}/content")
    assert (down.data, down.content_type) == (content, "application/octet-stream")
    assert down.headers["Content-Disposition"] == "attachment"
    assert down.headers["X-Content-Type-Options"] == "nosniff"
    assert door.call("DELETE", f"files/{id}").json["deleted"] is True
    for path in (f"files/{id}", f"files/{id}/content"):
        assert door.call("GET", path).status_code == 404
    rows = door.list_rows()
    assert {row["route"] for row in rows} == {"files", "file", "file-content"}
    assert {row["cost_ticks"] for row in rows} == {0}


def test_an_empty_file_has_a_type_as_any_other(door: Door) -> None:
    """What a browser may do with a file is said of an empty one too."""
    reply = door.call("GET", f"files/{upload(door, content=b'')}/content")
    assert (reply.status_code, reply.data) == (200, b"")
    assert reply.content_type == "application/octet-stream"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("text/html", "text/html"),
        ("application/pdf", "application/pdf"),
        ("", "application/octet-stream"),
        ("x y/z", "application/octet-stream"),
    ],
)
def test_a_page_in_a_file_is_no_page_of_ours(
    door: Door, kind: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever type upstream gives it, a browser saves it."""
    from grokflask.sandbox import kept_routes

    monkeypatch.setattr(kept_routes, "FILE_HEADERS", {"Content-Type": kind} if kind else {})
    id = upload(door, content=b"<script>1</script>")
    reply = door.call("GET", f"files/{id}/content")
    assert (reply.data, reply.mimetype) == (b"<script>1</script>", shown)
    assert reply.headers["Content-Security-Policy"].startswith("sandbox")
    assert reply.headers["Content-Disposition"] == "attachment"


def test_a_list_shows_the_keys_own(door: Door) -> None:
    """Page by page, as upstream cuts them: a page may have none, and the token leads on all the same."""
    mine = [upload(door, key) for key in (door.ann, door.bob) * 5][::2]
    door.sandbox.kept.files.add("file_of_the_operator", File("secret.txt", b"x"))
    assert [file["id"] for file in door.call("GET", "files?limit=100").json["data"]] == mine[::-1]
    found: list[str] = []
    token = ""
    while True:
        page = door.call("GET", f"files?limit=3&pagination_token={token or 0}&team_id=x").json
        found += [file["id"] for file in page["data"]]
        token = page["pagination_token"]
        if token is None:
            break
    assert found == mine[::-1]
    assert door.call("GET", "files?limit=0").status_code == 400


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        ({"purpose": "x"}, {"Content-Type": "multipart/form-data"}, 422),
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"", {"Content-Type": "text/plain"}, 415),
        ({"file": 5000}, {}, 413),
        (b"x", {"Content-Type": "multipart/form-data; boundary=a", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_uploads_that_are_refused(door: Door, data: Any, headers: dict[str, str], status: int) -> None:
    """Too large, of another type, or without a file; nobody owns anything then."""
    settings = door.app.extensions["settings"]
    object.__setattr__(settings, "max_upload_bytes", 4096)
    if isinstance(data, dict) and "file" in data:
        data = {"file": (io.BytesIO(b"x" * data["file"]), "x")}
    reply = door.call("POST", "files", data=data, headers=headers)
    assert reply.status_code == status, reply.data
    assert not door.sandbox.kept.files.list()


def test_a_batch(door: Door) -> None:
    """Made of a file, added to, watched, cancelled; its results are there for its key."""
    id = make_batch(door)
    added = {"batch_request_id": "c9", "batch_request": {"chat_get_completion": CHAT}}
    assert door.call("POST", f"batches/{id}/requests", json={"batch_requests": [added]}).status_code == 200
    assert door.call("GET", f"batches/{id}").json["state"]["num_requests"] == 3
    assert [each["batch_id"] for each in door.call("GET", "batches").json["batches"]] == [id]
    assert len(door.call("GET", f"batches/{id}/requests").json["batch_request_metadata"]) == 3
    page = door.call("GET", f"batches/{id}/results?limit=2").json
    rest = door.call("GET", f"batches/{id}/results?pagination_token={page['pagination_token']}").json
    names = [each["batch_request_id"] for each in page["results"] + rest["results"]]
    assert names == ["c0", "c1", "c9"]
    for path in (f"batches/{id}:cancel", f"batches/{id}/cancel"):
        assert door.call("POST", path).json["state"]["num_cancelled"] == 3


def test_a_batch_as_openai_asks_for_it(door: Door) -> None:
    """Without a name, which xAI wants: it gets one."""
    file = upload(door, content=json.dumps({"custom_id": "c", **LINE, "body": CHAT}).encode())
    fields = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert door.call("POST", "batches", json=fields).json["name"] == "batch"


@pytest.mark.parametrize(
    "limits",
    [
        {"budget_day_ticks": 10**12},
        {"budget_month_ticks": 10**12},
        {"tokens_per_minute": 10**9},
        {"models": ("*",)},
        {"tools": "client"},
    ],
)
def test_a_limited_key_makes_no_batch(door: Door, limits: dict[str, Any]) -> None:
    """What a batch asks for and costs is not seen here, so a key with such a limit would slip out of it."""
    key = door.make_key("cyd", **limits)
    file = upload(door, key)
    refused = door.call("POST", "batches", key, json={"name": "x", "input_file_id": file})
    assert (refused.status_code, refused.json["error"]["code"]) == (403, "not_metered")
    assert door.call("POST", f"batches/{make_batch(door)}/requests", key, json={}).status_code == 403
    assert door.call("GET", "batches", key).status_code == 200


@pytest.mark.parametrize("what", ["generations", "edits", "extensions"])
def test_a_video(door: Door, what: str) -> None:
    """Started, pending, done; paid when it is first told what it cost, however often it is looked at."""
    id = start_video(door, what=what)
    pending = door.call("GET", f"videos/{id}")
    assert (pending.status_code, pending.json) == (202, {"status": "pending"})
    for _ in range(3):
        done = door.call("GET", f"videos/{id}")
        assert (done.status_code, done.json["status"]) == (200, "done")
    rows = door.list_rows()
    [charge] = door.find_charges(1)
    assert (
        charge.cost_ticks == 3 * VIDEO_TICKS["grok-imagine-video"] == done.json["usage"]["cost_in_usd_ticks"]
    )
    assert [row["cost_ticks"] for row in rows] == [0, 0, charge.cost_ticks, 0, 0]
    assert not any(row["estimated"] for row in rows)
    assert rows[0]["model"] == rows[2]["model_served"] == "grok-imagine-video"


def test_a_video_that_fails(door: Door) -> None:
    """It is told as upstream tells it, with status 200, but for the operator's ids; it costs nothing."""
    id = start_video(door, prompt="sandbox-failed, please")
    door.call("GET", f"videos/{id}")
    failed = door.call("GET", f"videos/{id}")
    assert (failed.status_code, failed.json["status"]) == (200, "failed")
    assert failed.json["error"]["code"] == "invalid_argument"
    assert "[redacted]" in failed.json["error"]["message"]
    assert {row["cost_ticks"] for row in door.list_rows()} == {0}


def test_limits_of_a_video(door: Door) -> None:
    """A key's models and its budget: it is refused before it costs anything."""
    narrow = door.make_key("narrow", models=("grok-4*",))
    broke = door.make_key("broke", budget_day_ticks=2 * VIDEO_TICKS["grok-imagine-video"])
    for key, code in ((narrow, "model_not_allowed"), (broke, "insufficient_quota")):
        refused = door.call("POST", "videos/generations", key, json=VIDEO)
        assert refused.json["error"]["code"] == code
    assert start_video(door, broke, duration=1)


def test_another_key_gets_at_nothing(door: Door) -> None:
    """It tries everything of the first: each is what an unknown id is to it, and nothing reaches upstream."""
    file, batch, video = upload(door), make_batch(door), start_video(door)
    before = len(door.list_rows())
    tries = [
        *product(("GET", "DELETE"), [f"files/{file}"]),
        ("GET", f"files/{file}/content"),
        ("GET", f"batches/{batch}"),
        ("GET", f"batches/{batch}/requests"),
        ("GET", f"batches/{batch}/results"),
        ("POST", f"batches/{batch}:cancel"),
        ("POST", f"batches/{batch}/cancel"),
        ("POST", f"batches/{batch}/requests"),
        ("GET", f"videos/{video}"),
    ]
    for method, path in tries:
        given = {"json": {"batch_requests": []}} if path.endswith("requests") and method == "POST" else {}
        refused = door.call(method, path, door.bob, **given)
        unknown = door.call(method, path.replace(file, "f").replace(batch, "b").replace(video, "v"), **given)
        assert (refused.status_code, refused.json) == (404, unknown.json), (method, path)
    assert door.call("GET", "files", door.bob).json["data"] == []
    assert door.call("GET", "batches", door.bob).json["batches"] == []
    for fields in ({"name": "x", "input_file_id": file}, {"name": "x", "x": [{"file_ids": [file]}]}):
        assert door.call("POST", "batches", door.bob, json=fields).status_code == 404
    content = [{"type": "file", "file": {"file_id": file}}]
    chat = {"model": "grok-4.3", "messages": [{"role": "user", "content": content}], "stream": True}
    assert door.call("POST", "chat/completions", door.bob, json=chat).status_code == 404
    assert (
        door.call("POST", "videos/edits", door.bob, json={**VIDEO, "video": {"file_id": file}}).status_code
        == 404
    )
    rows = door.list_rows()[before:]
    assert [row["route"] for row in rows] == ["files", "batches"]
    assert door.call("GET", f"files/{file}").status_code == 200


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ('"content":[{"type":"file","file":{"file_id":"%s"}}],"content":"hi"', "content"),
        ('"content":"hi","cont\\u0065nt":[{"type":"file","file":{"file_id":"%s"}}]', "content"),
        ('"content":[{"type":"file","file":{"file_id":"%s","file_id":"file_mine"}}]', "file_id"),
        ('"content":[{"type":"file","file":{"file_id":"file_mine","\\u0066ile_id":"%s"}}]', "file_id"),
        ('"content":[{"type":"file","file":{"file_id":"%s"},"file":{"file_id":"file_mine"}}]', "file"),
    ],
)
def test_a_field_that_stands_twice_hides_no_file(door: Door, part: str, param: str) -> None:
    """xAI might read the one that a parser here does not see, so the body is refused."""
    body = '{"model":"grok-4.3","messages":[{"role":"user",%s}]}' % (part % upload(door))
    before = len(door.list_rows())
    reply = door.call(
        "POST", "chat/completions", door.bob, data=body, headers={"Content-Type": "application/json"}
    )
    assert (reply.status_code, reply.json["error"]["param"]) == (400, param), reply.json
    assert len(door.list_rows()) == before


def test_responses_in_a_batch(door: Door) -> None:
    """A request of a batch continues only its key's own response, wherever it is named, and names it once."""
    theirs = door.call("POST", "responses", json={"input": "hello"}).json["id"]
    mine = door.call("POST", "responses", door.bob, json={"input": "hello"}).json["id"]
    path = f"batches/{make_batch(door, key=door.bob)}/requests"

    def add(previous: str) -> Any:
        request = f'{{"input":"hi",{previous},"model":"grok-4.3"}}'
        body = f'{{"batch_requests":[{{"batch_request_id":"r","batch_request":{{"responses":{request}}}}}]}}'
        return door.call("POST", path, door.bob, data=body, headers={"Content-Type": "application/json"})

    for name in ("previous_response_id", "previous\\u005fresponse_id"):
        refused = add(f'"{name}":"{theirs}"')
        assert (refused.status_code, refused.json["error"]["param"]) == (404, "previous_response_id")
        assert add(f'"{name}":"{mine}"').status_code != 404
        twice = add(f'"previous_response_id":"{mine}","{name}":"{theirs}"')
        assert (twice.status_code, twice.json["error"]["param"]) == (400, "previous_response_id")


@pytest.mark.parametrize(
    ("allowed", "statuses"),
    [("all", (200, 200)), ("no-collections", (200, 403)), ("client", (403, 403)), ("none", (403, 403))],
)
def test_collections(door: Door, allowed: str, statuses: tuple[int, int]) -> None:
    """They belong to the operator's team, so a key with a limit on tools does not get at them."""
    key = door.make_key("cyd", tools=allowed)
    search = {"type": "file_search", "vector_store_ids": ["collection_1"]}
    for tool, status in zip(({"type": "web_search"}, search), statuses, strict=True):
        reply = door.call("POST", "responses", key, json={"input": "hello", "tools": [tool]})
        assert reply.status_code == status, reply.json
        if status == 403:
            assert (reply.json["error"]["code"], reply.json["error"]["param"]) == (
                "tools_not_allowed",
                "tools",
            )


def test_too_many_files(door: Door) -> None:
    """Each is a look-up, so there is an end to it."""
    for count, text in ((MAX_NAMED, "There is no file 'f0'."), (MAX_NAMED + 1, "may name 200 files")):
        ids = [f"f{number}" for number in range(count)]
        reply = door.call("POST", "batches", json={"name": "x", "file_ids": ids})
        assert (reply.status_code, reply.json["error"]["param"]) == (404, "file_id")
        assert text in reply.json["error"]["message"]


STEERING = ["..", "%2e%2e", "a%2Fb", "a%3Fb", "a%23b", "x" * 201, "%00", "a%0d%0ab", "%C3%A9", "{0}", "a%5Cb"]


@pytest.mark.parametrize(
    ("path", "id"), list(product(["files/%s", "files/%s/content", "batches/%s", "videos/%s"], STEERING))
)
def test_an_id_that_steers(door: Door, path: str, id: str) -> None:
    """It leads nowhere: neither to another path of upstream's nor to another host."""
    assert door.call("GET", path % id).status_code in (404, 405)
    assert not door.list_rows()


def test_what_is_not_in_the_table(door: Door) -> None:
    """A method that a path does not take is a 405 with what it does; a path that there is not is a 404."""
    for method, path, allowed in (
        ("PUT", "files", {"GET", "POST"}),
        ("PATCH", "files/f", {"GET", "DELETE"}),
        ("DELETE", "batches/b", {"GET"}),
        ("GET", "images/edits", {"POST"}),
        ("DELETE", "videos/v", {"GET"}),
    ):
        reply = door.call(method, path)
        assert reply.status_code == 405
        assert set(reply.headers["Allow"].split(", ")) - {"OPTIONS", "HEAD"} >= allowed
    for path in (
        "files/f/x",
        "batches/b/x",
        "uploads",
        "vector_stores",
        "files/f/content/x",
        "api-key",
        "videos",
    ):
        assert door.call("GET", path).status_code == 404
    assert door.call("GET", "files", {"Authorization": "Bearer wrong"}).status_code == 401


def test_the_key_goes_nowhere(door: Door) -> None:
    """Neither the client's key nor the server's stands in what comes back."""
    id = upload(door)
    for method, path in (("GET", f"files/{id}"), ("GET", "files"), ("GET", f"files/{id}/content")):
        reply = door.call(method, path)
        text = reply.data + str(reply.headers).encode()
        assert UPSTREAM_KEY.encode() not in text
        assert door.ann["Authorization"].removeprefix("Bearer ").encode() not in text


def test_an_upload_is_repeated_once(door: Door) -> None:
    """A form's boundary differs in each try: the same file under the same Idempotency-Key is sent up once."""

    def send(content: bytes) -> Any:
        form = {"purpose": "assistants", "file": (io.BytesIO(content), "notes.txt")}
        return door.call("POST", "files", data=form, headers={"Idempotency-Key": "upload.1"})

    large = bytes(range(256)) * 1000
    first, second, other = send(large), send(large), send(large[:-1] + b"x")
    assert (first.status_code, second.status_code, other.status_code) == (200, 200, 422)
    assert first.data == second.data
    assert second.headers["Idempotent-Replayed"] == "true"
    assert len(door.call("GET", "files").json["data"]) == 1
