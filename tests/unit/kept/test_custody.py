"""What a body names, and what an answer gives out: the reading behind the rules of ownership."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.errors import InvalidRequestError, RouteNotFoundError
from grokflask.kept.custody import MAX_FILES, _may_name_files, list_files, read_id


@pytest.mark.parametrize(
    ("body", "files"),
    [
        ({"file_id": "a"}, ["a"]),
        ({"input_file_id": "a"}, ["a"]),
        ({"x": [{"y": {"file_ids": ["a", "b"]}}]}, ["a", "b"]),
        ({"messages": [{"content": [{"type": "file", "file": {"file_id": "a"}}]}]}, ["a"]),
        ({"file_id": {"file_id": "a"}}, ["a"]),
        ({"text": 'say "file_id": "a"'}, []),
        ({"profile_id": "a", "file_id_x": "b", "file_ident": "c"}, []),
        ({"file_id": None, "file_ids": [1, None, {}]}, []),
        (
            {
                "tools": [
                    {"parameters": {"properties": {"file_id": {"type": "string"}}, "required": ["file_id"]}}
                ]
            },
            [],
        ),
    ],
)
def test_files_in_a_body(body: Any, files: list[str]) -> None:
    """Wherever they stand; a function's parameter of that name is none."""
    assert sorted(list_files(json.dumps(body).encode())) == files


@pytest.mark.parametrize(
    "name", ["file_id", "file\\u005fid", "\\u0066ile_id", "f\\u0069le_id", "file_i\\u0064"]
)
def test_no_spelling_hides_a_file(name: str) -> None:
    """A body that may name one is looked through, however the field is written."""
    body = b'{"x": {"%s": "a"}}' % name.encode()
    assert _may_name_files(body)
    assert list_files(body) == ["a"]


@pytest.mark.parametrize("body", [b'{"x": "hello"}', b'{"x": "caf\\u00e9"}', b'{"x": "\\u4f60\\u597d"}'])
def test_a_body_that_names_none_is_not_looked_through(body: bytes) -> None:
    """Which would take time, for a large one."""
    assert not _may_name_files(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\ud800", "file_id": "x"}',
        b'{"file_id": "x", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"file_id": "x"',
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    """Half a surrogate or a nesting without end must not keep a file from being seen."""
    with pytest.raises(InvalidRequestError):
        list_files(body)


def test_too_many_files() -> None:
    """Each is a look-up, so there is an end to it."""
    assert len(list_files(json.dumps({"file_ids": ["a"] * MAX_FILES}).encode())) == MAX_FILES
    with pytest.raises(RouteNotFoundError):
        list_files(json.dumps({"file_ids": ["a"] * (MAX_FILES + 1)}).encode())


@pytest.mark.parametrize(
    ("body", "id"),
    [
        ({"id": "a"}, "a"),
        ({"request_id": "a"}, "a"),
        ({"batch_id": "a", "id": "b"}, "a"),
        ({"id": 7}, None),
        ([], None),
        ({}, None),
    ],
)
def test_the_id_of_a_thing(body: Any, id: str | None) -> None:
    """Under each of upstream's names for it."""
    assert read_id(json.dumps(body).encode()) == id
