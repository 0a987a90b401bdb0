"""Who may call, in each of the three modes."""

from __future__ import annotations

import pytest

from grokflask.config import Settings
from grokflask.errors import AuthenticationError
from grokflask.keys import ApiKey, KeyRing

UPSTREAM_KEY = "xai-upstream-secret"
KEYS = (("alice", "alice-secret"), ("bob", "bob-secret!"))


def make_ring(mode: str) -> KeyRing:
    if mode == "passthrough":
        return KeyRing(Settings(auth="passthrough", xai_api_base="http://h"))
    return KeyRing(Settings(auth=mode, xai_api_key=UPSTREAM_KEY, keys=KEYS if mode == "keys" else ()))


@pytest.mark.parametrize(("name", "secret"), KEYS)
def test_key_of_the_gateway(name: str, secret: str) -> None:
    """The holder of a key is known by its name, and the server's xAI key goes upstream."""
    key = make_ring("keys").authenticate(f"Bearer {secret}")
    assert (key.name, key.upstream_key) == (name, UPSTREAM_KEY)
    assert key.limit_id is not None
    assert key.secrets == (UPSTREAM_KEY,)


def test_keys_are_counted_apart() -> None:
    """Two keys have two counters, the same key always the same."""
    ring = make_ring("keys")
    alice, bob = (ring.authenticate(f"Bearer {secret}") for _, secret in KEYS)
    assert alice.limit_id != bob.limit_id
    assert ring.authenticate("Bearer alice-secret").limit_id == alice.limit_id


@pytest.mark.parametrize(
    "header",
    ["Bearer alice-secret", "bearer alice-secret", "Bearer   alice-secret", "Bearer alice-secret "],
)
@pytest.mark.parametrize("mode", ["keys", "passthrough"])
def test_spellings_of_the_header(header: str, mode: str) -> None:
    """The scheme may be in lower case, and spaces do not count."""
    expected = "alice-secret" if mode == "passthrough" else UPSTREAM_KEY
    assert make_ring(mode).authenticate(header).upstream_key == expected


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
        make_ring(mode).authenticate(header)
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
        make_ring("keys").authenticate(f"Bearer {secret}")
    assert secret not in caught.value.message


def test_no_keys_at_all() -> None:
    """`keys` without a key lets nobody in."""
    ring = KeyRing(Settings(auth="keys", xai_api_key=UPSTREAM_KEY))
    with pytest.raises(AuthenticationError):
        ring.authenticate(f"Bearer {UPSTREAM_KEY}")


def test_passthrough() -> None:
    """The client's own key goes upstream; its name tells callers apart without telling the key."""
    ring = make_ring("passthrough")
    one, other = (ring.authenticate(f"Bearer xai-client-{number}") for number in (1, 2))
    assert one.upstream_key == "xai-client-1"
    assert one.secrets == ("xai-client-1",)
    assert one.name != other.name
    assert one.limit_id
    assert one.limit_id != other.limit_id
    assert ring.authenticate("Bearer xai-client-1") == one
    for text in (one.name, one.limit_id):
        assert "client" not in text


@pytest.mark.parametrize("header", [None, "Bearer anything", *MALFORMED])
def test_open(header: str | None) -> None:
    """Anybody may call, is counted by address, and never sends a key of their own upstream."""
    key = make_ring("open").authenticate(header)
    assert key == ApiKey("open", None, UPSTREAM_KEY)


def test_open_on_the_sandbox() -> None:
    """Without an xAI key nothing is sent upstream."""
    key = KeyRing(Settings()).authenticate(None)
    assert (key.upstream_key, key.secrets) == (None, ())


@pytest.mark.parametrize("mode", ["keys", "passthrough", "open"])
def test_no_secret_in_the_repr(mode: str) -> None:
    """A key that ends up in a log line tells nothing."""
    ring = make_ring(mode)
    shown = repr(ring.authenticate("Bearer alice-secret")) + repr(ring)
    assert "alice-secret" not in shown
    assert UPSTREAM_KEY not in shown


def test_ring_holds_no_clear_secret() -> None:
    """Of the gateway's keys only a hash is in memory."""
    assert "alice-secret" not in repr(vars(make_ring("keys")))
