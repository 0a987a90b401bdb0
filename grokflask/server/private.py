"""What this folder changes inside gunicorn, beyond its documented interface."""

from __future__ import annotations

import functools
import time
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi

from grokflask.server.response import Response, write_error


def install() -> None:
    """Makes gunicorn use our response and our error replies; it finds both by their modules' names."""
    wsgi.Response = Response
    util.write_error = write_error
    # Asked for with every response.
    format_second = functools.lru_cache(maxsize=2)(util.http_date)
    util.http_date = lambda timestamp=None: format_second(
        int(time.time() if timestamp is None else timestamp)
    )


def fix_settings(cfg: Any) -> None:
    """Stores gunicorn's settings as attributes: they are fixed in a worker, and each is read many times."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})
