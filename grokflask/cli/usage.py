"""`flask --app wsgi usage …`: reads the ledger, and checks that its sums agree with its rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice

import click
from flask import current_app

from grokflask.billing.money import format_usd
from grokflask.cli.group import CommandGroup, as_csv, as_json, check_formats, get_database
from grokflask.cli.tables import print_json, print_table, stream_json
from grokflask.ledger.query import GROUPINGS, name_sums, read_days, read_filter, read_grouping
from grokflask.ledger.reports import (
    Drift,
    Summary,
    check_daily,
    iterate_rows,
    read_rows,
    repair_daily,
    summarize,
)
from grokflask.ledger.row import FIELDS, MORE_FIELDS, LedgerRow
from grokflask.ledger.spreadsheet import write_csv
from grokflask.times import to_iso

TABLE_ROWS = 50
MAX_TABLE_ROWS = 10_000
"""A table is built in memory; --csv and --json have no such bound."""

Check = Callable[[bool], list[Drift]]
"""Finds drift, and repairs it if called with True; `current_app.extensions["checks"]` is a list of them."""

usage = CommandGroup("usage", help="Read the ledger: rows and sums.")

_since = click.option(
    "--since",
    metavar="TIME",
    help="Start: such as 2027-01-31T12:00Z, or 24h for 24 hours ago.",
)
_until = click.option("--until", metavar="TIME", help="End, exclusive; a bare date includes that day.")


@usage.command("rows")
@_since
@_until
@click.option("--key", metavar="NAME")
@click.option("--model", metavar="NAME", help="The requested model.")
@click.option("--outcome", metavar="WORD", help="Such as complete or client_abort.")
@click.option("--request-id", metavar="ID")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help=f"Maximum number of rows [default: {TABLE_ROWS} in a table, all with --json or --csv].",
)
@as_json
@as_csv
def rows(limit: int | None, as_json: bool, as_csv: bool, **texts: str | None) -> None:
    """Print ledger rows, newest first. In the table, ~ marks an estimated cost."""
    check_formats(as_json, as_csv)
    row_filter = read_filter(texts, time.time())
    if not as_json and not as_csv:
        found = read_rows(get_database(), row_filter, min(limit or TABLE_ROWS, MAX_TABLE_ROWS))
        print_table([name for name, _ in _COLUMNS], ([show(row) for _, show in _COLUMNS] for row in found))
        return
    fields = (row.to_fields() for row in islice(iterate_rows(get_database(), row_filter), limit))
    if as_json:
        stream_json(fields)
    else:
        sys.stdout.writelines(write_csv((*FIELDS, *MORE_FIELDS), fields))


@usage.command("summary")
@_since
@_until
@click.option("--by", metavar="|".join(GROUPINGS), help="What to group by [default: key].")
@as_json
@as_csv
def summary(by: str | None, as_json: bool, as_csv: bool, **texts: str | None) -> None:
    """Print sums of whole UTC days."""
    check_formats(as_json, as_csv)
    grouping = read_grouping(by)
    sums = summarize(get_database(), *read_days(texts, time.time()), grouping)
    fields = [name_sums(grouping, each) for each in sums]
    if as_json:
        print_json(fields)
    elif as_csv:
        sys.stdout.writelines(write_csv([grouping, *list(Summary.__dataclass_fields__)[1:]], fields))
    else:
        _print_sums(grouping, sums)


@usage.command("check")
@click.option("--repair", is_flag=True, help="Recompute wrong sums from the rows.")
@as_json
def check(repair: bool, as_json: bool) -> None:
    """Compare the sums with the rows. Exits with 1 if they differ and are not repaired."""
    drift = (repair_daily if repair else check_daily)(get_database())
    checks: list[Check] = current_app.extensions.get("checks", [])
    for each in checks:
        drift += each(repair)
    if as_json:
        print_json({"drift": [asdict(each) for each in drift], "repaired": repair and bool(drift)})
    elif drift:
        print_table(list(Drift.__dataclass_fields__), (list(asdict(each).values()) for each in drift))
        click.echo("Repaired." if repair else "Not repaired. Run again with --repair.", err=True)
    else:
        click.echo("The sums agree with the rows.")
    if drift and not repair:
        sys.exit(1)


_COLUMNS: tuple[tuple[str, Callable[[LedgerRow], object]], ...] = (
    ("started", lambda row: to_iso(row.started_at)),
    ("request id", lambda row: row.request_id),
    ("key", lambda row: row.key),
    ("model", lambda row: row.model_served or row.model),
    ("outcome", lambda row: row.outcome or "open"),
    ("status", lambda row: row.status),
    ("ttft ms", lambda row: row.ttft_ms),
    ("ms", lambda row: row.duration_ms),
    ("prompt", lambda row: row.prompt_tokens),
    ("completion", lambda row: row.completion_tokens),
    ("usd", lambda row: format_usd(row.cost_ticks) + "~" * (row.estimated and row.cost_ticks is not None)),
)


def _print_sums(grouping: str, sums: list[Summary]) -> None:
    """Prints a line for each sum, and the total."""
    figures = [list(asdict(each).values())[1:] for each in sums]
    lines = [[each.name, *values] for each, values in zip(sums, figures, strict=True)]
    if len(lines) > 1:
        lines.append(["all", *(sum(column) for column in zip(*figures, strict=True))])
    header = [name.removesuffix("_tokens").replace("_", " ") for name in Summary.__dataclass_fields__][1:]
    for line in lines:
        for place in (6, 7, 9):
            line[place] = format_usd(int(line[place]))
    print_table([grouping, *(name.replace("ticks", "usd") for name in header)], lines)
