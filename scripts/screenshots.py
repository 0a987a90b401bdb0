"""Pictures of the pages for the docs: starts a gateway on the sandbox and writes docs/images/*.png.

`.venv/bin/python scripts/screenshots.py [NAME ...]` takes those whose names begin so; without names, all.
A new picture is a line in `SHOTS` and, where there is something to do first, a function.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402 - the path comes first
from support.browser import DESKTOP, PHONE, SWITCHES, Visit, find_chromium, open_visit  # noqa: E402
from support.playground import ask, make_png, open_playground, say  # noqa: E402
from support.processes import GatewayServer  # noqa: E402
from support.seeding import seed_ledger  # noqa: E402

from grokflask.billing.money import TICKS_PER_USD  # noqa: E402
from grokflask.keys.store import KeyStore  # noqa: E402
from grokflask.storage.database import Database  # noqa: E402

TOKEN = "only-for-pictures-0123456789"  # noqa: S105
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 250_000


def show_as_is(page: Page) -> None:
    """What is there at first."""


def show_conversation(page: Page) -> None:
    """A table, and code by a model that thinks aloud."""
    ask(page, "Compare three sorting algorithms in a table")
    page.locator("#model").select_option("grok-4.7")
    ask(page, "Write a Python function that checks a password, and explain it")


def show_code(page: Page) -> None:
    """A turn as code."""
    ask(page, "Write a short story about a lighthouse keeper")
    page.get_by_role("button", name="This turn as code").click()


def show_picture(page: Page) -> None:
    """A picture that was looked at."""
    page.set_input_files("#picture", {"name": "a.png", "mimeType": "image/png", "buffer": make_png(96, 72)})
    ask(page, "What is in this picture?")


def show_error(page: Page) -> None:
    """An answer that broke off."""
    page.evaluate("location.search = '?model=sandbox-error-mid-stream'")
    page.wait_for_selector("html[data-ready]")
    say(page, "Write a short story about a lighthouse keeper")
    page.locator(".turn[data-state=failed]").wait_for()


def show_images(page: Page) -> None:
    """Images that were made."""
    page.get_by_role("tab", name="Image").click()
    page.get_by_label("What should be in it?").fill("A lighthouse in the fog, as a woodcut")
    page.get_by_label("How many").select_option("3")
    page.get_by_role("button", name="Make").click()
    page.locator(".made .facts").wait_for()


def show_events(page: Page) -> None:
    """The events of a stream."""
    ask(page, "Write a short story about a lighthouse keeper")
    page.get_by_role("tab", name="Raw events").click()
    page.locator("#event-list li").first.wait_for()


def open_dashboard(path: str) -> Callable[[Visit], Page]:
    """Opens a page of the dashboard, signed in."""

    def sign_in(visit: Visit) -> Page:
        page = visit.open("/admin/login")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        page.wait_for_url("**/admin")
        return visit.open(path)

    return sign_in


def open_reference(visit: Visit) -> Page:
    """Opens the reference, once all of it is there."""
    page = visit.open("/docs/")
    page.locator(".opblock").first.wait_for()
    return page


@dataclass(frozen=True)
class Shot:
    """A picture: its file's name, the page, what is done there first, and how it is looked at.

    Attributes:
        kept: it belongs to the docs; others are for looking at while a page is being changed.
    """

    name: str
    prepare: Callable[[Page], None]
    size: tuple[int, int] = DESKTOP
    dark: bool = False
    open: Callable[..., Page] = open_playground
    kept: bool = True


SHOTS = (
    Shot("playground-empty-light", show_as_is),
    Shot("playground-empty-dark", show_as_is, dark=True),
    Shot("playground-full-light", show_conversation),
    Shot("playground-full-dark", show_conversation, dark=True),
    Shot("playground-phone-light", show_conversation, PHONE),
    Shot("playground-phone-dark", show_as_is, PHONE, dark=True),
    Shot("dashboard", show_as_is, open=open_dashboard("/admin")),
    Shot("dashboard-dark", show_as_is, dark=True, open=open_dashboard("/admin?by=model&days=90")),
    Shot("dashboard-key", show_as_is, open=open_dashboard("/admin/keys/web-shop")),
    Shot("dashboard-phone", show_as_is, PHONE, open=open_dashboard("/admin")),
    Shot("reference", show_as_is, open=open_reference),
    *(
        Shot(f"playground-look-{name}-{'dark' if dark else 'light'}", prepare, size, dark, kept=False)
        for name, prepare, size, dark in (
            ("code", show_code, DESKTOP, False),
            ("picture", show_picture, PHONE, False),
            ("error", show_error, DESKTOP, True),
            ("error", show_error, PHONE, False),
            ("images", show_images, DESKTOP, False),
            ("events", show_events, DESKTOP, True),
        )
    ),
)


def take(browser: Browser, url: str, shot: Shot, directory: Path) -> None:
    """Takes one picture. Raises AssertionError when the page complained, or the file is too large."""
    visit = open_visit(browser, url, shot.size, dark=shot.dark)
    page = shot.open(visit)
    shot.prepare(page)
    page.wait_for_load_state("networkidle")
    path = directory / f"{shot.name}.png"
    page.screenshot(path=path, animations="disabled")
    visit.check()
    page.context.close()
    size_bytes = path.stat().st_size
    assert size_bytes <= MAX_BYTES or not shot.kept, f"{path.name} has {size_bytes} bytes"
    print(f"{path} {size_bytes // 1000} kB")


def fill(url: str) -> None:
    """Months of exchanges, and keys with limits, for the dashboard."""
    database = Database(url)
    seed_ledger(database, 4000)
    keys = KeyStore(database)
    keys.create("web-shop", {"budget_day_ticks": TICKS_PER_USD, "budget_month_ticks": 5 * TICKS_PER_USD})
    keys.create("alice", {"requests": "100/hour", "streams": 3})
    keys.create("support-bot", {"tokens_per_minute": 50_000, "tools": "client"})
    database.close()


def main(names: list[str]) -> None:
    """Takes the pictures that are wanted: those not kept only by name, into the temporary directory."""
    wanted = [shot for shot in SHOTS if (shot.name.startswith(tuple(names)) if names else shot.kept)]
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        url = f"sqlite:///{directory}/ledger.db"
        fill(url)
        # Not the limit of tests: its figures are in the pictures.
        settings = {"GROKFLASK_RATE_LIMIT": "1000/hour", "GROKFLASK_ADMIN_TOKEN": TOKEN, "DATABASE_URL": url}
        server = GatewayServer(Path(directory), settings)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=SWITCHES)
        try:
            for shot in wanted:
                take(browser, server.url, shot, IMAGES if shot.kept else Path(tempfile.gettempdir()))
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
