"""Outages of the database: how long it may take, which errors are an outage, and when to try again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy.exc import DataError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from grokflask.errors import StoreUnavailableError

OPEN_TIMEOUT_S = 30.0
"""For the first use of a process, which may create all tables."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0

_NO_SUCH_TABLE, _QUERY_CANCELED = "42P01", "57014"  # PostgreSQL's codes
_CONFLICTS = ("40001", "40P01")  # serialization failure, deadlock


@dataclass(slots=True)
class TimeLimits:
    """How long each step may take, in seconds.

    A managed database in another zone needs more than a second to connect: TCP, TLS and the password take
    seven round trips.
    """

    connect_s: float = 5.0
    read_s: float = 2.0
    write_s: float = 5.0


class Breaker:
    """Whether one kind of access works. While it does not, one attempt is let through after each pause."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """An attempt has succeeded."""
        self.tripped = False
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = 0.0
        self._detail = ""

    def trip(self, detail: str) -> None:
        """An attempt has failed."""
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if self.tripped else FIRST_PAUSE_S
        self._retry_at = time.monotonic() + self._pause_s
        self._detail = detail
        self.tripped = True

    def check(self) -> None:
        """Raises StoreUnavailableError unless an attempt is due."""
        if self.tripped and not self.is_due():
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raises StoreUnavailableError, as the last attempt has."""
        raise StoreUnavailableError(detail=self._detail)

    def is_due(self) -> bool:
        """Whether an attempt is due. Then the next one is not before another pause."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause_s
        return True


def is_outage(error: Exception) -> bool:
    """Whether the error is a failure of the database, not of the query."""
    if isinstance(error, ProgrammingError):
        return _read_sqlstate(error) == _NO_SUCH_TABLE
    return not isinstance(error, IntegrityError | DataError | NotSupportedError)


def is_slow(error: Exception) -> bool:
    """Whether the database works, but the query ran out of time or found no free connection."""
    if isinstance(error, PoolTimeoutError):
        return True  # if the queries that hold the connections fail, they report the outage
    return _read_sqlstate(error) == _QUERY_CANCELED or str(getattr(error, "orig", "")) == "interrupted"


def is_conflict(error: Exception) -> bool:
    """Whether PostgreSQL has ended the transaction because of another one."""
    return _read_sqlstate(error) in _CONFLICTS


def describe(error: Exception) -> str:
    """The driver's error for the log, shortened."""
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"[:300]


def _read_sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)
