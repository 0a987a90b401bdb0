"""Settings: one frozen dataclass that is also the table of settings.

Only this module reads the environment, and the file `.env`, which the environment overrides. It reports all
problems together, each with its remedy. `make docs` writes docs/settings.md from the table.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from dotenv import dotenv_values

from grokflask.errors import ConfigError
from grokflask.setting_types import (
    choice,
    integer,
    is_weak,
    read_admin_token,
    read_base_url,
    read_flag,
    read_hosts,
    read_keys,
    read_model,
    read_origins,
    read_rate,
    read_share,
    read_token,
    seconds,
    url,
)

XAI_API_BASE = "https://api.x.ai/v1"


def _setting(default: Any, parse: Callable[[str], Any], *, env: str = "", secret: bool = False) -> Any:
    """A field of `Settings`, and how its text is parsed.

    `env` is the environment variable, by default the field's name in capitals after `GROKFLASK_`. A secret
    is left out of the repr, and of messages.
    """
    return field(default=default, repr=not secret, metadata={"env": env, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, from the environment variable `GROKFLASK_<NAME>` unless `env` says otherwise.

    The text below a setting is its description in docs/settings.md.
    """

    xai_api_key: str | None = _setting(None, read_token, env="XAI_API_KEY", secret=True)
    """The paid xAI key. It never leaves the server."""
    xai_api_base: str | None = _setting(None, read_base_url, env="XAI_API_BASE")
    """Upstream's base URL; `https://api.x.ai/v1` when a key is set. Without a key and a base URL, the gateway
    uses its built-in sandbox."""
    port: int = _setting(8000, integer(1, 65535), env="PORT")
    """The port gunicorn listens on."""
    workers: int = _setting(1, integer(1, 256), env="WEB_CONCURRENCY")
    """Number of worker processes. More than one requires `REDIS_URL`, which holds their shared counters."""
    redis_url: str | None = _setting(None, url("redis", "rediss", "unix"), env="REDIS_URL", secret=True)
    """Redis for the counters of all limits, and for answers shared between workers. Without it, each worker
    keeps them in its memory."""
    database_url: str = _setting(
        "sqlite:///var/grokflask.db",
        url("sqlite", "postgres", "postgresql", "postgresql+psycopg"),
        env="DATABASE_URL",
        secret=True,
    )
    """Database for keys and the ledger: a SQLite file (three slashes, then its path) or `postgresql://…`.
    Heroku deletes files at each restart: use its PostgreSQL there."""
    auth: Literal["keys", "passthrough", "open"] | None = _setting(
        None, choice("keys", "passthrough", "open")
    )
    """Who may call: `keys` (clients with a key of this gateway), `passthrough` (each client sends its own xAI
    key) or `open` (everyone). Default: `keys`; on the sandbox without keys, `open`."""
    hosts: tuple[str, ...] = _setting((), read_hosts)
    """With `GROKFLASK_AUTH=open`: the host names under which the gateway answers, such as `grok.example.com`,
    besides `localhost`, `127.0.0.1` and `[::1]`. Separated by commas; `*` for all."""
    keys: tuple[tuple[str, str], ...] = _setting((), read_keys, secret=True)
    """Keys in addition to those in the database, as `name:secret,name:secret`. A secret has at least 8
    characters, and should have 16."""
    admin_token: str | None = _setting(None, read_admin_token, secret=True)
    """Token for the dashboard (`/admin`) and, as bearer token, for the admin API: at least 16 characters.
    Without it neither exists."""
    metrics_token: str | None = _setting(None, read_admin_token, secret=True)
    """Bearer token for `/metrics`, at least 16 characters. The admin token works as well. Without either,
    `/metrics` does not exist; on the sandbox it is public."""
    metrics_keys: bool = _setting(False, read_flag)
    """Add usage by key name to `/metrics`, for the first 100 keys of each worker."""
    key_cache_s: float = _setting(5.0, seconds(0, 300))
    """How long a worker caches a key from the database. Changes and revocations take effect within it."""
    rate_limit: str = _setting("100/hour", read_rate)
    """Requests per key (per address, when there are no keys), such as `100/hour` or `5/second;1000/day`,
    unless the key has its own limit. A stream counts as one request."""
    max_streams: int | None = _setting(None, integer(1, 10**6))
    """Open streams per key, unless the key has its own limit."""
    output_estimate_tokens: int = _setting(1024, integer(0, 10**6))
    """Tokens of text to reserve for an answer, and as many for reasoning, until eight answers of its model
    have shown what it needs. A lower `max_tokens` counts instead."""
    fair_share: float = _setting(0.8, read_share)
    """Once this share of the gateway's slots is in use, a key may hold no more than its fair share. With 1,
    this applies only when the gateway is full."""
    retention_days: int = _setting(90, integer(0, 36500))
    """Days to keep the ledger's rows. Daily sums are kept forever. 0 keeps all."""
    keys_outage: Literal["local", "closed"] = _setting("local", choice("local", "closed"))
    """While the database is unavailable: `local` accepts keys that this worker has seen before, `closed` only
    those of `GROKFLASK_KEYS` (503 for others)."""
    requests_outage: Literal["open", "local", "closed"] = _setting("local", choice("open", "local", "closed"))
    """Request limits while Redis is unavailable: `open` does not limit, `local` counts in each worker
    separately, `closed` refuses requests (503)."""
    streams_outage: Literal["open", "local", "closed"] = _setting("local", choice("open", "local", "closed"))
    """The same for limits on open streams."""
    tokens_outage: Literal["open", "local", "closed"] = _setting("local", choice("open", "local", "closed"))
    """The same for limits on tokens per minute."""
    budgets_outage: Literal["open", "local", "closed"] = _setting("local", choice("open", "local", "closed"))
    """The same for budgets; also while the database is unavailable and a key's spending is unknown."""
    ledger_outage: Literal["open", "closed"] = _setting("open", choice("open", "closed"))
    """When the database has been unavailable until the queue of ledger rows is full: `open` serves requests
    and writes their rows to the log only, `closed` refuses requests (503)."""
    database_connect_timeout_s: float = _setting(5.0, seconds(0.1, 120))
    """Time limit for connecting to PostgreSQL."""
    database_read_timeout_s: float = _setting(2.0, seconds(0.1, 60))
    """How long a request waits for the database, such as for its key. Commands wait for 30 s."""
    connect_timeout_s: float = _setting(5.0, seconds(0.1, 120))
    """Time limit for connecting, per upstream address."""
    heartbeat_s: float = _setting(15.0, seconds(0.05, 300))
    """Silence after which a comment line is sent to keep a stream alive."""
    commit_s: float = _setting(20.0, seconds(0.05, 300))
    """How long a streaming request waits for upstream's answer before its response starts anyway, with status
    200 and a comment line. Later errors are reported inside the stream."""
    first_event_timeout_s: float = _setting(600.0, seconds(0.1, 7200))
    """Time limit until upstream's answer begins. Reasoning models think for minutes before their first
    token."""
    idle_timeout_s: float = _setting(600.0, seconds(0.1, 7200))
    """Time limit between two events of a stream. Upstream's comments do not count as events."""
    total_timeout_s: float = _setting(3600.0, seconds(0.1, 86400))
    """Time limit for a whole exchange."""
    send_timeout_s: float = _setting(60.0, seconds(0.1, 3600))
    """How long a client may accept no data before its connection is closed (Linux only)."""
    body_timeout_s: float = _setting(120.0, seconds(0.1, 3600))
    """Time limit for receiving a request's body."""
    on_abort: Literal["cancel", "drain"] = _setting("cancel", choice("cancel", "drain"))
    """When a client disconnects: `cancel` ends the upstream call at once; `drain` reads it to its end, to
    learn the usage."""
    drain_s: float = _setting(60.0, seconds(0.1, 3600))
    """With `drain`: time limit per call."""
    drains: int = _setting(16, integer(0, 10000))
    """With `drain`: how many calls at once. Others are cancelled."""
    replay_bytes: int = _setting(16 * 2**20, integer(0, 2**30))
    """The largest answer to keep for a retry with the same `Idempotency-Key`. A larger one goes only to the
    client that asked. 0 ignores the header."""
    replay_total_bytes: int = _setting(64 * 2**20, integer(0, 2**36))
    """The size of all answers that a worker keeps, in memory and, with Redis, there as well. The oldest are
    dropped first."""
    replay_keep_s: float = _setting(300.0, seconds(0, 86400))
    """How long an answer is kept after its end. 0 keeps it only while it is running."""
    resume_grace_s: float = _setting(30.0, seconds(0, 3600))
    """How long an exchange continues after its client, which sent `X-Stream-Resume: true`, disconnects."""
    capacity: int | None = _setting(None, integer(1, 65000))
    """Concurrent exchanges per worker; more get a 503. Default: nine tenths of
    `GROKFLASK_WORKER_CONNECTIONS`. Bodies that are being received take places too, a key's at most half
    (but at least 8)."""
    max_body_bytes: int = _setting(64 * 2**20, integer(1024, 2**31))
    """The largest request body. An image of 20 MiB takes 27 MiB as base64."""
    bodies_total_bytes: int | None = _setting(None, integer(2048, 2**36))
    """What the request bodies of a worker may take in memory together, until upstream has answered; more get
    a 503. Default: four times `GROKFLASK_MAX_BODY_BYTES`. It is never less than twice that. A key's bodies
    take at most half of it."""
    max_json_bytes: int = _setting(16 * 2**20, integer(1024, 2**31))
    """The part of a JSON body that is not base64, which is what stands in fields named `data`, `b64_json` and
    `file_data`, and in `url` and `image_url` after `data:`."""
    max_json_elements: int = _setting(200_000, integer(1000, 10**7))
    """Elements of a JSON body: each value, and each list and object once more."""
    max_upload_bytes: int = _setting(52 * 2**20, integer(1024, 2**34))
    """The largest file upload, including its form. xAI accepts files of up to 50 MB. An upload is buffered in
    a temporary file."""
    max_reply_bytes: int = _setting(256 * 2**20, integer(1024, 2**34))
    """The largest answer that is not a stream: JSON with pictures in it, or a file. What exceeds a megabyte
    is buffered in a temporary file (in `TMPDIR`)."""
    trusted_proxies: int = _setting(0, integer(0, 10))
    """Number of proxies in front (1 on Heroku), which is how many `X-Forwarded-For` entries to trust. Callers
    without a key are counted by address, and so are wrong keys and tokens."""
    cors_origins: tuple[str, ...] = _setting((), read_origins)
    """Origins whose pages may call the gateway from a browser, such as `https://app.example.com`, separated
    by commas; `*` for all."""
    default_chat_model: str = _setting("grok-4.3", read_model)
    """For chat requests that name no model."""
    default_image_model: str = _setting("grok-imagine-image", read_model)
    """For image requests that name no model."""
    default_vision_model: str = _setting("grok-4.3", read_model)
    """For `/vision/analyze` and chats with images that name no model."""
    default_video_model: str = _setting("grok-imagine-video", read_model)
    """For video requests that name no model."""
    vision_stream: Literal["fallback", "stream"] = _setting("fallback", choice("fallback", "stream"))
    """How to answer a vision request with `stream: true`: `fallback` sends the whole answer as JSON with the
    header `X-Stream-Fallback`; `stream` streams chats with images."""
    cache_affinity: bool = _setting(True, read_flag)
    """Give a conversation an `x-grok-conv-id` (in Responses a `prompt_cache_key`) when the client sends none,
    so that xAI finds the beginning of each turn in its prompt cache."""
    models_cache_s: float = _setting(60.0, seconds(0, 3600))
    """How long to cache the lists of models. The header `Age` has a list's age. 0 disables the cache."""
    drop_params: bool = _setting(True, read_flag)
    """Drop parameters that xAI is known to refuse, and list them in `X-Params-Dropped`."""
    playground: bool = _setting(True, read_flag)
    """Serve a playground at `/`. It can do nothing that the API cannot."""
    worker_connections: int = _setting(4000, integer(1, 65000))
    """Client connections per worker."""
    keepalive_s: int = _setting(95, integer(1, 3600))
    """How long to keep an idle client connection, and to wait for a request's headers. Heroku's router keeps
    its side for 90 s."""
    grace_s: int = _setting(25, integer(1, 3600))
    """Time limit for shutting down after SIGTERM. Streams that are open 5 s before it end with an error
    event. Heroku kills a process after 30 s."""
    log_level: str = _setting("info", choice("debug", "info", "warning", "error"))
    """The lowest level that is logged."""
    sandbox_events_per_s: float = _setting(40.0, seconds(0, 10000))
    """Events per second of the sandbox's streams. 0 means without pauses."""

    @property
    def uses_sandbox(self) -> bool:
        """Upstream is the built-in sandbox: no key or base URL is set, and clients bring no keys."""
        return self.xai_api_key is None and self.xai_api_base is None and self.auth != "passthrough"

    @property
    def auth_mode(self) -> Literal["keys", "passthrough", "open"]:
        """`auth`, or its default."""
        return self.auth or ("open" if self.uses_sandbox and not self.keys else "keys")

    @property
    def max_exchanges(self) -> int:
        """`capacity`, or its default."""
        return self.capacity or max(1, self.worker_connections * 9 // 10)

    @property
    def max_bodies_bytes(self) -> int:
        """`bodies_total_bytes`, or its default; one body of the largest size, and its copy, always fit."""
        return max(self.bodies_total_bytes or 4 * self.max_body_bytes, 2 * self.max_body_bytes)

    @property
    def upstream_base(self) -> str:
        """Upstream's base URL, unless the sandbox is used."""
        return self.xai_api_base or XAI_API_BASE

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret text, the longest first: one may begin with another."""
        texts = {secret for _, secret in self.keys}
        texts |= _list_passwords(self.redis_url) | _list_passwords(self.database_url)
        texts |= {text for text in (self.xai_api_key, self.admin_token, self.metrics_token) if text}
        return tuple(sorted(texts, key=len, reverse=True))

    def find_weak_secrets(self) -> list[str]:
        """A warning for each secret of this gateway that may be guessed. None quotes the secret."""
        secrets = {f"the secret of {name!r} in GROKFLASK_KEYS": secret for name, secret in self.keys}
        secrets["GROKFLASK_ADMIN_TOKEN"] = self.admin_token or ""
        secrets["GROKFLASK_METRICS_TOKEN"] = self.metrics_token or ""
        return [
            f"{label} may be guessed: use 16 or more random characters (openssl rand -hex 24)"
            for label, secret in secrets.items()
            if secret and is_weak(secret)
        ]

    def find_contradictions(self) -> list[str]:
        """The problems of settings that are valid each by itself, but not together."""
        keys = {secret for _, secret in self.keys}
        checks = (
            (
                self.workers > 1 and self.redis_url is None,
                f"WEB_CONCURRENCY is {self.workers}, but counters in memory would grant every limit once per "
                "worker: set REDIS_URL, or WEB_CONCURRENCY=1",
            ),
            (
                self.capacity is not None and self.capacity >= self.worker_connections,
                f"GROKFLASK_CAPACITY is {self.capacity}, but GROKFLASK_WORKER_CONNECTIONS is "
                f"{self.worker_connections}: without a spare connection the next client waits instead of "
                "getting a 503; raise the one or lower the other",
            ),
            (
                ":memory:" in self.database_url,
                "DATABASE_URL names SQLite's :memory:, which keeps nothing: name a file",
            ),
            (
                self.auth == "passthrough" and self.xai_api_key is not None,
                "GROKFLASK_AUTH is passthrough, where each client brings its own xAI key, but XAI_API_KEY is "
                "set as well: remove one of the two",
            ),
            (
                self.auth in ("passthrough", "open") and bool(keys),
                f"GROKFLASK_AUTH is {self.auth}, so GROKFLASK_KEYS would be ignored: remove one",
            ),
            (
                self.xai_api_key in keys,
                "GROKFLASK_KEYS contains XAI_API_KEY itself: choose another secret",
            ),
            (
                self.admin_token is not None and self.admin_token in {self.xai_api_key, *keys},
                "GROKFLASK_ADMIN_TOKEN is also a key: choose another token",
            ),
            (
                self.metrics_token is not None
                and self.metrics_token in {self.xai_api_key, self.admin_token, *keys},
                "GROKFLASK_METRICS_TOKEN is also a key or the admin token: choose another one, because "
                "Prometheus stores it",
            ),
        )
        return [problem for is_wrong, problem in checks if is_wrong]


SETTINGS = {
    item.metadata["env"] or f"GROKFLASK_{item.name.upper()}": item for item in dataclasses.fields(Settings)
}
"""The fields of `Settings` by their environment variables."""


def _list_passwords(url: str | None) -> set[str]:
    """The passwords in a URL, as written and decoded."""
    if url is None:
        return set()
    parts = urlsplit(url)
    written = {parts.password or "", *parse_qs(parts.query).get("password", [])}
    return {text for each in written if each for text in (each, unquote(each))}


def load_settings(environ: Mapping[str, str] | None = None, *, dotenv: str | None = ".env") -> Settings:
    """The settings of this process: `environ` (default: `os.environ`) over the file `dotenv`.

    An empty value counts as not set, and hides the one in the file. Raises ConfigError with all problems.
    """
    texts = _read_texts(os.environ if environ is None else environ, dotenv)
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for env, item in SETTINGS.items():
        text = (texts.get(env) or "").strip()
        if not text:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            shown = "" if not item.repr or "@" in text else f" (it is {text!r})"
            problems[env] = f"{env} {error}{shown}"
    contradictions = [
        text for text in Settings(**values).find_contradictions() if not any(env in text for env in problems)
    ]
    if problems or contradictions:
        raise ConfigError([*problems.values(), *contradictions])
    return Settings(**values)


def _read_texts(environ: Mapping[str, str], dotenv: str | None) -> dict[str, str | None]:
    try:
        from_file = dotenv_values(dotenv, interpolate=False) if dotenv and os.path.isfile(dotenv) else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{dotenv} cannot be read as UTF-8 text: {error}"]) from None
    return {**from_file, **environ}


def find_unknown(environ: Mapping[str, str], *, dotenv: str | None = ".env") -> list[str]:
    """A warning for each GROKFLASK_ variable that is no setting, with the closest one that is."""
    warnings = []
    for name in sorted(_read_texts(environ, dotenv)):
        if name.startswith("GROKFLASK_") and name not in SETTINGS:
            close = get_close_matches(name, SETTINGS, n=1)
            hint = f"; is {close[0]} meant?" if close else ""
            warnings.append(f"{name} is not a setting of this version{hint}")
    return warnings


def render_docs() -> str:
    """docs/settings.md: the table of all settings."""
    lines = [
        "# Settings",
        "",
        "All settings are environment variables. grokflask also reads the file `.env` in the working "
        "directory; the environment overrides it. With a wrong or contradictory setting grokflask does not "
        "start, and its message lists every problem. `make docs` generates this page from "
        "`grokflask/config.py`.",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    descriptions = _read_descriptions()
    for env, item in SETTINGS.items():
        default = "" if item.default in (None, ()) else f"`{_show(item.default)}`"
        lines.append(f"| `{env}` | {default} | {descriptions[item.name]} |")
    return "\n".join(lines) + "\n"


def _read_descriptions() -> dict[str, str]:
    """The text below each setting, which only the source has."""
    (definition,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(definition, ast.ClassDef)
    descriptions = {}
    for statement, after in pairwise(definition.body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                descriptions[name] = " ".join(text.split())
    return descriptions


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
