"""Keys in the database: create, show, change, rotate, revoke, and find them by their secret's hash.

Only the SHA-256 of a secret and a hint for people are stored; the secret itself is returned once, by the call
that made it. Each call is one transaction and returns what it has read back from the database.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from grokflask.errors import InvalidRequestError, KeyExistsError, KeyNotFoundError, KeyRevokedError
from grokflask.keys.limits import FIELDS, KeyLimits, read_name
from grokflask.keys.stored import FoundKey, StoredKey, StoredSecret
from grokflask.storage.database import Database
from grokflask.storage.tables import key_changes as changes_table
from grokflask.storage.tables import key_secrets as secrets_table
from grokflask.storage.tables import keys as keys_table

KEY_PREFIX = "gf-"
SECRET_BYTES = 32
"""Random bytes in a secret: 43 characters after the prefix."""

OVERLAP_S = 3600.0
MAX_OVERLAP_S = 365 * 86400.0

LIST_TIMEOUT_S = 5.0

KEPT_S = 30 * 86400.0
"""Time for which an expired secret is still known, so that its holder learns that it has expired."""


class KeyStore:
    """The keys in `database`. Every method raises StoreUnavailableError while the database is unreachable.

    Args:
        reserved_names: names of keys that are not in the database.
        clock: epoch seconds.
    """

    def __init__(
        self,
        database: Database,
        reserved_names: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._reserved_names = frozenset(reserved_names)
        self._clock = clock

    @property
    def is_away(self) -> bool:
        """The last use of the database failed."""
        return self._database.state == "away"

    def create(self, name: str, changes: Mapping[str, Any]) -> tuple[StoredKey, str]:
        """A new key and its secret. `changes` come from `keys.limits.read_changes`.

        Raises KeyExistsError, also for the name of a revoked key: ledger rows refer to keys by name.
        """
        read_name(name)
        if name in self._reserved_names:
            raise KeyExistsError(f"The name {name!r} is taken by a key of GROKFLASK_KEYS.")
        now, secret = self._clock(), _make_secret()

        def insert_key(connection: Connection) -> None:
            row = {"models": "[]", "tools": "all", **_to_columns(changes), "name": name, "created_at": now}
            connection.execute(insert(keys_table).values(row))
            _add_secret(connection, name, secret, now)

        try:
            return self._write(name, insert_key), secret
        except IntegrityError:
            message = f"A key named {name!r} exists or existed before; names are not reused."
            raise KeyExistsError(message) from None

    def list(self) -> tuple[StoredKey, ...]:
        """All keys sorted by name, revoked ones included."""

        def query(connection: Connection) -> tuple[StoredKey, ...]:
            by_key: dict[str, Any] = {}
            for row in connection.execute(_SELECT_SECRETS).mappings():
                by_key.setdefault(row["key_name"], []).append(_to_secret(row))
            rows = connection.execute(select(keys_table)).mappings()
            return tuple(_to_key(row, by_key.get(row["name"], ())) for row in rows)

        return tuple(sorted(self._database.read(query), key=lambda key: key.name))

    def show(self, name: str) -> StoredKey:
        """The key of this name. Raises KeyNotFoundError."""
        _check_name(name)
        return self._database.read(lambda connection: _read_key(connection, name))

    def set(self, name: str, changes: Mapping[str, Any]) -> StoredKey:
        """Changes the limits and expiry that `changes` names.

        Raises KeyNotFoundError, KeyRevokedError, or InvalidRequestError if `changes` is empty.
        """
        if not changes:
            raise InvalidRequestError(f"Nothing to change; a key's fields are: {', '.join(FIELDS)}.")
        _check_name(name)

        def change_key(connection: Connection) -> None:
            _hold(connection, name)
            mine = update(keys_table).where(keys_table.c.name == name)
            connection.execute(mine.values(_to_columns(changes)))

        return self._write(name, change_key)

    def rotate(self, name: str, overlap_s: float = OVERLAP_S) -> tuple[StoredKey, str]:
        """Adds a new secret, valid at once. The old ones expire after `overlap_s`, or earlier as set.

        Raises KeyNotFoundError, KeyRevokedError, or InvalidRequestError for an overlap above MAX_OVERLAP_S.
        """
        _check_name(name)
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            message = f"'overlap' expects a duration of at most {MAX_OVERLAP_S / 86400:g}d."
            raise InvalidRequestError(message, param="overlap")
        now, secret = self._clock(), _make_secret()
        mine = secrets_table.c.key_name == name
        expires_at = secrets_table.c.expires_at

        def replace_secret(connection: Connection) -> None:
            _hold(connection, name)
            end = now + overlap_s
            later = or_(expires_at.is_(None), expires_at > end)
            connection.execute(update(secrets_table).where(mine, later).values(expires_at=end))
            connection.execute(delete(secrets_table).where(mine, expires_at < now - KEPT_S))
            _add_secret(connection, name, secret, now)

        return self._write(name, replace_secret), secret

    def revoke(self, name: str) -> StoredKey:
        """Revokes the key for good. Idempotent: the first time counts. Raises KeyNotFoundError."""
        _check_name(name)
        mine = update(keys_table).where(keys_table.c.name == name, keys_table.c.revoked_at.is_(None))
        revocation = mine.values(revoked_at=self._clock())
        return self._write(name, lambda connection: connection.execute(revocation))

    def find(self, sha256: str) -> FoundKey | None:
        """The key whose secret has this SHA-256 (hex), in any state, or None."""

        def query(connection: Connection) -> FoundKey | None:
            row = connection.execute(_SELECT_BY_SECRET, {"sha256": sha256}).mappings().first()
            if row is None:
                return None
            secret = StoredSecret(row["hint"], row["secret_created_at"], row["secret_expires_at"])
            return FoundKey(_to_key(row, (secret,)), row["sha256"], secret.expires_at, row["changes"])

        return self._database.read(query)

    def count_changes(self) -> int:
        """The number of changes to any key: while it stays the same, cached keys are up to date."""
        return self._database.read(lambda connection: int(connection.execute(_SELECT_CHANGES).scalar_one()))

    def list_hashes(self) -> frozenset[str]:
        """The hashes of all secrets, fetched in parts, so that other requests get their turns."""
        query = select(secrets_table.c.sha256).execution_options(yield_per=1000)
        return self._database.read(lambda one: frozenset(one.execute(query).scalars()), LIST_TIMEOUT_S)

    def _write(self, name: str, change: Callable[[Connection], object]) -> StoredKey:
        """Runs `change` in a transaction, and returns the key as it is then."""

        def write(connection: Connection) -> StoredKey:
            change(connection)
            # The last step, because it blocks all other changes until the transaction ends.
            connection.execute(update(changes_table).values(number=changes_table.c.number + 1))
            return _read_key(connection, name)

        return self._database.write(write)


def hash_secret(secret: str) -> str:
    """The SHA-256 of a secret in hex, as it is stored. Secrets have 256 random bits and need no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


