"""Who may call, in each of the three modes; what becomes of keys in the database while it is away."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.databases import PostgresServer
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.config import Settings
from grokflask.errors import (
    AuthenticationError,
    GrokflaskError,
    KeyExistsError,
    KeyExpiredError,
    KeyRevokedError,
    RateLimitError,
    StoreUnavailableError,
)
from grokflask.keys import cache as keys
from grokflask.keys.cache import CACHE_S, UNKNOWN_S
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey, KeyRing
from grokflask.keys.store import KeyStore
from grokflask.keys.stored import FoundKey
from grokflask.storage.database import Database

UPSTREAM_KEY = "xai-upstream-secret"
KEYS = (("alice", "alice-secret"), ("bob", "bob-secret!"))


ADDRESS = "192.0.2.7"
START = 1_800_000_000.0


def make_ring(mode: str) -> KeyRing:
    if mode == "passthrough":
        return KeyRing(Settings(auth="passthrough", xai_api_base="http://h"))
    return KeyRing(Settings(auth=mode, xai_api_key=UPSTREAM_KEY, keys=KEYS if mode == "keys" else ()))


@pytest.mark.parametrize(("name", "secret"), KEYS)
def test_key_of_the_gateway(name: str, secret: str) -> None:
    """The holder of a key is known by its name, and the server's xAI key goes upstream."""
    key = make_ring("keys").authenticate(f"Bearer {secret}", ADDRESS)
    assert (key.name, key.upstream_key) == (name, UPSTREAM_KEY)
    assert (key.limit_id, key.limits) == (f"key:{name}", KeyLimits())
    assert key.secrets == (UPSTREAM_KEY,)


def test_keys_are_counted_apart() -> None:
    """Two keys have two counters, the same key always the same."""
    ring = make_ring("keys")
    alice, bob = (ring.authenticate(f"Bearer {secret}", ADDRESS) for _, secret in KEYS)
    assert alice.limit_id != bob.limit_id
    assert ring.authenticate("Bearer alice-secret", ADDRESS).limit_id == alice.limit_id


@pytest.mark.parametrize(
    "header",
    ["Bearer alice-secret", "bearer alice-secret", "Bearer   alice-secret", "Bearer alice-secret "],
)
@pytest.mark.parametrize("mode", ["keys", "passthrough"])
def test_spellings_of_the_header(header: str, mode: str) -> None:
    """The scheme may be in lower case, and spaces do not count."""
    expected = "alice-secret" if mode == "passthrough" else UPSTREAM_KEY
    assert make_ring(mode).authenticate(header, ADDRESS).upstream_key == expected


MALFORMED = [
    *("", " ", "Bearer", "Bearer ", "alice-secret", "Basic YWxpY2U6c2VjcmV0", "Beareralice-secret"),
    *("Bearer alice secret", "Bearer alice-secret, x", "Token alice-secret", "Bearer\talice-secret"),
    *("Bearer alice-secret\n", "Bearer k\u00e4se-secret", "Bearer a\x00lice-secret", "Bearer " + "x" * 513),
    " Bearer alice-secret",
]


@pytest.mark.parametrize("header", [None, *MALFORMED])
@pytest.mark.parametrize("mode", ["keys", "passthrough"])
def test_missing_or_malformed_header(header: str | None, mode: str) -> None:
    """What is not a bearer token is a 401 with the scheme, in both modes that need one."""
    with pytest.raises(AuthenticationError) as caught:
        make_ring(mode).authenticate(header, ADDRESS)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    assert caught.value.message.startswith("Invalid API key" if header else "No API key")


@pytest.mark.parametrize(
    "secret",
    [
        "alice",
        "alice-secre",
        "alice-secret2",
        "ALICE-SECRET",
        UPSTREAM_KEY,
        "bob-secret",
        "alice-secretbob-secret!",
    ],
)
def test_unknown_key(secret: str) -> None:
    """Neither a part of a key nor the server's own xAI key opens the door, and the error quotes nothing."""
    with pytest.raises(AuthenticationError) as caught:
        make_ring("keys").authenticate(f"Bearer {secret}", ADDRESS)
    assert secret not in caught.value.message


