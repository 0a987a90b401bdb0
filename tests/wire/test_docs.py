"""The examples of the docs, run as they stand but for host and key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.pages import find_blocks, list_blocks_of
from support.ports import reserve_port
from support.processes import ROOT, GatewayServer, Server, wait_for
from support.scripted import WAIT_S
from support.stores import ADMIN_TOKEN


def list_examples(test: str) -> list[tuple[str, str]]:
    """A name for each example that the table of pages gives to a test, and its text."""
    return [
        (f"{Path(block.page).name}-{block.line}", block.text)
        for block in list_blocks_of(f"tests/wire/test_docs.py::{test}")
    ]


def point(text: str, gateway: GatewayServer, model: str | None = None) -> str:
    text = text.replace("http://127.0.0.1:8000", gateway.url).replace("some-long-secret", "any-key-will-do")
    return text.replace('"stream": True}', f'"stream": True, "model": "{model}"}}') if model else text


def run(
    command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=env, cwd=cwd
    )


@pytest.mark.parametrize(("name", "text"), list_examples("test_python_examples"))
def test_python_examples(sandbox_gateway: GatewayServer, tmp_path: Path, name: str, text: str) -> None:
    """Each Python example prints a story."""
    path = tmp_path / "example.py"
    path.write_text(point(text, sandbox_gateway))
    done = run([sys.executable, str(path)])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20


@pytest.mark.parametrize(("name", "text"), list_examples("test_curl_examples"))
def test_curl_examples(sandbox_gateway: GatewayServer, name: str, text: str) -> None:
    """Each curl line streams to [DONE]."""
    done = run(["bash", "-c", point(text, sandbox_gateway)])
    assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("sandbox-truncated", "before it was complete"),
        ("sandbox-rate-limit", "Too many"),
        ("sandbox-error-mid-stream", "API error"),
    ],
)
def test_requests_example_notices_every_bad_ending(
    sandbox_gateway: GatewayServer, tmp_path: Path, model: str, message: str
) -> None:
    """The loop of docs/streaming.md takes no broken stream for a whole one."""
    (text,) = [text for name, text in list_examples("test_python_examples") if "iter_lines" in text]
    path = tmp_path / "example.py"
    path.write_text(point(text, sandbox_gateway, model))
    done = run([sys.executable, str(path)])
    assert done.returncode == 1
    assert message in done.stderr


SECRET = re.compile(r"gf-[\w-]{43}")


def list_console(page: str) -> Iterator[tuple[str, str]]:
    """The commands of the console blocks, in order, and what the page says they print."""
    for block in find_blocks(page, "console"):
        for piece in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            found = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", piece, re.DOTALL)
            assert found, piece
            yield found[1], found[2]


def mask(text: str) -> str:
    """What differs from run to run, and how wide that makes a column, as one letter."""
    text = re.sub(r"gf-[\w-]+(…[\w-]{4})?", "S", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "I", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "T", text)
    text = re.sub(r"\d{4}-\d\d-\d\d", "D", text)
    text = re.sub(r"^T .*", lambda row: re.sub(r"\b\d+\b(?!\.)", "N", row[0]), text, flags=re.MULTILINE)
    text = re.sub(r"(?<=X-RateLimit-Reset: )\d+", "N", text)
    return re.sub(r" +", " ", text).strip()


def make_pattern(shown: str) -> str:
    """The page's text as a pattern: … is anything on its line, and a line of … any lines."""
    pattern = re.escape(mask(shown)).replace("\\\n", "\n")
    pattern = re.sub(r"^…(\n|$)", r"(?s:.*?)", pattern, flags=re.MULTILINE)
    return pattern.replace("…", r"[^\n]*?")


