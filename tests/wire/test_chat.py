"""`flask --app wsgi chat` against a real gateway: streams, stops, turns, and what goes wrong, in words."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ports import refuse_port
from support.processes import CLIENT_KEY, ROOT, GatewayServer
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, chat_chunk, stream_story
from support.stores import run_command
from support.terminal import CTRL_C, CTRL_D, Terminal

Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(gateway: GatewayServer, tmp_path: Path) -> Iterator[Open]:
    """Starts `flask chat` for the gateway in a terminal, with alice's key."""
    terminals: list[Terminal] = []

    def start(*words: str, **env: str) -> Terminal:
        env = {"PORT": str(gateway.port), "GROKFLASK_KEY": CLIENT_KEY, **env}
        terminals.append(Terminal(tmp_path, "chat", *words, **env))
        return terminals[-1]

    yield start
    for each in terminals:
        each.close()


def ask(cwd: Path, gateway: GatewayServer, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A single answer."""
    env = {"GROKFLASK_KEY": CLIENT_KEY, "LANG": "C.UTF-8", **env}
    return run_command(cwd, env, "chat", "--url", gateway.url, *words)


def say(*pieces: str, done: bool = True, **delta: Any) -> Callable[[Exchange], None]:
    """An upstream that says these pieces."""

    def handle(exchange: Exchange) -> None:
        exchange.start()
        if delta:
            exchange.event(chat_chunk("", choices=[{"index": 0, "delta": delta}]))
        for piece in pieces:
            exchange.event(chat_chunk(piece))
        if done:
            exchange.event(chat_chunk("", choices=[], usage=USAGE))
            exchange.event("[DONE]")
        exchange.end()

    return handle


def test_one_answer(gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A prompt as argument: the answer alone on standard output, one line of figures on standard error."""
    done = ask(tmp_path, gateway, "--model", "grok-3", "--system", "Be brief.", "Tell", "me")
    assert (done.returncode, done.stdout) == (0, "Once upon\n")
    [figures] = done.stderr.splitlines()
    assert figures.startswith("5 tokens, 0.0000008750 USD, first after ")
    assert figures.endswith(" tokens/s")
    [asked] = shared_upstream.exchanges
    assert asked.document["model"] == "grok-3"
    assert asked.document["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me"},
    ]
    assert CLIENT_KEY not in done.stdout + done.stderr


