"""Upstream's error bodies in all their shapes, and what is cut out of them."""

from __future__ import annotations

import json

import pytest

from grokflask.errors import Outcome
from grokflask.protocol.upstream_errors import MAX_MESSAGE_CHARS, clean_message, parse_error

TEAM = "7d1f4cf0-1111-4222-8333-0123456789ab"
GENERIC = "The upstream API answered with status 503."


@pytest.mark.parametrize(
    ("body", "message", "code", "kind", "param"),
    [
        pytest.param(
            {"code": "invalid-argument", "error": "Bad thing"},
            "Bad thing",
            "invalid-argument",
            None,
            None,
            id="flat",
        ),
        pytest.param(
            {"code": "Client specified an invalid argument", "error": "Bad", "param": "stop"},
            "Bad",
            "Client specified an invalid argument",
            None,
            "stop",
            id="flat-old-code",
        ),
        pytest.param(
            {"error": {"message": "Bad", "type": "t", "param": "p", "code": "c"}},
            "Bad",
            "c",
            "t",
            "p",
            id="nested",
        ),
        pytest.param(
            {"error": {"message": "Bad", "type": None, "param": None, "code": None}},
            "Bad",
            None,
            None,
            None,
            id="nested-nulls",
        ),
        pytest.param(
            {"error": {"message": "Bad", "code": 429, "type": 1, "param": ["x"]}},
            "Bad",
            "429",
            None,
            None,
            id="nested-odd-types",
        ),
        pytest.param({"error": "just text"}, "just text", None, None, None, id="text-only"),
        pytest.param({"message": "elsewhere"}, "elsewhere", None, None, None, id="message"),
        pytest.param({"detail": "fastapi"}, "fastapi", None, None, None, id="detail"),
        pytest.param(
            {"detail": [{"loc": ["body"]}]}, '[{"loc":["body"]}]', None, None, None, id="detail-list"
        ),
        pytest.param({"error": ["a", 1]}, '["a",1]', None, None, None, id="error-is-a-list"),
        pytest.param({"error": None, "message": "m"}, "m", None, None, None, id="error-is-null"),
        pytest.param({"error": ""}, GENERIC, None, None, None, id="error-is-empty"),
        pytest.param({"error": {}}, GENERIC, None, None, None, id="error-has-no-message"),
        pytest.param({}, GENERIC, None, None, None, id="empty-object"),
        pytest.param([{"error": "x"}], GENERIC, None, None, None, id="list"),
        pytest.param(42, GENERIC, None, None, None, id="number"),
        pytest.param(None, GENERIC, None, None, None, id="null"),
    ],
)
def test_shapes(body: object, message: str, code: str | None, kind: str | None, param: str | None) -> None:
    """xAI's flat object, OpenAI's nested one and whatever else a proxy may say give one kind of error."""
    error = parse_error(json.dumps(body).encode(), status=503)
    assert error.message == message
    assert error.code == (code or "upstream_error")
    assert error.type == (kind or "server_error")
    assert error.param == param
    assert error.status == 503
    assert error.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"upstream connect error", id="text"),
        pytest.param(b"<html><body><h1>502 Bad Gateway</h1></body></html>", id="html"),
        pytest.param(b'{"error": "cut', id="cut"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b'{"\xff": "x"}', id="key-not-utf8"),
        pytest.param(b'{"error": "\xff"}', id="value-not-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep-object"),
    ],
)
def test_bodies_that_are_no_json(body: bytes) -> None:
    """A body that cannot be read gives an error that names the status, and none of its text."""
    error = parse_error(body, status=503)
    assert (error.message, error.code, error.status) == (GENERIC, "upstream_error", 503)


def test_headers_are_kept() -> None:
    """Retry-After stays with the error."""
    assert parse_error(b"", status=429, headers={"retry-after": "3"}).headers == {"retry-after": "3"}


