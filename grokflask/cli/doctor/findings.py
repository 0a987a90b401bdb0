"""The doctor's findings, and how they are printed without secrets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import click

from grokflask.cli.terminal import clean_line

State = Literal["ok", "warn", "FAIL", "skipped"]

_SIGNS: dict[State, tuple[str, str]] = {
    "ok": ("+", "green"),
    "warn": ("!", "yellow"),
    "FAIL": ("x", "red"),
    "skipped": ("-", "bright_black"),
}
_NAME_CHARS = 12
_STATE_CHARS = 7


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, state, what was found, and what to do."""

    check: str
    state: State
    text: str
    remedy: str = ""


def redact(findings: Iterable[Finding], secrets: Sequence[str]) -> list[Finding]:
    """The findings with `secrets` cut out, each text on one line."""

    def cut(text: str) -> str:
        for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
            text = text.replace(secret, "[redacted]")
        return clean_line(text)

    return [replace(each, text=cut(each.text), remedy=cut(each.remedy)) for each in findings]


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints a line for each check, with its remedy below."""
    for each in findings:
        sign, colour = _SIGNS[each.state]
        head = click.style(f"{sign} {each.state.ljust(_STATE_CHARS)}", fg=colour)
        click.echo(f"{head} {each.check.ljust(_NAME_CHARS)} {each.text}")
        if each.remedy:
            click.echo(" " * (_STATE_CHARS + _NAME_CHARS + 4) + each.remedy)
    counts = {state: sum(each.state == state for each in findings) for state in _SIGNS}
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items() if count))
