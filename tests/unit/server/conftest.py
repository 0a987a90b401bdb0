"""A worker as gunicorn makes it, in this process and without a master."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn import util
from gunicorn.config import Config
from gunicorn.http import parser, wsgi

from grokflask.server import private
from grokflask.server.worker import Worker


class WorkerLog(logging.Logger):
    """A logger of gunicorn's kind.

    Attributes:
        lines: what was logged.
    """

    def __init__(self) -> None:
        super().__init__("worker", logging.INFO)
        self.lines = io.StringIO()
        self.addHandler(logging.StreamHandler(self.lines))

    def access(self, *_: object) -> None:
        """Requests are not logged."""


@pytest.fixture
def make_worker() -> Iterator[Callable[..., Worker]]:
    """Makes workers that serve `app`, with gunicorn's settings as given."""
    workers: list[Worker] = []

    def make(app: Any = None, **settings: Any) -> Worker:
        cfg = Config()
        for name, value in settings.items():
            cfg.set(name, value)
        worker = Worker(1, 0, [], None, 30, cfg, WorkerLog())
        worker.wsgi = app
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.tmp.close()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn as in a worker; as it was after the test."""
    monkeypatch.setattr(parser, "SocketUnreader", parser.SocketUnreader)
    monkeypatch.setattr(wsgi, "Response", wsgi.Response)
    monkeypatch.setattr(util, "write_error", util.write_error)
    private.install()