_SELECT_SECRETS = select(secrets_table).order_by(secrets_table.c.created_at.desc(), secrets_table.c.sha256)

_SELECT_CHANGES = select(changes_table.c.number).where(changes_table.c.id == 1)

_SELECT_BY_SECRET = (
    select(
        keys_table,
        secrets_table.c.sha256,
        secrets_table.c.hint,
        secrets_table.c.created_at.label("secret_created_at"),
        secrets_table.c.expires_at.label("secret_expires_at"),
        _SELECT_CHANGES.scalar_subquery().label("changes"),
    )
    .join_from(secrets_table, keys_table, secrets_table.c.key_name == keys_table.c.name)
    .where(secrets_table.c.sha256 == bindparam("sha256"))
)


def _hold(connection: Connection, name: str) -> None:
    """Locks this key against other changes until the transaction ends.

    Raises KeyNotFoundError or KeyRevokedError.
    """
    query = select(keys_table.c.revoked_at).where(keys_table.c.name == name).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        raise _missing(name)
    if row.revoked_at is not None:
        error = KeyRevokedError(f"The key {name!r} is revoked and can no longer be changed.")
        error.status = 409  # the caller's own key is fine
        raise error


def _read_key(connection: Connection, name: str) -> StoredKey:
    row = connection.execute(select(keys_table).where(keys_table.c.name == name)).mappings().first()
    if row is None:
        raise _missing(name)
    rows = connection.execute(_SELECT_SECRETS.where(secrets_table.c.key_name == name)).mappings()
    return _to_key(row, [_to_secret(each) for each in rows])


def _add_secret(connection: Connection, name: str, secret: str, now: float) -> None:
    hint = f"{secret[: len(KEY_PREFIX) + 4]}…{secret[-4:]}"
    row = {"sha256": hash_secret(secret), "key_name": name, "hint": hint, "created_at": now}
    connection.execute(insert(secrets_table).values(row))


def _make_secret() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _check_name(name: str) -> None:
    """Raises KeyNotFoundError for what cannot be a key's name; PostgreSQL rejects some such texts."""
    try:
        read_name(name)
    except InvalidRequestError:
        raise _missing(name[:64]) from None


def _missing(name: str) -> KeyNotFoundError:
    return KeyNotFoundError(f"There is no key named {name!r} in the database.")


def _to_columns(changes: Mapping[str, Any]) -> dict[str, Any]:
    if "models" in changes:
        return {**changes, "models": msgspec.json.encode(changes["models"]).decode()}
    return dict(changes)


def _to_key(row: RowMapping, secrets: Iterable[StoredSecret]) -> StoredKey:
    stored = {field.name: row[field.name] for field in fields(KeyLimits)}
    stored["models"] = msgspec.json.decode(row["models"], type=tuple[str, ...])
    ends = (row["expires_at"], row["revoked_at"])
    return StoredKey(row["name"], KeyLimits(**stored), row["created_at"], *ends, tuple(secrets))


def _to_secret(row: RowMapping) -> StoredSecret:
    return StoredSecret(row["hint"], row["created_at"], row["expires_at"])
