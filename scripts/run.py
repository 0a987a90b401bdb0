"""`make run`: serves on $PORT (8000) with gunicorn, and prints a curl line that works when pasted."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grokflask.config import Settings, load_settings  # noqa: E402 - the path comes first
from grokflask.errors import ConfigError  # noqa: E402

BODY = '{"messages":[{"role":"user","content":"Write a short story about a space adventure"}],"stream":true}'


def main() -> None:
    """Becomes gunicorn; exits with the problems when the settings are wrong."""
    os.chdir(ROOT)
    try:
        settings = load_settings()
    except ConfigError as error:
        sys.exit(str(error))
    key = choose_key(settings)
    upstream = "the built-in sandbox (no XAI_API_KEY)" if settings.uses_sandbox else settings.upstream_base
    print(f"Upstream: {upstream}. Callers: {settings.auth_mode}.")
    page = f"open http://127.0.0.1:{settings.port}/ in a browser, or " if settings.playground else ""
    print(f"Once it listens, {page}paste this in another terminal:\n")
    lines = [f"curl -N http://127.0.0.1:{settings.port}/api/v1/chat/completions"]
    lines += [f'-H "Authorization: Bearer {key}"'] if key else []
    lines += ['-H "Content-Type: application/json"', f"-d '{BODY}'"]
    print(" \\\n  ".join(lines) + "\n")
    if settings.auth_mode == "keys":
        print("That key ends with this run. Make others with: .venv/bin/flask --app wsgi keys create NAME\n")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"])


def choose_key(settings: Settings) -> str | None:
    """What the curl line sends.

    In keys mode that is a key made for this run alone, beside those of the settings and the database, so that
    no stored secret is ever shown.
    """
    if settings.auth_mode == "passthrough":
        return "$XAI_API_KEY"
    if settings.auth_mode == "open":
        return None
    secret = secrets.token_hex(16)
    keys = [*settings.keys, ("make-run", secret)]
    os.environ["GROKFLASK_KEYS"] = ",".join(
        f"{name}:{text}" for name, text in keys if name != "make-run" or text == secret
    )
    return secret


if __name__ == "__main__":
    main()
