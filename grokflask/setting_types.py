"""Parsers for the texts of settings. No IO.

Each raises ValueError with a message that continues a sentence beginning with the variable's name, and never
quotes a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

MIN_SECRET_CHARS = 8
STRONG_CHARS, STRONG_KINDS = 16, 8
"""Length of a secret that nobody guesses, and how many different characters it has at least."""

EXAMPLES = ("change-me-please", "a-long-secret-of-your-own")
"""Secrets that stand in the docs and in .env.example."""


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"expects a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A number of seconds from `low` to `high`."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d+(\.\d+)?", text) or not low <= float(text) <= high:
            raise ValueError(f"expects seconds from {low:g} to {high:g}")
        return float(text)

    return parse


def choice(*choices: str) -> Callable[[str], str]:
    """One of `choices`."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expects one of: {', '.join(choices)}")
        return text

    return parse


def read_flag(text: str) -> bool:
    """A boolean, in the usual spellings."""
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("expects true or false")
    return text.lower() in ("1", "true", "yes", "on")


def read_model(text: str) -> str:
    """A model's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", text):
        raise ValueError("expects a model's name")
    return text


def read_token(text: str) -> str:
    """A secret that is valid in a header."""
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("expects visible ASCII characters without spaces")
    return text


def read_admin_token(text: str) -> str:
    """A token that is too long to guess."""
    if len(text) < STRONG_CHARS:
        raise ValueError(f"needs {STRONG_CHARS} or more visible ASCII characters")
    return read_token(text)


def is_weak(secret: str) -> bool:
    """Whether somebody may guess `secret`."""
    return len(secret) < STRONG_CHARS or len(set(secret)) < STRONG_KINDS or secret in EXAMPLES


def read_hosts(text: str) -> tuple[str, ...]:
    """Host names without ports, separated by commas, or `*`."""
    hosts = tuple(part.strip().lower() for part in text.split(","))
    if hosts != ("*",) and not all(re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", host) for host in hosts):
        raise ValueError("expects host names such as grok.example.com, without a scheme or port, or *")
    return hosts


def read_share(text: str) -> float:
    """A share from 0 to 1."""
    if not re.fullmatch(r"\d?(\.\d+)?", text) or not text or not 0 <= float(text) <= 1:
        raise ValueError("expects a share from 0 to 1, such as 0.8")
    return float(text)


def url(*schemes: str) -> Callable[[str], str]:
    """A URL with one of `schemes`."""

    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            on_disk = parts.scheme in ("unix", "sqlite") and bool(parts.path.strip("/"))
            usable = parts.scheme in schemes and bool(parts.hostname or on_disk)
            usable = usable and not re.search(r"\s", text)
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"expects a URL that starts with {' or '.join(s + '://' for s in schemes)}")
        return text

    return parse


def read_base_url(text: str) -> str:
    """A base URL, without slashes at its end."""
    parts = urlsplit(url("http", "https")(text))
    if "?" in text or "#" in text or "@" in parts.netloc:
        raise ValueError("expects a plain base URL, without credentials, query or fragment")
    return text.rstrip("/")


_RATE = re.compile(
    r"\d{1,12}\s*(/|\s+per\s+)\s*((1000|[1-9]\d{0,2})\s*)?(second|minute|hour|day|month|year)s?",
    re.IGNORECASE | re.ASCII,
)


def read_rate(text: str) -> str:
    """One or more limits in flask-limiter's notation, with windows of 1 to 1000 units."""
    if not all(_RATE.fullmatch(part.strip()) for part in text.split(";")):
        raise ValueError("expects a number per window, such as 100/hour or 5/second;1000/day")
    return text


def read_origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them, separated by commas, or `*`."""
    origins = tuple(part.strip() for part in text.split(","))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9._-]+(:\d{1,5})?", origin):
            raise ValueError("expects origins such as https://app.example.com, without a path, or *")
    if "*" in origins and len(origins) > 1:
        raise ValueError("expects either * or a list of origins")
    return origins


def read_keys(text: str) -> tuple[tuple[str, str], ...]:
    """Names and secrets, as `name:secret,name:secret`."""
    keys = []
    for number, part in enumerate((part.strip() for part in text.split(",")), start=1):
        name, colon, secret = part.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(f"entry {number} is not name:secret (a name has letters, digits, . _ -)")
        if len(secret) < MIN_SECRET_CHARS or not re.fullmatch(r"[\x21-\x7e]+", secret):
            raise ValueError(
                f"the secret of entry {number} needs {MIN_SECRET_CHARS} or more visible ASCII characters"
            )
        keys.append((name, secret))
    if len({name for name, _ in keys}) < len(keys):
        raise ValueError("has a name twice")
    if len({secret for _, secret in keys}) < len(keys):
        raise ValueError("has a secret twice")
    return tuple(keys)
