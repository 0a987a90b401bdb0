"""`flask --app wsgi chat`: a conversation in the terminal, through a running gateway."""

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
"""The exit status of a program ended by Ctrl-C."""

HELP = """\
/model         show the current model and all models
/model NAME    switch to another model
/new           start a new conversation
/help          show this help
/quit          quit (or Ctrl-D)
Ctrl-C stops an answer; the part that has arrived stays in the conversation."""


@click.command("chat")
@click.argument("prompt", nargs=-1)
@click.option("--url", metavar="URL", help="The gateway's address [default: http://127.0.0.1:$PORT].")
@click.option(
    "--key",
    metavar="KEY",
    help="The key to call with [default: GROKFLASK_KEY, then the first of GROKFLASK_KEYS]. "
    "GROKFLASK_KEY keeps it out of the list of processes.",
)
@click.option("--model", metavar="NAME", help="The model [default: the gateway's].")
@click.option("--system", metavar="TEXT", help="The system prompt.")
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

    With a PROMPT as argument or on standard input, prints one answer. Otherwise starts a conversation.
    Ctrl-C stops an answer.
    """
    settings: Settings = current_app.extensions["settings"]
    text = " ".join(prompt)
    with Caller(read_url(url, settings.port), find_key(key, settings)) as caller:
        conversation = Conversation(caller, model, system)
        if not text and sys.stdin.isatty():
            _converse(conversation, reasoning)
            return
        text = text or sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not text:
            raise click.UsageError("No prompt: pass one as an argument or on standard input.")
        if not _answer(conversation, text, reasoning):
            sys.exit(INTERRUPTED)


def _converse(conversation: Conversation, reasoning: bool) -> None:
    """Reads and answers prompts until the user quits."""
    with suppress(ImportError):  # Python may be built without it
        import readline  # noqa: F401 - arrow keys and history at the prompt
    write_dim("Ctrl-C stops an answer, Ctrl-D quits, /help lists the commands.\n")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        except UnicodeDecodeError:
            write_dim("The input is not valid text in this terminal's encoding.\n")
            continue
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _run_command(conversation, line)
            elif line:
                _answer(conversation, line, reasoning)
        except CallError as error:
            write_dim(f"Error: {error.message}\n")
        except KeyboardInterrupt:
            click.echo()


def _answer(conversation: Conversation, prompt: str, reasoning: bool) -> bool:
    """Prints an answer as it arrives, then its figures. False if Ctrl-C stopped it. Raises CallError."""
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


def _run_command(conversation: Conversation, line: str) -> None:
    """Runs a command such as /model. Raises CallError."""
    word, _, rest = line.partition(" ")
    if word == "/help":
        write_dim(HELP + "\n")
    elif word == "/new":
        conversation.turns.clear()
        write_dim("New conversation.\n")
    elif word == "/model" and rest.strip():
        conversation.model = rest.strip()
        write_dim(f"The model is now {clean_line(conversation.model)}.\n")
    elif word == "/model":
        write_dim(f"Current: {conversation.model or 'the default of the gateway'}. Available:\n")
        write_dim("".join(f"  {clean(name)}\n" for name in conversation.list_models()))
    else:
        write_dim(f"Unknown command {clean_line(word)}; /help lists the commands.\n")
