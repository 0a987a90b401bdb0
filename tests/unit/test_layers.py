"""The order of the folders, and the libraries that each may use. Read from the source; nothing is run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "grokflask"

FOLDERS: dict[str, str] = {
    "errors": "msgspec",
    "times": "",
    "sockets": "",
    "runtime": "",
    "log": "",
    "server": "gevent gunicorn",
    "protocol": "msgspec",
    "setting_types": "",
    "config": "dotenv",
    "storage": "sqlalchemy redis",
    "billing": "msgspec",
    "ledger": "msgspec sqlalchemy",
    "shaping": "msgspec",
    "keys": "msgspec sqlalchemy",
    "upstream": "msgspec requests urllib3 certifi httptools",
    "metrics": "prometheus_client",
    "delivery": "msgspec",
    "limits": "msgspec redis limits",
    "kept": "msgspec sqlalchemy",
    "catalogue": "msgspec",
    "register": "msgspec",
    "exchanges": "msgspec",
    "gateway": "",
    "replay": "msgspec redis",
    "services": "redis",
    "web": "flask werkzeug flask_limiter flask_cors flask_wtf wtforms markdown_it nh3 msgspec redis limits",
    "cli": "click flask msgspec sqlalchemy redis requests urllib3 certifi",
    "sandbox": "msgspec",
    "app": "flask werkzeug click",
    "": "flask",
}
"""Every folder of the package, and every module outside one, bottom to top, with its libraries.

One imports only what stands above it in this table. The package itself is "".
"""

APART = [
    ("keys", "ledger"),
    ("delivery", "limits"),
    ("delivery", "ledger"),
    ("web", "cli"),
]
"""Folders that never import each other, whichever stands first."""


def list_modules() -> dict[str, Path]:
    """All modules by their dotted names below `grokflask`."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = list_modules()


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


def find_folder(module: str) -> str:
    return module.partition(".")[0]


IMPORTS = {name: read_imports(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_every_folder_has_its_place() -> None:
    """The table names what there is, and nothing else."""
    assert {find_folder(module) for module in MODULES} == FOLDERS.keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_stands_before_it(folder: str) -> None:
    """Imports go downwards. `import grokflask.x` runs the package itself, which imports nothing."""
    order = list(FOLDERS)
    before = {*order[: order.index(folder)], folder}
    wrong = {
        (module, name)
        for module in MODULES
        if find_folder(module) == folder
        for name in IMPORTS[module][0]
        if find_folder(name) not in before
    }
    assert wrong == set()


@pytest.mark.parametrize(("one", "other"), APART)
def test_folders_that_stay_apart(one: str, other: str) -> None:
    """They meet above, in the gateway or in the app."""
    for folder, forbidden in ((one, other), (other, one)):
        imported = {
            name for module in MODULES if find_folder(module) == folder for name in IMPORTS[module][0]
        }
        assert forbidden not in {find_folder(name) for name in imported}


@pytest.mark.parametrize("folder", FOLDERS)
def test_libraries(folder: str) -> None:
    """A folder uses its own libraries, and no others."""
    used = {name for module in MODULES if find_folder(module) == folder for name in IMPORTS[module][1]}
    assert used - set(FOLDERS[folder].split()) == set()


def test_only_the_app_knows_the_sandbox() -> None:
    """The gateway gets an address; what answers there is not its concern."""
    knows = {find_folder(module) for module in MODULES if "sandbox" in map(find_folder, IMPORTS[module][0])}
    assert knows == {"sandbox", "app"}


def test_the_sandbox_stands_alone() -> None:
    """The emulator shares no code with the gateway, so that both do not err in the same way."""
    imported = {name for module in MODULES if find_folder(module) == "sandbox" for name in IMPORTS[module][0]}
    assert {find_folder(name) for name in imported} == {"sandbox"}


def find_circles() -> Iterator[list[str]]:
    """Modules that import each other, directly or through others."""
    seen: dict[str, bool] = {}  # False while the module is on the path

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in seen:
            if not seen[module] and module in path:
                yield path[path.index(module) :]
            return
        seen[module] = False
        for name in sorted(IMPORTS[module][0]):
            if name != module:
                yield from visit(name, [*path, module])
        seen[module] = True

    for module in sorted(MODULES):
        yield from visit(module, [])


def test_no_circles() -> None:
    """A module can be read without the ones that import it."""
    assert list(find_circles()) == []


def test_the_package_shows_itself_in_few_names() -> None:
    """At most 15 modules stand outside a folder."""
    assert len(list(PACKAGE.glob("*.py"))) <= 15


def test_the_sandbox_loads_little() -> None:
    """Importing it loads neither Flask nor SQLAlchemy: it starts in a moment."""
    code = (
        "import sys, grokflask.sandbox; print(len(sys.modules), *{'flask', 'sqlalchemy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    count, *loaded = done.stdout.split()
    assert loaded == []
    assert int(count) < 260  # 190 when this was written, and 893 when the package imported the app


def test_the_tables_load_no_database() -> None:
    """SQLAlchemy's dialect of the other database would cost each worker 2.5 MiB."""
    code = "import sys, grokflask.storage.tables; print(*(n for n in sys.modules if 'dialects.' in n))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("source", "ours", "libraries"),
    [
        ("import os, json.decoder", set(), set()),
        ("from __future__ import annotations", set(), set()),
        ("import requests.adapters as a", set(), {"requests"}),
        ("from grokflask.errors import MALFORMED", {"errors"}, set()),
        ("from grokflask import gateway, create_app", {"gateway", ""}, set()),
        ("import grokflask.web.api", {"web.api"}, set()),
        ("from grokflask.web import api, hooks", {"web.api", "web.hooks"}, set()),
        ("def f():\n    if x:\n        from flask import g", set(), {"flask"}),
    ],
)
def test_how_imports_are_read(source: str, ours: set[str], libraries: set[str]) -> None:
    """The reader sees every form of import, at any depth."""
    assert read_imports(source) == (ours, libraries)
