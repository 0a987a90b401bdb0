"""Takes the dashboard's pictures in docs/images: a gateway on the sandbox, with a ledger of made-up rows.

Needs what the tests in a browser need (`make .venv/dev .venv/browser`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import sync_playwright  # noqa: E402
from support.browser import DESKTOP, PHONE, SWITCHES, find_chromium, open_visit  # noqa: E402
from support.processes import GatewayServer  # noqa: E402
from support.seeding import seed_ledger  # noqa: E402

from grokflask.db import Database  # noqa: E402
from grokflask.key_store import KeyStore  # noqa: E402
from grokflask.money import TICKS_PER_USD  # noqa: E402

TOKEN = "only-for-pictures-0123456789"  # noqa: S105

SHOTS = {
    "dashboard": ("/admin", DESKTOP, False),
    "dashboard-dark": ("/admin?by=model&days=90", DESKTOP, True),
    "dashboard-key": ("/admin/keys/web-shop", DESKTOP, False),
    "dashboard-phone": ("/admin", PHONE, False),
}
"""By the file's name: path, the window's size, and whether it is dark."""


def fill(url: str) -> None:
    """Months of exchanges, and keys with limits."""
    database = Database(url)
    seed_ledger(database, 4000)
    keys = KeyStore(database)
    keys.create("web-shop", {"budget_day_ticks": TICKS_PER_USD, "budget_month_ticks": 5 * TICKS_PER_USD})
    keys.create("alice", {"requests": "100/hour", "streams": 3})
    keys.create("support-bot", {"tokens_per_minute": 50_000, "tools": "client"})
    database.close()


def main() -> None:
    """Writes all of SHOTS."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        url = f"sqlite:///{folder}/ledger.db"
        fill(url)
        server = GatewayServer(Path(folder), {"GROKFLASK_ADMIN_TOKEN": TOKEN, "DATABASE_URL": url})
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=SWITCHES)
        for name, (path, size, dark) in SHOTS.items():
            page = open_visit(browser, server.url, size, dark=dark).page
            page.goto(f"{server.url}/admin/login")
            page.fill("#token", TOKEN)
            page.press("#token", "Enter")
            page.wait_for_url("**/admin")
            page.goto(server.url + path)
            page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")
            page.context.close()
        browser.close()
        server.stop()


if __name__ == "__main__":
    main()
