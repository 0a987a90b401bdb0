"""/openapi.json and /docs: the document against the application's own routes, queries and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from support.processes import CLIENT_KEY
from support.stores import ADMIN, ADMIN_TOKEN
from werkzeug.test import TestResponse

from grokflask.web.reference.document import build_document
from grokflask.web.reference.operations import OWN
from grokflask.web.request_limits import EXPOSED_HEADERS

DOCUMENT = build_document("0")
PATHS: dict[str, dict[str, Any]] = DOCUMENT["paths"]
AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}

PAGES = re.compile(r"/(playground/.*|v1/.*|static/.*|docs/.*|favicon\.ico|admin(?!/api/).*)?")
"""What people look at, and the API's second prefix."""


def find_response(path: str, method: str, status: int) -> dict[str, Any]:
    """What the document says of a status, references followed."""
    responses = PATHS[path][method]["responses"]
    found: dict[str, Any] = responses.get(str(status)) or responses["default"]
    if "$ref" in found:
        found = DOCUMENT["components"]["responses"][found["$ref"].rsplit("/", 1)[1]]
    return found


def check_answer(path: str, method: str, answer: TestResponse) -> None:
    """The answer's status, content type, headers and body are as the document has them."""
    told = find_response(path, method, answer.status_code)
    assert answer.content_type is not None
    kind = answer.content_type.partition(";")[0]
    content = told["content"][kind]
    schema, text = content["schema"], answer.get_data(as_text=True)
    if kind == "text/event-stream":
        schema, text = content["x-event-schema"], text.removeprefix("data: ").removesuffix("\n\n")
    value = json.loads(text) if kind != "text/plain" else text
    schema = {**schema, "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(value)
    documented = {name.lower() for name in told["headers"]}
    ours = {name.lower() for name in DOCUMENT["components"]["headers"]}
    assert {name.lower() for name, _ in answer.headers} & ours <= documented | {"x-grokflask-upstream"}


@pytest.fixture
def admin(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """With an admin's token and a body limit that is soon reached."""
    return make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN, GROKFLASK_MAX_BODY_BYTES="65536")


def test_the_document_has_the_routes_and_no_others(client: FlaskClient) -> None:
    """Every route and method of the application is in the document, and nothing else is."""
    there = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not PAGES.fullmatch(rule.rule)
    }
    assert there == {(method, path) for path, methods in PATHS.items() for method in methods}


def test_both_prefixes_have_the_same_routes(client: FlaskClient) -> None:
    """The document tells of one, and says that the other has the same."""
    rules = {(rule.rule, *sorted(rule.methods or ())) for rule in client.application.url_map.iter_rules()}
    first = {(path.removeprefix("/api"), *rest) for path, *rest in rules if path.startswith("/api/v1/")}
    assert first == {(path, *rest) for path, *rest in rules if path.startswith("/v1/")}


def test_parameters_of_paths_are_those_of_the_rules(client: FlaskClient) -> None:
    """Each variable of a rule is a parameter of its path."""
    for path, methods in PATHS.items():
        for operation in methods.values():
            told = [each["name"] for each in operation["parameters"] if each.get("in") == "path"]
            assert told == re.findall(r"\{(\w+)\}", path)


@pytest.mark.parametrize("path", [path for (method, path) in OWN if method == "GET" and "/api/" in path])
def test_the_admins_queries_are_those_that_it_takes(admin: FlaskClient, path: str) -> None:
    """The admin API names its parameters when it refuses one that it does not know."""
    admin.post("/admin/api/keys", json={"name": "reader"}, headers=ADMIN)
    answer = admin.get(path.format(name="reader") + "?nonsense=1", headers=ADMIN)
    assert answer.status_code == 400
    known = re.search(r"there are: (.*)\.", answer.json["error"]["message"])
    told = [each["name"] for each in PATHS[path]["get"]["parameters"] if each.get("in") == "query"]
    assert sorted(known[1].split(", ") if known else []) == sorted(told)


def test_all_headers_that_pages_may_read_are_told() -> None:
    """What CORS shows to scripts is documented."""
    assert set(EXPOSED_HEADERS) <= set(DOCUMENT["components"]["headers"])


