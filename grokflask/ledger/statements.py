"""The ledger's statements: how rows get into the tables, and how the daily sums keep up with them.

Each function works inside the caller's transaction. Sums are told from what is stored and what is new, so
delivering a row again changes nothing, and a later truth replaces an earlier guess.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, text

from grokflask.ledger.row import COLUMNS, LedgerRow
from grokflask.times import to_day

LOST = "lost"
SUMS = (
    *("exchanges", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    *("cost_ticks", "estimated_ticks", "bytes_out"),
)
"""The figures of the table `daily`, behind its key: key, day, model, outcome."""

Fields = tuple[Any, ...]
"""A row's values in the order of COLUMNS."""

SumKey = tuple[str, str, str, str]

_AT = {name: place for place, name in enumerate(COLUMNS)}
_DAY = len(COLUMNS)  # stored behind the others, and told from `started_at`
_ID, _OUTCOME, _STARTED_AT = _AT["id"], _AT["outcome"], _AT["started_at"]
# What an exchange never changes stands in indexes, and is left alone by an update.
_FIXED = ("id", "request_id", "key", "route", "started_at", "worker")
_CHANGING = tuple(name for name in COLUMNS if name not in _FIXED)
_get_changing = itemgetter(*(_AT[name] for name in _CHANGING), _ID)
_get_sum_key = itemgetter(_AT["key"], _DAY, _AT["model_served"], _AT["model"], _OUTCOME)
_get_figures = itemgetter(
    *(_AT[name] for name in SUMS[1:6]), _AT["estimated"], _AT["bytes_out"]
)  # in the order of SUMS, but `estimated` is still a yes or no

_STORED = (*COLUMNS, "day")
_INTO = f"exchanges ({', '.join(_STORED)})"
_INSERT_ONE = f"INSERT INTO {_INTO} VALUES ({', '.join('?' * len(_STORED))})"  # noqa: S608
_UPDATE_ONE = f"UPDATE exchanges SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"  # noqa: S608
# PostgreSQL takes them all as one JSON text, several times cheaper than a statement each.
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
        "lock": "",  # a transaction that writes has the whole file
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


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that writes. `host` says where its `pid` means something."""

    id: str
    host: str
    pid: int


def find_self(worker: str) -> Worker:
    """The process that asks. With its host's name goes the kernel's name of the space its pid is from."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return Worker(worker, f"{socket.gethostname()} {space}".strip(), os.getpid())


read_fields = attrgetter(*COLUMNS)
"""A row's Fields: a copy, which later changes to the row do not reach."""


def store(connection: Connection, rows: Iterable[Fields]) -> None:
    """Writes rows, no two of one id: new ones, and those that have been settled since they were stored."""
    opened: list[Fields] = []
    settled: dict[str, Fields] = {}
    for fields in rows:
        fields = (*fields, _find_day(fields[_STARTED_AT] // 86400))
        if fields[_OUTCOME] is None:
            opened.append(fields)
        else:
            settled[fields[_ID]] = fields
    if opened:
        _insert(connection, opened, _UNLESS_THERE)  # what is there is this row, or knows more than it
    if settled:
        _apply(connection, settled, _find(connection, list(settled)))


def beat(connection: Connection, me: Worker, stale_s: float) -> bool:
    """Notes that this process lives; whether the last time was within `stale_s`, by the database's clock.

    If it was not, the database has been away, and the others may have had no chance to be noted either.
    """
    before = connection.execute(text("SELECT seen_at FROM workers WHERE id = :id"), {"id": me.id}).scalar()
    _run(connection, _BEAT, id=me.id, host=me.host, pid=me.pid)
    return before is not None and abs(_read_clock(connection) - before) <= stale_s


def sweep(connection: Connection, me: Worker, stale_s: float, on_time: bool, most: int) -> list[LedgerRow]:
    """Settles open rows of processes that are dead, `most` at once; gives them as they are now.

    Of several processes that sweep each row is settled by one. Dead is who has not been seen for `stale_s`,
    or never, if this one has been `on_time` itself; and on SQLite who ran beside this one and is no more.
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
    """Forgets this process, unless it leaves open rows behind, which others then find."""
    _run(connection, _LEAVE, ids=_list_ids(connection, [me.id]))


def prune(connection: Connection, first_day: str, most: int) -> int:
    """Deletes settled rows of days before `first_day`, `most` at once; how many. Their sums stay.

    It is noted from which day on the rows are whole, for whoever compares them with the sums.
    """
    _run(connection, _NOTE_PRUNED, day=first_day)
    deleted: int = _run(connection, _PRUNE, day=first_day, most=most).rowcount
    return deleted


def _apply(connection: Connection, settled: dict[str, Fields], stored: dict[str, Fields]) -> None:
    """Writes what differs between `settled` and `stored`, and the difference in the sums."""
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
        # In one order everywhere, so that two processes never wait for each other.
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
    total = sums.get(name)
    if total is None:
        total = sums[name] = [0] * len(SUMS)
    prompt, cached, completion, reasoning, cost, estimated, bytes_out = _get_figures(fields)
    cost = cost or 0
    total[0] += sign
    total[1] += sign * (prompt or 0)
    total[2] += sign * (cached or 0)
    total[3] += sign * (completion or 0)
    total[4] += sign * (reasoning or 0)
    total[5] += sign * cost
    total[6] += sign * cost if estimated else 0
    total[7] += sign * (bytes_out or 0)
    return name


def _name_sum(key: SumKey, figures: Sequence[int]) -> dict[str, Any]:
    return dict(zip(("key", "day", "model", "outcome"), key, strict=True)) | dict(
        zip(SUMS, figures, strict=False)
    )


def _find(connection: Connection, ids: list[str]) -> dict[str, Fields]:
    found = _run(connection, _FIND, ids=_list_ids(connection, ids))
    rows = found.cursor.fetchall()  # the driver's own tuples: cheaper, and there are many
    found.close()
    return {row[_ID]: row for row in rows}


def _find_dead(connection: Connection, me: Worker, stale_s: float, on_time: bool) -> list[str]:
    now = _read_clock(connection)
    known: dict[str, bool] = {}  # id -> dead
    for id_, seen_at, host, pid in connection.execute(text("SELECT id, seen_at, host, pid FROM workers")):
        stale = on_time and abs(now - seen_at) > stale_s
        known[id_] = stale or (connection.dialect.name == "sqlite" and _has_ended(Worker(id_, host, pid), me))
    dead = [id_ for id_, is_dead in known.items() if is_dead and id_ != me.id]
    if on_time:
        writing = connection.execute(text("SELECT DISTINCT worker FROM exchanges WHERE outcome IS NULL"))
        dead += [id_ for id_ in writing.scalars() if id_ not in known and id_ != me.id]
    return dead


def _has_ended(worker: Worker, me: Worker) -> bool:
    """Surely no more: it had a pid where this process has its own, and nobody has that now.

    Who shares a SQLite file in WAL mode shares the kernel, and so the names of its pid spaces. A pid that is
    in use again looks alive; then the time decides.
    """
    if worker.host != me.host or "pid:[" not in me.host:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's
    return False


def _lose(fields: Fields) -> Fields:
    """The row as lost: its figures stay the estimate that they were, how long it took is unknown."""
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


@lru_cache(16)
def _find_day(number: float) -> str:
    return to_day(number * 86400)