REDACTED = [
    pytest.param(f"for team {TEAM} and", f"for team {'[redacted]'} and", id="team"),
    pytest.param(f"team {TEAM.upper()}.", "team [redacted].", id="team-upper-case"),
    pytest.param(f"team/{TEAM.replace('-', '')}/x", "team/[redacted]/x", id="team-without-dashes"),
    pytest.param(f"(API key ID: {TEAM})", "(API key ID: [redacted])", id="key-id"),
    pytest.param(f"'{TEAM}','{TEAM}'", "'[redacted]','[redacted]'", id="several"),
    pytest.param(f"team_{TEAM}", "team_[redacted]", id="team-after-underscore"),
    pytest.param(f"Your%20team%20{TEAM}%20has", "Your%20team%20[redacted]%20has", id="team-percent-encoded"),
    pytest.param("key xai-AbC123-_xyz is", "key [redacted] is", id="xai-key"),
    pytest.param("key=xai-AbC123&x", "key=[redacted]&x", id="xai-key-in-url"),
    pytest.param("key%20xai-AbC123xyz%20is", "key%20[redacted]%20is", id="xai-key-percent-encoded"),
    pytest.param("sk-proj-0123456789", "[redacted]", id="openai-key"),
    pytest.param("provided: xa***yz. You", "provided: [redacted]. You", id="masked"),
    pytest.param("provided: xai-AbCd***", "provided: [redacted]", id="masked-end"),
    pytest.param("provided: ********wxyz", "provided: [redacted]", id="masked-start"),
    pytest.param("'Bearer abc.def' sent", "'Bearer [redacted]' sent", id="bearer"),
    pytest.param("authorization: bearer abc/+=", "authorization: bearer [redacted]", id="bearer-lower-case"),
]


@pytest.mark.parametrize(("message", "cleaned"), REDACTED)
def test_ids_and_keys_are_cut_out(message: str, cleaned: str) -> None:
    """No id of the operator's and nothing that looks like a key reaches a client."""
    # Marks may merge where two patterns meet; what counts is that nothing of the secret is left.
    assert clean_message(message).replace("[redacted][redacted]", "[redacted]") == cleaned


@pytest.mark.parametrize(
    "message",
    [
        "grok-4.3 does not support parameter presencePenalty",
        "Too many tokens: 12345678 of 10000000",
        "2 ** 3 is 8",
        "Failed check: SAFETY_CHECK_TYPE_BIO",
        "id 1234-5678",
        "",
    ],
)
def test_plain_words_are_left_alone(message: str) -> None:
    """Cutting out is for secrets, not for what explains the failure."""
    assert clean_message(message) == message


def test_known_secrets_are_cut_out_whatever_they_look_like() -> None:
    """A key that follows no pattern is known, and so it goes."""
    assert clean_message("got 'pa$$.w(rd' and pa$$.w(rd", ("pa$$.w(rd",)) == "got '[redacted]' and [redacted]"
    body = json.dumps(
        {"error": {"message": "a S3CRET", "code": "S3CRET", "type": "S3CRET", "param": "S3CRET"}}
    ).encode()
    error = parse_error(body, secrets=("S3CRET",))
    assert (error.message, error.code, error.type, error.param) == ("a [redacted]", *["[redacted]"] * 3)
    assert clean_message("next", ("x",)) == "next"  # too short to be one, and in half of all words


def test_message_that_is_an_object_is_cleaned_as_well() -> None:
    """A message of another type is shown as JSON, and cleaned all the same."""
    error = parse_error(json.dumps({"error": ["team", TEAM, "SECRET"]}).encode(), secrets=("SECRET",))
    assert error.message == '["team","[redacted]","[redacted]"]'


def test_long_message_is_cut() -> None:
    """A message has at most MAX_MESSAGE_CHARS characters, and is cut after its secrets went."""
    assert clean_message("x" * 5000) == "x" * MAX_MESSAGE_CHARS
    message = "x " * (MAX_MESSAGE_CHARS // 2 - 3) + f"{TEAM} tail"
    assert clean_message(message) == "x " * (MAX_MESSAGE_CHARS // 2 - 3) + "[redac"


def test_control_characters_become_spaces() -> None:
    """Nothing that moves a cursor or rings a bell gets through; a newline does, and letters do."""
    assert clean_message("a\r\x1b[31m\tb\x00\x7f\x85\u2028c\nd") == "a  [31m b    c\nd"
    assert clean_message("Grüße, 世界 👩 ё") == "Grüße, 世界 👩 ё"
