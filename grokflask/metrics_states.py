"""What the metrics tell of the present: open exchanges, stores, the ledger's queue."""

from __future__ import annotations

import platform

from grokflask.config import Settings
from grokflask.exchanges import OpenExchanges
from grokflask.ledger.writer import LedgerWriter
from grokflask.limits.admission import Limits
from grokflask.metrics import families
from grokflask.metrics.families import Figures
from grokflask.runtime import VERSION
from grokflask.storage.database import Database


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
