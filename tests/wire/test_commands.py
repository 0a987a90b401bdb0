"""The README's commands, as a newcomer runs them: the demo, and `make run` with its line to paste."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.ports import reserve_port
from support.processes import ROOT, UPSTREAM_KEY, Server, wait_for
from support.scripted import WAIT_S, ScriptedUpstream


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what runs, in a folder without a developer's `.env`."""
    for name in ("grokflask", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("wsgi.py", "gunicorn.conf.py", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_demo(checkout: Path) -> None:
    """The demo streams a story, saves a picture that is one, shows the fallback and what the ledger noted.

    It stops cleanly and exits 0. Whatever the newcomer has set up, it runs on the sandbox and on a database
    of its own, and leaves nothing but the picture behind.
    """
    settings = [
        *("XAI_API_KEY=xai-of-the-newcomer", "GROKFLASK_KEYS=bob:bobs-long-secret"),
        *("GROKFLASK_ADMIN_TOKEN=short", "GROKFLASK_RATE_LIMIT=1/hour"),
    ]
    (checkout / ".env").write_text("\n".join(settings))
    temporary = checkout / "temporary"
    temporary.mkdir()
    before = set(os.listdir(checkout))
    env = {"PATH": os.environ["PATH"], "GROKFLASK_AUTH": "passthrough", "WEB_CONCURRENCY": "4", "PORT": "1"}
    env |= {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "TMPDIR": str(temporary)}
    env |= {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ tokens, the first after \d+ ms", done.stdout)
    assert "X-Stream-Fallback: vision" in done.stdout
    assert re.search(r"PNG, 256 . 256 pixels", done.stdout)
    assert "exit code 0" in done.stdout
    rows = re.findall(
        r"^20\S+ +(demo-\w+) +open +(\S+) +complete +200 .* (\d\S*)$", done.stdout, re.MULTILINE
    )
    models = [("demo-look", "grok-4.3"), ("demo-picture", "grok-imagine-image"), ("demo-story", "grok-4.3")]
    assert [row[:2] for row in rows] == models
    assert all(float(row[2]) > 0 for row in rows)  # no ~ behind it: upstream's own figures
    assert set(os.listdir(checkout)) - before == {"demo.png"}
    assert os.listdir(temporary) == []
    assert (checkout / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["sandbox", "first key", "own keys"])
def test_run_prints_a_line_that_works(checkout: Path, upstream: ScriptedUpstream, mode: str) -> None:
    """The curl line of `make run` streams when it is pasted, and shows no secret that was set."""
    env = {"PORT": str(reserve_port())}
    if mode != "sandbox":
        env |= {"XAI_API_KEY": UPSTREAM_KEY, "XAI_API_BASE": upstream.base_url}
    if mode == "own keys":
        env["GROKFLASK_KEYS"] = "bob:bobs-long-secret"
    server = Server([sys.executable, "scripts/run.py"], {**env, "PYTHONPATH": ""}, checkout)
    try:
        wait_for(lambda: "msg=ready" in server.log, "gunicorn")
        found = re.search(r"curl -N .*?'\n", server.log, re.DOTALL)
        assert found, server.log
        done = subprocess.run(["bash", "-c", found.group()], capture_output=True, text=True, timeout=60)
        assert done.stdout.endswith("data: [DONE]\n\n"), done.stdout + done.stderr
        page = re.search(r"open (http://\S+) in a browser", server.log)
        assert page, server.log
        assert "<title>" in requests.get(page[1], timeout=WAIT_S).text
        assert ("flask --app wsgi keys create NAME" in server.log) == (mode != "sandbox")
        assert UPSTREAM_KEY not in server.log
        assert "bobs-long-secret" not in server.log
    finally:
        assert server.stop() == 0


def test_run_tells_what_is_wrong(checkout: Path) -> None:
    """Wrong settings end it with the list of problems and no traceback."""
    done = subprocess.run(
        [sys.executable, "scripts/run.py"],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "PORT": "x", "GROKFLASK_AUTH": "y"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "PORT expects" in done.stderr
    assert "GROKFLASK_AUTH expects one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_sandbox_runs_alone(tmp_path: Path) -> None:
    """`python -m grokflask.sandbox` prints a curl line that works, and ends on SIGTERM."""
    port = reserve_port()
    command = [sys.executable, "-m", "grokflask.sandbox", "--port", str(port), "--events-per-s", "0"]
    server = Server(command, {}, tmp_path)
    try:
        wait_for(lambda: "curl" in server.log, "the sandbox")
        found = re.search(r"curl .*", server.log, re.DOTALL)
        assert found
        done = subprocess.run(["bash", "-c", found.group()], capture_output=True, text=True, timeout=60)
        assert "data: [DONE]" in done.stdout
    finally:
        assert server.stop() == 0
