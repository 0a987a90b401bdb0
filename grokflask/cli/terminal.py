"""What a terminal is given to show: text that it cannot be made to obey, and colours only where they help."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

import click

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all controls but tab and newline: ESC begins a terminal's commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these turn the direction of what is read
    "\u2028\u2029\ud800-\udfff]"
)


def clean(text: str) -> str:
    """`text` with a question mark in place of whatever a terminal would obey rather than show.

    A carriage return, which would write over its own line, is left out.
    """
    return _OBEYED.sub("?", text.replace("\r", ""))


def clean_line(text: str) -> str:
    """As `clean`, on one line."""
    return " ".join(clean(text).split())


def write(text: str) -> None:
    """Shows what a model has said, at once."""
    _put(clean(text), sys.stdout)


def write_dim(text: str) -> None:
    """Shows on standard error what is not the answer itself: dim, if both go to a terminal."""
    shown = clean(text)
    _put(click.style(shown, dim=True) if _has_colours() else shown, sys.stderr)


def _put(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding), file=stream, nl=False, color=True)


def _has_colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and sys.stdout.isatty() and sys.stderr.isatty()