REFUSALS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("/api/v1/chat/completions", "post", 401, {"json": CHAT, "headers": {}}),
    ("/api/v1/chat/completions", "post", 401, {"json": CHAT | {"stream": True}, "headers": {}}),
    ("/api/v1/chat/completions", "post", 400, {"json": {"messages": []}}),
    ("/api/v1/chat/completions", "post", 400, {"json": {**CHAT, "stream": "yes"}}),
    ("/api/v1/chat/completions", "post", 413, {"json": {"messages": ["x" * 70000]}}),
    ("/api/v1/chat/completions", "post", 415, {"data": "hello"}),
    ("/api/v1/messages", "post", 401, {"json": CHAT, "headers": {}}),
    ("/api/v1/messages", "post", 400, {"json": {"stream": True}}),
    ("/api/v1/responses/{item_id}", "get", 404, {}),
    ("/api/v1/files", "post", 415, {"json": {}}),
    ("/api/v1/usage", "get", 401, {"headers": {}}),
    ("/admin/api/keys", "get", 401, {"headers": {}}),
    ("/admin/api/keys", "post", 400, {"json": {"name": "?"}, "headers": ADMIN}),
    ("/admin/api/keys/{name}", "get", 404, {"headers": ADMIN}),
    ("/admin/api/keys/{name}", "patch", 415, {"data": "x", "headers": ADMIN}),
    ("/metrics", "get", 401, {"headers": {}}),
]


@pytest.mark.parametrize(("path", "method", "status", "request_"), REFUSALS)
def test_refusals_are_as_the_document_has_them(
    admin: FlaskClient, path: str, method: str, status: int, request_: dict[str, Any]
) -> None:
    """What the gateway refuses has a documented status, content type, headers and shape."""
    place = path.format(item_id="nothing", name="nobody")
    answer = admin.open(place, method=method.upper(), **{"headers": AUTH, **request_})
    assert answer.status_code == status
    check_answer(path, method, answer)


def test_a_refused_request_names_its_parameter(client: FlaskClient) -> None:
    """`param` of the documented object is the field at fault."""
    answer = client.post("/api/v1/chat/completions", json={"messages": []}, headers=AUTH)
    check_answer("/api/v1/chat/completions", "post", answer)
    assert answer.json["error"]["param"] == "messages"


def test_a_request_too_many_is_told_as_documented(make_client: Callable[..., FlaskClient]) -> None:
    """429 with Retry-After, and the limit's headers on answers."""
    client = make_client(GROKFLASK_RATE_LIMIT="1/hour")
    first, second = (client.post("/api/v1/chat/completions", json=CHAT, headers=AUTH) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 429)
    for answer in (first, second):
        check_answer("/api/v1/chat/completions", "post", answer)


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/models"])
def test_wrong_paths_and_methods_have_the_documented_object(client: FlaskClient, path: str) -> None:
    """404 and 405 belong to no operation; their shape is the one of all errors."""
    answer = client.put(path, headers=AUTH)
    assert answer.status_code in (404, 405)
    told = DOCUMENT["components"]["responses"][f"Error{answer.status_code}"]
    assert answer.json["error"]["code"] in told["content"]["application/json"]["examples"]
    schema = {"$ref": "#/components/schemas/Error", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json)


def test_the_document_is_served_with_a_tag(client: FlaskClient) -> None:
    """A client that has it gets 304 and no body."""
    first = client.get("/openapi.json")
    assert first.status_code == 200
    assert first.content_type == "application/json"
    assert first.json["paths"].keys() == PATHS.keys()
    assert "max-age" in first.headers["Cache-Control"]
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    check_answer("/openapi.json", "get", first)


def test_where_anybody_may_call_no_key_is_asked_for(make_client: Callable[..., FlaskClient]) -> None:
    """The document knows whether keys are needed."""
    for mode in ("open", "keys"):
        answer = make_client(GROKFLASK_AUTH=mode, GROKFLASK_KEYS="").get("/openapi.json")
        assert ({} in answer.json["paths"]["/api/v1/models"]["get"]["security"]) == (mode == "open")


def test_the_page_and_its_files(client: FlaskClient) -> None:
    """/docs leads to the page; its files are there, kept, and those of the package alone."""
    moved = client.get("/docs?a=b", headers={"Host": "evil.test"})  # which a cache may keep for others
    assert (moved.status_code, moved.headers["Location"], moved.data) == (308, "/docs/?a=b", b"")
    page = client.get("/docs/")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    names = re.findall(r'(?:src|href)="(/docs/[^"]+|/static/[^"]+)"', page.get_data(as_text=True))
    assert len(names) >= 5
    for name in names:
        answer = client.get(name)
        assert answer.status_code == 200, name
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        answer.close()
    for name in ("index.template.html", "oauth2-redirect.html", "..%2f__init__.py", "swagger-ui.js"):
        assert client.get(f"/docs/{name}").status_code == 404
