"""`flask --app wsgi db …`: the database's tables."""

from __future__ import annotations

import click

from grokflask.cli.group import CommandGroup, get_database

db = CommandGroup("db", help="The database's tables.")


@db.command("upgrade")
def upgrade() -> None:
    """Bring the tables up to date, and print their version.

    The first use of the database does the same. Run this in a release phase to do it before the first
    request.
    """
    click.echo(f"The database has version {get_database().upgrade()}.")
