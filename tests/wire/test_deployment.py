"""docs/deployment.md: its commands and files, as far as they can be tried on one machine without root."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.pages import find_blocks
from support.processes import ROOT, GatewayServer
from support.scripted import WAIT_S

from grokflask.config import load_settings, render_docs

PAGE = "docs/deployment.md"
COPIED = ("wsgi.py", "gunicorn.conf.py", ".env.example", "Procfile", "Makefile", "requirements.txt")
BIN = Path(sys.executable).parent
# Programs that are not here, or that change the machine: their lines are looked at, not run.
LOOKED_AT = ("heroku", "git", "sudo", "journalctl", "docker")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what runs, with the tests' environment as its own."""
    shutil.copytree(ROOT / "grokflask", tmp_path / "grokflask", ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    return tmp_path


def list_commands() -> list[str]:
    """The lines of the page's shell blocks, in their order."""
    return [line for block in find_blocks(PAGE, "sh") for line in block.text.splitlines()]


def run(command: str, folder: Path) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "GROKFLASK_AUTH": "keys", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


def test_commands(checkout: Path) -> None:
    """The commands for the gateway work one behind the other, and the backup has the key that was made.

    pip and make are asked what they would do: the tests' environment is there already. gunicorn's line is
    started below, and those of other programs are looked at there.
    """
    for command in list_commands():
        program = shlex.split(command)[0]
        if program in LOOKED_AT or program == "gunicorn":
            continue
        command = command.replace("make ", "make -n ").replace("install ", "install --dry-run --no-index ")
        run(command, checkout)
    assert (checkout / ".env").stat().st_mode & 0o077 == 0
    shutil.copy(checkout / "backup.db", checkout / "var" / "restored.db")
    listed = run("DATABASE_URL=sqlite:///var/restored.db flask --app wsgi keys list", checkout)
    assert "alice" in listed


def test_gunicorn_lines(checkout: Path) -> None:
    """The page's command, the Procfile's and the Dockerfile's are the same, and serve."""
    (command,) = [line for line in list_commands() if line.startswith("gunicorn")]
    assert f"web: {command}" in (checkout / "Procfile").read_text()
    (image,) = find_blocks(PAGE, "dockerfile")
    assert json.loads(re.findall(r"^CMD (.*)$", image.text, re.MULTILINE)[0]) == shlex.split(command)
    server = GatewayServer(checkout, {"PYTHONPATH": ""}, [str(BIN / "gunicorn"), *shlex.split(command)[1:]])
    assert server.stop() == 0


def test_systemd_unit(checkout: Path) -> None:
    """The unit's command serves on the loopback address alone, in its folder, and has time to end."""
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    (block,) = find_blocks(PAGE, "ini")
    unit.read_string(block.text)
    service = unit["Service"]
    settings = load_settings({}, dotenv=None)
    assert int(service["TimeoutStopSec"]) > settings.grace_s
    assert service["KillMode"] == "mixed"
    assert int(service["LimitNOFILE"]) > 2 * settings.worker_connections
    command = service["ExecStart"].replace(service["WorkingDirectory"], str(checkout))
    assert "-b 127.0.0.1:8000" in command
    words = shlex.split(command.replace(":8000", ":{port}"))
    server = GatewayServer(checkout, {"PORT": "1", "PYTHONPATH": ""}, words)
    try:
        assert requests.get(f"{server.url}/ready", timeout=WAIT_S).status_code == 200
        assert f"http://127.0.0.1:{server.port}" in server.log
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("number", [0, 1])
def test_settings_blocks(number: int) -> None:
    """The settings that the page shows start the gateway."""
    text = find_blocks(PAGE, "env")[number].text
    load_settings(
        {"XAI_API_KEY": "xai-key", **dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))}, dotenv=None
    )


def test_heroku_lines() -> None:
    """What Heroku is told agrees with app.json, and names settings that exist."""
    app = json.loads((ROOT / "app.json").read_text())
    text = "\n".join(line for line in list_commands() if line.startswith("heroku"))
    assert re.findall(r"addons:create (\S+)", text) == app["addons"]
    told = dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", text))
    assert set(told) <= set(re.findall(r"^\| `(\w+)`", render_docs(), re.MULTILINE))
    assert told["WEB_CONCURRENCY"] == app["env"]["WEB_CONCURRENCY"]["value"]
    assert told["GROKFLASK_TRUSTED_PROXIES"] == app["env"]["GROKFLASK_TRUSTED_PROXIES"]["value"]


def test_dockerfile() -> None:
    """What the image copies is there, and all that the gateway needs; its Python is new enough."""
    (block,) = find_blocks(PAGE, "dockerfile")
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", block.text, re.MULTILINE) for name in line.split()
    ]
    assert sorted(copied) == ["grokflask", "gunicorn.conf.py", "requirements.txt", "wsgi.py"]
    assert all((ROOT / name).exists() for name in copied)
    (version,) = re.findall(r"^FROM python:3\.(\d+)-slim$", block.text, re.MULTILINE)
    (least,) = re.findall(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert int(version) >= int(least)
    (start,) = [line for line in list_commands() if line.startswith("docker run")]
    assert int(re.findall(r"--stop-timeout (\d+)", start)[0]) > load_settings({}, dotenv=None).grace_s


def read_directives(text: str) -> list[str]:
    """The directives of an nginx file, without their blocks. A line that is neither is an AssertionError."""
    depth, found = 0, []
    for line in (line.strip() for line in text.splitlines()):
        if line.endswith("{"):
            depth += 1
        elif line == "}":
            depth -= 1
            assert depth >= 0
        elif line and not line.startswith("#"):
            assert line.endswith(";"), line
            found.append(line)
    assert depth == 0
    return found


def test_nginx_blocks_agree() -> None:
    """The server block of docs/deployment.md has all that docs/streaming.md asks of nginx, and holds it."""
    (short,) = find_blocks("docs/streaming.md", "nginx")
    (whole,) = find_blocks(PAGE, "nginx")
    asked = read_directives(short.text)
    assert {"proxy_http_version 1.1;", "proxy_buffering off;"} <= set(asked)
    assert set(asked) <= set(read_directives(whole.text))
    settings = load_settings({}, dotenv=None)
    values = dict(re.findall(r"(proxy_read_timeout|client_max_body_size) (\d+)[sm];", whole.text))
    assert int(values["proxy_read_timeout"]) > settings.heartbeat_s
    assert int(values["client_max_body_size"]) * 2**20 >= settings.max_body_bytes
