"""Rows as CSV, for spreadsheets: one line at a time. No IO."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def guard_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula. Clients choose request ids and model names."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return "'" + value
    return value


def write_csv(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a header line and a line for each row. Lists are joined by spaces."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(header)
    yield line.getvalue()
    for row in rows:
        line.seek(0)
        line.truncate()
        writer.writerow([guard_cell(row[name]) for name in header])
        yield line.getvalue()