def test_no_keys_at_all() -> None:
    """`keys` without a key lets nobody in."""
    ring = KeyRing(Settings(auth="keys", xai_api_key=UPSTREAM_KEY))
    with pytest.raises(AuthenticationError):
        ring.authenticate(f"Bearer {UPSTREAM_KEY}", ADDRESS)


def test_passthrough() -> None:
    """The client's own key goes upstream; its name tells callers apart without telling the key."""
    ring = make_ring("passthrough")
    one, other = (ring.authenticate(f"Bearer xai-client-{number}", ADDRESS) for number in (1, 2))
    assert one.upstream_key == "xai-client-1"
    assert one.secrets == ("xai-client-1",)
    assert one.name != other.name
    assert (one.limit_id, one.limits) == (one.name, KeyLimits())
    assert one.limit_id != other.limit_id
    assert ring.authenticate("Bearer xai-client-1", ADDRESS) == one
    for text in (one.name, one.limit_id):
        assert "client" not in text


@pytest.mark.parametrize("header", [None, "Bearer anything", *MALFORMED])
def test_open(header: str | None) -> None:
    """Anybody may call, is counted by address, and never sends a key of their own upstream."""
    key = make_ring("open").authenticate(header, ADDRESS)
    assert key == ApiKey("open", f"address:{ADDRESS}", UPSTREAM_KEY, KeyLimits())


def test_open_on_the_sandbox() -> None:
    """Without an xAI key nothing is sent upstream."""
    key = KeyRing(Settings()).authenticate(None, ADDRESS)
    assert (key.upstream_key, key.secrets) == (None, ())


@pytest.mark.parametrize("mode", ["keys", "passthrough", "open"])
def test_no_secret_in_the_repr(mode: str) -> None:
    """A key that ends up in a log line tells nothing."""
    ring = make_ring(mode)
    shown = repr(ring.authenticate("Bearer alice-secret", ADDRESS)) + repr(ring)
    assert "alice-secret" not in shown
    assert UPSTREAM_KEY not in shown


def test_ring_holds_no_clear_secret() -> None:
    """Of the gateway's keys only a hash is in memory."""
    assert "alice-secret" not in repr(vars(make_ring("keys")))


class Clock:
    """Epoch seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class CountingStore(KeyStore):
    """The real store, which notes how often it is asked; a test may hold its answers back."""

    asked = 0
    asked_for_changes = 0
    listed = 0
    gate: threading.Event | None = None

    def count_changes(self) -> int:
        self.asked_for_changes += 1
        return super().count_changes()

    def list_hashes(self) -> frozenset[str]:
        self.listed += 1
        return super().list_hashes()

    def find(self, sha256: str) -> FoundKey | None:
        self.asked += 1
        found = super().find(sha256)
        if self.gate:
            assert self.gate.wait(WAIT_S)
        return found


class Outage:
    """Takes a database away and brings it back: SQLite's folder, or PostgreSQL's server."""

    def __init__(self, url: str, server: PostgresServer | None) -> None:
        self._folder = Path(url.removeprefix("sqlite:///")).parent
        self._hidden = self._folder.with_name("hidden")
        self._server = server

    def begin(self) -> None:
        if self._server:
            self._server.stop()
        else:
            self._folder.rename(self._hidden)

    def end(self) -> None:
        if self._server:
            self._server.start()
        elif self._hidden.exists():
            self._hidden.rename(self._folder)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> CountingStore:
    return CountingStore(database, ["alice"], clock)


@pytest.fixture
def outage(database_url: str, database_kind: str, request: pytest.FixtureRequest) -> Iterator[Outage]:
    """Over when the test is."""
    server = request.getfixturevalue("postgres_server") if database_kind == "postgresql" else None
    outage = Outage(database_url, server)
    yield outage
    outage.end()


def make_settings(**more: object) -> Settings:
    return Settings(auth="keys", xai_api_key=UPSTREAM_KEY, keys=KEYS[:1], **more)  # type: ignore[arg-type]


def call(ring: KeyRing, secret: str) -> str:
    """The name of the key that is let in, or the error's code."""
    try:
        return ring.authenticate(f"Bearer {secret}", ADDRESS).name
    except GrokflaskError as error:
        return error.code


