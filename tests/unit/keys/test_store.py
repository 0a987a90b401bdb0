"""Keys in the database, over SQLite and PostgreSQL: what is stored is what was said, and never a secret."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, text
from support.scripted import WAIT_S

from grokflask.errors import (
    InvalidRequestError,
    KeyExistsError,
    KeyNotFoundError,
    KeyRevokedError,
    StoreUnavailableError,
)
from grokflask.keys.limits import KeyLimits, read_changes
from grokflask.keys.store import KEPT_S, MAX_OVERLAP_S, KeyStore, hash_secret
from grokflask.storage.database import Database

START = 1_800_000_000.0
USD = 10**10


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
def store(database: Database, clock: Clock) -> KeyStore:
    return KeyStore(database, ["alice"], clock)


def test_a_new_key(store: KeyStore) -> None:
    """A key made with nothing has no limit; its secret is long, and found by its hash alone."""
    key, secret = store.create("bob", {})
    assert (key.name, key.limits, key.created_at) == ("bob", KeyLimits(), START)
    assert (key.expires_at, key.revoked_at) == (None, None)
    assert secret.startswith("gf-")
    assert len(secret) >= 43
    [kept] = key.secrets
    assert kept.hint == f"{secret[:7]}…{secret[-4:]}"
    assert (kept.created_at, kept.expires_at) == (START, None)
    found = store.find(hashlib.sha256(secret.encode()).hexdigest())
    assert found is not None
    assert (found.key, found.sha256, found.expires_at) == (key, hash_secret(secret), None)


def test_secrets_differ(store: KeyStore) -> None:
    """No two keys get the same secret."""
    assert len({store.create(f"key{number}", {})[1] for number in range(20)}) == 20


@pytest.mark.parametrize("asked", ["", "0" * 64, "nothing"])
def test_what_nobody_has_is_not_found(store: KeyStore, asked: str) -> None:
    """A hash that is not stored finds no key."""
    store.create("bob", {})
    assert store.find(asked) is None


FIELDS: list[tuple[str, Any, Any]] = [
    ("requests", "100/hour", "100/hour"),
    ("requests", "5/second; 1000 per day", "5/second; 1000 per day"),
    ("tokens_per_minute", 10**12, 10**12),
    ("tokens_per_minute", "0", 0),
    ("streams", 7, 7),
    ("budget_day", 2.5, 25 * 10**9),
    ("budget_day", "0.0000000001", 1),
    ("budget_day", 0, 0),
    ("budget_month", 10**8, 10**8 * USD),
    ("models", ["grok-4*", "grok-[23]?"], ("grok-4*", "grok-[23]?")),
    ("expires_at", "30d", START + 30 * 86400),
    ("expires_at", "2027-06-01T00:00+02:00", datetime(2027, 5, 31, 22, tzinfo=UTC).timestamp()),
]


def get_stored(store: KeyStore, name: str, field: str) -> Any:
    key = store.show(name)
    stored = {"budget_day": "budget_day_ticks", "budget_month": "budget_month_ticks"}.get(field, field)
    return key.expires_at if field == "expires_at" else getattr(key.limits, stored)


@pytest.mark.parametrize(("field", "value", "stored"), FIELDS)
def test_each_field_is_stored(store: KeyStore, field: str, value: Any, stored: Any) -> None:
    """A limit is stored by `create` and `set` alike, echoed, found with the secret, taken away by None."""
    changes = read_changes({field: value}, START)
    made, secret = store.create("bob", changes)
    assert get_stored(store, "bob", field) == stored
    assert made == store.show("bob")
    store.create("carl", {})
    changed = store.set("carl", changes)
    assert get_stored(store, "carl", field) == stored
    assert (changed.limits, changed.expires_at) == (made.limits, made.expires_at)
    found = store.find(hash_secret(secret))
    assert found is not None
    assert (found.key.limits, found.key.expires_at) == (made.limits, made.expires_at)
    bare = store.set("bob", read_changes({field: None}, START))
    assert (bare.limits, bare.expires_at) == (KeyLimits(), None)


def test_set_leaves_the_rest(store: KeyStore) -> None:
    """What a change does not name stays as it was."""
    store.create("bob", {"streams": 3, "models": ("a", "b"), "expires_at": START + 9})
    key = store.set("bob", {"tokens_per_minute": 5})
    assert key.limits == KeyLimits(tokens_per_minute=5, streams=3, models=("a", "b"))
    assert key.expires_at == START + 9


def test_empty_set(store: KeyStore) -> None:
    """A change of nothing is refused, not answered as if something had been stored."""
    store.create("bob", {})
    with pytest.raises(InvalidRequestError, match="Nothing to change"):
        store.set("bob", {})


def test_names_are_taken_for_good(store: KeyStore) -> None:
    """A name is used once: not again while its key lives, nor after, nor when GROKFLASK_KEYS has it."""
    store.create("bob", {"streams": 1})
    with pytest.raises(KeyExistsError):
        store.create("bob", {})
    store.revoke("bob")
    with pytest.raises(KeyExistsError):
        store.create("bob", {})
    with pytest.raises(KeyExistsError, match="GROKFLASK_KEYS"):
        store.create("alice", {})
    assert [key.name for key in store.list()] == ["bob"]
    assert store.show("bob").limits.streams == 1


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "é", "a\n", "a\x00", "x" * 65, "=1+1", "\uff41"])
def test_odd_names(store: KeyStore, name: str) -> None:
    """A name with other than letters, digits and . _ - is not taken, and looking for it finds nothing."""
    with pytest.raises(InvalidRequestError) as caught:
        store.create(name, {})
    assert caught.value.param == "name"
    for call in (store.show, store.rotate, store.revoke, lambda name: store.set(name, {"streams": 1})):
        with pytest.raises(KeyNotFoundError):
            call(name)
    assert store.list() == ()  # and the database is not thought to be away


def test_unknown_name(store: KeyStore) -> None:
    """What does not exist is neither shown, changed, rotated nor revoked."""
    for call in (store.show, store.rotate, store.revoke, lambda name: store.set(name, {"streams": 1})):
        with pytest.raises(KeyNotFoundError, match="'bob'"):
            call("bob")


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 64])
def test_good_names(store: KeyStore, name: str) -> None:
    """Letters, digits and . _ - make a name, up to 64 of them."""
    store.create(name, {})
    assert store.show(name).name == name


def test_list_is_sorted(store: KeyStore) -> None:
    """Keys are listed by name, with their own secrets, whatever the database's order is."""
    names = ["b", "Z", "a", "a-b", "a.b"]
    made = {name: store.create(name, {})[0] for name in names}
    assert store.list() == tuple(made[name] for name in sorted(names))


