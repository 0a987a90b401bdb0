"""The table of routes."""

from __future__ import annotations

import pytest

from grokflask.protocol.routes import PREFIXES, ROUTES, Route, is_plain_segment


def test_prefixes() -> None:
    """The guide's base URL, and the plain one."""
    assert PREFIXES == ("/api/v1", "/v1")


def test_no_row_stands_twice() -> None:
    """A method and path have one meaning."""
    rows = [(route.method, route.path) for route in ROUTES]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("method", "path", "upstream_path", "streams"),
    [
        ("POST", "/chat/completions", "/chat/completions", True),
        ("POST", "/images/generate", "/images/generations", False),
        ("POST", "/images/generations", "/images/generations", False),
        ("POST", "/vision/analyze", "/chat/completions", False),
        ("GET", "/models", "/models", False),
        ("GET", "/models/<model_id>", "/models/{model_id}", False),
    ],
)
def test_promised_routes(method: str, path: str, upstream_path: str, streams: bool) -> None:
    """What the guide promises is in the table, and streams only where it says so."""
    (route,) = [route for route in ROUTES if (route.method, route.path) == (method, path)]
    assert (route.upstream_path, route.streams) == (upstream_path, streams)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_rows_are_well_formed(route: Route) -> None:
    """Paths begin with a slash and do not end in one; a variable of the path is used upstream.

    A row without an upstream path is answered by the gateway, and costs nothing.
    """
    assert route.upstream_path or route.billing == "free"
    for path in filter(None, (route.path, route.upstream_path)):
        assert path.startswith("/")
        assert not path.endswith("/")
    for variable in ("model_id", "item_id"):
        assert (f"<{variable}>" in route.path) == (f"{{{variable}}}" in route.upstream_path)
    assert ("<item_id>" in route.path) <= (route.kind is not None)
    assert "://" not in route.path + route.upstream_path
    assert (route.shape is not None) == (route.method == "POST" and route.body == "json")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *[("grok-4.3", True), ("a", True), ("a" * 200, True), ("a..b", True), ("A1._:@-", True)],
        *[("", False), (".", False), ("..", False), ("a/b", False), ("%2e", False), ("a\n", False)],
        *[("a" * 201, False), ("_a", False), ("\u0661", False), ("\u00e4", False)],
    ],
)
def test_plain_segment(value: str, plain: bool) -> None:
    """A segment has letters, digits and a few marks, and begins with a letter or digit: ASCII only."""
    assert is_plain_segment(value) is plain
