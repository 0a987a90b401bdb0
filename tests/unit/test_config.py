"""Settings: how each is read, what is refused, and that no secret gets out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from grokflask.config import (
    SETTINGS,
    XAI_API_BASE,
    Settings,
    find_unknown,
    load_settings,
    render_docs,
)
from grokflask.errors import ConfigError
from grokflask.setting_types import EXAMPLES

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "xai-hunter2-secret"


def load(**environ: str) -> Settings:
    return load_settings(environ, dotenv=None)


def refuse(**environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(**environ)
    return caught.value


GOOD: list[tuple[str, str, str, Any]] = [
    ("XAI_API_KEY", "xai_api_key", "xai-abc", "xai-abc"),
    ("XAI_API_BASE", "xai_api_base", "https://us.api.x.ai/v1/", "https://us.api.x.ai/v1"),
    ("XAI_API_BASE", "xai_api_base", "http://127.0.0.1:9000/v1", "http://127.0.0.1:9000/v1"),
    ("XAI_API_BASE", "xai_api_base", "http://[::1]:9000", "http://[::1]:9000"),
    ("PORT", "port", "1", 1),
    ("PORT", "port", "65535", 65535),
    ("PORT", "port", " 8080 ", 8080),
    ("WEB_CONCURRENCY", "workers", "1", 1),
    ("REDIS_URL", "redis_url", "redis://localhost:6379/0", "redis://localhost:6379/0"),
    ("REDIS_URL", "redis_url", "rediss://:pw@host", "rediss://:pw@host"),
    ("REDIS_URL", "redis_url", "unix:///run/redis.sock", "unix:///run/redis.sock"),
    ("DATABASE_URL", "database_url", "sqlite:///var/other.db", "sqlite:///var/other.db"),
    ("DATABASE_URL", "database_url", "postgres://u:p@h:5432/d", "postgres://u:p@h:5432/d"),
    ("DATABASE_URL", "database_url", "postgresql://h/d", "postgresql://h/d"),
    ("GROKFLASK_AUTH", "auth", "keys", "keys"),
    ("GROKFLASK_AUTH", "auth", "passthrough", "passthrough"),
    ("GROKFLASK_AUTH", "auth", "open", "open"),
    (
        "GROKFLASK_HOSTS",
        "hosts",
        "Grok.lan, [fd00::5], a-b.example.com",
        ("grok.lan", "[fd00::5]", "a-b.example.com"),
    ),
    ("GROKFLASK_HOSTS", "hosts", "*", ("*",)),
    ("GROKFLASK_KEYS", "keys", "alice:secret-a1", (("alice", "secret-a1"),)),
    (
        "GROKFLASK_KEYS",
        "keys",
        "alice:secret-a1, b.o_b-2:se:cret=b ",
        (("alice", "secret-a1"), ("b.o_b-2", "se:cret=b")),
    ),
    ("GROKFLASK_RATE_LIMIT", "rate_limit", "5/second;1000/day", "5/second;1000/day"),
    ("GROKFLASK_RATE_LIMIT", "rate_limit", "100 per hour", "100 per hour"),
    ("GROKFLASK_RATE_LIMIT", "rate_limit", "1/15 minutes", "1/15 minutes"),
    ("GROKFLASK_ADMIN_TOKEN", "admin_token", "0123456789abcdef", "0123456789abcdef"),
    ("GROKFLASK_METRICS_TOKEN", "metrics_token", "0123456789abcdef", "0123456789abcdef"),
    ("GROKFLASK_METRICS_KEYS", "metrics_keys", "true", True),
    ("GROKFLASK_KEY_CACHE_S", "key_cache_s", "0", 0.0),
    ("GROKFLASK_MAX_STREAMS", "max_streams", "3", 3),
    ("GROKFLASK_OUTPUT_ESTIMATE_TOKENS", "output_estimate_tokens", "0", 0),
    ("GROKFLASK_FAIR_SHARE", "fair_share", "0.5", 0.5),
    ("GROKFLASK_FAIR_SHARE", "fair_share", "1", 1.0),
    ("GROKFLASK_RETENTION_DAYS", "retention_days", "0", 0),
    ("GROKFLASK_KEYS_OUTAGE", "keys_outage", "closed", "closed"),
    ("GROKFLASK_REQUESTS_OUTAGE", "requests_outage", "open", "open"),
    ("GROKFLASK_STREAMS_OUTAGE", "streams_outage", "closed", "closed"),
    ("GROKFLASK_TOKENS_OUTAGE", "tokens_outage", "local", "local"),
    ("GROKFLASK_BUDGETS_OUTAGE", "budgets_outage", "closed", "closed"),
    ("GROKFLASK_LEDGER_OUTAGE", "ledger_outage", "closed", "closed"),
    ("GROKFLASK_DATABASE_CONNECT_TIMEOUT_S", "database_connect_timeout_s", "10", 10.0),
    ("GROKFLASK_DATABASE_READ_TIMEOUT_S", "database_read_timeout_s", "0.5", 0.5),
    ("GROKFLASK_CONNECT_TIMEOUT_S", "connect_timeout_s", "0.1", 0.1),
    ("GROKFLASK_FIRST_EVENT_TIMEOUT_S", "first_event_timeout_s", "7200", 7200.0),
    ("GROKFLASK_IDLE_TIMEOUT_S", "idle_timeout_s", "2.5", 2.5),
    ("GROKFLASK_MAX_REPLY_BYTES", "max_reply_bytes", "1024", 1024),
    ("GROKFLASK_MAX_UPLOAD_BYTES", "max_upload_bytes", "1024", 1024),
    ("GROKFLASK_DEFAULT_VIDEO_MODEL", "default_video_model", "v-1", "v-1"),
    ("GROKFLASK_MAX_BODY_BYTES", "max_body_bytes", "1024", 1024),
    ("GROKFLASK_BODIES_TOTAL_BYTES", "bodies_total_bytes", "134217728", 2**27),
    ("GROKFLASK_MAX_JSON_BYTES", "max_json_bytes", "1024", 1024),
    ("GROKFLASK_MAX_JSON_ELEMENTS", "max_json_elements", "1000", 1000),
    ("GROKFLASK_TRUSTED_PROXIES", "trusted_proxies", "0", 0),
    ("GROKFLASK_DEFAULT_CHAT_MODEL", "default_chat_model", "grok-9", "grok-9"),
    ("GROKFLASK_DEFAULT_IMAGE_MODEL", "default_image_model", "x-ai/img:1", "x-ai/img:1"),
    ("GROKFLASK_DEFAULT_VISION_MODEL", "default_vision_model", "v@2", "v@2"),
    ("GROKFLASK_VISION_STREAM", "vision_stream", "stream", "stream"),
    ("GROKFLASK_MODELS_CACHE_S", "models_cache_s", "0", 0.0),
    ("GROKFLASK_CACHE_AFFINITY", "cache_affinity", "off", False),
    ("GROKFLASK_PLAYGROUND", "playground", "off", False),
    ("GROKFLASK_DROP_PARAMS", "drop_params", "off", False),
    ("GROKFLASK_DROP_PARAMS", "drop_params", "TRUE", True),
    ("GROKFLASK_DROP_PARAMS", "drop_params", "0", False),
    ("GROKFLASK_WORKER_CONNECTIONS", "worker_connections", "10", 10),
    ("GROKFLASK_KEEPALIVE_S", "keepalive_s", "1", 1),
    (
        "GROKFLASK_CORS_ORIGINS",
        "cors_origins",
        "https://a.example.com, http://localhost:3000",
        ("https://a.example.com", "http://localhost:3000"),
    ),
    ("GROKFLASK_CORS_ORIGINS", "cors_origins", "*", ("*",)),
    ("GROKFLASK_HEARTBEAT_S", "heartbeat_s", "0.05", 0.05),
    ("GROKFLASK_COMMIT_S", "commit_s", "300", 300.0),
    ("GROKFLASK_TOTAL_TIMEOUT_S", "total_timeout_s", "86400", 86400.0),
    ("GROKFLASK_SEND_TIMEOUT_S", "send_timeout_s", "0.1", 0.1),
    ("GROKFLASK_BODY_TIMEOUT_S", "body_timeout_s", "3600", 3600.0),
    ("GROKFLASK_ON_ABORT", "on_abort", "cancel", "cancel"),
    ("GROKFLASK_ON_ABORT", "on_abort", "drain", "drain"),
    ("GROKFLASK_DRAIN_S", "drain_s", "7", 7.0),
    ("GROKFLASK_DRAINS", "drains", "0", 0),
    ("GROKFLASK_REPLAY_BYTES", "replay_bytes", "0", 0),
    ("GROKFLASK_REPLAY_TOTAL_BYTES", "replay_total_bytes", "1000000", 1_000_000),
    ("GROKFLASK_REPLAY_KEEP_S", "replay_keep_s", "0", 0.0),
    ("GROKFLASK_RESUME_GRACE_S", "resume_grace_s", "2.5", 2.5),
    ("GROKFLASK_CAPACITY", "capacity", "1", 1),
    ("GROKFLASK_GRACE_S", "grace_s", "30", 30),
    ("GROKFLASK_LOG_LEVEL", "log_level", "debug", "debug"),
    ("GROKFLASK_SANDBOX_EVENTS_PER_S", "sandbox_events_per_s", "0", 0.0),
]

BAD: dict[str, list[str]] = {
    "XAI_API_KEY": ["two words", "käse"],
    "XAI_API_BASE": [
        "api.x.ai/v1",
        "ftp://api.x.ai",
        "https://",
        "http://h:99999/v1",
        "http://h:port/v1",
        "http://[::1",
        "http://h/v1?a=b",
        "http://h/v1#a",
        "http://h/v1?",
        "http://h/v1#",
        "http://u:p@h/v1",
        "http://:p@h/v1",
    ],
    "PORT": ["0", "65536", "80.5", "0x50", "8_0", "1e3", "eighty", "-1", "9" * 30],
    "WEB_CONCURRENCY": ["0", "257", "two"],
    "REDIS_URL": ["localhost:6379", "http://localhost", "redis://", "redis://h:x"],
    "DATABASE_URL": ["var/grokflask.db", "sqlite://", "mysql://h/d", "postgresql://", "sqlite:///"],
    "GROKFLASK_METRICS_TOKEN": ["fifteen-letters"],
    "GROKFLASK_METRICS_KEYS": ["maybe"],
    "GROKFLASK_ADMIN_TOKEN": ["fifteen-letters", "with spaces in it, long enough"],
    "GROKFLASK_KEY_CACHE_S": ["301", "soon"],
    "GROKFLASK_MAX_STREAMS": ["0", "many"],
    "GROKFLASK_OUTPUT_ESTIMATE_TOKENS": ["-1"],
    "GROKFLASK_FAIR_SHARE": ["1.1", "80%", ".", "-0.5"],
    "GROKFLASK_RETENTION_DAYS": ["-1"],
    "GROKFLASK_KEYS_OUTAGE": ["open"],
    "GROKFLASK_REQUESTS_OUTAGE": ["fail"],
    "GROKFLASK_STREAMS_OUTAGE": ["fail"],
    "GROKFLASK_TOKENS_OUTAGE": ["fail"],
    "GROKFLASK_BUDGETS_OUTAGE": ["fail"],
    "GROKFLASK_LEDGER_OUTAGE": ["local"],
    "GROKFLASK_KEEPALIVE_S": ["0", "1.5"],
    "GROKFLASK_CORS_ORIGINS": ["example.com", "https://a/", "*,https://a", "https://*.a"],
    "GROKFLASK_HEARTBEAT_S": ["0", "301"],
    "GROKFLASK_COMMIT_S": ["soon"],
    "GROKFLASK_TOTAL_TIMEOUT_S": ["0"],
    "GROKFLASK_SEND_TIMEOUT_S": ["-1"],
    "GROKFLASK_BODY_TIMEOUT_S": ["1e3"],
    "GROKFLASK_ON_ABORT": ["keep"],
    "GROKFLASK_DRAIN_S": ["0"],
    "GROKFLASK_DRAINS": ["-1"],
    "GROKFLASK_REPLAY_BYTES": ["16MB"],
    "GROKFLASK_REPLAY_TOTAL_BYTES": ["-1"],
    "GROKFLASK_REPLAY_KEEP_S": ["1e3"],
    "GROKFLASK_RESUME_GRACE_S": ["-1"],
    "GROKFLASK_CAPACITY": ["0"],
    "GROKFLASK_AUTH": ["none", "Keys", "keys,open"],
    "GROKFLASK_HOSTS": [
        "http://grok.lan",
        "grok.lan:8000",
        "grok.lan/",
        "*,grok.lan",
        "*.lan",
        "a b",
        ",",
        "fd00::5",
    ],
    "GROKFLASK_KEYS": [
        "alice",
        ":secret-a1",
        "alice:",
        "alice:short",
        "al ice:secret-a1",
        "alice:secret a1",
        "alice:secret-ä1",
        "-a:secret-a1",
        ",",
        "a:secret-a1,a:secret-a2",
        "a:secret-a1,b:secret-a1",
        "a" * 65 + ":secret-a1",
    ],
    "GROKFLASK_RATE_LIMIT": [
        "100",
        "hour",
        "100/fortnight",
        "-1/hour",
        "1.5/hour",
        "100/hour;",
        ";",
        "100/hour 5/day",
        "\u0661\u0660/hour",
    ],
    "GROKFLASK_DATABASE_CONNECT_TIMEOUT_S": ["0", "121", "5s"],
    "GROKFLASK_DATABASE_READ_TIMEOUT_S": ["0", "61", "-1"],
    "GROKFLASK_CONNECT_TIMEOUT_S": ["0", "121", "5s", "1e1", "inf", "nan", "-1", ".5"],
    "GROKFLASK_FIRST_EVENT_TIMEOUT_S": ["7201"],
    "GROKFLASK_IDLE_TIMEOUT_S": ["0"],
    "GROKFLASK_MAX_REPLY_BYTES": ["1023"],
    "GROKFLASK_MAX_UPLOAD_BYTES": ["1023"],
    "GROKFLASK_DEFAULT_VIDEO_MODEL": ["a b"],
    "GROKFLASK_MAX_BODY_BYTES": ["64MB", "1023"],
    "GROKFLASK_BODIES_TOTAL_BYTES": ["2047", "no"],
    "GROKFLASK_MAX_JSON_BYTES": ["16MB", "1023"],
    "GROKFLASK_MAX_JSON_ELEMENTS": ["999", "1e6"],
    "GROKFLASK_TRUSTED_PROXIES": ["11", "yes"],
    "GROKFLASK_DEFAULT_CHAT_MODEL": ["grok 4"],
    "GROKFLASK_DEFAULT_IMAGE_MODEL": ["/grok"],
    "GROKFLASK_DEFAULT_VISION_MODEL": ['g"'],
    "GROKFLASK_VISION_STREAM": ["true"],
    "GROKFLASK_MODELS_CACHE_S": ["-1"],
    "GROKFLASK_CACHE_AFFINITY": ["maybe"],
    "GROKFLASK_PLAYGROUND": ["maybe"],
    "GROKFLASK_DROP_PARAMS": ["maybe"],
    "GROKFLASK_WORKER_CONNECTIONS": ["0"],
    "GROKFLASK_GRACE_S": ["0"],
    "GROKFLASK_LOG_LEVEL": ["trace"],
    "GROKFLASK_SANDBOX_EVENTS_PER_S": ["fast"],
}


@pytest.mark.parametrize(("env", "name", "text", "value"), GOOD)
def test_good_values(env: str, name: str, text: str, value: Any) -> None:
    """Each setting is read from its variable, to its type."""
    read = getattr(load(**{env: text}), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("env", "text"), [(env, text) for env, texts in BAD.items() for text in texts])
def test_bad_values(env: str, text: str) -> None:
    """A value that cannot work stops the start, and the message names its variable, once."""
    error = refuse(**{env: text})
    assert [problem.split()[0] for problem in error.problems] == [env]


def test_every_setting_has_a_good_and_a_bad_value_here() -> None:
    """A new setting comes with its cases."""
    assert {row[0] for row in GOOD} == set(SETTINGS)
    assert BAD.keys() == set(SETTINGS)


def test_defaults() -> None:
    """With nothing set, the contract's defaults hold."""
    settings = load()
    assert settings == Settings()
    assert (settings.port, settings.workers, settings.rate_limit) == (8000, 1, "100/hour")
    timeouts = (settings.connect_timeout_s, settings.first_event_timeout_s, settings.idle_timeout_s)
    assert timeouts == (5.0, 600.0, 600.0)
    assert settings.max_body_bytes >= 32 * 2**20
    assert (settings.trusted_proxies, settings.vision_stream, settings.drop_params) == (0, "fallback", True)