def test_parallel_creation(store: KeyStore) -> None:
    """Of 12 who make a key of one name at once exactly one gets it."""
    store.list()
    barrier = Barrier(12)

    def create(_: int) -> str | None:
        barrier.wait(WAIT_S)
        try:
            return store.create("bob", {})[1]
        except KeyExistsError:
            return None

    with ThreadPoolExecutor(12) as pool:
        secrets = [secret for secret in pool.map(create, range(12)) if secret]
    assert len(secrets) == 1
    assert store.find(hash_secret(secrets[0])) is not None
    assert len(store.show("bob").secrets) == 1


def test_rotation(store: KeyStore, clock: Clock) -> None:
    """The new secret has no end of its own, the old one ends after the overlap; both are the key's."""
    _, old = store.create("bob", {"streams": 2})
    clock.now += 10
    key, new = store.rotate("bob", 60)
    assert [secret.expires_at for secret in key.secrets] == [None, clock.now + 60]
    for secret, end in ((old, clock.now + 60), (new, None)):
        found = store.find(hash_secret(secret))
        assert found is not None
        assert (found.key.name, found.key.limits.streams, found.expires_at) == ("bob", 2, end)


def test_rotation_never_prolongs(store: KeyStore, clock: Clock) -> None:
    """A secret that is about to end is not given more time by the next rotation, but may be given less."""
    store.create("bob", {})
    clock.now += 1
    store.rotate("bob", 60)
    clock.now += 1
    key, _ = store.rotate("bob", 3600)
    assert [secret.expires_at for secret in key.secrets] == [None, START + 3602, START + 61]
    clock.now += 1
    key, _ = store.rotate("bob", 0)
    assert [secret.expires_at for secret in key.secrets] == [None, clock.now, clock.now, clock.now]


def test_rotation_forgets_what_expired_long_ago(store: KeyStore, clock: Clock) -> None:
    """An expired secret is known for KEPT_S, so that its holder is told; then a rotation removes it."""
    _, old = store.create("bob", {})
    store.rotate("bob", 0)
    clock.now += KEPT_S
    store.rotate("bob", 0)
    assert store.find(hash_secret(old)) is not None
    clock.now += 1
    store.rotate("bob", 0)
    assert store.find(hash_secret(old)) is None


@pytest.mark.parametrize("overlap_s", [-1, MAX_OVERLAP_S + 1, float("inf"), float("nan")])
def test_impossible_overlap(store: KeyStore, overlap_s: float) -> None:
    """An overlap is from nothing to a year, and a refused one changes nothing."""
    before, _ = store.create("bob", {})
    with pytest.raises(InvalidRequestError) as caught:
        store.rotate("bob", overlap_s)
    assert caught.value.param == "overlap"
    assert store.show("bob") == before