def test_a_key_in_the_database(store: CountingStore, clock: Clock) -> None:
    """It opens the door with its own limits, and the server's xAI key goes upstream."""
    _, secret = store.create("carl", {"streams": 3, "models": ("grok-4*",)})
    key = KeyRing(make_settings(), store, clock).authenticate(f"Bearer {secret}", ADDRESS)
    assert (key.name, key.limit_id, key.upstream_key) == ("carl", "key:carl", UPSTREAM_KEY)
    assert key.limits == KeyLimits(streams=3, models=("grok-4*",))
    assert secret not in repr(key)


@pytest.mark.parametrize("mode", ["keys", "passthrough", "open"])
def test_the_database_is_asked_for_its_keys_only(store: CountingStore, clock: Clock, mode: str) -> None:
    """Keys of GROKFLASK_KEYS are found without it, and the other modes have no keys."""
    settings = {
        "keys": make_settings(),
        "passthrough": Settings(auth="passthrough"),
        "open": Settings(auth="open", xai_api_key=UPSTREAM_KEY),
    }[mode]
    ring = KeyRing(settings, store, clock)
    assert ring.authenticate("Bearer alice-secret", ADDRESS)
    with pytest.raises(AuthenticationError):
        KeyRing(make_settings(), store, clock).authenticate("Bearer ", ADDRESS)
    assert store.asked == 0


def test_a_key_is_remembered(store: CountingStore, clock: Clock) -> None:
    """A key is looked up again only once another change has been noticed, after CACHE_S at the most."""
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    for passed_s, asked in ((0, 1), (CACHE_S - 0.01, 1), (CACHE_S, 1), (3 * CACHE_S, 1)):
        clock.now = START + passed_s
        assert call(ring, secret) == "carl"
        assert store.asked == asked
    store.create("dora", {})
    clock.now = START + 4 * CACHE_S - 0.01
    assert (call(ring, secret), store.asked) == ("carl", 1)
    clock.now = START + 4 * CACHE_S
    assert (call(ring, secret), store.asked) == ("carl", 2)


def test_one_question_serves_all_keys(store: CountingStore, clock: Clock) -> None:
    """However many keys are in use, the database is asked once in CACHE_S whether any has changed."""
    secrets = [store.create(f"key-{number}", {})[1] for number in range(20)]
    ring = KeyRing(make_settings(), store, clock)
    for round_ in range(3):
        clock.now = START + round_ * CACHE_S
        assert [call(ring, secret) for secret in secrets] == [f"key-{number}" for number in range(20)]
    assert (store.asked, store.asked_for_changes) == (20, 2)


@pytest.mark.parametrize("change", ["set", "rotate", "revoke", "create"])
def test_each_change_counts(store: CountingStore, change: str) -> None:
    """Whatever may alter what a secret opens is noticed by those who remember it."""
    store.create("carl", {})
    before = store.count_changes()
    changes: dict[str, Callable[[], object]] = {
        "set": lambda: store.set("carl", {"streams": 2}),
        "rotate": lambda: store.rotate("carl"),
        "revoke": lambda: store.revoke("carl"),
        "create": lambda: store.create("dora", {}),
    }
    changes[change]()
    assert store.count_changes() == before + 1


def test_a_change_that_fails_does_not_count(store: CountingStore) -> None:
    """It has not happened."""
    store.create("carl", {})
    before = store.count_changes()
    with pytest.raises(KeyExistsError):
        store.create("carl", {})
    assert store.count_changes() == before


def test_cache_s_is_the_default() -> None:
    """The constant says what the setting does when nobody sets it."""
    assert Settings().key_cache_s == CACHE_S


def test_a_cache_of_nothing(store: CountingStore, clock: Clock) -> None:
    """With `key_cache_s` at 0 each call asks, and a revocation takes effect at once."""
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(key_cache_s=0.0), store, clock)
    assert [call(ring, secret), call(ring, secret)] == ["carl", "carl"]
    assert store.asked == 2
    store.revoke("carl")
    assert call(ring, secret) == "key_revoked"