def test_a_prompt_on_standard_input(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """What is piped in is the prompt, whatever its bytes; nothing is a usage error."""
    env = {**os.environ, "GROKFLASK_KEY": CLIENT_KEY}
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "chat", "--url", gateway.url]
    env["PYTHONPATH"] = str(ROOT)
    for given, code in ((b"two\nlines \xff\n", 0), (b" \n", 2)):
        done = subprocess.run(command, input=given, cwd=tmp_path, env=env, capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr
    [asked] = shared_upstream.exchanges
    assert asked.document["messages"][0]["content"] == "two\nlines \ufffd"


def test_text_comes_as_it_is_said(open_terminal: Open, shared_upstream: ScriptedUpstream) -> None:
    """Upstream says the next word only once the one before has been shown."""
    go_on = threading.Event()

    def handle(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        assert go_on.wait(WAIT_S)
        exchange.event(chat_chunk(" upon"))
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = handle
    terminal = open_terminal("Tell me")
    terminal.wait_for("Once")
    assert "upon" not in terminal.shown
    go_on.set()
    assert terminal.wait_for_end() == 0
    assert "Once upon\r\n" in terminal.shown


def test_ctrl_c_stops_the_answer(
    open_terminal: Open, gateway: GatewayServer, shared_upstream: ScriptedUpstream
) -> None:
    """Upstream is hung up on, the ledger's line says client_abort, and the partial answer stays a turn."""
    left = threading.Event()

    def handle(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        if exchange.wait_until_left():
            left.set()

    shared_upstream.handler = handle
    terminal = open_terminal()
    terminal.wait_for("> ")
    before = len(gateway.find_lines("outcome=client_abort"))
    terminal.type("Tell me\n")
    terminal.wait_for("Once")
    terminal.type(CTRL_C)
    assert left.wait(WAIT_S)
    terminal.wait_for("stopped")
    terminal.wait_for("> ")
    gateway.wait_for_line("outcome=client_abort")
    assert len(gateway.find_lines("outcome=client_abort")) == before + 1
    shared_upstream.handler = stream_story
    terminal.type("Go on\n")
    terminal.wait_for("Once upon")
    assert [each["content"] for each in shared_upstream.exchanges[-1].document["messages"]] == [
        "Tell me",
        "Once",
        "Go on",
    ]
    terminal.wait_for("tokens/s")
    terminal.wait_for("> ")
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0


def test_ctrl_c_before_the_first_word(open_terminal: Open, shared_upstream: ScriptedUpstream) -> None:
    """With a single prompt it ends the command with 130, though nothing at all has come yet."""
    asked, left = threading.Event(), threading.Event()

    def handle(exchange: Exchange) -> None:
        asked.set()
        if exchange.wait_until_left():
            left.set()

    shared_upstream.handler = handle
    terminal = open_terminal("Tell me")
    assert asked.wait(WAIT_S)
    terminal.type(CTRL_C)
    assert left.wait(WAIT_S)
    assert terminal.wait_for_end() == 130
    assert "Traceback" not in terminal.shown


def test_turns_and_commands(open_terminal: Open, shared_upstream: ScriptedUpstream) -> None:
    """Two turns are one conversation; /model and /new change what follows; Ctrl-C at the prompt ends."""
    terminal = open_terminal()
    shown = {
        "first": "tokens/s",
        "second": "tokens/s",
        "/model grok-3": "The model is now grok-3.",
        "/new": "New conversation.",
        "/odd": "Unknown command /odd",
        "/help": "stays in the conversation.",
        "third": "tokens/s",
    }
    for line, answer in shown.items():
        terminal.wait_for("> ")
        terminal.type(line + "\n")
        terminal.wait_for(answer)
    terminal.wait_for("> ")
    terminal.interrupt()
    assert "Traceback" not in terminal.shown
    sent = [each.document for each in shared_upstream.exchanges]
    assert [[turn["content"] for turn in each["messages"]] for each in sent] == [
        ["first"],
        ["first", "Once upon", "second"],
        ["third"],
    ]
    assert [each["model"] for each in sent] == ["grok-4.3", "grok-4.3", "grok-3"]
    assert "\x1b[2m" in terminal.shown


def test_models_are_listed(open_terminal: Open, shared_upstream: ScriptedUpstream) -> None:
    """/model alone lists those there are; an error at the prompt is told, and the conversation goes on."""
    shared_upstream.handler = lambda exchange: exchange.reply({"error": "no models today"}, 418)
    terminal = open_terminal()
    terminal.wait_for("> ")
    terminal.type("/model\n")
    terminal.wait_for("(418)")
    shared_upstream.handler = lambda exchange: exchange.reply(
        {
            "object": "list",
            "data": [{"id": "grok-x\x1b[2J", "object": "model", "created": 1, "owned_by": "x"}],
        }
    )
    terminal.type("/model\n")
    terminal.wait_for("grok-x?[2J")
    terminal.type("/quit\n")
    assert terminal.wait_for_end() == 0


def test_a_terminal_is_not_obeyed(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Controls, text directions and lone surrogates from a model are shown as question marks."""
    shared_upstream.handler = say(
        "a\x1b]0;owned\x07b\r\n\tc\x9bd\u202ee", '"\ud83d\ude00"', "\x7f", "\ud800z"
    )
    done = ask(tmp_path, gateway, "hi")
    assert done.stdout == 'a?]0;owned?b\n\tc?d?e"\U0001f600"??z\n'


def test_reasoning(gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """It is shown on request only, and apart from the answer."""
    shared_upstream.handler = say("42", reasoning_content="Hm \x1b[31m")
    done = ask(tmp_path, gateway, "hi")
    assert (done.stdout, "Hm" in done.stderr) == ("42\n", False)
    done = ask(tmp_path, gateway, "--reasoning", "hi")
    assert (done.stdout, "Hm ?[31m" in done.stderr) == ("42\n", True)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours(open_terminal: Open, no_color: str) -> None:
    """A terminal gets its figures dim, unless NO_COLOR is set."""
    terminal = open_terminal("hi", NO_COLOR=no_color)
    assert terminal.wait_for_end() == 0
    assert ("\x1b[" in terminal.shown) == (not no_color)


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (say("Once", done=False), "before it was complete"),
        (lambda each: each.reply({"error": "slow"}, 429, "Retry-After: 7"), "slow (429) Wait 7 s."),
        (lambda each: each.reply({"error": "no such model"}, 404), "no such model (404)"),
    ],
)  # fmt: skip
def test_upstream_fails(
    gateway: GatewayServer,
    shared_upstream: ScriptedUpstream,
    tmp_path: Path,
    handle: Callable[[Exchange], None],
    words: str,
) -> None:
    """The exit code is 1, and one line says what went wrong."""
    shared_upstream.handler = handle
    done = ask(tmp_path, gateway, "hi")
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_the_key_is_wrong(gateway: GatewayServer, tmp_path: Path) -> None:
    """It is said how to give one; the key itself is not repeated."""
    done = ask(tmp_path, gateway, "--key", "some-wrong-key-1234", "hi")
    assert done.returncode == 1
    assert "(401) Give a key with --key or in GROKFLASK_KEY" in done.stderr
    assert "some-wrong-key" not in done.stderr
    assert ask(tmp_path, gateway, "--key", "a\nb", "hi").returncode == 2
    done = ask(tmp_path, gateway, "hi", GROKFLASK_KEY="", GROKFLASK_KEYS=f"al:{CLIENT_KEY}", XAI_API_KEY="x")
    assert (done.returncode, done.stdout) == (0, "Once upon\n")


def test_no_gateway(gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Nothing listens, or something that is no gateway, or one that cuts a stream: each is told."""

    def cut(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.end()

    def break_off(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.close()

    upstream_url = shared_upstream.base_url.removesuffix("/v1")
    for handle, words in (
        (cut, "no [DONE] arrived"),
        (break_off, "cut before"),
        (lambda exchange: exchange.close(), "closed the connection without an answer"),
        (lambda exchange: exchange.reply(b"<html>", 200, "Content-Type: text/html"), "address of a gateway"),
        (lambda exchange: exchange.reply(b"<html>", 404, "Content-Type: text/html"), "There is no API at"),
        (lambda exchange: exchange.reply(b"", 301, "Location: https://x.example/"), "moved to https://x.example/"),
    ):  # fmt: skip
        shared_upstream.handler = handle
        done = run_command(tmp_path, {}, "chat", "--url", upstream_url, "hi")
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    done = run_command(tmp_path, {}, "chat", "--url", f"http://127.0.0.1:{refuse_port()}", "hi")
    assert done.returncode == 1
    assert "is the gateway running? `make run` starts one." in done.stderr
    assert run_command(tmp_path, {}, "chat", "--url", "ftp://x", "hi").returncode == 2


def test_odd_chunks(gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """JSON of other shapes than a chunk's is passed over."""

    def handle(exchange: Exchange) -> None:
        exchange.start()
        for choices in (7, [1], [{"delta": 3}], [{"delta": {"content": ["x"]}}], [{}]):
            exchange.event(chat_chunk("", choices=choices))
        exchange.event(chat_chunk("fine", usage={"total_tokens": "x", "completion_tokens": -1}))
        exchange.event("[DONE]")
        exchange.end()

    shared_upstream.handler = handle
    done = ask(tmp_path, gateway, "hi")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
