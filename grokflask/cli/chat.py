"""`flask --app wsgi chat`: a conversation in the terminal, through a gateway that is running."""

from __future__ import annotations

import sys
from contextlib import closing, suppress

import click
from flask import current_app
from flask.cli import with_appcontext

from grokflask.cli.caller import Caller, CallError, find_key, read_url
from grokflask.cli.conversation import Conversation
from grokflask.cli.terminal import clean, clean_line, write, write_dim
from grokflask.config import Settings

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C has ended."""

HELP = """\
/model         the model that answers, and those there are
/model NAME    another model answers from here on
/new           forget the conversation so far
/help          these lines
/quit          end (or Ctrl-D)
Ctrl-C stops an answer; what has come of it stays in the conversation."""


@click.command("chat")
@click.argument("prompt", nargs=-1)
@click.option("--url", metavar="URL", help="The gateway's address [default: http://127.0.0.1:$PORT].")
@click.option(
    "--key",
    metavar="KEY",
    help="The key to call with [default: GROKFLASK_KEY, then the first of GROKFLASK_KEYS]. "
    "GROKFLASK_KEY keeps it out of the list of processes.",
)
@click.option("--model", metavar="NAME", help="Who answers [default: the gateway's].")
@click.option("--system", metavar="TEXT", help="What the model is told before all turns.")
@click.option("--reasoning", is_flag=True, help="Show the model's reasoning, on standard error.")
@with_appcontext
def chat(
    prompt: tuple[str, ...],
    url: str | None,
    key: str | None,
    model: str | None,
    system: str | None,
    reasoning: bool,
) -> None:
    """Talk to a model through the running gateway.

    With a PROMPT, or one on standard input, it answers once; else it is a conversation. Ctrl-C stops an
    answer.
    """
    settings: Settings = current_app.extensions["settings"]
    asked = " ".join(prompt)
    with Caller(read_url(url, settings.port), find_key(key, settings)) as caller:
        conversation = Conversation(caller, model, system)
        if not asked and sys.stdin.isatty():
            _converse(conversation, reasoning)
            return
        asked = asked or sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not asked:
            raise click.UsageError("There is no prompt: give one as an argument or on standard input.")
        if not _answer(conversation, asked, reasoning):
            sys.exit(INTERRUPTED)


def _converse(conversation: Conversation, reasoning: bool) -> None:
    """Turn after turn, until the user ends it."""
    _load_history()
    write_dim("Ctrl-C stops an answer, Ctrl-D ends; /help says what else there is.\n")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        except UnicodeDecodeError:
            write_dim("That was no text in this terminal's encoding.\n")
            continue
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _obey(conversation, line)
            elif line:
                _answer(conversation, line, reasoning)
        except CallError as error:
            write_dim(f"Error: {error.message}\n")
        except KeyboardInterrupt:
            click.echo()


def _answer(conversation: Conversation, prompt: str, reasoning: bool) -> bool:
    """Shows an answer as it comes, then its figures; False when Ctrl-C has stopped it. Raises CallError."""
    last = "\n"
    complete = False
    try:
        with closing(conversation.ask(prompt)) as pieces:
            thinks = False
            for kind, text in pieces:
                if kind == "reasoning":
                    if reasoning:
                        write_dim(text)
                        thinks = True
                    continue
                if thinks:
                    write_dim("\n\n")
                    thinks = False
                write(text)
                last = text
        complete = True
    except KeyboardInterrupt:
        conversation.figures.stopped = True
    finally:
        if not last.endswith("\n"):
            write("\n")
        if described := conversation.figures.describe():
            write_dim(described + "\n")
    return complete


def _obey(conversation: Conversation, line: str) -> None:
    """A command of the conversation's. Raises CallError."""
    word, _, rest = line.partition(" ")
    if word == "/help":
        write_dim(HELP + "\n")
    elif word == "/new":
        conversation.begin_anew()
        write_dim("A new conversation.\n")
    elif word == "/model" and rest.strip():
        conversation.model = rest.strip()
        write_dim(f"{clean_line(conversation.model)} answers from here on.\n")
    elif word == "/model":
        write_dim(f"Now: {conversation.model or 'the default of the gateway'}. There are:\n")
        write_dim("".join(f"  {clean(name)}\n" for name in conversation.list_models()))
    else:
        write_dim(f"There is no command {clean_line(word)}; /help lists them.\n")


def _load_history() -> None:
    """Arrow keys and earlier lines at the prompt, where Python has them."""
    with suppress(ImportError):
        import readline  # noqa: F401
