"""The request that is being answered, what is noted about it, and its app: fetched once, then used.

Each use of Flask's `request`, `g` and `current_app` is a look-up of a context variable with three calls
around it, and on the way of a request there would be sixty of them.
"""

from __future__ import annotations

from flask import Flask, Request, current_app, g, request
from flask.ctx import _AppCtxGlobals

Notes = _AppCtxGlobals


def get_app() -> Flask:
    """What `current_app` stands for."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def get_request() -> Request:
    """What `request` stands for."""
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]
    return asked


def get_notes() -> Notes:
    """What `g` stands for."""
    notes: Notes = g._get_current_object()
    return notes