def test_an_unknown_secret_is_remembered_for_a_moment(store: CountingStore, clock: Clock) -> None:
    """Guessing the same again within UNKNOWN_S costs the database nothing."""
    ring = KeyRing(make_settings(), store, clock)
    for passed_s, asked in ((0, 1), (UNKNOWN_S - 0.01, 1), (UNKNOWN_S, 2)):
        clock.now = START + passed_s
        assert call(ring, "gf-guess") == "invalid_api_key"
        assert store.asked == asked


def test_revocation_takes_effect_within_the_cache_time(store: CountingStore, clock: Clock) -> None:
    """Two workers that know a key let it in for CACHE_S after its revocation at the most."""
    _, secret = store.create("carl", {})
    rings = [KeyRing(make_settings(), store, clock) for _ in range(2)]
    assert [call(ring, secret) for ring in rings] == ["carl", "carl"]
    store.revoke("carl")
    clock.now = START + CACHE_S - 0.01
    assert [call(ring, secret) for ring in rings] == ["carl", "carl"]
    clock.now = START + CACHE_S
    assert [call(ring, secret) for ring in rings] == ["key_revoked", "key_revoked"]
    with pytest.raises(KeyRevokedError) as caught:
        rings[0].authenticate(f"Bearer {secret}", ADDRESS)
    assert caught.value.status == 403


def test_changed_limits_take_effect_within_the_cache_time(store: CountingStore, clock: Clock) -> None:
    """Likewise a new limit."""
    _, secret = store.create("carl", {"streams": 1})
    ring = KeyRing(make_settings(), store, clock)
    assert ring.authenticate(f"Bearer {secret}", ADDRESS).limits.streams == 1
    store.set("carl", {"streams": 2})
    clock.now += CACHE_S
    assert ring.authenticate(f"Bearer {secret}", ADDRESS).limits.streams == 2


def test_a_clock_set_back(store: CountingStore, clock: Clock) -> None:
    """It does not keep a revoked key alive."""
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    assert call(ring, secret) == "carl"
    store.revoke("carl")
    clock.now -= 3600
    assert call(ring, secret) == "key_revoked"


def test_expiry_goes_by_the_clock(store: CountingStore, clock: Clock) -> None:
    """A key ends at its second, though it is remembered as good."""
    _, secret = store.create("carl", {"expires_at": START + 2})
    ring = KeyRing(make_settings(), store, clock)
    clock.now = START + 1.99
    assert call(ring, secret) == "carl"
    clock.now = START + 2
    with pytest.raises(KeyExpiredError) as caught:
        ring.authenticate(f"Bearer {secret}", ADDRESS)
    assert caught.value.status == 403
    assert store.asked == 1


def test_rotation_overlaps_by_the_clock(store: CountingStore, clock: Clock) -> None:
    """Both secrets work until the overlap ends, then the new one alone."""
    _, old = store.create("carl", {})
    _, new = store.rotate("carl", 60)
    ring = KeyRing(make_settings(), store, clock)
    for passed_s, answers in ((0, ["carl", "carl"]), (59.9, ["carl", "carl"]), (60, ["key_expired", "carl"])):
        clock.now = START + passed_s
        assert [call(ring, old), call(ring, new)] == answers


def test_rotation_without_overlap(store: CountingStore, clock: Clock) -> None:
    """The old secret ends with the call; who has it cached learns of it within CACHE_S."""
    _, old = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    assert call(ring, old) == "carl"
    _, new = store.rotate("carl", 0)
    assert [call(KeyRing(make_settings(), store, clock), old), call(ring, new)] == ["key_expired", "carl"]
    clock.now += CACHE_S
    assert call(ring, old) == "key_expired"


