"""The pages of the documentation: their fenced blocks, and which test runs each of them.

A new page, or a new language on a page, gets a line in `RUN_BY`: `tests/unit/test_pages.py` fails until
it has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.processes import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

DOCS = "tests/wire/test_docs.py::"
QUICKSTARTS = "tests/wire/test_quickstarts.py::"
DEPLOYMENT = "tests/wire/test_deployment.py::"
NOT_RUN = "not run: "

# Page, language of its blocks: the tests that run all of these, or why none does.
RUN_BY = {
    ("README.md", "sh"): DOCS + "test_readme_commands",
    ("README.md", "bash"): DOCS + "test_curl_examples",
    ("README.md", "python"): DOCS + "test_python_examples",
    ("README.md", "text"): NOT_RUN + "a line of the log, and nothing to run",
    ("CONTRIBUTING.md", "text"): NOT_RUN + "the map of modules, which tests/unit/test_layers.py knows",
    ("docs/dashboard.md", "console"): DOCS + "test_pages_of_commands",
    ("docs/deployment.md", "sh"): DEPLOYMENT + "test_commands",
    ("docs/deployment.md", "ini"): DEPLOYMENT + "test_systemd_unit",
    ("docs/deployment.md", "nginx"): DEPLOYMENT + "test_nginx_blocks_agree",
    ("docs/deployment.md", "env"): DEPLOYMENT + "test_settings_blocks",
    ("docs/deployment.md", "dockerfile"): DEPLOYMENT + "test_dockerfile",
    ("docs/idempotency.md", "python"): DOCS + "test_python_examples",
    ("docs/idempotency.md", "text"): NOT_RUN + "a drawing of two requests side by side",
    ("docs/keys.md", "console"): DOCS + "test_pages_of_commands",
    ("docs/keys.md", "sh"): DOCS + "test_keys_gateway",
    ("docs/metrics.md", "yaml"): "tests/http/test_metrics.py::test_the_scrape_config",
    ("docs/quickstarts.md", "bash"): QUICKSTARTS + "test_curl",
    ("docs/quickstarts.md", "js"): QUICKSTARTS + "test_story",
    ("docs/quickstarts.md", "python"): QUICKSTARTS + "test_story",
    ("docs/quickstarts.md", "sh"): QUICKSTARTS + "test_shell_blocks",
    ("docs/responses-and-messages.md", "bash"): DOCS + "test_curl_examples",
    ("docs/responses-and-messages.md", "python"): DOCS + "test_python_examples",
    ("docs/sandbox.md", "console"): DOCS + "test_sandbox_alone",
    ("docs/sandbox.md", "python"): DOCS + "test_sandbox_from_python",
    ("docs/streaming.md", "bash"): DOCS + "test_curl_examples",
    ("docs/streaming.md", "nginx"): DEPLOYMENT + "test_nginx_blocks_agree",
    ("docs/streaming.md", "python"): DOCS + "test_python_examples",
    ("docs/terminal.md", "console"): DOCS + "test_terminal_page",
    ("docs/terminal.md", "sh"): DOCS + "test_terminal_page",
    ("docs/operating.md", "text"): NOT_RUN + "a line of the log, as tests/wire/test_watchdog.py reads one",
    ("docs/streaming.md", "text"): NOT_RUN
    + "one line of a Caddyfile; Caddy is not among what the tests install",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, text, and where it begins."""

    page: str
    language: str
    text: str
    line: int


def name_page(path: Path) -> str:
    """A page's path within the project."""
    return str(path.relative_to(ROOT))


def list_blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, indented ones as well. A fence that is not closed is an AssertionError."""
    language, begun, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*(?:`{3,}|~{3,})(.*)", line)
        if not fence:
            lines.append(line)
        elif not begun:
            language, begun, lines = fence[1].strip(), number, []
        else:
            yield Block(name_page(page), language, "\n".join(lines) + "\n", begun)
            begun = 0
    assert not begun, f"{name_page(page)}:{begun}: a block without an end"


def find_blocks(page: str, language: str) -> list[Block]:
    """The blocks of one page in one language. Raises AssertionError when there are none."""
    found = [block for block in list_blocks(ROOT / page) if block.language == language]
    assert found, f"{page} has no blocks in {language}"
    return found


def list_blocks_of(test: str) -> list[Block]:
    """The blocks that `RUN_BY` gives to one test."""
    return [
        block
        for (page, language), by in RUN_BY.items()
        if by == test
        for block in find_blocks(page, language)
    ]