def test_all_problems_are_reported_at_once() -> None:
    """Wrong and contradictory settings are listed together."""
    error = refuse(PORT="x", GROKFLASK_LOG_LEVEL="loud", GROKFLASK_AUTH="open", GROKFLASK_KEYS="a:secret-a1")
    assert [problem.split()[0] for problem in error.problems] == [
        "PORT",
        "GROKFLASK_LOG_LEVEL",
        "GROKFLASK_AUTH",
    ]
    for problem in error.problems:
        assert problem in error.message


def test_problem_shows_the_value_and_what_is_expected() -> None:
    """A message says what was read and what would do."""
    (problem,) = refuse(PORT="eighty").problems
    assert "'eighty'" in problem
    assert "from 1 to 65535" in problem


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("env", SETTINGS)
def test_empty_value_counts_as_not_set(env: str, text: str) -> None:
    """`NAME=` in a compose file is the default, not an error."""
    assert load(**{env: text}) == Settings()


@pytest.mark.parametrize(
    "environ",
    [
        {"XAI_API_KEY": f"{SECRET} with a space"},
        {"XAI_API_BASE": f"https://user:{SECRET}@api.x.ai/v1"},
        {"XAI_API_BASE": f"ftp://user:{SECRET}@api.x.ai/v1"},
        {"REDIS_URL": f"http://:{SECRET}@host"},
        {"REDIS_URL": f"redis://:{SECRET}@host:port"},
        {"GROKFLASK_KEYS": SECRET},
        {"GROKFLASK_KEYS": f"alice:{SECRET} x"},
        {"GROKFLASK_KEYS": f"alice:{SECRET},{SECRET}"},
        {"GROKFLASK_KEYS": f"alice:{SECRET},bob:{SECRET}"},
        {"GROKFLASK_KEYS": f"alice:{SECRET},alice:{SECRET}2"},
        {"GROKFLASK_KEYS": f"{SECRET}:alice"},
        {"XAI_API_KEY": SECRET, "GROKFLASK_KEYS": f"alice:{SECRET}"},
        {"XAI_API_KEY": SECRET, "GROKFLASK_AUTH": "passthrough"},
        {"REDIS_URL": f"redis://:{SECRET}@host", "PORT": "x"},
    ],
)
def test_no_message_quotes_a_secret(environ: dict[str, str]) -> None:
    """What stops the start is printed to logs that others read."""
    error = refuse(**environ)
    assert SECRET not in error.message
    assert SECRET not in repr(error)


