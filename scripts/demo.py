"""`make demo`: what the gateway does, in half a minute, on its built-in sandbox.

Starts real gunicorn on a free port, streams a story to the terminal as it arrives, shows what a vision
request with `stream: true` gets, saves a picture to a file, stops the server again, and prints what its
ledger noted. Settings and database are the demo's own; nothing of the user's is read or written.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grokflask.config import SETTINGS  # noqa: E402 - the path comes first

PICTURE = Path("demo.png")
START_DEADLINE_S = 30.0

session = requests.Session()
session.trust_env = False  # what it talks to is on this machine, behind no proxy


def main() -> int:
    """Runs the demo; 0 when every part of it worked."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    port: int = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    print(f"Starting the gateway on {url}, with its built-in sandbox as upstream ...")
    with tempfile.TemporaryDirectory(prefix="grokflask-demo-") as folder:
        environ = make_environ(port, Path(folder))
        with listener:
            server = start_gateway(environ, listener.fileno())
        try:
            wait_until_ready(server, url)
            stream_story(url)
            picture = make_picture(url)
            ask_about(url, picture)
        finally:
            server.terminate()
            code = server.wait(60)
        show_ledger(environ)
    print(f"\nThe gateway has stopped (exit code {code}). Serve it yourself with: make run")
    return code


def make_environ(port: int, folder: Path) -> dict[str, str]:
    """The demo's settings, with a database in `folder`: none of the user's, whatever there is in `.env`."""
    # Empty counts as not set, and overrides a file .env.
    settings = dict.fromkeys(SETTINGS, "")
    return {
        **os.environ,
        **settings,
        "PORT": str(port),
        "WEB_CONCURRENCY": "1",
        "DATABASE_URL": f"sqlite:///{folder}/demo.db",
        "GROKFLASK_LOG_LEVEL": "error",  # only warnings of the server's are worth a line here
    }


def start_gateway(environ: dict[str, str], listener: int) -> subprocess.Popen[bytes]:
    """Real gunicorn, as the Procfile starts it, but on a socket that is bound already."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "gunicorn.conf.py",
        "--bind",
        f"fd://{listener}",
        "--log-level",
        "warning",
        "wsgi:app",
    ]
    return subprocess.Popen(command, cwd=ROOT, env=environ, pass_fds=[listener])


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Returns when the gateway takes requests. Raises RuntimeError when it does not come up."""
    end = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the gateway ended with code {server.returncode}")
        try:
            session.get(f"{url}/ready", timeout=2).raise_for_status()
        except requests.RequestException:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the gateway was not ready after {START_DEADLINE_S:g} s")


def stream_story(url: str) -> None:
    """Prints each token the moment it arrives."""
    body = {
        "model": "grok-4.3",
        "messages": [{"role": "user", "content": "Write a short story about a space adventure"}],
        "stream": True,
    }
    print("\n--- A story, streamed: POST /api/v1/chat/completions with stream: true\n")
    started_at = time.monotonic()
    first_s = None
    tokens = 0
    done = False
    with session.post(
        f"{url}/api/v1/chat/completions",
        json=body,
        headers={"X-Request-ID": "demo-story"},
        stream=True,
        timeout=60,
    ) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines(chunk_size=1):
            if line == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: "):
                content = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if content:
                    first_s = first_s or time.monotonic() - started_at
                    tokens += 1
                    print(content, end="", flush=True)
    if not done or first_s is None:
        raise RuntimeError("the stream did not end with [DONE]")
    took_s = time.monotonic() - started_at
    print(f"\n\n{tokens} tokens, the first after {first_s * 1000:.0f} ms, the last after {took_s:.1f} s.")


def make_picture(url: str) -> bytes:
    """Generates an image and saves it to a file."""
    print("\n--- A picture: POST /api/v1/images/generate\n")
    body = {"prompt": "a lighthouse at dusk", "response_format": "b64_json"}
    reply = session.post(
        f"{url}/api/v1/images/generate", json=body, headers={"X-Request-ID": "demo-picture"}, timeout=60
    )
    reply.raise_for_status()
    picture = base64.b64decode(reply.json()["data"][0]["b64_json"])
    PICTURE.write_bytes(picture)
    print(f"Saved {len(picture)} bytes to {PICTURE.resolve()}")
    return picture


def ask_about(url: str, picture: bytes) -> None:
    """A vision request that asks for a stream is answered whole, and says so in a header."""
    print("\n--- Looking at it: POST /api/v1/vision/analyze with stream: true\n")
    body = {
        "image": {"b64_json": base64.b64encode(picture).decode()},
        "prompt": "What is in this picture?",
        "stream": True,
    }
    reply = session.post(
        f"{url}/api/v1/vision/analyze", json=body, headers={"X-Request-ID": "demo-look"}, timeout=60
    )
    reply.raise_for_status()
    print(f"X-Stream-Fallback: {reply.headers['X-Stream-Fallback']} (vision comes whole)")
    print(reply.json()["content"])


def show_ledger(environ: dict[str, str]) -> None:
    """The rows of the three requests, by the command that an operator has."""
    print("\n--- What the ledger noted, newest first: flask --app wsgi usage rows\n", flush=True)
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "usage", "rows"]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)


if __name__ == "__main__":
    sys.exit(main())
