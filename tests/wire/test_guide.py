"""The user's own guide: its two programs and its curl line, run as they stand against real gunicorn.

The guide's text has lost its indentation; `indent` restores it, and nothing but host and key is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import CLIENT_KEY, GatewayServer
from support.scripted import Exchange, ScriptedUpstream, chat_chunk

GUIDE = (Path(__file__).parents[1] / "guide" / "streaming-guide.txt").read_text()
WORDS = ["Once", " upon", " a", " star", "…"]


def cut(start: str, end: str) -> str:
    """The guide's text from `start` to `end`, both included."""
    found = re.search(re.escape(start) + r".*?" + re.escape(end), GUIDE, re.DOTALL)
    assert found, start
    return found.group()


def indent(program: str) -> str:
    """Python's indentation, from its own rules: a colon opens a block, break and continue close one."""
    lines: list[str] = []
    blocks: list[str] = []
    for line in program.splitlines():
        word = line.split(" ", 1)[0].rstrip(":")
        if word == "except":
            while blocks.pop() != "try":
                pass
        lines.append("    " * len(blocks) + line)
        if line.endswith(":"):
            blocks.append(word)
        elif word in ("break", "continue"):
            blocks.pop()
    return "\n".join(lines) + "\n"


def point(text: str, gateway: GatewayServer) -> str:
    """The only two changes: the host and the key."""
    return text.replace("https://your-api-domain.com", gateway.url).replace("your_api_key", CLIENT_KEY)


def tell_story(exchange: Exchange) -> None:
    assert exchange.document["model"] == "grok-4-1-fast-non-reasoning"
    assert exchange.document["messages"][0]["content"] == "Write a short story about a space adventure"
    exchange.start()
    exchange.event(
        chat_chunk(WORDS[0], choices=[{"index": 0, "delta": {"role": "assistant", "content": WORDS[0]}}])
    )
    for word in WORDS[1:]:
        exchange.event(chat_chunk(word))
    exchange.event(chat_chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    exchange.event(
        chat_chunk("", choices=[], usage={"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6})
    )
    exchange.event("[DONE]")
    exchange.end()


def run_program(program: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(program, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("import os\nfrom openai import OpenAI", 'print(chunk.choices[0].delta.content, end="", flush=True)'),
        ("import requests\nimport json", "except json.JSONDecodeError:\ncontinue"),
    ],
    ids=["openai", "requests"],
)
def test_programs(
    gateway: GatewayServer, shared_upstream: ScriptedUpstream, tmp_path: Path, start: str, end: str
) -> None:
    """Both programs print the story, token by token, and end well."""
    shared_upstream.handler = tell_story
    done = run_program(point(indent(cut(start, end)), gateway), tmp_path)
    assert (done.stdout, done.returncode) == ("".join(WORDS), 0), done.stderr


def test_curl_line(gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """The curl line prints the events in the guide's format, up to [DONE]."""
    shared_upstream.handler = tell_story
    line = point(cut("curl -X POST", "\n}'"), gateway)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, encoding="utf-8", timeout=60, check=True
    )
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert len(events) == len(WORDS) + 3


def test_programs_on_the_sandbox(sandbox_gateway: GatewayServer, tmp_path: Path) -> None:
    """A newcomer without any key runs the guide's first program against the sandbox."""
    program = cut(
        "import os\nfrom openai import OpenAI", 'print(chunk.choices[0].delta.content, end="", flush=True)'
    )
    done = run_program(point(indent(program), sandbox_gateway), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20


def test_error_in_the_guides_shape(gateway: GatewayServer) -> None:
    """The guide's error event, for its own example of a wrong key."""
    line = cut("curl -X POST", "\n}'").replace("https://your-api-domain.com", gateway.url)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r'data: \{"error":"API error: [^\n]+"\}\n\n', done.stdout)