def test_repr_has_no_secret() -> None:
    """Settings may end up in a log or a traceback."""
    settings = load(
        XAI_API_KEY=SECRET, GROKFLASK_KEYS="alice:alices-secret", REDIS_URL="redis://:redis-secret@host"
    )
    shown = repr(settings)
    assert "workers=1" in shown
    assert not [text for text in (SECRET, "alices-secret", "redis-secret", "alice") if text in shown]


def test_secrets_lists_all_of_them() -> None:
    """Whatever must be cut out of logs is known."""
    settings = load(
        XAI_API_KEY=SECRET,
        GROKFLASK_KEYS="alice:alices-secret,bob:bobs-secret",
        REDIS_URL="redis://u:redis-secret@h",
    )
    assert set(settings.secrets) == {SECRET, "alices-secret", "bobs-secret", "redis-secret"}
    assert load().secrets == ()
    assert load(REDIS_URL="redis://localhost").secrets == ()


def test_weak_secrets() -> None:
    """Short, repetitive and documented ones are named, not quoted. Random ones are fine."""
    weak = {"a": "short-1234567", "b": "abababababababababab", "c": EXAMPLES[0]}
    settings = load(
        GROKFLASK_KEYS=",".join(f"{name}:{secret}" for name, secret in weak.items()) + f",d:{SECRET}",
        GROKFLASK_ADMIN_TOKEN=EXAMPLES[1],
        GROKFLASK_METRICS_TOKEN="0123456789abcdef",
    )
    warnings = settings.find_weak_secrets()
    assert [warning.split(" may be")[0] for warning in warnings] == [
        *(f"the secret of '{name}' in GROKFLASK_KEYS" for name in weak),
        "GROKFLASK_ADMIN_TOKEN",
    ]
    assert not [secret for secret in settings.secrets if secret in str(warnings)]
    assert load().find_weak_secrets() == []


