"""The command line, `flask --app wsgi …`: keys, usage, db, chat, doctor."""

from __future__ import annotations

import click

from grokflask.cli.chat import chat
from grokflask.cli.db import db
from grokflask.cli.doctor.command import doctor
from grokflask.cli.keys import keys
from grokflask.cli.usage import usage

__all__ = ["GROUPS"]

GROUPS: tuple[click.Command, ...] = (keys, usage, db, chat, doctor)
"""All commands and command groups."""
