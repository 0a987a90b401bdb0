"""The app with one more path, `/_inspect`: what its process holds. For tests of what must not leak."""

from __future__ import annotations

import gc
import os
from typing import Any

from flask import Flask

from grokflask import create_app

OURS = (
    "Relay",
    "ReplyReader",
    "UpstreamCall",
    "UpstreamStream",
    "Attempt",
    "Departure",
    "Watch",
    "LedgerEntry",
    "LedgerRow",
    "Hold",
    "Exchange",
)


def read_rss_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def inspect() -> dict[str, Any]:
    gc.collect()
    gc.collect()
    names: dict[str, int] = {}
    objects = gc.get_objects()
    for each in objects:
        if not type(each).__module__.startswith("grokflask.sandbox"):  # its journal keeps exchanges, too
            name = type(each).__name__
            names[name] = names.get(name, 0) + 1
    extensions = app.extensions
    return {
        "objects": len(objects),
        "ours": {name: names.get(name, 0) for name in OURS},
        "greenlets": names.get("greenlet", 0) + names.get("Greenlet", 0),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "open": len(extensions["gateway"].exchanges),
        "watches": len(extensions["clients"]),
        "rss_kib": read_rss_kib(),
    }


app: Flask = create_app()
app.add_url_rule("/_inspect", view_func=inspect)
