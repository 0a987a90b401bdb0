"""The OpenAPI document: it is valid, it has every row of the table of routes, and every error of the tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from grokflask import errors
from grokflask.protocol.routes import ROUTES
from grokflask.web.reference.document import build_document
from grokflask.web.reference.operations import API

DOCUMENT = build_document("1.2.3")


def list_operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def list_kinds(kind: type[errors.GrokflaskError] = errors.GrokflaskError) -> Iterator[type[Any]]:
    yield kind
    for each in kind.__subclasses__():
        yield from list_kinds(each)


def list_references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from list_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from list_references(inner)


def test_it_is_openapi_31() -> None:
    """It validates as OpenAPI 3.1, and survives a trip through JSON."""
    OpenAPIV31SpecValidator(json.loads(json.dumps(DOCUMENT))).validate()  # type: ignore[arg-type]
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_every_row_has_its_words_and_no_words_are_left_over() -> None:
    """A new row of the table of routes needs its words."""
    assert {(route.method, route.name) for route in ROUTES} == API.keys()


def test_names_of_operations_are_unique() -> None:
    """Generated clients make functions of them."""
    names = [operation["operationId"] for _, _, operation in list_operations()]
    assert len(set(names)) == len(names)


def test_every_component_that_is_named_is_there_and_every_schema_is_used() -> None:
    """No reference leads nowhere, and no schema is a leftover."""
    used = set(list_references(DOCUMENT))
    components = DOCUMENT["components"]
    there = {f"#/components/{kind}/{name}" for kind, named in components.items() for name in named}
    assert used <= there
    assert {each for each in there - used if "/schemas/" in each or "/headers/" in each} == set()


UNSEEN = {errors.ConfigError, errors.ClientGoneError, errors.UpstreamStatusError}
"""Told at the start, to nobody, and with upstream's own code."""


@pytest.mark.parametrize(
    "kind", [kind for kind in list_kinds() if kind not in UNSEEN], ids=lambda kind: kind.__name__
)
def test_every_error_has_its_code_and_status(kind: type[errors.GrokflaskError]) -> None:
    """Each class of the tree that a client may see is an example of its status, and in the table of codes."""
    told = DOCUMENT["components"]["responses"][f"Error{kind.status}"]
    assert told["content"]["application/json"]["examples"][kind.code]["value"]["error"]["code"] == kind.code
    assert f"| {kind.status} | `{kind.code}` |" in DOCUMENT["info"]["description"]


def test_errors_are_told_in_the_shape_of_their_route() -> None:
    """OpenAI's object everywhere, the guide's event where a request may stream, Anthropic's on /messages."""
    paths = DOCUMENT["paths"]
    responses = DOCUMENT["components"]["responses"]

    def find(path: str, method: str, status: str) -> Any:
        return responses[paths[path][method]["responses"][status]["$ref"].rsplit("/", 1)[1]]["content"]

    assert set(find("/api/v1/chat/completions", "post", "429")) == {"application/json", "text/event-stream"}
    assert set(find("/api/v1/models", "get", "429")) == {"application/json"}
    messages = find("/api/v1/messages", "post", "429")
    assert set(messages) == {"application/json"}
    assert messages["application/json"]["schema"]["$ref"].endswith("/MessagesError")


def test_what_streams_says_so() -> None:
    """The rows that stream answer with JSON or with events; no others do."""
    for route in ROUTES:
        path = "/api/v1" + route.path.replace("<", "{").replace(">", "}")
        content = DOCUMENT["paths"][path][route.method.lower()]["responses"]["200"]["content"]
        assert ("text/event-stream" in content) == route.streams, path


def test_who_may_call() -> None:
    """A client's key, Anthropic's header on /messages alone, the admin's token; none where anybody may."""
    paths = DOCUMENT["paths"]
    assert paths["/api/v1/models"]["get"]["security"] == [{"clientKey": []}]
    assert {"anthropicKey": []} in paths["/api/v1/messages"]["post"]["security"]
    assert paths["/admin/api/keys"]["get"]["security"] == [{"adminToken": []}]
    assert paths["/health"]["get"]["security"] == []
    assert {} in build_document("1", is_open=True)["paths"]["/api/v1/models"]["get"]["security"]
