"""The layers: who may import whom, and who may use which library. Read from the source, nothing is run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "grokflask"

LEVELS = {
    **dict.fromkeys(
        ("openapi", "openapi_answers", "openapi_errors", "openapi_operations", "openapi_schemas"), 0
    ),
    **dict.fromkeys(("errors", "upstream_errors", "sse", "framing", "answer_head", "process", "usage"), 0),
    **dict.fromkeys(
        ("routes", "shaping", "vision", "tools", "config", "setting_types", "terms", "event_filter"), 0
    ),
    **dict.fromkeys(("dialects", "typed_events", "typed_usage", "dropped_params", "affinity"), 0),
    **dict.fromkeys(
        ("money", "key_limits", "stored_key", "ledger_row", "prices", "billing", "spreadsheet"), 0
    ),
    **dict.fromkeys(
        ("clients", "connections", "transport", "upstream", "upstream_stream", "log", "spool"), 1
    ),
    **dict.fromkeys(
        (
            "migrations",
            "tables",
            "db",
            "counters",
            "memory_counters",
            "redis_pool",
            "redis_counters",
            "redis_recordings",
            "recording_store",
            "request_storage",
            "background",
        ),
        1,
    ),
    **dict.fromkeys(("keys", "ledger", "moved_models", "relay", "reply", "exchanges"), 2),
    **dict.fromkeys(("recording", "recordings", "shared_recordings", "reader"), 2),
    **dict.fromkeys(("recording_publisher", "recording_follower"), 2),
    **dict.fromkeys(
        (
            "key_store",
            "catalogue",
            "custody",
            "limits",
            "ownership",
            "refusals",
            "stand_in",
            "settlements",
            "ledger_store",
            "ledger_writer",
            "ledger_query",
            "reports",
            "overview",
        ),
        2,
    ),
    "answer": 2,
    **dict.fromkeys(("metrics_families", "metrics_tallies"), 0),
    **dict.fromkeys(("metrics_samples", "metrics_files", "metrics"), 1),
    "metrics_states": 3,
    "exchange": 3,
    "gateway": 3,
    "replay": 3,
    "reconciliation": 3,
    **dict.fromkeys(
        (
            "web",
            "web.api",
            "web.application",
            "web.body",
            "web.current",
            "web.extensions",
            "web.formats",
            "web.health",
            "web.hooks",
            "web.markdown",
            "web.metrics",
            "web.pages",
            "web.playground",
            "web.reference",
            "web.replies",
        ),
        4,
    ),
    **dict.fromkeys(("web.admin", "web.admin_figures", "web.replies", "web.streams", "web.usage"), 4),
    **dict.fromkeys(("web.attempts", "web.charts", "web.ledger_csv", "web.sessions"), 4),
    **dict.fromkeys(
        ("web.dashboard", "web.dashboard_figures", "web.dashboard_keys", "web.dashboard_login"), 4
    ),
    **dict.fromkeys(("cli", "cli.db", "cli.group", "cli.keys", "cli.tables", "cli.usage"), 4),
    **dict.fromkeys(("cli.caller", "cli.chat", "cli.conversation", "cli.terminal", "cli.findings"), 4),
    **dict.fromkeys(
        (
            "cli.broken",
            "cli.check_place",
            "cli.check_silence",
            "cli.check_stores",
            "cli.check_upstream",
            "cli.check_url",
            "cli.doctor",
        ),
        4,
    ),
    "web.diagnose": 4,
    **dict.fromkeys(("", "services", "wsgi"), 5),
}
"""Every module of the package, "" being the package itself and `wsgi` the file beside it. A lower one never
imports a higher one. A new module takes its place here."""

APART = [
    {"keys", "limits", "ledger", "relay", "reply", "exchanges", "recordings"},
    {"ledger", "ledger_writer", "reports", "key_store", "limits"},
    {"web.api", "web.health", "web.admin", "web.diagnose", "web.metrics", "web.reference"},
]
"""Modules that never import each other."""

FLASK = {"flask", "werkzeug", "flask_limiter", "flask_cors"}

LIBRARIES = {
    **{module: {"msgspec"} for module in LEVELS if module},
    "config": {"msgspec", "dotenv"},
    "answer_head": {"gunicorn_h1c", "msgspec"},
    "upstream": {"msgspec", "requests"},
    "upstream_stream": {"requests"},
    **{module: {"sqlalchemy"} for module in ("db", "migrations", "tables", "ownership")},
    **{
        module: {"msgspec", "sqlalchemy"}
        for module in ("key_store", "ledger_store", "ledger_query", "reports", "overview")
    },
    **{module: {"prometheus_client"} for module in ("metrics", "metrics_files", "metrics_samples")},
    "redis_pool": {"redis"},
    "redis_counters": {"redis"},
    "redis_recordings": {"redis"},
    "services": {"redis"},
    "request_storage": {"limits"},
    "connections": {"urllib3", "certifi"},
    "transport": {"requests", "urllib3"},
    **{module: {"msgspec", *FLASK} for module in LEVELS if module.startswith("web")},
    "web.extensions": {"msgspec", *FLASK, "redis", "limits"},
    "web.attempts": {"limits"},
    "web.charts": set(),
    "web.dashboard_figures": set(),
    "web.dashboard_login": {*FLASK, "flask_wtf", "wtforms"},
    "web.markdown": {"markdown_it", "nh3"},
    **{module: {"click", "flask", "msgspec", "sqlalchemy"} for module in LEVELS if module.startswith("cli")},
    **{module: {"click", "flask", "msgspec", "requests"} for module in ("cli.chat", "cli.conversation")},
    "cli.caller": {"click", "msgspec", "requests", "urllib3"},
    "cli.check_upstream": {"certifi", "requests"},
    "cli.check_stores": {"redis", "sqlalchemy"},
    "": {*FLASK, "click"},
    "wsgi": set(),
}
"""Which libraries a module may use, besides the standard one."""


def list_modules() -> dict[str, Path]:
    """All modules by their names below `grokflask`."""
    modules = {"wsgi": ROOT / "wsgi.py"}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = list_modules()
SANDBOX = sorted(name for name in MODULES if name.split(".")[0] == "sandbox")
REST = sorted(MODULES.keys() - set(SANDBOX))


def read_imports(source: str) -> tuple[set[str], set[str]]:
    """Our modules and the outside libraries that `source` imports, wherever in it the import stands."""
    ours: set[str] = set()
    libraries: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, below = name.partition(".")
            if top == "grokflask":
                ours.add(find_module(below))
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    return ours, libraries


def find_module(dotted: str) -> str:
    """The module in `module.name`, which may be that name itself."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted


