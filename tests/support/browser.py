"""Chromium, and what every page must be in it: quiet, at home, and open to everybody."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect

from support.processes import ROOT
from support.scripted import WAIT_S

AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"

PHONE = (390, 844)
TABLET = (768, 1024)
DESKTOP = (1440, 900)

WAIT_MS = 1000 * WAIT_S

expect.set_options(timeout=WAIT_MS)  # no test may fail because the machine is slow

SWITCHES = [
    # It runs as root in CI, and must look for nobody else.
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]


def find_chromium() -> str | None:
    """The browser's path; None when there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return None


@dataclass
class Visit:
    """A browser's window on a gateway, and what went wrong in it.

    Attributes:
        expected: patterns of console lines that belong to the test, such as a refused request's.
    """

    page: Page
    url: str
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._note_console)
        self.page.on("pageerror", self._note_error)
        self.page.on("request", self._note_request)

    def open(self, path: str) -> Page:
        """Goes to a page of the gateway."""
        self.page.goto(self.url + path)
        return self.page

    def expect_problem(self, pattern: str) -> None:
        """From now on, console lines with this in them are no failure."""
        self.expected.append(pattern)

    def check(self) -> None:
        """Fails if the page complained, broke its own policy, or asked another host for anything."""
        left = [line for line in self.problems if not any(re.search(each, line) for each in self.expected)]
        assert left == []

    def check_accessibility(self, *allowed: str) -> None:
        """Fails for what axe-core finds serious or critical on the page as it is now."""
        assert AXE.exists(), "axe-core is missing: make .venv/node"
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        serious = [
            f"{each['id']}: {each['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical") and each["id"] not in allowed
            for node in each["nodes"]
        ]
        assert serious == []

    def check_width(self) -> None:
        """Fails when the page is wider than its window: nobody scrolls sideways to read."""
        wide, inner = self.page.evaluate(
            "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= inner

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _note_error(self, error: Error) -> None:
        self.problems.append(f"uncaught: {error.message}")

    def _note_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and not request.url.startswith(self.url):
            self.problems.append(f"foreign: {request.url}")


def open_visit(
    browser: Browser,
    url: str,
    size: tuple[int, int] = DESKTOP,
    *,
    dark: bool = False,
    downloads: Path | None = None,
) -> Visit:
    """A fresh window without cookies; a phone's has touch."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        has_touch=size == PHONE,
        accept_downloads=downloads is not None,
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(WAIT_MS)
    return Visit(context.new_page(), url)
