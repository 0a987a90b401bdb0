"""What the metrics tell of the present: open exchanges, stores, the ledger's queue."""

from __future__ import annotations

import platform

from grokflask import metrics_families as families
from grokflask.config import Settings
from grokflask.db import Database
from grokflask.exchanges import OpenExchanges
from grokflask.ledger_writer import LedgerWriter
from grokflask.limits import Limits
from grokflask.metrics_families import Figures
from grokflask.process import VERSION


def read_states(
    settings: Settings, exchanges: OpenExchanges, database: Database, limits: Limits, writer: LedgerWriter
) -> Figures:
    """Figures that are kept elsewhere, as they are now. Waits for nothing and asks no store."""
    store = limits.state
    figures: Figures = {
        families.BUILD: {(VERSION, platform.python_version()): 1},
        families.WORKERS: {(): 1},
        families.DRAINING: {(): int(exchanges.draining)},
        families.OPEN_EXCHANGES: {(): len(exchanges)},
        families.OPEN_STREAMS: {(): len(exchanges.streams)},
        families.CAPACITY: {(): settings.max_exchanges},
        families.DATABASE_UP: {(): int(database.state != "away")},
        families.LEDGER_QUEUED: {(): writer.queued},
        families.LEDGER_ROWS: {
            ("dropped",): writer.dropped,
            ("refused",): writer.refused,
            ("lost",): writer.lost,
        },
        families.SETTLEMENTS: {(): store.waiting},
        families.OUTAGES: {("database",): database.outages},
    }
    if settings.redis_url:
        figures[families.REDIS_UP] = {(): int(store.store != "local")}
        figures[families.OUTAGES][("redis",)] = store.outages
    return figures
