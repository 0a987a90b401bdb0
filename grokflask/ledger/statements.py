"""The ledger's SQL: writes rows and keeps the daily sums in step with them.

Each function works inside the caller's transaction. Sums change by the difference between stored and new
rows, so delivering a row again changes nothing, and a later figure replaces an earlier guess.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, TextClause, text

from grokflask.ledger.row import COLUMNS, LedgerRow
from grokflask.times import to_day

LOST = "lost"
SUMS = tuple(
    "exchanges prompt_tokens cached_tokens completion_tokens reasoning_tokens "
    "cost_ticks estimated_ticks bytes_out".split()
)
"""The figures of the table `daily`, after its key: key, day, model, outcome."""

Fields = tuple[Any, ...]
"""A row's values in the order of COLUMNS."""

SumKey = tuple[str, str, str, str]

_AT = {name: place for place, name in enumerate(COLUMNS)}
_DAY = len(COLUMNS)  # stored after the others, and computed from `started_at`
_ID, _OUTCOME, _STARTED_AT = _AT["id"], _AT["outcome"], _AT["started_at"]
# Columns that never change are in indexes; updates leave them alone.
_FIXED = ("id", "request_id", "key", "route", "started_at", "worker")
_CHANGING = tuple(name for name in COLUMNS if name not in _FIXED)
_get_changing = itemgetter(*(_AT[name] for name in _CHANGING), _ID)
_get_sum_key = itemgetter(_AT["key"], _DAY, _AT["model_served"], _AT["model"], _OUTCOME)
_get_figures = itemgetter(
    *(_AT[name] for name in SUMS[1:6]), _AT["estimated"], _AT["bytes_out"]
)  # in the order of SUMS, but `estimated` is a boolean

_STORED = (*COLUMNS, "day")
_INTO = f"exchanges ({', '.join(_STORED)})"
_INSERT_ONE = f"INSERT INTO {_INTO} VALUES ({', '.join('?' * len(_STORED))})"  # noqa: S608
_UPDATE_ONE = f"UPDATE exchanges SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"  # noqa: S608
# PostgreSQL takes all rows as one JSON text, several times cheaper than a statement for each.
_FROM_JSON = "json_populate_recordset(NULL::exchanges, CAST(:rows AS json))"
_INSERT_ALL = f"INSERT INTO {_INTO} SELECT {', '.join(_STORED)} FROM {_FROM_JSON}"  # noqa: S608
_UPDATE_ALL = (
    f"UPDATE exchanges SET {', '.join(f'{name} = new.{name}' for name in _CHANGING)} "  # noqa: S608
    f"FROM {_FROM_JSON} AS new WHERE exchanges.id = new.id"
)
_UNLESS_THERE = " ON CONFLICT (id) DO NOTHING"
_FIND = f"SELECT {', '.join(_STORED)} FROM exchanges WHERE id {{any}} ORDER BY id {{lock}}"  # noqa: S608
_FIND_OPEN = (
    f"SELECT {', '.join(_STORED)} FROM exchanges "  # noqa: S608
    "WHERE outcome IS NULL AND worker {any} ORDER BY id LIMIT :most {skip}"
)
_ADD = (
    f"INSERT INTO daily (key, day, model, outcome, {', '.join(SUMS)}) "  # noqa: S608
    f"VALUES (:key, :day, :model, :outcome, {', '.join(':' + name for name in SUMS)}) "
    "ON CONFLICT (key, day, model, outcome) DO UPDATE SET "
    + ", ".join(f"{name} = daily.{name} + excluded.{name}" for name in SUMS)
)
_DROP_EMPTY = (
    "DELETE FROM daily WHERE key = :key AND day = :day AND model = :model AND outcome = :outcome "
    "AND exchanges = 0"
)
_BEAT = (
    "INSERT INTO workers (id, seen_at, host, pid) VALUES (:id, {now}, :host, :pid) "
    "ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, host = excluded.host, pid = excluded.pid"
)
_LEAVE = (
    "DELETE FROM workers WHERE id {any} "
    "AND NOT EXISTS (SELECT 1 FROM exchanges WHERE outcome IS NULL AND worker = workers.id)"
)
_NOTE_PRUNED = (
    "INSERT INTO retention (id, complete_since) VALUES (1, :day) ON CONFLICT (id) DO UPDATE "
    "SET complete_since = excluded.complete_since WHERE retention.complete_since < excluded.complete_since"
)
_PRUNE = (
    "DELETE FROM exchanges WHERE id IN (SELECT id FROM exchanges "
    "WHERE day < :day AND outcome IS NOT NULL ORDER BY day LIMIT :most {skip})"
)

