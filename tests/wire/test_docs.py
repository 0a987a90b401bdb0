"""The examples of the docs, run as they stand but for host and key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT, GatewayServer
from support.stores import ADMIN_TOKEN

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", DOCS / "streaming.md", DOCS / "responses-and-messages.md"]


def list_examples(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append((f"{page.name}-{number}", text))
    return found


def point(text: str, gateway: GatewayServer, model: str | None = None) -> str:
    text = text.replace("http://127.0.0.1:8000", gateway.url).replace("some-long-secret", "any-key-will-do")
    return text.replace('"stream": True}', f'"stream": True, "model": "{model}"}}') if model else text


def run(
    command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=env, cwd=cwd
    )


@pytest.mark.parametrize(("name", "text"), list_examples("python"))
def test_python_examples(sandbox_gateway: GatewayServer, tmp_path: Path, name: str, text: str) -> None:
    """Each Python example prints a story."""
    path = tmp_path / "example.py"
    path.write_text(point(text, sandbox_gateway))
    done = run([sys.executable, str(path)])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20


@pytest.mark.parametrize(("name", "text"), list_examples("bash"))
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
    (text,) = [text for name, text in list_examples("python") if "iter_lines" in text]
    path = tmp_path / "example.py"
    path.write_text(point(text, sandbox_gateway, model))
    done = run([sys.executable, str(path)])
    assert done.returncode == 1
    assert message in done.stderr


SECRET = re.compile(r"gf-[\w-]{43}")


def list_console(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of the console blocks, in order, and what the page says they print."""
    for text in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
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
    """The README's commands for keys and usage work one behind the other, on an empty database."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^flask --app wsgi .*", text, re.MULTILINE)
    assert len(commands) >= 3
    env = {"PATH": make_path(), "PYTHONPATH": str(ROOT), "GROKFLASK_AUTH": "keys"}
    for command in commands:
        done = run(["bash", "-c", command], env, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command + done.stdout + done.stderr
    assert (tmp_path / "var" / "grokflask.db").exists()


def test_keys_page(tmp_path: Path) -> None:
    """Every command of docs/keys.md, in its order, on a sandbox gateway, prints what the page shows."""
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
        commands = list(list_console(ROOT / "docs" / "keys.md"))
        assert len(commands) > 15
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