def test_known_keys_work_while_the_database_is_away(
    store: CountingStore, clock: Clock, outage: Outage
) -> None:
    """A key seen good works on from memory however long, its expiry is kept; one never seen is a 503."""
    _, seen = store.create("carl", {"streams": 3})
    _, brief = store.create("dora", {"expires_at": START + 3600})
    _, unseen = store.create("emil", {})
    _, revoked = store.create("fred", {})
    store.revoke("fred")
    ring = KeyRing(make_settings(), store, clock)
    assert [call(ring, secret) for secret in (seen, brief, revoked)] == ["carl", "dora", "key_revoked"]
    outage.begin()
    for passed_s in (CACHE_S, 3599, 30 * 86400):
        clock.now = START + passed_s
        assert ring.authenticate(f"Bearer {seen}", ADDRESS).limits.streams == 3
        assert call(ring, "alice-secret") == "alice"
        assert call(ring, brief) == ("dora" if passed_s < 3600 else "key_expired")
        assert call(ring, revoked) == "key_revoked"
        for secret in (unseen, "gf-guess"):
            with pytest.raises(StoreUnavailableError) as caught:
                ring.authenticate(f"Bearer {secret}", ADDRESS)
            assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
    outage.end()
    wait_for(lambda: call(ring, unseen) == "emil", "the database to be back")
    assert [call(ring, seen), call(ring, "gf-guess")] == ["carl", "invalid_api_key"]


def test_closed_outage(store: CountingStore, clock: Clock, outage: Outage) -> None:
    """With `keys_outage` closed no key of the database works while it is away, remembered or not."""
    _, seen = store.create("carl", {})
    ring = KeyRing(make_settings(keys_outage="closed"), store, clock)
    assert call(ring, seen) == "carl"
    outage.begin()
    assert call(ring, "gf-guess") == "store_unavailable"  # from here on it is known to be away
    for passed_s in (0, CACHE_S, 3600):
        clock.now = START + passed_s
        assert call(ring, seen) == "store_unavailable"
        assert call(ring, "alice-secret") == "alice"
    outage.end()
    wait_for(lambda: call(ring, seen) == "carl", "the database to be back")


