"""The examples of the docs, run as they stand but for host and key."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT, GatewayServer

PAGES = [ROOT / "README.md", ROOT / "docs" / "streaming.md"]


def list_examples(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append((f"{page.name}-{number}", text))
    return found


def point(text: str, gateway: GatewayServer, model: str | None = None) -> str:
    text = text.replace("http://127.0.0.1:8000", gateway.url).replace("some-long-secret", "any-key-will-do")
    return text.replace('"stream": True}', f'"stream": True, "model": "{model}"}}') if model else text


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)


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
