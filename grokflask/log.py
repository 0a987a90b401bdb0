"""The log: one line for each thing that happened, as `name=value` pairs, with no secret in it.

Every handler of this process gets a formatter that cuts secrets out of the finished line, whatever
library wrote it and however they got in (a traceback, a header quoted in a message).
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from functools import lru_cache

MIN_SECRET_CHARS = 6
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+%,-]+")


class LineFormatter(logging.Formatter):
    """`ts=… level=… logger=… msg=…` and then the record's own fields (`extra={"fields": {…}}`).

    None is left out; text with anything unusual in it is quoted as JSON, so that a newline in a value
    cannot start a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        pairs: dict[str, object] = {
            "ts": f"{_name_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        pairs |= getattr(record, "fields", {})
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        parts = []
        for name, value in pairs.items():
            if value is not None:
                # Most are numbers or plain words, and a call for each would be half the cost of a line.
                plain = type(value) is int or (type(value) is str and _PLAIN.fullmatch(value))
                parts.append(f"{name}={value if plain else _quote(value)}")
        return " ".join(parts)


@lru_cache(maxsize=2)
def _name_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class RedactingFormatter(logging.Formatter):
    """Another formatter's lines without the secrets."""

    def __init__(self, inner: logging.Formatter, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._inner = inner
        # A secret that is shorter is a word of everyday text.
        known = [secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS]
        self._spellings = {*known, *(json.dumps(secret)[1:-1] for secret in known)}

    def format(self, record: logging.LogRecord) -> str:
        """The inner formatter's line, each secret replaced."""
        line = self._inner.format(record)
        for spelling in self._spellings:
            line = line.replace(spelling, "[redacted]")
        return line


def configure_logging(level: str, secrets: tuple[str, ...]) -> None:
    """Sends this process's log to standard error, and cuts `secrets` out of every logger's lines.

    Safe to call again: a second app in the process replaces the first one's handler.
    """
    # No line says from where in the code it was written, and to find out costs as much as to write it (the
    # logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.set_name("grokflask")
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == "grokflask"]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("grokflask").setLevel(level.upper())
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)  # warnings quote what upstream sent
    # gunicorn's loggers do not reach the root; their own handlers are treated alike.
    for logger in (root, logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")):
        for each in logger.handlers:
            inner = each.formatter or logging.Formatter()
            if isinstance(inner, RedactingFormatter):
                inner = inner._inner
            each.setFormatter(RedactingFormatter(inner, secrets))


def _quote(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())
