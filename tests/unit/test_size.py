"""The promises of size: what a newcomer has to read, and how long a function may be."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "grokflask"

ROAD = """
    gateway exchanges shaping/request shaping/bodies shaping/fields shaping/estimates delivery/relay
    delivery/whole upstream/client upstream/stream protocol/sse protocol/chat_events limits/admission
    keys/ring ledger/entry ledger/row errors
""".split()
"""The road of one request, as the README promises it."""


def count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def test_the_road_of_a_request_is_read_in_an_afternoon() -> None:
    """The README says 3,500 lines."""
    lines = {name: count_lines(PACKAGE / f"{name}.py") for name in ROAD}
    assert sum(lines.values()) <= 3500, lines


def test_the_package_stays_small() -> None:
    """What a change adds, another part gives."""
    assert sum(map(count_lines, PACKAGE.rglob("*.py"))) <= 25_000


def test_no_function_is_longer_than_a_screen() -> None:
    """45 lines, its docstring included."""
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": size
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno
        and (size := node.end_lineno - node.lineno + 1) > 45
    }
    assert long == {}