def test_callers_with_one_secret_share_a_question(
    store: CountingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 calls at once with a secret that is not remembered one asks the database, for all of them."""
    monkeypatch.setattr(keys, "WAIT_S", 60)
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    store.gate = threading.Event()
    started = threading.Barrier(41)

    def enter(_: int) -> str:
        started.wait(WAIT_S)
        return call(ring, secret)

    with ThreadPoolExecutor(40) as pool:
        answers = pool.map(enter, range(40))
        started.wait(WAIT_S)
        store.gate.set()
        assert list(answers) == ["carl"] * 40
    assert store.asked == 1


def test_a_flood_of_guesses_is_no_outage(
    store: CountingStore, clock: Clock, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 secrets at once no more than LOOKUPS are looked up at a time, and each gets its true answer."""
    monkeypatch.setattr(keys, "WAIT_S", 60)
    good = {store.create(f"key{number}", {})[1]: f"key{number}" for number in range(20)}
    secrets = [*good, *(f"gf-guess{number}" for number in range(180))]
    ring = KeyRing(make_settings(), store, clock)
    together = threading.Barrier(keys.LOOKUPS)
    inside: list[int] = []
    most: list[int] = []
    find = store.find

    def watch(sha256: str) -> FoundKey | None:
        inside.append(1)
        most.append(len(inside))
        if len(most) <= keys.LOOKUPS:
            together.wait(WAIT_S)  # so many at once there are
        try:
            return find(sha256)
        finally:
            inside.pop()

    store.find = watch  # type: ignore[method-assign]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda secret: call(ring, secret), secrets))
    assert answers == [good.get(secret, "invalid_api_key") for secret in secrets]
    assert max(most) == keys.LOOKUPS
    assert database.outages == 0


def test_a_question_that_fails_is_no_answer(
    store: CountingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error reaches its caller and leaves nothing behind: the next call asks again."""
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    with monkeypatch.context() as patch:
        patch.setattr(store, "find", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            ring.authenticate(f"Bearer {secret}", ADDRESS)
    assert call(ring, secret) == "carl"


def test_memory_is_bounded(store: CountingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first, and guesses push out guesses, never keys."""
    monkeypatch.setattr(keys, "MAX_REMEMBERED", 2)
    secrets = [store.create(f"key{number}", {})[1] for number in range(3)]
    ring = KeyRing(make_settings(), store, clock)
    for secret in (*secrets, *(f"gf-guess{number}" for number in range(5))):
        call(ring, secret)
    assert store.asked == 8
    remembered = [secrets[1], secrets[2], "gf-guess3", "gf-guess4"]
    for secret in remembered:
        call(ring, secret)
    assert store.asked == 8
    call(ring, secrets[0])
    call(ring, "gf-guess0")
    assert store.asked == 10


def test_memory_holds_no_secret(store: CountingStore, clock: Clock) -> None:
    """What is remembered is found by a hash and holds none of the secret."""
    _, secret = store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    call(ring, secret)
    assert ring._cache is not None
    shown = repr(ring._cache._known)
    assert "carl" in shown
    assert secret not in shown
    assert secret[7:-4] not in shown


class Slowed:
    """Guesses from everywhere are refused once `most` were counted."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.counted: list[str] = []

    def find_refusal(self, address: str) -> RateLimitError | None:
        return RateLimitError() if self.counted.count(address) >= self.most else None

    def count(self, address: str) -> None:
        self.counted.append(address)


def guess(ring: KeyRing, times: int = 1, address: str = ADDRESS) -> list[str]:
    """The codes for guesses that nobody has made before."""
    codes = []
    for _ in range(times):
        try:
            ring.authenticate(f"Bearer gf-guess-{next(numbers)}", address)
        except GrokflaskError as error:
            codes.append(error.code)
    return codes


numbers = itertools.count()


def test_guesses_cost_no_look_ups(store: CountingStore, clock: Clock) -> None:
    """After too many, wrong keys are refused without look-ups: one question a second serves all of them."""
    ring = KeyRing(make_settings(), store, clock)
    ring.guesses = slowed = Slowed(3)
    assert guess(ring, 503) == ["invalid_api_key"] * 3 + ["rate_limit_exceeded"] * 500
    assert (store.asked, store.asked_for_changes, store.listed) == (3, 1, 1)
    assert slowed.counted == [ADDRESS] * 3  # what is refused is not counted
    for passed_s in (UNKNOWN_S - 0.01, UNKNOWN_S):
        clock.now = START + passed_s
        guess(ring, 10)
    assert (store.asked, store.asked_for_changes, store.listed) == (3, 2, 1)
    assert guess(ring, 1, "192.0.2.8") == ["invalid_api_key"]


def test_a_right_key_passes_among_guesses(store: CountingStore, clock: Clock) -> None:
    """Whether it is in memory or not; one made just now within UNKNOWN_S; a revoked one is told as such."""
    secrets = {name: store.create(name, {})[1] for name in ("seen", "unseen", "revoked")}
    store.revoke("revoked")
    ring = KeyRing(make_settings(), store, clock)
    assert call(ring, secrets["seen"]) == "seen"
    ring.guesses = slowed = Slowed(0)
    assert [call(ring, secret) for secret in secrets.values()] == ["seen", "unseen", "key_revoked"]
    assert call(ring, "alice-secret") == "alice"
    assert guess(ring) == ["rate_limit_exceeded"]
    _, new = store.create("new", {})
    clock.now += UNKNOWN_S
    assert call(ring, new) == "new"
    assert slowed.counted == []
    assert store.asked == 4


def test_only_wrong_keys_are_counted(store: CountingStore, clock: Clock) -> None:
    """Not a missing one, nor a key that is right or was so."""
    _, secret = store.create("carl", {})
    _, revoked = store.create("dora", {})
    store.revoke("dora")
    ring = KeyRing(make_settings(), store, clock)
    ring.guesses = slowed = Slowed(1000)
    for header in (None, "", "Basic x", f"Bearer {secret}", f"Bearer {revoked}", "Bearer alice-secret"):
        with contextlib.suppress(GrokflaskError):
            ring.authenticate(header, ADDRESS)
    assert slowed.counted == []
    assert [call(ring, "gf-stale") for _ in range(3)] == ["invalid_api_key"] * 3
    assert slowed.counted == [ADDRESS] * 3  # also while it is remembered as unknown


def test_guesses_during_an_outage(store: CountingStore, clock: Clock, outage: Outage) -> None:
    """A key that cannot be looked up may be right: a 503, never a 401 or 429. It is not counted either."""
    store.create("carl", {})
    ring = KeyRing(make_settings(), store, clock)
    ring.guesses = slowed = Slowed(0)
    outage.begin()
    assert guess(ring, 2) == ["store_unavailable"] * 2
    slowed.most = 1
    assert guess(ring, 2) == ["store_unavailable"] * 2
    assert slowed.counted == []
