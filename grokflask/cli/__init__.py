"""The command line, `flask --app wsgi …`: keys, usage, db."""

from __future__ import annotations

from grokflask.cli.db import db
from grokflask.cli.group import CommandGroup
from grokflask.cli.keys import keys
from grokflask.cli.usage import usage

__all__ = ["GROUPS"]

GROUPS: tuple[CommandGroup, ...] = (keys, usage, db)
"""Every group of commands, for the app to take in."""
