"""Keys for the clients of a measurement, made through the gateway's own key store, with every limit on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grokflask.keys.limits import read_changes  # noqa: E402
from grokflask.keys.store import KeyStore  # noqa: E402
from grokflask.storage.database import Database  # noqa: E402 - the path comes first

LIMITS = {
    "requests": "1000000000/hour",
    "streams": 100_000,
    "tokens_per_minute": 10**12,
    "budget_day": "1000000",
    "budget_month": "10000000",
}
"""All of them count, and none is ever reached."""


def make(database_url: str, count: int, keys_file: Path) -> None:
    """Makes `count` keys, and writes their secrets to `keys_file`, one a line."""
    database = Database(database_url)
    try:
        store = KeyStore(database)
        changes = read_changes(LIMITS, time.time())
        secrets = [store.create(f"bench-{number}", changes)[1] for number in range(count)]
    finally:
        database.close()
    keys_file.write_text("".join(f"{secret}\n" for secret in secrets))
