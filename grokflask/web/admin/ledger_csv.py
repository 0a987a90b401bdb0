"""The ledger as a CSV file that is written while it is read: a page of rows is in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from flask import Response, stream_with_context

from grokflask.ledger.reports import RowFilter, iterate_rows
from grokflask.ledger.row import FIELDS, MORE_FIELDS
from grokflask.ledger.spreadsheet import write_csv
from grokflask.storage.database import Database

PIECE_CHARS = 32 * 1024


def reply_csv(database: Database, wanted: RowFilter) -> Response:
    """All rows that are `wanted`, newest first, as `usage rows --csv` writes them.

    Raises StoreUnavailableError. Should the database go away later, the answer ends without its end, so that
    nobody takes what there is for everything.
    """
    rows = iterate_rows(database, wanted)
    first = next(rows, None)  # an error is still told as one
    found = chain([] if first is None else [first], rows)
    lines = write_csv((*FIELDS, *MORE_FIELDS), (row.to_fields() for row in found))
    response = Response(stream_with_context(_join(lines)), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = "attachment; filename=exchanges.csv"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response


def _join(lines: Iterator[str]) -> Iterator[str]:
    """The lines in larger pieces."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE_CHARS:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)
