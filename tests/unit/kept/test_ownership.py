"""Whose is what upstream keeps, over SQLite and PostgreSQL: another key never gets at it, nor a later one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Connection, func, select

from grokflask.config import Settings
from grokflask.errors import RouteNotFoundError, StoreUnavailableError
from grokflask.kept import ownership
from grokflask.kept.ownership import KEPT_S, PRUNE_S, Ownership
from grokflask.keys.ring import ApiKey, KeyRing
from grokflask.keys.store import KeyStore
from grokflask.storage.database import Database
from grokflask.storage.tables import key_secrets, keys, owned

ALICE = ApiKey("alice", "key:alice", None, version="1")
BOB = ApiKey("bob", "key:bob", None, version="1")
START = 1_800_000_000.0


class Clock:
    """Epoch seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(database: Database, clock: Clock) -> Ownership:
    return Ownership(database, clock)


def count_rows(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(owned)).scalar_one())


def is_of(table: Ownership, id: str, key: ApiKey) -> bool:
    """Whether `key` gets at the response `id`."""
    try:
        table.check("response", id, key)
    except RouteNotFoundError:
        return False
    return True


def test_an_id_is_its_makers(table: Ownership, database: Database, clock: Clock) -> None:
    """Its maker gets at it, in every process; another key is told what one is told of an unknown id."""
    table.claim("response", "r-1", ALICE)
    for each in (table, table, Ownership(database, clock)):
        assert is_of(each, "r-1", ALICE)
        assert not is_of(each, "r-1", BOB)
    with pytest.raises(RouteNotFoundError) as of_another:
        table.check("response", "r-1", BOB)
    with pytest.raises(RouteNotFoundError) as of_nobody:
        table.check("response", "r-2", BOB)
    assert (of_another.value.message, of_another.value.status) == (of_nobody.value.message, 404)


def test_kinds_are_apart(table: Ownership) -> None:
    """A file's id opens no response of the same id."""
    table.claim("file", "x-1", ALICE)
    assert not is_of(table, "x-1", ALICE)
    table.check("file", "x-1", ALICE)


def test_the_first_claim_counts(table: Ownership, database: Database) -> None:
    """A later claim of another key changes nothing; the owner's own may come twice."""
    for key in (ALICE, ALICE, BOB):
        table.claim("response", "r-1", key)
    assert is_of(table, "r-1", ALICE)
    assert not is_of(table, "r-1", BOB)
    assert database.read(count_rows) == 1


