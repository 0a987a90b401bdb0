"""The app for broken settings. It serves nothing; its only command is the doctor."""

from __future__ import annotations

import sys

import click
from flask import Flask
from flask.cli import AppGroup

from grokflask.cli.doctor.command import doctor
from grokflask.errors import ConfigError


def asks_for_doctor() -> bool:
    """The command line may be `doctor`, and is not one that serves the app."""
    return doctor.name in sys.argv[1:] and "run" not in sys.argv[1:]


def make_broken_app(error: ConfigError) -> Flask:
    """An app whose doctor reports `error`; its other commands fail with it."""
    app = Flask(__name__, static_folder=None)
    app.extensions["config_error"] = error
    app.cli = _DoctorOnly(error)
    return app


class _DoctorOnly(AppGroup):
    def __init__(self, error: ConfigError) -> None:
        super().__init__()
        self._error = error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [str(doctor.name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == doctor.name:
            return doctor
        raise click.ClickException(str(self._error))
