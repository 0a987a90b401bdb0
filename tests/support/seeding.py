"""A ledger with months of varied exchanges in it, for pages that show them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from grokflask.ledger.row import LedgerRow, make_id
from grokflask.ledger.statements import read_fields, store
from grokflask.storage.database import Database

KEYS = (
    "web-shop",
    "alice",
    "research-notebook",
    "support-bot",
    "mobile-app",
    "bob",
    "ci",
    "newsletter",
    "old",
)
MODELS = {"grok-4.3": 90_000_000, "grok-4-fast": 9_000_000, "grok-3-mini": 4_000_000, "grok-4": 260_000_000}
OUTCOMES = {
    "complete": 86,
    "client_abort": 8,
    "upstream_error": 2,
    **dict.fromkeys(("truncated", "timeout", "shutdown", "lost"), 1),
}
DAY_S = 86400.0
BATCH_ROWS = 500


def seed_ledger(database: Database, rows: int, days: int = 90, seed: int = 7) -> None:
    """Fills an empty ledger; the newest row is a minute old."""
    made = list(make_rows(rows, days, seed))
    for start in range(0, len(made), BATCH_ROWS):
        batch = [read_fields(row) for row in made[start : start + BATCH_ROWS]]
        database.write(lambda connection, batch=batch: store(connection, batch))


def make_rows(count: int, days: int, seed: int) -> Iterator[LedgerRow]:
    """The rows, the newest first; recent days have more."""
    chance = random.Random(seed)
    now = time.time()
    for number in range(count):
        age_s = 60 + (number / count) ** 1.5 * days * DAY_S
        key = chance.choices(KEYS, weights=range(len(KEYS), 0, -1))[0]
        model = chance.choices(list(MODELS), weights=(5, 3, 2, 1))[0]
        outcome = chance.choices(list(OUTCOMES), weights=list(OUTCOMES.values()))[0]
        yield make_row(now - age_s, key, model, outcome, chance)


def make_row(started_at: float, key: str, model: str, outcome: str, chance: random.Random) -> LedgerRow:
    """One settled exchange; what was cut short has cost less."""
    part = 1.0 if outcome == "complete" else chance.uniform(0.05, 0.5)
    out_tokens = int(chance.lognormvariate(5.5, 0.8) * part)
    prompt_tokens = int(chance.lognormvariate(6.5, 1))
    failed = outcome in ("upstream_error", "lost")
    ttft_ms = None if failed else int(chance.lognormvariate(5.8, 0.5))
    return LedgerRow(
        id=make_id(started_at),
        request_id=f"{chance.getrandbits(128):032x}",
        key=key,
        route="chat",
        model=model,
        started_at=started_at,
        worker="seed",
        stream=True,
        model_served=None if failed else model,
        outcome=outcome,
        status=502 if outcome == "upstream_error" else 200,
        ttft_ms=ttft_ms,
        duration_ms=(ttft_ms or 300) + out_tokens * 9,
        prompt_tokens=prompt_tokens,
        cached_tokens=prompt_tokens // 3,
        completion_tokens=out_tokens,
        reasoning_tokens=out_tokens // 2,
        total_tokens=prompt_tokens + out_tokens + out_tokens // 2,
        cost_ticks=0 if failed else int(MODELS[model] * (0.2 + part) * chance.uniform(0.5, 1.5)),
        estimated=outcome == "client_abort",
        bytes_out=out_tokens * 230,
        server_tools=0,
        reached=None if outcome == "lost" else "answered",
    )