def test_a_repeated_id_is_not_the_second_keys(
    table: Ownership, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until its claim is refused, in the process that knows the first owner, who keeps it."""
    table.claim("response", "r-1", ALICE)
    write, seen = database.write, []

    def look_and_write(change: Callable[[Connection], object]) -> object:
        seen.append((is_of(table, "r-1", ALICE), is_of(table, "r-1", BOB)))
        return write(change)

    monkeypatch.setattr(database, "write", look_and_write)
    table.claim("response", "r-1", BOB)
    assert seen == [(True, False)]
    monkeypatch.setattr(database, "read", None)
    assert is_of(table, "r-1", ALICE)


def test_claims_at_once(table: Ownership) -> None:
    """Of many keys that claim one id at the same moment one has it, and none fails."""
    callers = [ApiKey(f"k{number}", f"key:k{number}", None) for number in range(6)]
    barrier = Barrier(len(callers))

    def claim(key: ApiKey) -> None:
        barrier.wait()
        table.claim("response", "r-1", key)

    with ThreadPoolExecutor(len(callers)) as pool:
        list(pool.map(claim, callers))
    assert sum(is_of(table, "r-1", key) for key in callers) == 1


def test_forgotten(table: Ownership) -> None:
    """What is gone upstream is known to nobody; to forget it again is no error."""
    table.claim("response", "r-1", ALICE)
    assert is_of(table, "r-1", ALICE)
    table.forget("response", "r-1")
    table.forget("response", "r-1")
    assert not is_of(table, "r-1", ALICE)


@pytest.mark.parametrize("id", ["", "..", "a/b", "a%2fb", "x\x00", "\ud800", "é", "x" * 201, "a?b", " r"])
def test_an_odd_id_is_nobodys(table: Ownership, database: Database, id: str) -> None:
    """What could not stand in an upstream path is neither stored nor looked for."""
    table.claim("response", id, ALICE)
    table.forget("response", id)
    assert not is_of(table, id, ALICE)
    assert table.select("response", [id], ALICE) == set()
    assert database.read(count_rows) == 0


def test_a_list_is_filtered(table: Ownership) -> None:
    """Of many ids a key's own are found, of this kind."""
    for number in range(3):
        table.claim("file", f"a-{number}", ALICE)
        table.claim("file", f"b-{number}", BOB)
    table.claim("batch", "a-9", ALICE)
    ids = [f"{letter}-{number}" for letter in "ab" for number in range(10)]
    assert table.select("file", ids, ALICE) == {"a-0", "a-1", "a-2"}
    assert table.select("file", [], ALICE) == set()


def test_after_its_time(table: Ownership, database: Database, clock: Clock) -> None:
    """An id that is too old is nobody's, though it is remembered or still stored; later it is taken out."""
    table.claim("deferred", "d-1", ALICE)
    table.claim("file", "f-1", ALICE)
    table.check("deferred", "d-1", ALICE)
    clock.now += KEPT_S["deferred"]
    for each in (table, Ownership(database, clock)):
        with pytest.raises(RouteNotFoundError):
            each.check("deferred", "d-1", ALICE)
    assert table.select("deferred", ["d-1"], ALICE) == set()
    clock.now += PRUNE_S
    table.claim("file", "f-2", ALICE)
    assert database.read(count_rows) == 2
    table.check("file", "f-1", ALICE)


def test_a_rotated_key_keeps_what_it_made(table: Ownership, database: Database) -> None:
    """Both secrets of a key that is being rotated are its owner; a revoked key's rows stay its own."""
    store = KeyStore(database, clock=Clock())
    settings = Settings(auth="keys", xai_api_key="xai-of-the-server", key_cache_s=0.0)
    ring = KeyRing(settings, store, Clock())
    _, first = store.create("alice", {})
    table.claim("response", "r-1", ring.authenticate(f"Bearer {first}", "1.2.3.4"))
    _, second = store.rotate("alice")
    for secret in (first, second):
        assert is_of(table, "r-1", ring.authenticate(f"Bearer {secret}", "5.6.7.8"))


def test_a_key_made_anew_does_not_inherit(table: Ownership, database: Database, clock: Clock) -> None:
    """Should a name come back in the database (a table restored, a row deleted), its owner is another."""
    store = KeyStore(database, clock=clock)
    settings = Settings(auth="keys", xai_api_key="xai-of-the-server", key_cache_s=0.0)
    ring = KeyRing(settings, store, clock)
    _, secret = store.create("alice", {})
    table.claim("response", "r-1", ring.authenticate(f"Bearer {secret}", "1.2.3.4"))
    store.revoke("alice")

    def remove(connection: Connection) -> None:
        connection.execute(key_secrets.delete())
        connection.execute(keys.delete())

    database.write(remove)
    clock.now += 1
    _, other = store.create("alice", {})
    assert not is_of(table, "r-1", ring.authenticate(f"Bearer {other}", "1.2.3.4"))


def test_a_key_of_the_settings(table: Ownership) -> None:
    """With another secret it is another key, and one of the database by that name yet another."""
    rings = [
        KeyRing(Settings(auth="keys", xai_api_key="xai-of-the-server", keys=(("alice", secret),)))
        for secret in ("alice-secret-1", "alice-secret-2")
    ]
    one, other = (
        ring.authenticate(f"Bearer alice-secret-{n}", "1.2.3.4") for n, ring in enumerate(rings, start=1)
    )
    table.claim("response", "r-1", one)
    assert is_of(table, "r-1", one)
    assert not is_of(table, "r-1", other)
    assert not is_of(table, "r-1", ALICE)


def test_passthrough_and_open(table: Ownership) -> None:
    """There it is the client's own xAI key, whole, or the address that it calls from; neither is stored."""
    ring = KeyRing(Settings(auth="passthrough"))
    one, other = (ring.authenticate(f"Bearer xai-client-{n}", "1.2.3.4") for n in (1, 2))
    alike = replace(other, name=one.name, limit_id=one.limit_id)  # its name is only 48 bits of a hash
    table.claim("response", "r-1", one)
    assert [is_of(table, "r-1", key) for key in (one, other, alike)] == [True, False, False]
    assert "client" not in one.owner
    openly = KeyRing(Settings(auth="open", xai_api_key="xai-of-the-server"))
    here, there = (openly.authenticate(None, address) for address in ("1.2.3.4", "1.2.3.5"))
    table.claim("response", "r-2", here)
    assert [is_of(table, "r-2", key) for key in (here, there, one)] == [True, False, False]


def test_what_is_remembered_is_bounded(
    table: Ownership, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ids are asked for, a process remembers so many owners, and asks again for others."""
    monkeypatch.setattr(ownership, "MAX_REMEMBERED", 3)
    for number in range(6):
        table.claim("response", f"r-{number}", ALICE)
    for _ in range(2):
        assert all(is_of(table, f"r-{number}", ALICE) for number in range(6))
        assert not any(is_of(table, f"r-{number}", BOB) for number in range(6))
    assert len(table._known) == 3


def test_without_a_database(tmp_path: Path) -> None:
    """Away it is neither the owner nor a stranger that is let in: nobody can tell, so it is a 503."""
    file = tmp_path / "file"
    file.write_text("no folder")
    table = Ownership(Database(f"sqlite:///{file}/x.db"))
    for use in (
        lambda: table.claim("response", "r-1", ALICE),
        lambda: table.check("response", "r-1", ALICE),
        lambda: table.select("response", ["r-1"], ALICE),
        lambda: table.forget("response", "r-1"),
    ):
        with pytest.raises(StoreUnavailableError):
            use()
