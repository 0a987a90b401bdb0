"""Fixtures for tests in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.browser import SWITCHES, Visit, find_chromium, open_visit


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a module: Playwright's loop, while it runs, is in the way of others."""
    path = find_chromium()
    if path is None:
        problem = "there is no Chromium: make .venv/browser, or install the package `chromium`"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens windows on a gateway by its URL; each must have been quiet when the test is over."""
    visits: list[Visit] = []

    def start(url: str, *args: object, **options: object) -> Visit:
        visits.append(open_visit(browser, url, *args, **options))  # type: ignore[arg-type]
        return visits[-1]

    yield start
    try:
        for each in visits:
            each.check()
    finally:
        for each in visits:
            each.page.context.close()