def make_path() -> str:
    """PATH with the `flask` of these tests first."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_readme_commands(tmp_path: Path) -> None:
    """The README's commands work one behind the other, on an empty database.

    make is asked what it would do (test_commands.py runs that), pip whether all is there, and gunicorn's line
    is docs/deployment.md's, which test_deployment.py runs.
    """
    env = {"PATH": make_path(), "PYTHONPATH": str(ROOT), "GROKFLASK_AUTH": "keys"}
    for name in (".env.example", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    served = [block.text for block in find_blocks("docs/deployment.md", "sh")]
    commands = [
        line for block in find_blocks("README.md", "sh") for line in block.text.splitlines() if line.strip()
    ]
    assert len(commands) >= 9
    for command in commands:
        if command.startswith("gunicorn "):
            assert any(command in text for text in served)
            continue
        command = re.sub(r"^make ", f"make -n -C {ROOT} ", command)
        command = re.sub(r"^pip install ", "pip install --dry-run --no-index ", command)
        done = run(["bash", "-c", command], env, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command + done.stdout + done.stderr
    assert (tmp_path / "var" / "grokflask.db").exists()


def test_keys_gateway(tmp_path: Path) -> None:
    """The gateway that docs/keys.md starts to be tried wants a key, and has the admin API."""
    for name in ("grokflask", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("wsgi.py", "gunicorn.conf.py"):  # a folder without a developer's .env
        shutil.copy(ROOT / name, tmp_path)
    (block,) = find_blocks("docs/keys.md", "sh")
    assert block.text.endswith(" make run\n")
    command = block.text.replace("make run", f"exec {sys.executable} scripts/run.py")
    url = f"http://127.0.0.1:{(port := reserve_port())}"
    server = Server(["bash", "-c", command], {"PORT": str(port), "PYTHONPATH": ""}, tmp_path)
    try:
        wait_for(lambda: "msg=ready" in server.log, "gunicorn")
        found = [
            requests.get(url + path, timeout=WAIT_S).status_code
            for path in ("/api/v1/usage", "/admin/api/keys")
        ]
        assert found == [401, 401]
    finally:
        assert server.stop() == 0


def test_sandbox_alone(tmp_path: Path) -> None:
    """The sandbox's command prints what its page shows, but for the port."""
    ((command, shown),) = list_console("docs/sandbox.md")
    port = str(reserve_port())
    words = [sys.executable, *command.split()[1:], "--port", port]
    server = Server(words, {}, tmp_path)
    try:
        expected = shown.replace("9000", port).strip()
        wait_for(lambda: server.log.strip() == expected, "what the page shows")
    finally:
        assert server.stop() == 0


def test_sandbox_from_python(tmp_path: Path) -> None:
    """The sandbox page's program prints the beginning of a story, and the journal's view of it."""
    (block,) = find_blocks("docs/sandbox.md", "python")
    path = tmp_path / "example.py"
    path.write_text(block.text)
    done = run([sys.executable, str(path)], {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".+\nfault: \d+ events\n", done.stdout, re.DOTALL)


@pytest.mark.parametrize(("page", "count"), [("docs/keys.md", 16), ("docs/dashboard.md", 2)])
def test_pages_of_commands(tmp_path: Path, page: str, count: int) -> None:
    """Every command of a page, in its order, on a sandbox gateway, prints what the page shows."""
    env = {
        "GROKFLASK_AUTH": "keys",
        "GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN,
        "GROKFLASK_KEY_CACHE_S": "0",
        "GROKFLASK_SANDBOX_EVENTS_PER_S": "0",
        "GROKFLASK_RATE_LIMIT": "100/hour",
        "DATABASE_URL": f"sqlite:///{tmp_path}/keys.db",
    }
    server = GatewayServer(tmp_path, env)
    env |= {"PYTHONPATH": str(ROOT), "PATH": make_path(), "LC_ALL": "C.UTF-8"}
    try:
        commands = list(list_console(page))
        assert len(commands) >= count
        for command, shown in commands:
            done = run(["bash", "-c", point(command, server)], env, tmp_path)
            assert (done.returncode, done.stderr) == (0, ""), command + done.stdout + done.stderr
            assert re.fullmatch(make_pattern(shown), mask(done.stdout)), (
                f"{command}prints\n{done.stdout}\nwhere the page has\n{shown}"
            )
            secrets = SECRET.findall(done.stdout)
            env["KEY"] = secrets[-1] if secrets else env.get("KEY", "")
    finally:
        assert server.stop() == 0


def test_terminal_page(sandbox_gateway: GatewayServer, tmp_path: Path) -> None:
    """The commands of docs/terminal.md work beside a gateway on the sandbox, and print what it shows."""
    env = {"PATH": make_path(), "PYTHONPATH": str(ROOT), "PORT": str(sandbox_gateway.port)}
    for block in find_blocks("docs/terminal.md", "sh"):
        text = block.text.replace("https://my.gateway.example", sandbox_gateway.url)
        done = run(["bash", "-c", text], env, tmp_path)
        assert done.returncode == 0, text + done.stdout + done.stderr
        assert done.stdout or (tmp_path / "rivers.txt").read_text()
    for command, shown in list_console("docs/terminal.md"):
        done = run(["bash", "-c", command], env, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.fullmatch(make_pattern(shown), mask(done.stdout)), done.stdout
