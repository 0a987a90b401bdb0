"""Settings: one frozen dataclass that is also the table of settings.

The only module that reads the environment (and the file `.env`, which the environment overrides).
All problems are reported together, each with its remedy. `python -m grokflask.config` prints
docs/settings.md.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from grokflask.errors import ConfigError

XAI_API_BASE = "https://api.x.ai/v1"
MIN_SECRET_CHARS = 8

T = TypeVar("T")


def _setting(env: str, parse: Callable[[str], T], default: Any, doc: str, *, secret: bool = False) -> Any:
    """A field of `Settings`: its environment variable, how its text is read, and its line in the docs."""
    return field(default=default, repr=not secret, metadata={"env": env, "parse": parse, "doc": doc})


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"expects a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"\d+(\.\d+)?", text) or not low <= float(text) <= high:
            raise ValueError(f"expects seconds from {low:g} to {high:g}")
        return float(text)

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expects one of: {', '.join(choices)}")
        return text

    return parse


def _flag(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("expects true or false")
    return text.lower() in ("1", "true", "yes", "on")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", text):
        raise ValueError("expects a model's name")
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("expects visible ASCII characters without spaces")
    return text


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            usable = parts.scheme in schemes and bool(parts.netloc or parts.scheme == "unix")
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"expects a URL that starts with {' or '.join(s + '://' for s in schemes)}")
        return text

    return parse


def _base_url(text: str) -> str:
    parts = urlsplit(_url("http", "https")(text))
    if parts.query or parts.fragment or parts.username:
        raise ValueError("expects a plain base URL, without credentials, query or fragment")
    return text.rstrip("/")


_RATE = re.compile(
    r"\d{1,12}\s*(/|\s+per\s+)\s*(\d+\s*)?(second|minute|hour|day|month|year)s?", re.IGNORECASE
)


def _rate(text: str) -> str:
    if not all(_RATE.fullmatch(part.strip()) for part in text.split(";")):
        raise ValueError("expects a number per window, such as 100/hour or 5/second;1000/day")
    return text


def _keys(text: str) -> tuple[tuple[str, str], ...]:
    """`name:secret,name:secret`. Its errors never quote a secret."""
    keys = []
    for number, part in enumerate((part.strip() for part in text.split(",")), start=1):
        name, colon, secret = part.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(f"entry {number} is not name:secret (a name has letters, digits, . _ -)")
        if len(secret) < MIN_SECRET_CHARS or not re.fullmatch(r"[\x21-\x7e]+", secret):
            raise ValueError(
                f"the secret of {name!r} needs {MIN_SECRET_CHARS} or more visible ASCII characters"
            )
        keys.append((name, secret))
    if len({name for name, _ in keys}) < len(keys):
        raise ValueError("a name stands in it twice")
    if len({secret for _, secret in keys}) < len(keys):
        raise ValueError("two names share a secret")
    return tuple(keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting. Secrets are left out of the repr."""

    xai_api_key: str | None = _setting(
        "XAI_API_KEY", _token, None, "The paid xAI key. It never leaves the server.", secret=True
    )
    xai_api_base: str | None = _setting(
        "XAI_API_BASE",
        _base_url,
        None,
        f"Upstream's base URL; `{XAI_API_BASE}` when a key is set. "
        "With neither key nor base the gateway runs on its built-in sandbox.",
    )
    port: int = _setting("PORT", _integer(1, 65535), 8000, "The port gunicorn listens on.")
    workers: int = _setting(
        "WEB_CONCURRENCY",
        _integer(1, 256),
        1,
        "Worker processes. More than one needs `REDIS_URL`, which then holds the counters they share.",
    )
    redis_url: str | None = _setting(
        "REDIS_URL",
        _url("redis", "rediss", "unix"),
        None,
        "Where rate limits are counted; in the worker's memory when it is not set.",
        secret=True,
    )
    auth: Literal["keys", "passthrough", "open"] | None = _setting(
        "GROKFLASK_AUTH",
        _choice("keys", "passthrough", "open"),
        None,
        "Who may call: `keys` (holders of a key of this gateway), `passthrough` (each client brings its own "
        "xAI key) or `open` (anybody). Without it: `keys`, or `open` on the sandbox when no keys are set.",
    )
    keys: tuple[tuple[str, str], ...] = _setting(
        "GROKFLASK_KEYS",
        _keys,
        (),
        f"The gateway's keys, `name:secret,name:secret`; a secret has {MIN_SECRET_CHARS} characters or more.",
        secret=True,
    )
    rate_limit: str = _setting(
        "GROKFLASK_RATE_LIMIT",
        _rate,
        "100/hour",
        "Requests that each key (each address, when there are no keys) may make, such as `100/hour` or "
        "`5/second;1000/day`. A streamed response counts once.",
    )
    connect_timeout_s: float = _setting(
        "GROKFLASK_CONNECT_TIMEOUT_S", _seconds(0.1, 120), 5.0, "To connect to upstream."
    )
    first_event_timeout_s: float = _setting(
        "GROKFLASK_FIRST_EVENT_TIMEOUT_S",
        _seconds(0.1, 7200),
        600.0,
        "Until upstream's answer begins. Reasoning models think for minutes before their first token.",
    )
    idle_timeout_s: float = _setting(
        "GROKFLASK_IDLE_TIMEOUT_S",
        _seconds(0.1, 7200),
        600.0,
        "Between two events of a stream. Upstream's comments do not count as events.",
    )
    max_body_bytes: int = _setting(
        "GROKFLASK_MAX_BODY_BYTES",
        _integer(1024, 2**31),
        64 * 2**20,
        "The largest request body. An image of 20 MiB takes 27 MiB as base64.",
    )
    trusted_proxies: int = _setting(
        "GROKFLASK_TRUSTED_PROXIES",
        _integer(0, 10),
        0,
        "How many proxies stand in front (1 on Heroku): so many `X-Forwarded-For` entries are believed.",
    )
    default_chat_model: str = _setting(
        "GROKFLASK_DEFAULT_CHAT_MODEL", _name, "grok-4.3", "For chat requests that name no model."
    )
    default_image_model: str = _setting(
        "GROKFLASK_DEFAULT_IMAGE_MODEL", _name, "grok-imagine-image", "For image requests that name no model."
    )
    default_vision_model: str = _setting(
        "GROKFLASK_DEFAULT_VISION_MODEL", _name, "grok-4.3", "For `/vision/analyze` and chats with images."
    )
    vision_stream: Literal["fallback", "stream"] = _setting(
        "GROKFLASK_VISION_STREAM",
        _choice("fallback", "stream"),
        "fallback",
        "What a vision request with `stream: true` gets: `fallback` is the whole answer as JSON with the "
        "header `X-Stream-Fallback`; `stream` relays chat with images as a stream.",
    )
    drop_params: bool = _setting(
        "GROKFLASK_DROP_PARAMS",
        _flag,
        True,
        "Drop parameters that xAI is known to refuse, and name them in `X-Params-Dropped`.",
    )
    worker_connections: int = _setting(
        "GROKFLASK_WORKER_CONNECTIONS", _integer(1, 65000), 4000, "Connections that one worker holds at once."
    )
    keepalive_s: int = _setting(
        "GROKFLASK_KEEPALIVE_S",
        _integer(0, 3600),
        95,
        "How long an idle client connection is kept. Heroku's router keeps its side for 90 s.",
    )
    grace_s: int = _setting(
        "GROKFLASK_GRACE_S",
        _integer(1, 3600),
        25,
        "After SIGTERM, how long open requests may go on. Heroku kills a process after 30 s.",
    )
    log_level: str = _setting(
        "GROKFLASK_LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info", "What is logged."
    )
    sandbox_events_per_s: float = _setting(
        "GROKFLASK_SANDBOX_EVENTS_PER_S", _seconds(0, 10000), 40.0, "The sandbox's pace; 0 is without pauses."
    )

    @property
    def uses_sandbox(self) -> bool:
        """Neither a key nor a base URL is set: upstream is the built-in sandbox."""
        return self.xai_api_key is None and self.xai_api_base is None

    @property
    def auth_mode(self) -> Literal["keys", "passthrough", "open"]:
        """`auth`, or its default."""
        if self.auth:
            return self.auth
        return "open" if self.uses_sandbox and not self.keys else "keys"

    @property
    def upstream_base(self) -> str:
        """Upstream's base URL, unless the sandbox is used."""
        return self.xai_api_base or XAI_API_BASE

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be seen outside."""
        texts = [secret for _, secret in self.keys]
        texts += [text for text in (self.xai_api_key, _password(self.redis_url)) if text]
        return tuple(texts)

    def find_contradictions(self) -> list[str]:
        """Settings that are right one by one and wrong together."""
        problems = []
        if self.workers > 1 and self.redis_url is None:
            problems.append(
                f"WEB_CONCURRENCY is {self.workers}, but counters in memory would grant every limit once per "
                "worker: set REDIS_URL, or WEB_CONCURRENCY=1"
            )
        if self.auth == "passthrough" and self.xai_api_key:
            problems.append(
                "GROKFLASK_AUTH is passthrough, where each client brings its own xAI key, but XAI_API_KEY is "
                "set as well: remove one of the two"
            )
        if self.auth in ("passthrough", "open") and self.keys:
            problems.append(f"GROKFLASK_AUTH is {self.auth}, so GROKFLASK_KEYS would be ignored: remove one")
        if self.xai_api_key and any(secret == self.xai_api_key for _, secret in self.keys):
            problems.append("GROKFLASK_KEYS hands out XAI_API_KEY itself: choose another secret")
        return problems


def _password(url: str | None) -> str | None:
    return urlsplit(url).password if url else None


def load_settings(environ: Mapping[str, str] | None = None, *, dotenv: str | None = ".env") -> Settings:
    """The settings of this process: `environ` (default: the real one) over the file `dotenv`.

    An empty value counts as not set. Raises ConfigError with every problem at once.
    """
    from_file = dotenv_values(dotenv) if dotenv and os.path.isfile(dotenv) else {}
    texts = {**from_file, **(os.environ if environ is None else environ)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in dataclasses.fields(Settings):
        text = (texts.get(item.metadata["env"]) or "").strip()
        if not text:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            shown = "" if not item.repr else f" (it is {text!r})"
            problems.append(f"{item.metadata['env']} {error}{shown}")
    settings = Settings(**values)
    problems += settings.find_contradictions()
    if problems:
        raise ConfigError(problems)
    return settings


def find_unknown(environ: Mapping[str, str]) -> list[str]:
    """A warning for each GROKFLASK_ variable that is no setting, with the one that may be meant."""
    known = [item.metadata["env"] for item in dataclasses.fields(Settings)]
    warnings = []
    for name in sorted(environ):
        if name.startswith("GROKFLASK_") and name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; is {close[0]} meant?" if close else ""
            warnings.append(f"{name} is not a setting of this version{hint}")
    return warnings


def render_docs() -> str:
    """docs/settings.md: the table of all settings."""
    lines = [
        "# Settings",
        "",
        "All settings are environment variables; a file `.env` in the working directory is read as well, and "
        "the environment overrides it. A wrong or contradictory setting stops the start, and the message "
        "lists every problem. This page is generated by `make docs` from `grokflask/config.py`.",
        "",
        "| variable | default | what it is |",
        "| --- | --- | --- |",
    ]
    for item in dataclasses.fields(Settings):
        default = "" if item.default in (None, ()) else f"`{_show(item.default)}`"
        lines.append(f"| `{item.metadata['env']}` | {default} | {item.metadata['doc']} |")
    return "\n".join(lines) + "\n"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(render_docs(), end="")  # noqa: T201 - this is what the command is for