def test_parallel_rotation(store: KeyStore) -> None:
    """Of 8 rotations at once each gives a secret, and all but the last one's are about to end."""
    store.create("bob", {})
    with ThreadPoolExecutor(8) as pool:
        secrets = [secret for _, secret in pool.map(lambda _: store.rotate("bob", 60), range(8))]
    ends = [secret.expires_at for secret in store.show("bob").secrets]
    assert len(set(secrets)) == 8
    assert sorted(ends, key=lambda end: end or 0) == [None] + [START + 60] * 8


def test_revocation_is_for_good(store: KeyStore, clock: Clock) -> None:
    """A revoked key keeps its first time, and is neither changed nor rotated any more."""
    _, secret = store.create("bob", {"expires_at": START + 5})
    assert store.revoke("bob").revoked_at == START
    clock.now += 10
    key = store.revoke("bob")
    assert key.revoked_at == START
    for call in (lambda: store.set("bob", {"streams": 1}), lambda: store.rotate("bob")):
        with pytest.raises(KeyRevokedError) as caught:
            call()
        assert (caught.value.status, caught.value.code) == (409, "key_revoked")
    assert store.show("bob") == key
    found = store.find(hash_secret(secret))
    assert found is not None
    assert found.key.revoked_at == START


def test_an_expired_key_lives_again(store: KeyStore, clock: Clock) -> None:
    """Its expiry can be moved; the status goes by the clock."""
    key, _ = store.create("bob", {"expires_at": START + 5})
    assert (key.find_status(START + 4.9), key.find_status(START + 5)) == ("active", "expired")
    clock.now += 10
    key = store.set("bob", {"expires_at": START + 50})
    assert key.find_status(clock.now) == "active"
    assert store.revoke("bob").find_status(START + 99) == "revoked"


def test_fields_for_people(store: KeyStore, clock: Clock) -> None:
    """What is shown of a key: every limit under its public name, times in ISO 8601, hints for secrets."""
    fields = {"requests": "9/hour", "budget_day": 2.5, "models": ["a"], "expires_at": "1h"}
    store.create("bob", read_changes(fields, START))
    clock.now += 1
    key, _ = store.rotate("bob", 60)
    new, old = key.secrets
    assert key.to_fields(START) == {
        "name": "bob",
        "status": "active",
        "hint": key.secrets[0].hint,
        "created_at": "2027-01-15T08:00:00.000Z",
        "expires_at": "2027-01-15T09:00:00.000Z",
        "revoked_at": None,
        "requests": "9/hour",
        "tokens_per_minute": None,
        "streams": None,
        "budget_day": 2.5,
        "budget_month": None,
        "models": ["a"],
        "tools": "all",
        "secrets": [
            {"hint": new.hint, "created_at": "2027-01-15T08:00:01.000Z", "expires_at": None},
            {
                "hint": old.hint,
                "created_at": "2027-01-15T08:00:00.000Z",
                "expires_at": "2027-01-15T08:01:01.000Z",
            },
        ],
    }


def dump(database: Database, url: str) -> bytes:
    """Everything that is stored: all bytes of SQLite's files, or every row of PostgreSQL's tables."""
    if database.is_sqlite:
        path = Path(url.removeprefix("sqlite:///"))
        return b"".join(file.read_bytes() for file in path.parent.iterdir())
    tables = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")

    def query(connection: Connection) -> str:
        names = list(connection.scalars(tables))
        return "".join(str(connection.execute(text(f"SELECT * FROM {name}")).all()) for name in names)

    return database.read(query).encode()


def test_no_secret_is_stored(store: KeyStore, database: Database, database_url: str) -> None:
    """Of a secret the database holds the hash and the hint, and no other part."""
    key, secret = store.create("bob", {})
    _, newer = store.rotate("bob")
    store.find(hash_secret(newer))
    stored = dump(database, database_url)
    for each in (secret, newer):
        assert hash_secret(each).encode() in stored
        assert each.encode() not in stored
        assert each[7:-4].encode() not in stored
    assert secret not in repr(key)


def test_every_call_says_when_the_database_is_away(tmp_path: Path) -> None:
    """Each method raises StoreUnavailableError, and the store knows that it is away."""
    (tmp_path / "file").write_text("not a folder")
    database = Database(f"sqlite:///{tmp_path}/file/test.db")
    store = KeyStore(database)
    assert not store.is_away
    calls = [
        lambda: store.create("bob", {}),
        store.list,
        lambda: store.show("bob"),
        lambda: store.set("bob", {"streams": 1}),
        lambda: store.rotate("bob"),
        lambda: store.revoke("bob"),
        lambda: store.find("0" * 64),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailableError):
            call()
        assert store.is_away
    database.close()
