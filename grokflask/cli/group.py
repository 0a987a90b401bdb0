"""A group of commands whose expected errors are one line on standard error: 1 is a failure, 2 bad usage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from grokflask.errors import GrokflaskError, InvalidRequestError, StoreUnavailableError

MAX_DETAIL_CHARS = 300

_OPTIONS = {"expires_at": "--expires", "name": "NAME"}
"""Where an option is not called like its field."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
as_csv = click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print CSV. Text that a spreadsheet would take for a formula (it begins with = + - @) gets a ' "
    "in front.",
)


class WrongUsageError(click.ClickException):
    """A value that an option does not take."""

    exit_code = 2


class CommandGroup(AppGroup):
    """A group whose commands run in the app's context."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises ClickException for what is expected to go wrong."""
        try:
            with _quiet_database():
                return super().invoke(ctx)
        except InvalidRequestError as error:
            raise WrongUsageError(_name_option(error)) from error
        except StoreUnavailableError as error:
            raise click.ClickException(_explain(error)) from error
        except GrokflaskError as error:
            raise click.ClickException(error.message) from error


def check_formats(as_json: bool, as_csv: bool) -> None:
    """Raises WrongUsageError when both are asked for."""
    if as_json and as_csv:
        raise WrongUsageError("--json and --csv exclude each other.")


@contextmanager
def _quiet_database() -> Iterator[None]:
    """Keeps the log from telling what the error tells anyway."""
    logger = logging.getLogger("grokflask.db")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name_option(error: InvalidRequestError) -> str:
    """The message with the option's name in place of the field's."""
    if error.param is None:
        return error.message
    option = _OPTIONS.get(error.param) or "--" + error.param.replace("_", "-")
    return error.message.replace(repr(error.param), option, 1)


def _explain(error: StoreUnavailableError) -> str:
    """What is wrong with the database, as far as it says, without the secrets of the settings."""
    cause = error.__cause__
    if cause is None:
        return error.message
    detail = " ".join(str(getattr(cause, "orig", None) or cause).split())
    for secret in current_app.extensions["settings"].secrets if current_app else ():
        detail = detail.replace(secret, "[redacted]")
    return f"The database cannot be used (DATABASE_URL): {detail[:MAX_DETAIL_CHARS] or type(cause).__name__}"
