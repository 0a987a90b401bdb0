"""The app over a sandbox whose journal can be read, with keys of several holders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from grokflask import create_app
from grokflask.config import load_settings
from grokflask.sandbox import Exchange, Sandbox
from support.processes import UPSTREAM_KEY

ADMIN_TOKEN = "admin-token-0123456789"


class Door:
    """A gateway in this process, its upstream, and what it wrote down."""

    def __init__(self, sandbox: Sandbox, url: str, **environ: str) -> None:
        self.sandbox = sandbox
        defaults = {
            "XAI_API_KEY": UPSTREAM_KEY,
            "XAI_API_BASE": sandbox.base_url,
            "GROKFLASK_AUTH": "keys",
            "GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN,
            "GROKFLASK_RATE_LIMIT": "100000/hour",
            "GROKFLASK_KEY_CACHE_S": "0",
            "DATABASE_URL": url,
        }
        self.app = create_app(load_settings({**defaults, **environ}, dotenv=None))
        self.client: FlaskClient = self.app.test_client()
        self.ann, self.bob = self.make_key("ann"), self.make_key("bob")

    def make_key(self, name: str, **limits: Any) -> dict[str, str]:
        """The header of a new key."""
        _, secret = self.app.extensions["key_store"].create(name, limits)
        return {"Authorization": f"Bearer {secret}"}

    def call(self, method: str, path: str, key: dict[str, str] | None = None, **given: Any) -> Any:
        """The whole answer to a request of ann's, or of `key`'s."""
        headers = {**(self.ann if key is None else key), **given.pop("headers", {})}
        reply = self.client.open(f"/api/v1/{path}", method=method, headers=headers, **given)
        reply.get_data()
        reply.close()  # as a server does, once all is written
        return reply

    def list_rows(self, **filters: str) -> list[dict[str, Any]]:
        """The ledger's rows, the oldest first, all written down."""
        assert self.app.extensions["ledger_writer"].flush(30)
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        reply = self.client.get("/admin/api/ledger", headers=headers, query_string={"limit": 1000, **filters})
        rows: list[dict[str, Any]] = reply.json["rows"]
        assert all(row["outcome"] for row in rows)
        return rows[::-1]

    def find_charges(self, count: int) -> list[Exchange]:
        """What upstream has charged anything for: so many exchanges."""
        charges = [each for each in self.sandbox.journal.wait_until_idle() if each.cost_ticks]
        assert len(charges) == count
        return charges

    def close(self) -> None:
        """Ends what runs beside the requests."""
        self.app.extensions["background"].close()
        self.app.extensions["database"].close()


@pytest.fixture
def door(database_url: str) -> Iterator[Door]:
    """Over SQLite and over PostgreSQL."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as sandbox:
        opened = Door(sandbox, database_url)
        yield opened
        assert len(opened.app.extensions["gateway"].exchanges) == 0
        opened.close()
