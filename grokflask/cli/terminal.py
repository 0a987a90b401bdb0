"""Output for a terminal: text without control sequences, and colours only for people."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

import click

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all controls but tab and newline: ESC begins a terminal's commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these change the direction of text
    "\u2028\u2029\ud800-\udfff]"
)


def clean(text: str) -> str:
    """`text` with each control character replaced by a question mark. Carriage returns are removed."""
    return _CONTROLS.sub("?", text.replace("\r", ""))


def clean_line(text: str) -> str:
    """Like `clean`, on one line."""
    return " ".join(clean(text).split())


def write(text: str) -> None:
    """Prints a model's text at once."""
    _put(clean(text), sys.stdout)


def write_dim(text: str) -> None:
    """Prints everything but the answer, on standard error; dimmed if both streams are terminals."""
    shown = clean(text)
    _put(click.style(shown, dim=True) if _has_colours() else shown, sys.stderr)


def _put(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding), file=stream, nl=False, color=True)


def _has_colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and sys.stdout.isatty() and sys.stderr.isatty()