@pytest.mark.parametrize("secret", EXAMPLES)
def test_examples_are_those_of_the_docs(secret: str) -> None:
    """Whoever copies a page word for word is warned."""
    pages = [*DOCS.parent.glob("*.md"), DOCS.parents[1] / ".env.example"]
    assert any(secret in page.read_text() for page in pages)


# Contradictions


@pytest.mark.parametrize(
    ("environ", "mentions"),
    [
        ({"WEB_CONCURRENCY": "2"}, ("WEB_CONCURRENCY", "REDIS_URL")),
        ({"GROKFLASK_AUTH": "passthrough", "XAI_API_KEY": "xai-x"}, ("GROKFLASK_AUTH", "XAI_API_KEY")),
        (
            {"GROKFLASK_AUTH": "passthrough", "GROKFLASK_KEYS": "a:secret-a1"},
            ("GROKFLASK_AUTH", "GROKFLASK_KEYS"),
        ),
        ({"GROKFLASK_AUTH": "open", "GROKFLASK_KEYS": "a:secret-a1"}, ("GROKFLASK_AUTH", "GROKFLASK_KEYS")),
        ({"XAI_API_KEY": "xai-abcdef", "GROKFLASK_KEYS": "a:xai-abcdef"}, ("GROKFLASK_KEYS", "XAI_API_KEY")),
        ({"GROKFLASK_CAPACITY": "4000"}, ("GROKFLASK_CAPACITY", "GROKFLASK_WORKER_CONNECTIONS")),
    ],
)
def test_contradictions(environ: dict[str, str], mentions: tuple[str, ...]) -> None:
    """Settings that cannot both be meant stop the start, and the message names them all."""
    (problem,) = refuse(**environ).problems
    assert all(name in problem for name in mentions)