_DIALECTS = {
    "sqlite": {
        "any": "IN (SELECT value FROM json_each(:ids))",
        "lock": "",  # a writing transaction locks the whole file
        "skip": "",
        "now": "(julianday('now') - 2440587.5) * 86400.0",
    },
    "postgresql": {
        "any": "= ANY(:ids)",
        "lock": "FOR UPDATE",
        "skip": "FOR UPDATE SKIP LOCKED",
        "now": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    },
}


class Worker(NamedTuple):
    """A process that writes. Its `pid` is valid on `host` only."""

    id: str
    host: str
    pid: int


def find_self(worker: str) -> Worker:
    """The running process. Its host's name includes the kernel's name of its pid namespace."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return Worker(worker, f"{socket.gethostname()} {space}".strip(), os.getpid())


read_fields = attrgetter(*COLUMNS)
"""A copy of a row's values, which later changes to the row do not affect."""


def store(connection: Connection, rows: Iterable[Fields]) -> None:
    """Writes rows with distinct ids: new ones, and those settled since they were stored."""
    opened: list[Fields] = []
    settled: dict[str, Fields] = {}
    for fields in rows:
        fields = (*fields, to_day(fields[_STARTED_AT]))
        if fields[_OUTCOME] is None:
            opened.append(fields)
        else:
            settled[fields[_ID]] = fields
    if opened:
        _insert(connection, opened, _UNLESS_THERE)  # a stored row is the same, or newer
    if settled:
        _apply(connection, settled, _find(connection, list(settled)))


def beat(connection: Connection, me: Worker, stale_s: float) -> bool:
    """Records that this process is alive. True if it last did so within `stale_s`, by the database's clock.

    If not, the database was unreachable, and other processes may have had no chance to report either.
    """
    before = connection.execute(text("SELECT seen_at FROM workers WHERE id = :id"), {"id": me.id}).scalar()
    _run(connection, _BEAT, id=me.id, host=me.host, pid=me.pid)
    return before is not None and abs(_read_clock(connection) - before) <= stale_s


def sweep(connection: Connection, me: Worker, stale_s: float, on_time: bool, most: int) -> list[LedgerRow]:
    """Settles up to `most` open rows of dead processes, and returns them.

    When several processes sweep, each row is settled by one. A process is dead if it was not seen for
    `stale_s` or never, provided that this one was `on_time`; on SQLite also if its pid no longer exists.
    """
    dead = _find_dead(connection, me, stale_s, on_time)
    if not dead:
        return []
    found = _run(connection, _FIND_OPEN, ids=_list_ids(connection, dead), most=most).all()
    stored = {row[_ID]: tuple(row) for row in found}
    _apply(connection, {id_: _lose(fields) for id_, fields in stored.items()}, stored)
    _run(connection, _LEAVE, ids=_list_ids(connection, dead))
    return [_make_row(_lose(fields)) for fields in stored.values()]


def leave(connection: Connection, me: Worker) -> None:
    """Removes this process, unless it leaves open rows, which others then find."""
    _run(connection, _LEAVE, ids=_list_ids(connection, [me.id]))


def prune(connection: Connection, first_day: str, most: int) -> int:
    """Deletes up to `most` settled rows of days before `first_day`, and returns their number. Sums stay.

    Records the first day whose rows are complete, for comparisons with the sums.
    """
    _run(connection, _NOTE_PRUNED, day=first_day)
    deleted: int = _run(connection, _PRUNE, day=first_day, most=most).rowcount
    return deleted


def _apply(connection: Connection, settled: dict[str, Fields], stored: dict[str, Fields]) -> None:
    """Writes the difference between `settled` and `stored`, in rows and sums."""
    inserts: list[Fields] = []
    updates: list[Fields] = []
    sums: dict[SumKey, list[int]] = {}
    emptied: set[SumKey] = set()
    for id_, fields in settled.items():
        old = stored.get(id_)
        if old is None:
            inserts.append(fields)
        elif old[_OUTCOME] is None:
            updates.append(fields)
        elif _get_changing(old) == _get_changing(fields):
            continue
        else:
            updates.append(fields)
            emptied.add(_add(sums, old, -1))
        _add(sums, fields, 1)
    if inserts:
        _insert(connection, inserts)
    if updates:
        _update(connection, updates)
    if sums:
        # Always in the same order, so that two processes never deadlock.
        connection.execute(_prepare(_ADD, ""), [_name_sum(key, sums[key]) for key in sorted(sums)])
    for key in sorted(emptied):
        _run(connection, _DROP_EMPTY, **_name_sum(key, []))


