"""`flask --app wsgi db …`: the database's tables."""

from __future__ import annotations

import click
from flask import current_app

from grokflask.cli.group import CommandGroup
from grokflask.storage.database import Database

db = CommandGroup("db", help="The database's tables.")


@db.command("upgrade")
def upgrade() -> None:
    """Bring the tables up to date, and print their version.

    The first use of the database does the same. Run this in a release phase to do it before the first
    request.
    """
    database: Database = current_app.extensions["database"]
    click.echo(f"The database has version {database.upgrade()}.")