@pytest.mark.parametrize(
    "environ",
    [
        {"WEB_CONCURRENCY": "2", "REDIS_URL": "redis://localhost"},
        {"GROKFLASK_AUTH": "passthrough", "XAI_API_BASE": "https://api.x.ai/v1"},
        {"GROKFLASK_AUTH": "keys"},
        {"GROKFLASK_AUTH": "keys", "XAI_API_KEY": "xai-x", "GROKFLASK_KEYS": "a:secret-a1"},
        {"GROKFLASK_AUTH": "open", "XAI_API_KEY": "xai-x"},
        {"GROKFLASK_CAPACITY": "5000", "GROKFLASK_WORKER_CONNECTIONS": "5001"},
        {"GROKFLASK_WORKER_CONNECTIONS": "1"},
    ],
)
def test_settings_that_go_together(environ: dict[str, str]) -> None:
    """What can be meant starts; `open` with a paid key is allowed when said explicitly."""
    assert load(**environ).find_contradictions() == []


@pytest.mark.parametrize(
    ("environ", "auth_mode", "uses_sandbox"),
    [
        ({}, "open", True),
        ({"GROKFLASK_KEYS": "a:secret-a1"}, "keys", True),
        ({"XAI_API_KEY": "xai-x"}, "keys", False),
        ({"XAI_API_KEY": "xai-x", "GROKFLASK_KEYS": "a:secret-a1"}, "keys", False),
        ({"XAI_API_BASE": "https://api.x.ai/v1"}, "keys", False),
        ({"XAI_API_KEY": "xai-x", "GROKFLASK_AUTH": "open"}, "open", False),
        ({"GROKFLASK_AUTH": "keys"}, "keys", True),
        ({"XAI_API_BASE": "https://api.x.ai/v1", "GROKFLASK_AUTH": "passthrough"}, "passthrough", False),
    ],
)
def test_auth_mode_and_sandbox(environ: dict[str, str], auth_mode: str, uses_sandbox: bool) -> None:
    """Where money may be spent, `keys` is the default; only the sandbox is open unasked."""
    settings = load(**environ)
    assert (settings.auth_mode, settings.uses_sandbox) == (auth_mode, uses_sandbox)