def _insert(connection: Connection, rows: list[Fields], unless: str = "") -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_INSERT_ONE + unless, rows)
    else:
        _run(connection, _INSERT_ALL + unless, rows=_encode(rows))


def _update(connection: Connection, rows: list[Fields]) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_UPDATE_ONE, [_get_changing(fields) for fields in rows])
    else:
        _run(connection, _UPDATE_ALL, rows=_encode(rows))


def _encode(rows: list[Fields]) -> str:
    return msgspec.json.encode([dict(zip(_STORED, fields, strict=True)) for fields in rows]).decode()


def _add(sums: dict[SumKey, list[int]], fields: Fields, sign: int) -> SumKey:
    key, day, served, model, outcome = _get_sum_key(fields)
    name = (key, day, model if served is None else served, outcome)
    *tokens, cost, estimated, bytes_out = _get_figures(fields)
    figures = (1, *tokens, cost, cost if estimated else 0, bytes_out)
    total = sums.get(name) or [0] * len(SUMS)
    sums[name] = [before + sign * (figure or 0) for before, figure in zip(total, figures, strict=True)]
    return name


def _name_sum(key: SumKey, figures: Sequence[int]) -> dict[str, Any]:
    return dict(zip(("key", "day", "model", "outcome", *SUMS), (*key, *figures), strict=False))


def _find(connection: Connection, ids: list[str]) -> dict[str, Fields]:
    found = _run(connection, _FIND, ids=_list_ids(connection, ids))
    rows = found.cursor.fetchall()  # the driver's own tuples are cheaper
    found.close()
    return {row[_ID]: row for row in rows}


def _find_dead(connection: Connection, me: Worker, stale_s: float, on_time: bool) -> list[str]:
    now = _read_clock(connection)
    known: dict[str, bool] = {}  # id -> dead
    for *worker, seen_at in connection.execute(text("SELECT id, host, pid, seen_at FROM workers")):
        stale = on_time and abs(now - seen_at) > stale_s
        known[worker[0]] = stale or (connection.dialect.name == "sqlite" and _has_ended(Worker(*worker), me))
    dead = [id_ for id_, is_dead in known.items() if is_dead and id_ != me.id]
    if on_time:
        writing = connection.execute(text("SELECT DISTINCT worker FROM exchanges WHERE outcome IS NULL"))
        dead += [id_ for id_ in writing.scalars() if id_ not in known and id_ != me.id]
    return dead


def _has_ended(worker: Worker, me: Worker) -> bool:
    """The worker's pid, in the same pid namespace as this process, no longer exists.

    Processes that share a SQLite file in WAL mode share the kernel. A reused pid looks alive; then only time
    decides.
    """
    if worker.host != me.host or "pid:[" not in me.host:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's process
    return False


def _lose(fields: Fields) -> Fields:
    """The row as lost: its figures stay the estimate, and its duration is unknown."""
    changed = list(fields)
    changed[_OUTCOME], changed[_AT["estimated"]], changed[_AT["duration_ms"]] = LOST, True, None
    return tuple(changed)


def _make_row(fields: Fields) -> LedgerRow:
    row = LedgerRow(*fields[:_DAY])
    row.stream, row.estimated = bool(row.stream), bool(row.estimated)  # SQLite has numbers
    return row


def _read_clock(connection: Connection) -> float:
    now: float = _run(connection, "SELECT {now}").scalar_one()
    return now


def _list_ids(connection: Connection, ids: list[str]) -> object:
    return msgspec.json.encode(ids).decode() if connection.dialect.name == "sqlite" else ids


def _run(connection: Connection, template: str, **values: object) -> Any:
    return connection.execute(_prepare(template, connection.dialect.name), values)


@cache
def _prepare(template: str, dialect: str) -> TextClause:
    return text(template.format(**_DIALECTS[dialect]) if dialect else template)
