"""The log: one line per event, as `name=value` pairs, without secrets.

Every handler of the process gets a formatter that removes secrets from the finished line, whichever library
wrote it and however they got into it (a traceback, a quoted header).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from functools import lru_cache

MIN_SECRET_CHARS = 6
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+%,-]+")


class LineFormatter(logging.Formatter):
    """Writes `ts=… level=… logger=… msg=…`, then the record's own fields (`extra={"fields": {…}}`).

    Fields that are None are left out. Unusual text is quoted as JSON, so that a newline in a value cannot
    start a new line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        pairs: dict[str, object] = {
            "ts": f"{_format_second(int(record.created))}.{int(record.msecs):03d}Z",
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
                # Most are numbers or plain words. A call for each would double the cost of a line.
                plain = type(value) is int or (type(value) is str and _PLAIN.fullmatch(value))
                parts.append(f"{name}={value if plain else _quote(value)}")
        return " ".join(parts)


@lru_cache(maxsize=2)
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class RedactingFormatter(logging.Formatter):
    """Removes secrets from another formatter's lines."""

    def __init__(self, inner: logging.Formatter, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._inner = inner
        # a shorter secret may be a common word
        known = [secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS]
        self._spellings = {*known, *(json.dumps(secret)[1:-1] for secret in known)}

    def format(self, record: logging.LogRecord) -> str:
        """The other formatter's line, with secrets replaced."""
        line = self._inner.format(record)
        for spelling in self._spellings:
            line = line.replace(spelling, "[redacted]")
        return line


def configure_logging(level: str, secrets: tuple[str, ...]) -> None:
    """Writes the process's log to standard error, and removes `secrets` from every logger's lines.

    A second call replaces the handler of the first.
    """
    # Lines do not say where in the code they were written; finding that out would double their cost (logging
    # HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.set_name("grokflask")
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == "grokflask"]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("grokflask").setLevel(level.upper())
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)  # warnings quote what upstream sent
    # gunicorn's loggers have their own handlers and do not propagate to the root.
    for logger in (root, logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")):
        for each in logger.handlers:
            formatter = each.formatter or logging.Formatter()
            if isinstance(formatter, RedactingFormatter):
                formatter = formatter._inner
            each.setFormatter(RedactingFormatter(formatter, secrets))


def write_at_once(logger: str, level: int, message: str, fields: dict[str, object]) -> None:
    """Writes a line to standard error, and takes no lock: for threads that gevent does not know.

    Locks that gevent has patched must not be taken there.
    """
    record = logging.LogRecord(logger, level, "", 0, message, None, None)
    record.fields = fields
    found = [each for each in logging.getLogger().handlers if each.get_name() == "grokflask"]
    line = found[0].format(record) if found else LineFormatter().format(record)
    os.write(2, line.encode(errors="backslashreplace") + b"\n")


def _quote(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())