def test_upstream_base() -> None:
    """xAI, unless another base is set."""
    assert load(XAI_API_KEY="xai-x").upstream_base == XAI_API_BASE == "https://api.x.ai/v1"
    assert load(XAI_API_BASE="http://h/v1").upstream_base == "http://h/v1"


# Where settings come from


def test_dotenv_is_read_and_the_environment_overrides_it(tmp_path: Path) -> None:
    """A file `.env` is honoured; what the environment says goes before it."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# comment\nPORT=1111\nGROKFLASK_LOG_LEVEL='debug'\nexport GROKFLASK_GRACE_S=7\nEMPTY\n"
    )
    settings = load_settings({"PORT": "2222"}, dotenv=str(dotenv))
    assert (settings.port, settings.log_level, settings.grace_s) == (2222, "debug", 7)
    assert load_settings({"PORT": "2222"}, dotenv=None).log_level == "info"


def test_dotenv_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about it, `.env` here and the process's environment are read."""
    for env in SETTINGS:
        monkeypatch.delenv(env, raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_settings() == Settings()
    (tmp_path / ".env").write_text("PORT=1111\nGROKFLASK_GRACE_S=7\n")
    monkeypatch.setenv("PORT", "3333")
    settings = load_settings()
    assert (settings.port, settings.grace_s) == (3333, 7)


def test_problems_in_dotenv_are_problems(tmp_path: Path) -> None:
    """A wrong value in the file stops the start like one in the environment."""
    (tmp_path / ".env").write_text("PORT=x\n")
    with pytest.raises(ConfigError, match="PORT expects"):
        load_settings({}, dotenv=str(tmp_path / ".env"))


@pytest.mark.parametrize("path", ["absent", "."])
def test_missing_dotenv_is_no_problem(tmp_path: Path, path: str) -> None:
    """No file, or a directory of that name, is nothing to read."""
    assert load_settings({}, dotenv=str(tmp_path / path)) == Settings()


def test_dotenv_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    """A file in another encoding is a problem like any other, and the message does not quote it."""
    (tmp_path / ".env").write_bytes("# für später\nXAI_API_KEY=xai-of-the-operator\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"\.env cannot be read as UTF-8 text") as raised:
        load_settings({}, dotenv=str(tmp_path / ".env"))
    assert "xai-of" not in str(raised.value)


def test_unknown_names_are_warned_of() -> None:
    """A mistyped setting would silently do nothing; the one that is meant is named."""
    environ = {
        "GROKFLASK_RATE_LIMITS": "1/hour",
        "GROKFLASK_QQQQQQ": "1",
        "GROKFLASK_AUTH": "open",
        "PATH": "/",
    }
    other, rate = find_unknown(environ)
    assert rate.startswith("GROKFLASK_RATE_LIMITS is not a setting")
    assert "GROKFLASK_RATE_LIMIT meant" in rate
    assert other.startswith("GROKFLASK_QQQQQQ is not a setting")
    assert find_unknown({"GROKFLASK_PORT_": SECRET})[0].count(SECRET) == 0


def test_settings_cannot_be_changed() -> None:
    """Settings are one value, read once."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


# The docs


def test_docs_name_every_setting() -> None:
    """The table has a row for each setting, and no secret has a default to show."""
    docs = render_docs()
    for env, item in SETTINGS.items():
        (row,) = [line for line in docs.splitlines() if line.startswith(f"| `{env}` |")]
        assert row.count("|") == 4
        assert row.endswith(". |"), f"{item.name} has no description"
    assert "| `GROKFLASK_DROP_PARAMS` | `true` |" in docs
    assert "| `GROKFLASK_CONNECT_TIMEOUT_S` | `5` |" in docs


def test_docs_page_is_up_to_date() -> None:
    """docs/settings.md is what `python -m grokflask.config` prints."""
    assert DOCS.read_text(encoding="utf-8") == render_docs()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 2**28),
        ({"GROKFLASK_MAX_BODY_BYTES": "1000000000"}, 4_000_000_000),
        ({"GROKFLASK_BODIES_TOTAL_BYTES": "1000000000"}, 1_000_000_000),
        ({"GROKFLASK_BODIES_TOTAL_BYTES": "100000"}, 2**27),
    ],
)
def test_memory_for_bodies(environ: dict[str, str], expected: int) -> None:
    """The largest body always finds room in an idle gateway."""
    assert load(**environ).max_bodies_bytes == expected