def imports_of(module: str) -> tuple[set[str], set[str]]:
    return read_imports(MODULES[module].read_text(encoding="utf-8"))


def test_every_module_has_a_level() -> None:
    """What is not in the table does not exist, and what is in it does."""
    assert set(REST) == LEVELS.keys()


@pytest.mark.parametrize("module", REST)
def test_lower_never_imports_higher(module: str) -> None:
    """Imports go downwards, or sideways within a level."""
    ours, _ = imports_of(module)
    wrong = [name for name in ours - set(SANDBOX) if LEVELS.get(name, 99) > LEVELS.get(module, -1)]
    assert wrong == []


@pytest.mark.parametrize("module", REST)
def test_some_modules_never_import_each_other(module: str) -> None:
    """The domain's modules meet in the gateway, and blueprints do not meet."""
    ours, _ = imports_of(module)
    for group in APART:
        if module in group:
            assert ours & group <= {module}


@pytest.mark.parametrize("module", REST)
def test_libraries(module: str) -> None:
    """Flask stays at the edge, requests in `upstream`, Redis in `web.extensions`; msgspec may be anywhere."""
    _, libraries = imports_of(module)
    assert libraries - LIBRARIES.get(module, set()) == set()


@pytest.mark.parametrize("module", REST)
def test_only_the_assembly_knows_the_sandbox(module: str) -> None:
    """The gateway is told an address; what answers there is no business of its."""
    ours, _ = imports_of(module)
    assert module == "" or not ours & set(SANDBOX)


@pytest.mark.parametrize("module", SANDBOX)
def test_sandbox_stands_alone(module: str) -> None:
    """The emulator imports the standard library, msgspec and itself, so that it errs on its own."""
    ours, libraries = imports_of(module)
    assert ours - set(SANDBOX) == set()
    assert libraries <= {"msgspec"}


def test_the_sandbox_is_looked_at() -> None:
    """The rule above has modules to hold for."""
    assert len(SANDBOX) > 5


@pytest.mark.parametrize(
    ("source", "ours", "libraries"),
    [
        ("import os, json.decoder", set(), set()),
        ("from __future__ import annotations", set(), set()),
        ("import requests.adapters as a", set(), {"requests"}),
        ("from grokflask.errors import MALFORMED", {"errors"}, set()),
        ("from grokflask import vision, create_app", {"vision", ""}, set()),
        ("import grokflask.web.api", {"web.api"}, set()),
        ("from grokflask.web import api, hooks", {"web.api", "web.hooks"}, set()),
        ("def f():\n    if x:\n        from flask import g", set(), {"flask"}),
    ],
)
def test_how_imports_are_read(source: str, ours: set[str], libraries: set[str]) -> None:
    """The reader sees every form of import, at any depth."""
    assert read_imports(source) == (ours, libraries)
