"""`flask --app wsgi keys …`: the keys in the database. A secret is printed only once, when it is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
from flask import current_app

from grokflask.billing.money import format_usd, parse_usd
from grokflask.cli.group import (
    CommandGroup,
    WrongUsageError,
    as_csv,
    as_json,
    check_formats,
    get_database,
)
from grokflask.cli.tables import print_fields, print_json, print_table
from grokflask.errors import InvalidRequestError
from grokflask.keys.limits import read_changes
from grokflask.keys.store import KeyStore
from grokflask.keys.stored import StoredKey
from grokflask.ledger.spreadsheet import write_csv
from grokflask.times import read_duration

NONE = "none"
"""The word that removes a limit."""

MODELS = "--models"
COLUMNS = tuple(
    "name status hint requests tokens_per_minute streams budget_day budget_month models expires_at".split()
)
CSV_COLUMNS = (*COLUMNS, "tools", "created_at", "revoked_at")

keys = CommandGroup("keys", help="Manage the keys in the database.")

_OPTIONS = (
    click.option("--requests", metavar="RATE", help="Requests per window, such as 100/hour."),
    click.option("--tokens-per-minute", metavar="N", help="Tokens a minute, prompt and answer together."),
    click.option("--streams", metavar="N", help="Open streams."),
    click.option("--budget-day", metavar="USD", help="Budget per UTC day, such as 2.50."),
    click.option("--budget-month", metavar="USD", help="Budget per UTC month."),
    click.option(
        MODELS,
        metavar="PATTERN ...",
        multiple=True,
        help="Allowed models, such as 'grok-4*'; separate several by spaces or commas.",
    ),
    click.option(
        "--tools",
        metavar="all|no-collections|client|none",
        help="Allowed tools; client means the client's own functions.",
    ),
    click.option(
        "--expires",
        "expires_at",
        metavar="TIME",
        help="Such as 30d or 2027-01-31T12:00Z.",
    ),
)


class KeyCommand(click.Command):
    """A command whose `--models` accepts several words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses like click, with `--models` repeated before each of its words."""
        options = [param for param in self.params if isinstance(param, click.Option) and not param.is_flag]
        return super().parse_args(ctx, spread_models(args, {name for each in options for name in each.opts}))


def spread_models(words: list[str], valued: set[str]) -> list[str]:
    """Rewrites `--models A B` as `--models A --models B`. `valued` are the options that take a value.

    If NAME is missing otherwise, it is the last word, as in `--models A B NAME`.
    """
    spread: list[str] = []
    has_name, end, rest = False, 0, list(words)
    while rest:
        word = rest.pop(0)
        if word == MODELS:
            taken = 0
            while rest and not rest[0].startswith("-"):
                spread += [MODELS, rest.pop(0)]
                taken += 1
            if not taken:
                spread.append(MODELS)  # click reports that its value is missing
            end = len(spread) if taken > 1 else end
        elif word in valued:
            spread += [word, *rest[:1]]
            del rest[:1]
        else:
            has_name = has_name or not word.startswith("-")
            spread.append(word)
    if end and not has_name:
        del spread[end - 2]
    return spread


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `create` and `set`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@keys.command("create", cls=KeyCommand)
@click.argument("name")
@_limits
@as_json
def create(name: str, as_json: bool, **options: Any) -> None:
    """Create a key and print its secret, which is shown only once."""
    key, secret = _store().create(name, read_options(options))
    _print_secret(key, secret, as_json, f"Created the key {name}.")
    mode = current_app.extensions["settings"].auth_mode
    if mode != "keys" and not as_json:
        click.echo(f"Note: GROKFLASK_AUTH is {mode}, so callers do not need a key.", err=True)


@keys.command("list")
@as_json
@as_csv
def list_keys(as_json: bool, as_csv: bool) -> None:
    """List the keys."""
    check_formats(as_json, as_csv)
    now = time.time()
    fields = [key.to_fields(now) for key in _store().list()]
    if as_json:
        print_json(fields)
    elif as_csv:
        sys.stdout.writelines(write_csv(CSV_COLUMNS, fields))
    elif fields:
        print_table(
            [name.removesuffix("_at").replace("_", " ") for name in COLUMNS],
            ([each[name] for name in COLUMNS] for each in map(_format_budgets, fields)),
        )
    else:
        click.echo("There are no keys yet. Create one: flask --app wsgi keys create NAME", err=True)


@keys.command("show")
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show a key: its limits, its status and hints of its secrets."""
    _print_key(_store().show(name), as_json)


@keys.command("set", cls=KeyCommand)
@click.argument("name")
@_limits
@as_json
def set_key(name: str, as_json: bool, **options: Any) -> None:
    """Change a key's limits or expiry. The word none removes one, but --tools none forbids all tools."""
    _print_key(_store().set(name, read_options(options)), as_json)


@keys.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How long the old secret stays valid; 0s ends it at once.",
)
@as_json
def rotate(name: str, overlap: str, as_json: bool) -> None:
    """Give a key a new secret and print it."""
    try:
        overlap_s = read_duration(overlap)
    except ValueError as error:
        raise WrongUsageError(f"--overlap {error}.") from None
    key, secret = _store().rotate(name, overlap_s)
    end = f"expires in {overlap}" if overlap_s else "has expired"
    _print_secret(key, secret, as_json, f"The key {name} has a new secret; the old one {end}.")


@keys.command("revoke")
@click.argument("name")
@as_json
def revoke(name: str, as_json: bool) -> None:
    """Revoke a key for good. Its name cannot be used again."""
    _print_key(_store().revoke(name), as_json)


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parses the options into changes of a key. Raises InvalidRequestError."""
    fields: dict[str, object] = {}
    for name, value in options.items():
        if value is None or value == ():
            continue
        if name == "models":
            patterns = [pattern.strip() for words in value for pattern in words.split(",")]
            if NONE in patterns and len(patterns) > 1:
                raise InvalidRequestError("'models' expects either patterns or the word none.", param=name)
            fields[name] = None if patterns == [NONE] else patterns
        else:
            fields[name] = None if value == NONE and name != "tools" else value
    return read_changes(fields, time.time())


def _store() -> KeyStore:
    get_database()  # which the store uses, so that it waits as long as any command
    store: KeyStore = current_app.extensions["key_store"]
    return store


def _format_budgets(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with budgets formatted as USD."""
    budgets = {name: fields[name] for name in ("budget_day", "budget_month")}
    shown = {name: None if usd is None else format_usd(parse_usd(usd)) for name, usd in budgets.items()}
    return {**fields, **shown}


def _print_secret(key: StoredKey, secret: str, as_json: bool, title: str) -> None:
    if as_json:
        print_json({"name": key.name, "secret": secret, **key.to_fields(time.time())})
        return
    click.echo(f"{title}\nIts secret, shown only once:\n\n    {secret}\n")
    _print_key(key, as_json=False)


def _print_key(key: StoredKey, as_json: bool) -> None:
    fields = key.to_fields(time.time())
    if as_json:
        print_json(fields)
        return
    fields = _format_budgets(fields)
    lines = [f"{each['hint']} until {each['expires_at'] or 'its key ends'}" for each in fields.pop("secrets")]
    fields.pop("hint")
    fields["models"] = fields["models"] or "all"
    fields |= {f"secret {number}" if number > 1 else "secret": line for number, line in enumerate(lines, 1)}
    print_fields(fields)
