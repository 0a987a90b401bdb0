"""Output of commands: aligned tables for people, CSV and JSON for programs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

MAX_CELL_CHARS = 60
GAP = "  "

_NUMBER = re.compile(r"-?[\d.]*~?", re.ASCII)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table. Columns of numbers are right-aligned."""
    cells = [[_clip(_show(value)) for value in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(map(_NUMBER.fullmatch, column[1:])) for column in columns]
    for line in ([name.upper() for name in header], *cells):
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        click.echo(GAP.join(padded).rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Prints one field per line. None and empty values are left out."""
    shown = {name: _show(value) for name, value in fields.items()}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        if text:
            click.echo(f"{name.ljust(width)}{GAP}{text}")


def print_json(document: object) -> None:
    """Prints a document as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def stream_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints a list with one row per line, as the rows arrive."""
    between = "[\n"
    for row in rows:
        sys.stdout.write(between + msgspec.json.encode(row).decode())
        between = ",\n"
    sys.stdout.write("[]\n" if between == "[\n" else "\n]\n")


def _show(value: object) -> str:
    """A cell for people. Control characters become question marks."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _clip(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
