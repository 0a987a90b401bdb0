"""grokflask: a small streaming gateway in front of xAI's Grok."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from grokflask.config import Settings

__all__ = ["create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. `settings` come from the environment and `.env` when not given.

    Raises:
        ConfigError: the settings cannot work; it lists every problem.
    """
    # Imported here, so that `import grokflask.sandbox` loads neither Flask nor SQLAlchemy.
    from grokflask.app import create_app as make

    return make(settings)
