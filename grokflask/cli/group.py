"""Command groups that print expected errors as one line. Exit codes: 1 failure, 2 wrong usage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from grokflask.errors import GrokflaskError, InvalidRequestError, StoreUnavailableError
from grokflask.storage.database import Database
from grokflask.storage.outages import TimeLimits

WAIT_S = 30.0
"""How long a command waits for the database to connect, and for each answer."""

_OPTIONS = {"expires_at": "--expires", "name": "NAME"}
"""Options whose names differ from their fields."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
as_csv = click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print CSV. Text that a spreadsheet would take for a formula gets a leading '.",
)


class WrongUsageError(click.ClickException):
    """An option has an invalid value."""

    exit_code = 2


class CommandGroup(AppGroup):
    """A group whose commands run in the app context."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises ClickException for expected errors."""
        try:
            with silence_log("grokflask.db"):  # the error says the same
                return super().invoke(ctx)
        except InvalidRequestError as error:
            raise WrongUsageError(_name_option(error)) from error
        except StoreUnavailableError as error:
            raise click.ClickException(_explain(error)) from error
        except GrokflaskError as error:
            raise click.ClickException(error.message) from error


def get_database() -> Database:
    """The current app's database, for which a command waits longer than a request."""
    database: Database = current_app.extensions["database"]
    database.limits = TimeLimits(connect_s=WAIT_S, read_s=WAIT_S, write_s=WAIT_S)
    database.on_wait = _report_wait
    return database


def _report_wait() -> None:
    click.echo(f"Waiting for the database, for up to {WAIT_S:g} s ...", err=True)


def check_formats(as_json: bool, as_csv: bool) -> None:
    """Raises WrongUsageError if both are set."""
    if as_json and as_csv:
        raise WrongUsageError("--json and --csv cannot be combined.")


@contextmanager
def silence_log(name: str) -> Iterator[None]:
    """Drops what the logger `name` and those below it would write."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name_option(error: InvalidRequestError) -> str:
    """The message with the name of the option instead of the field."""
    if error.param is None:
        return error.message
    option = _OPTIONS.get(error.param) or "--" + error.param.replace("_", "-")
    return error.message.replace(repr(error.param), option, 1)


def _explain(error: StoreUnavailableError) -> str:
    """The database's error, without the secrets of the settings."""
    if error.detail is None:
        return error.message
    detail = " ".join(error.detail.split())
    for secret in current_app.extensions["settings"].secrets if current_app else ():
        detail = detail.replace(secret, "[redacted]")
    return f"The database cannot be used (DATABASE_URL): {detail}"
