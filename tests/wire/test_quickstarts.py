"""docs/quickstarts.md: its programs as they stand there, in real Python and Node, over real gunicorn."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.pages import Block, find_blocks
from support.processes import ROOT, GatewayServer
from support.scripted import WAIT_S

PAGE = "docs/quickstarts.md"
KEY = "some-long-secret"
NODE = Path(sys.executable).parent / "node"
MODULES = ROOT / "tests" / "node" / "node_modules"
PROGRAMS = [*find_blocks(PAGE, "python"), *find_blocks(PAGE, "js")]
STORIES = [block for block in PROGRAMS if "short story" in block.text]
STOPS = [block for block in PROGRAMS if "long story" in block.text]


def name_block(block: Block) -> str:
    """The library that a program is about."""
    libraries = ("langchain", "ai-sdk/xai", "ai-sdk/openai-compatible", "anthropic", "openai")
    library = next(name for name in libraries if name in block.text)
    return f"{block.language}-{library.replace('/', '-')}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """A gateway on the sandbox that takes the page's key."""
    env = {
        "GROKFLASK_AUTH": "keys",
        "GROKFLASK_KEYS": f"me:{KEY}",
        "GROKFLASK_ADMIN_TOKEN": "admin-token-0123456789",
        "GROKFLASK_SANDBOX_EVENTS_PER_S": "0",
    }
    folder = tmp_path_factory.mktemp("quickstarts")
    server = GatewayServer(folder, {**env, "DATABASE_URL": f"sqlite:///{folder}/keys.db"})
    yield server
    server.stop()
    assert "Traceback" not in server.log, server.log


def make_key(gateway: GatewayServer, name: str, **limits: object) -> str:
    """The secret of a new key."""
    reply = requests.post(
        f"{gateway.url}/admin/api/keys",
        json={"name": name, **limits},
        headers={"Authorization": "Bearer admin-token-0123456789"},
        timeout=WAIT_S,
    )
    assert reply.status_code == 201, reply.text
    secret: str = reply.json()["secret"]
    return secret


