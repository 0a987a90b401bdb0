"""The current app, request and notes. A hook or view fetches them once and hands them down.

Every use of Flask's `current_app`, `request` or `g` looks up a context variable, with three calls around it.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, current_app, g, request

from grokflask.keys.store import KeyStore
from grokflask.ledger.writer import LedgerWriter
from grokflask.storage.database import Database

Notes = Any
"""The object behind Flask's `g`: its attributes are what the hooks note about a request."""


def get_current() -> tuple[Flask, Request, Notes]:
    """The objects behind `current_app`, `request` and `g`."""
    return (
        current_app._get_current_object(),  # type: ignore[attr-defined]
        request._get_current_object(),  # type: ignore[attr-defined]
        g._get_current_object(),
    )


def get_notes() -> Notes:
    """The object behind `g`."""
    return g._get_current_object()


def get_database() -> Database:
    """The current app's database."""
    database: Database = current_app.extensions["database"]
    return database


def flush_ledger() -> None:
    """Stores the exchanges that this worker has just finished."""
    writer: LedgerWriter = current_app.extensions["ledger_writer"]
    writer.flush()


def get_key_store() -> KeyStore:
    """The current app's keys in the database."""
    store: KeyStore = current_app.extensions["key_store"]
    return store
