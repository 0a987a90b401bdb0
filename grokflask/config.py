"""Settings: one frozen dataclass that is also the table of settings.

The only module that reads the environment (and the file `.env`, which the environment overrides).
All problems are reported together, each with its remedy. `make docs` writes docs/settings.md from it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from dotenv import dotenv_values

from grokflask.errors import ConfigError
from grokflask.setting_types import (
    MIN_SECRET_CHARS,
    choice,
    integer,
    read_admin_token,
    read_base_url,
    read_flag,
    read_keys,
    read_name,
    read_origins,
    read_rate,
    read_share,
    read_token,
    seconds,
    url,
)

XAI_API_BASE = "https://api.x.ai/v1"

T = TypeVar("T")


def _setting(env: str, parse: Callable[[str], T], default: Any, doc: str, *, secret: bool = False) -> Any:
    """A field of `Settings`: its environment variable, how its text is read, and its line in the docs."""
    return field(default=default, repr=not secret, metadata={"env": env, "parse": parse, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting. Secrets are left out of the repr."""

    xai_api_key: str | None = _setting(
        "XAI_API_KEY",
        read_token,
        None,
        "The paid xAI key. It never leaves the server.",
        secret=True,
    )
    xai_api_base: str | None = _setting(
        "XAI_API_BASE",
        read_base_url,
        None,
        f"Upstream's base URL; `{XAI_API_BASE}` when a key is set. "
        "With neither key nor base the gateway runs on its built-in sandbox.",
    )
    port: int = _setting("PORT", integer(1, 65535), 8000, "The port gunicorn listens on.")
    workers: int = _setting(
        "WEB_CONCURRENCY",
        integer(1, 256),
        1,
        "Worker processes. More than one needs `REDIS_URL`, which then holds the counters they share.",
    )
    redis_url: str | None = _setting(
        "REDIS_URL",
        url("redis", "rediss", "unix"),
        None,
        "Where rate limits are counted; in the worker's memory when it is not set.",
        secret=True,
    )
    database_url: str = _setting(
        "DATABASE_URL",
        url("sqlite", "postgres", "postgresql", "postgresql+psycopg"),
        "sqlite:///var/grokflask.db",
        "Keys and the ledger: a SQLite file (three slashes, then its path) or `postgresql://…`. On Heroku "
        "files vanish with each restart: use its PostgreSQL there.",
        secret=True,
    )
    auth: Literal["keys", "passthrough", "open"] | None = _setting(
        "GROKFLASK_AUTH",
        choice("keys", "passthrough", "open"),
        None,
        "Who may call: `keys` (holders of a key of this gateway), `passthrough` (each client brings its own "
        "xAI key) or `open` (anybody). Without it: `keys`, or `open` on the sandbox when no keys are set.",
    )
    keys: tuple[tuple[str, str], ...] = _setting(
        "GROKFLASK_KEYS",
        read_keys,
        (),
        f"Keys beside those in the database, `name:secret,name:secret`; a secret has {MIN_SECRET_CHARS} "
        "characters or more.",
        secret=True,
    )
    admin_token: str | None = _setting(
        "GROKFLASK_ADMIN_TOKEN",
        read_admin_token,
        None,
        "Opens the dashboard (`/admin`) and, as bearer, the admin API: 16 characters or more. Without it "
        "there is neither.",
        secret=True,
    )
    metrics_token: str | None = _setting(
        "GROKFLASK_METRICS_TOKEN",
        read_admin_token,
        None,
        "The bearer token of `/metrics`, 16 characters or more; the admin token is good there as well. With "
        "neither there is nothing at `/metrics`, but on the sandbox, where anybody may look.",
        secret=True,
    )
    metrics_keys: bool = _setting(
        "GROKFLASK_METRICS_KEYS",
        read_flag,
        False,
        "Whether `/metrics` also tells by the names of keys what they use, of the first 100 of each worker.",
    )
    key_cache_s: float = _setting(
        "GROKFLASK_KEY_CACHE_S",
        seconds(0, 300),
        5.0,
        "How long a key that was looked up in the database is known without asking again: a change or a "
        "revocation takes effect within it.",
    )
    rate_limit: str = _setting(
        "GROKFLASK_RATE_LIMIT",
        read_rate,
        "100/hour",
        "Requests that each key (each address, when there are no keys) may make, such as `100/hour` or "
        "`5/second;1000/day`, unless the key has a limit of its own. A streamed response counts once.",
    )
    max_streams: int | None = _setting(
        "GROKFLASK_MAX_STREAMS",
        integer(1, 10**6),
        None,
        "Streams that each key may have open at once, unless it has a limit of its own.",
    )
    output_estimate_tokens: int = _setting(
        "GROKFLASK_OUTPUT_ESTIMATE_TOKENS",
        integer(0, 10**6),
        4096,
        "What an answer is taken to need while it runs, where the request sets no `max_tokens`: reserved "
        "against token limits and budgets, and given back when the true usage is known.",
    )
    fair_share: float = _setting(
        "GROKFLASK_FAIR_SHARE",
        read_share,
        0.8,
        "From this share of the gateway's slots on, a key gets no more than its fair part of them; 1 turns "
        "that off until the gateway is full.",
    )
    retention_days: int = _setting(
        "GROKFLASK_RETENTION_DAYS",
        integer(0, 36500),
        90,
        "How long the ledger keeps single rows; their daily sums stay. 0 keeps all.",
    )
    keys_outage: Literal["local", "closed"] = _setting(
        "GROKFLASK_KEYS_OUTAGE",
        choice("local", "closed"),
        "local",
        "While the database is away: `local` lets in keys that this worker has seen before, `closed` nobody "
        "(503) but those of `GROKFLASK_KEYS`.",
    )
    requests_outage: Literal["open", "local", "closed"] = _setting(
        "GROKFLASK_REQUESTS_OUTAGE",
        choice("open", "local", "closed"),
        "local",
        "While Redis is away, requests per window: `open` does not limit, `local` counts in each worker by "
        "itself, `closed` refuses (503).",
    )
    streams_outage: Literal["open", "local", "closed"] = _setting(
        "GROKFLASK_STREAMS_OUTAGE",
        choice("open", "local", "closed"),
        "local",
        "Likewise, open streams.",
    )
    tokens_outage: Literal["open", "local", "closed"] = _setting(
        "GROKFLASK_TOKENS_OUTAGE",
        choice("open", "local", "closed"),
        "local",
        "Likewise, tokens per minute.",
    )
    budgets_outage: Literal["open", "local", "closed"] = _setting(
        "GROKFLASK_BUDGETS_OUTAGE",
        choice("open", "local", "closed"),
        "local",
        "Likewise, budgets; also while the database is away and what a key has spent is not known.",
    )
    ledger_outage: Literal["open", "closed"] = _setting(
        "GROKFLASK_LEDGER_OUTAGE",
        choice("open", "closed"),
        "open",
        "When the database has been away for so long that no more rows can wait for it: `open` goes on (rows "
        "are then only in the log), `closed` refuses new work (503).",
    )
    connect_timeout_s: float = _setting(
        "GROKFLASK_CONNECT_TIMEOUT_S",
        seconds(0.1, 120),
        5.0,
        "To connect to upstream; each of its addresses that does not answer takes so long.",
    )
    heartbeat_s: float = _setting(
        "GROKFLASK_HEARTBEAT_S",
        seconds(0.05, 300),
        15.0,
        "How long a stream may be silent before a comment line is sent to keep it alive.",
    )
    commit_s: float = _setting(
        "GROKFLASK_COMMIT_S",
        seconds(0.05, 300),
        20.0,
        "How long upstream's answer to a streaming request is waited for before the response begins without "
        "it (status 200, a comment line); what goes wrong after that is told inside the stream.",
    )
    first_event_timeout_s: float = _setting(
        "GROKFLASK_FIRST_EVENT_TIMEOUT_S",
        seconds(0.1, 7200),
        600.0,
        "Until upstream's answer begins. Reasoning models think for minutes before their first token.",
    )
    idle_timeout_s: float = _setting(
        "GROKFLASK_IDLE_TIMEOUT_S",
        seconds(0.1, 7200),
        600.0,
        "Between two events of a stream. Upstream's comments do not count as events.",
    )
    total_timeout_s: float = _setting(
        "GROKFLASK_TOTAL_TIMEOUT_S", seconds(0.1, 86400), 3600.0, "For a whole exchange."
    )
    send_timeout_s: float = _setting(
        "GROKFLASK_SEND_TIMEOUT_S",
        seconds(0.1, 3600),
        60.0,
        "A client that takes nothing of what is sent to it for so long counts as gone (on Linux).",
    )
    body_timeout_s: float = _setting(
        "GROKFLASK_BODY_TIMEOUT_S", seconds(0.1, 3600), 120.0, "For a request's body to arrive."
    )
    on_abort: Literal["cancel", "drain"] = _setting(
        "GROKFLASK_ON_ABORT",
        choice("cancel", "drain"),
        "cancel",
        "When a client leaves: `cancel` ends the upstream call at once; `drain` reads it to its end, for the "
        "usage.",
    )
    drain_s: float = _setting(
        "GROKFLASK_DRAIN_S", seconds(0.1, 3600), 60.0, "With `drain`: how long one call is read on."
    )
    drains: int = _setting(
        "GROKFLASK_DRAINS",
        integer(0, 10000),
        16,
        "With `drain`: calls read on at once; others are cancelled.",
    )
    replay_bytes: int = _setting(
        "GROKFLASK_REPLAY_BYTES",
        integer(0, 2**30),
        16 * 2**20,
        "The longest answer that is kept for a repetition with the same `Idempotency-Key`; a longer one goes "
        "to its own client only. 0 ignores that header.",
    )
    replay_total_bytes: int = _setting(
        "GROKFLASK_REPLAY_TOTAL_BYTES",
        integer(0, 2**36),
        64 * 2**20,
        "What all answers that one worker keeps may take, in its memory or in Redis; then the oldest go.",
    )
    replay_keep_s: float = _setting(
        "GROKFLASK_REPLAY_KEEP_S",
        seconds(0, 86400),
        300.0,
        "How long such an answer is kept after it has ended; 0 only while it runs.",
    )
    resume_grace_s: float = _setting(
        "GROKFLASK_RESUME_GRACE_S",
        seconds(0, 3600),
        30.0,
        "How long upstream goes on for a client that asked for it with `X-Stream-Resume: true` and has "
        "dropped; then the exchange is ended.",
    )
    capacity: int | None = _setting(
        "GROKFLASK_CAPACITY",
        integer(1, 65000),
        None,
        "Exchanges that one worker carries at once; above it 503. Nine tenths of "
        "`GROKFLASK_WORKER_CONNECTIONS` when it is not set.",
    )
    max_body_bytes: int = _setting(
        "GROKFLASK_MAX_BODY_BYTES",
        integer(1024, 2**31),
        64 * 2**20,
        "The largest request body. An image of 20 MiB takes 27 MiB as base64.",
    )
    max_upload_bytes: int = _setting(
        "GROKFLASK_MAX_UPLOAD_BYTES",
        integer(1024, 2**34),
        52 * 2**20,
        "The largest upload of a file, its form around it included. xAI takes files of up to 50 MB. It waits "
        "in a temporary file as well, until it has come whole.",
    )
    max_reply_bytes: int = _setting(
        "GROKFLASK_MAX_REPLY_BYTES",
        integer(1024, 2**34),
        256 * 2**20,
        "The largest answer that is not streamed: JSON with pictures in it, or a file. What is more than a "
        "megabyte waits in a temporary file (in `TMPDIR`) until it has come whole.",
    )
    trusted_proxies: int = _setting(
        "GROKFLASK_TRUSTED_PROXIES",
        integer(0, 10),
        0,
        "How many proxies stand in front (1 on Heroku): so many `X-Forwarded-For` entries are believed.",
    )
    cors_origins: tuple[str, ...] = _setting(
        "GROKFLASK_CORS_ORIGINS",
        read_origins,
        (),
        "Origins whose pages may call the gateway from a browser, such as `https://app.example.com`, "
        "separated by commas; `*` for all.",
    )
    default_chat_model: str = _setting(
        "GROKFLASK_DEFAULT_CHAT_MODEL",
        read_name,
        "grok-4.3",
        "For chat requests that name no model.",
    )
    default_image_model: str = _setting(
        "GROKFLASK_DEFAULT_IMAGE_MODEL",
        read_name,
        "grok-imagine-image",
        "For image requests that name no model.",
    )
    default_vision_model: str = _setting(
        "GROKFLASK_DEFAULT_VISION_MODEL",
        read_name,
        "grok-4.3",
        "For `/vision/analyze` and chats with images.",
    )
    vision_stream: Literal["fallback", "stream"] = _setting(
        "GROKFLASK_VISION_STREAM",
        choice("fallback", "stream"),
        "fallback",
        "What a vision request with `stream: true` gets: `fallback` is the whole answer as JSON with the "
        "header `X-Stream-Fallback`; `stream` relays chat with images as a stream.",
    )
    cache_affinity: bool = _setting(
        "GROKFLASK_CACHE_AFFINITY",
        read_flag,
        True,
        "Whether a conversation that names no `x-grok-conv-id` (on Responses no `prompt_cache_key`) gets "
        "one, so that xAI finds the beginning of each turn in its prompt cache.",
    )
    models_cache_s: float = _setting(
        "GROKFLASK_MODELS_CACHE_S",
        seconds(0, 3600),
        60.0,
        "How long the lists of models are given out again before upstream is asked; the header `Age` tells "
        "how old one is. 0 asks each time.",
    )
    default_video_model: str = _setting(
        "GROKFLASK_DEFAULT_VIDEO_MODEL",
        read_name,
        "grok-imagine-video",
        "For video requests that name no model.",
    )
    drop_params: bool = _setting(
        "GROKFLASK_DROP_PARAMS",
        read_flag,
        True,
        "Drop parameters that xAI is known to refuse, and name them in `X-Params-Dropped`.",
    )
    playground: bool = _setting(
        "GROKFLASK_PLAYGROUND",
        read_flag,
        True,
        "Whether there is a playground at `/`. It can do nothing that the API cannot.",
    )
    worker_connections: int = _setting(
        "GROKFLASK_WORKER_CONNECTIONS",
        integer(1, 65000),
        4000,
        "Connections that one worker holds at once.",
    )
    keepalive_s: int = _setting(
        "GROKFLASK_KEEPALIVE_S",
        integer(1, 3600),
        95,
        "How long an idle client connection is kept, and how long a request's head may take. "
        "Heroku's router keeps its side for 90 s.",
    )
    grace_s: int = _setting(
        "GROKFLASK_GRACE_S",
        integer(1, 3600),
        25,
        "After SIGTERM, how long the process takes at most. Streams still open 5 s before that are ended "
        "with an error event. Heroku kills a process after 30 s.",
    )
    log_level: str = _setting(
        "GROKFLASK_LOG_LEVEL",
        choice("debug", "info", "warning", "error"),
        "info",
        "What is logged.",
    )
    sandbox_events_per_s: float = _setting(
        "GROKFLASK_SANDBOX_EVENTS_PER_S",
        seconds(0, 10000),
        40.0,
        "The sandbox's pace; 0 is without pauses.",
    )

    @property
    def uses_sandbox(self) -> bool:
        """Neither a key nor a base URL is set, and clients bring none: upstream is the built-in sandbox."""
        return self.xai_api_key is None and self.xai_api_base is None and self.auth != "passthrough"

    @property
    def auth_mode(self) -> Literal["keys", "passthrough", "open"]:
        """`auth`, or its default."""
        if self.auth:
            return self.auth
        return "open" if self.uses_sandbox and not self.keys else "keys"

    @property
    def max_exchanges(self) -> int:
        """`capacity`, or its default."""
        return self.capacity or max(1, self.worker_connections * 9 // 10)

    @property
    def upstream_base(self) -> str:
        """Upstream's base URL, unless the sandbox is used."""
        return self.xai_api_base or XAI_API_BASE

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be seen outside, the longest first: one may begin with another."""
        texts = {secret for _, secret in self.keys}
        texts |= _list_passwords(self.redis_url) | _list_passwords(self.database_url)
        texts |= {text for text in (self.xai_api_key, self.admin_token, self.metrics_token) if text}
        return tuple(sorted(texts, key=len, reverse=True))

    def find_contradictions(self) -> list[str]:
        """Settings that are right one by one and wrong together."""
        problems = []
        if self.workers > 1 and self.redis_url is None:
            problems.append(
                f"WEB_CONCURRENCY is {self.workers}, but counters in memory would grant every limit once per "
                "worker: set REDIS_URL, or WEB_CONCURRENCY=1"
            )
        if self.capacity is not None and self.capacity >= self.worker_connections:
            problems.append(
                f"GROKFLASK_CAPACITY is {self.capacity}, but GROKFLASK_WORKER_CONNECTIONS is "
                f"{self.worker_connections}: without a connection to spare the next client would wait unseen "
                "instead of getting a 503; raise the one or lower the other"
            )
        if ":memory:" in self.database_url:
            problems.append("DATABASE_URL names SQLite's :memory:, which would keep nothing: name a file")
        if self.auth == "passthrough" and self.xai_api_key:
            problems.append(
                "GROKFLASK_AUTH is passthrough, where each client brings its own xAI key, but XAI_API_KEY is "
                "set as well: remove one of the two"
            )
        if self.auth in ("passthrough", "open") and self.keys:
            problems.append(f"GROKFLASK_AUTH is {self.auth}, so GROKFLASK_KEYS would be ignored: remove one")
        if self.xai_api_key and any(secret == self.xai_api_key for _, secret in self.keys):
            problems.append("GROKFLASK_KEYS hands out XAI_API_KEY itself: choose another secret")
        if self.admin_token and self.admin_token in {self.xai_api_key, *(secret for _, secret in self.keys)}:
            problems.append("GROKFLASK_ADMIN_TOKEN is also a key: choose another token")
        if self.metrics_token and self.metrics_token in {
            *(self.xai_api_key, self.admin_token),
            *(secret for _, secret in self.keys),
        }:
            problems.append(
                "GROKFLASK_METRICS_TOKEN is also a key or the admin token: choose one of its own, for "
                "Prometheus has to know it"
            )
        return problems


def _list_passwords(url: str | None) -> set[str]:
    """The password in a URL, as it is written and as it is meant."""
    if url is None:
        return set()
    parts = urlsplit(url)
    written = {parts.password or "", *parse_qs(parts.query).get("password", [])}
    return {text for each in written if each for text in (each, unquote(each))}


def load_settings(environ: Mapping[str, str] | None = None, *, dotenv: str | None = ".env") -> Settings:
    """The settings of this process: `environ` (default: the real one) over the file `dotenv`.

    An empty value counts as not set, and hides the one in the file. Raises ConfigError with all problems.
    """
    texts = _read_texts(os.environ if environ is None else environ, dotenv)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in dataclasses.fields(Settings):
        text = (texts.get(item.metadata["env"]) or "").strip()
        if not text:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            shown = "" if not item.repr or "@" in text else f" (it is {text!r})"
            problems.append(f"{item.metadata['env']} {error}{shown}")
    settings = Settings(**values)
    # What is malformed is not contradictory on top.
    malformed = [problem.split(" ", 1)[0] for problem in problems]
    problems += [
        text for text in settings.find_contradictions() if not any(name in text for name in malformed)
    ]
    if problems:
        raise ConfigError(problems)
    return settings


def _read_texts(environ: Mapping[str, str], dotenv: str | None) -> dict[str, str | None]:
    try:
        from_file = dotenv_values(dotenv, interpolate=False) if dotenv and os.path.isfile(dotenv) else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{dotenv} cannot be read as UTF-8 text: {error}"]) from None
    return {**from_file, **environ}


def find_unknown(environ: Mapping[str, str], *, dotenv: str | None = ".env") -> list[str]:
    """A warning for each GROKFLASK_ variable that is no setting, with the one that may be meant."""
    known = [item.metadata["env"] for item in dataclasses.fields(Settings)]
    warnings = []
    for name in sorted(_read_texts(environ, dotenv)):
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