def run_block(
    gateway: GatewayServer,
    folder: Path,
    block: Block,
    model: str = "grok-4.3",
    key: str = KEY,
    slash: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the page, with another host, perhaps another model, or `slash` behind its URL."""
    text = re.sub(r"http://127\.0\.0\.1:8000([\w/]*)", rf"{gateway.url}\1{slash}", block.text)
    assert "grok-4.3" in text
    path = folder / f"program.{'mjs' if block.language == 'js' else 'py'}"
    path.write_text(text.replace("grok-4.3", model))
    if block.language == "js":
        assert MODULES.is_dir(), "the SDKs are not installed: run 'make .venv/node'"
        (folder / "node_modules").symlink_to(MODULES)
    return subprocess.run(
        [str(NODE if block.language == "js" else sys.executable), str(path)],
        env={"PATH": os.environ["PATH"], "KEY": key, "NO_PROXY": "127.0.0.1"},
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("block", STORIES, ids=name_block)
def test_story(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """Each program prints a story and its usage, and nothing else."""
    done = run_block(gateway, tmp_path, block)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 20
    assert re.search(r"\n\d+ tokens\n$", done.stdout), done.stdout


@pytest.mark.parametrize("block", STORIES, ids=name_block)
def test_stream_that_breaks(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """Each program tells a stream that broke from a whole one, and prints what had come."""
    done = run_block(gateway, tmp_path, block, model="sandbox-truncated")
    assert done.returncode == 1
    assert done.stdout.strip()
    assert "before it was complete" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", STORIES, ids=name_block)
def test_wrong_key(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """Each program tells the status of a refusal; a slash behind its base URL changes nothing."""
    done = run_block(gateway, tmp_path, block, key="wrong-key-here", slash="/")
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert done.stderr.startswith("401")
    assert "Invalid API key" in done.stderr


@pytest.mark.parametrize("block", STORIES, ids=name_block)
def test_spent_budget(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """A budget that is spent is told, and the SDKs that know `x-should-retry` ask no second time."""
    name = f"poor-{name_block(block)}"
    done = run_block(gateway, tmp_path, block, key=make_key(gateway, name, budget_day=0))
    assert done.returncode == 1
    assert done.stderr.startswith("429")
    knows = "ai-sdk" not in block.text
    gateway.wait_for_line("code=insufficient_quota", f"key={name} ")
    assert len(gateway.find_lines("outcome=refused", f"key={name} ")) == (1 if knows else 3)


@pytest.mark.parametrize(
    "block", [block for block in STORIES if "anthropic" not in block.text], ids=name_block
)
def test_long_retry_after(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """A 429 whose `Retry-After` is long ends each program soon; how often it asks is what the page says.

    Anthropic's SDK is left out: it would wait.
    """
    name = f"limited-{name_block(block)}"
    key = make_key(gateway, name, requests="1/year")
    headers = {"Authorization": f"Bearer {key}"}
    assert requests.get(f"{gateway.url}/api/v1/models", headers=headers, timeout=WAIT_S).status_code == 200
    done = run_block(gateway, tmp_path, block, key=key)
    assert done.returncode == 1
    assert done.stderr.startswith("429")
    gateway.wait_for_line("code=rate_limit_exceeded", f"key={name} ")
    tries = 1 if block.language == "python" else 3
    assert len(gateway.find_lines("code=rate_limit_exceeded", f"key={name} ")) == tries


@pytest.mark.parametrize("block", STOPS, ids=name_block)
def test_stop(gateway: GatewayServer, tmp_path: Path, block: Block) -> None:
    """Each program that leaves early ends without an error, and the call upstream is ended with it."""
    model = f"sandbox-stall-{90 + STOPS.index(block)}"  # a name of its own, to be found in the log
    done = run_block(gateway, tmp_path, block, model=model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    gateway.wait_for_line(f"model={model} ", "outcome=client_abort")


def test_every_program_is_run() -> None:
    """No program of the page is left out by the sorting above."""
    assert len(STORIES) == 5
    assert len(STOPS) == 4
    assert len(PROGRAMS) == 9


def test_curl(gateway: GatewayServer) -> None:
    """The curl line streams to [DONE]."""
    (block,) = find_blocks(PAGE, "bash")
    done = subprocess.run(
        ["bash", "-c", block.text.replace("http://127.0.0.1:8000", gateway.url)],
        env={"PATH": os.environ["PATH"], "KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_base_urls(gateway: GatewayServer) -> None:
    """Both prefixes work; a doubled slash is the 404 that the page speaks of."""
    headers = {"Authorization": f"Bearer {KEY}"}
    found = [
        requests.get(gateway.url + path, headers=headers, timeout=WAIT_S).status_code
        for path in ("/api/v1/models", "/v1/models", "/api/v1//models")
    ]
    assert found == [200, 200, 404]


def test_shell_blocks() -> None:
    """What is installed are packages that the tests have too; the other blocks are tested below."""
    known = {
        "pip": (ROOT / "requirements-dev.in").read_text(),
        "npm": (MODULES.parent / "package.json").read_text(),
    }
    for block in find_blocks(PAGE, "sh"):
        words = shlex.split(block.text)
        if words[1] == "install":
            for package in words[2:]:
                assert re.search(rf"(^|[\"\s]){re.escape(package)}([\"\s]|$)", known[words[0]]), package
        else:
            assert words[0] == "export" or "OPENAI_API_KEY=some-long-secret" in words


def read_open_webui() -> list[dict[str, str]]:
    """The settings of Open WebUI in the page's blocks."""
    blocks = [block for block in find_blocks(PAGE, "sh") if "open-webui" in block.text]
    return [dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", block.text)) for block in blocks]


@pytest.mark.parametrize("settings", read_open_webui(), ids=["docker", "pip"])
def test_open_webui(gateway: GatewayServer, settings: dict[str, str]) -> None:
    """The requests that Open WebUI makes, with the values of the page's blocks, get what it reads.

    Open WebUI itself is not run here. As its source sends them: the list of models, a streamed chat with
    usage, a title that is not streamed, each to the base URL and a path, with the key as bearer.
    """
    assert settings["ENABLE_OLLAMA_API"] == "false"
    base = re.sub(
        r"^http://(host\.docker\.internal|127\.0\.0\.1):8000", gateway.url, settings["OPENAI_API_BASE_URL"]
    )
    assert base.startswith(gateway.url)
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {settings['OPENAI_API_KEY']}", "Accept": "*/*"})
    listed = session.get(f"{base}/models", timeout=WAIT_S).json()["data"]
    assert "grok-4.3" in [model["id"] for model in listed]
    chat = {
        "model": "grok-4.3",
        "messages": [{"role": "user", "content": "Tell me a story"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    streamed = session.post(f"{base}/chat/completions", json=chat, timeout=WAIT_S)
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    assert '"usage"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    title = {**chat, "stream": False, "max_completion_tokens": 1000}
    del title["stream_options"]
    whole = session.post(f"{base}/chat/completions", json=title, timeout=WAIT_S).json()
    assert whole["choices"][0]["message"]["content"]
