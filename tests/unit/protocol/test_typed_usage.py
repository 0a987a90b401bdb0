"""Usage of Responses and Messages, in the ledger's terms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grokflask.billing.bill import count_output
from grokflask.protocol.usage import Usage, merge_usage, read_reply


def read(usage: Any) -> Usage | None:
    reply = read_reply(json.dumps({"object": "response", "usage": usage}).encode())
    assert reply is not None
    return reply.read_usage()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # A recorded answer with a search: reasoning is inside of the output.
        (
            {
                "input_tokens": 5467,
                "input_tokens_details": {"cached_tokens": 1152},
                "output_tokens": 593,
                "output_tokens_details": {"reasoning_tokens": 500},
                "total_tokens": 6060,
                "num_server_side_tools_used": 1,
                "cost_in_usd_ticks": 177640000,
            },
            Usage(5467, 1152, 93, 500, 6060, 177640000, 1),
        ),
        # The reference's example counts reasoning outside.
        (
            {
                "input_tokens": 32,
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens": 9,
                "output_tokens_details": {"reasoning_tokens": 110},
                "total_tokens": 151,
                "num_server_side_tools_used": 0,
            },
            Usage(32, 8, 9, 110, 151, None, 0),
        ),
        # Another one of its examples has chat's names.
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 151,
                "completion_tokens_details": {"reasoning_tokens": 110},
            },
            Usage(32, None, 9, 110, 151),
        ),
        # A message: what was read from the cache is not among the input.
        (
            {
                "input_tokens": 9,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": 4,
                "output_tokens": 32,
            },
            Usage(14, 4, 32, None, 46),
        ),
        ({"input_tokens": 9, "output_tokens": 3}, Usage(9, None, 3, None, 12)),
        ({"output_tokens": 3}, Usage(completion_tokens=3)),
        ({"input_tokens": -1, "output_tokens": 10**16}, Usage()),
        ({"input_tokens": "many"}, Usage()),
        ({"input_tokens": 9, "output_tokens": 3.0, "input_tokens_details": []}, Usage(9, None, 3, None, 12)),
        ({}, Usage()),
        (None, None),
        ([], None),
    ],
)
def test_reading(usage: Any, expected: Usage | None) -> None:
    """The figures of both APIs are read; implausible ones count as missing."""
    assert read(usage) == expected


def test_output_is_counted_once() -> None:
    """However reasoning was counted, what is billed as output is the same."""
    inside = read({"input_tokens": 1, "output_tokens": 10, "output_tokens_details": {"reasoning_tokens": 7}})
    assert inside is not None
    assert (inside.completion_tokens, inside.reasoning_tokens, count_output(inside)) == (3, 7, 10)


def test_a_later_usage_goes_over_an_earlier_one() -> None:
    """Figures that it lacks stay, and the total is updated."""
    assert merge_usage(Usage(13, 4), Usage(completion_tokens=32)) == Usage(13, 4, 32, None, 45)
    assert merge_usage(Usage(13, 4, 1, None, 14), Usage(20, 4, 32, 0, 52)) == Usage(20, 4, 32, 0, 52)
    assert merge_usage(Usage(13, 4, 1, 5, 19), Usage(completion_tokens=2)) == Usage(13, 4, 2, 5, 20)
    assert merge_usage(None, Usage(1)) == Usage(1)
    assert merge_usage(Usage(1), None) == Usage(1)
    assert merge_usage(None, None) is None


def test_a_later_usage_that_says_less() -> None:
    """Nothing, or nothing but zeros, takes nothing away. A cost that is told for less is not one for more."""
    known = Usage(13, 4, 32, 0, 45, cost_ticks=999)
    for less in (Usage(), Usage(0, 0, 0, 0, 0, 0), Usage(13, 4, 32, 0, 45)):
        assert merge_usage(known, less) == known
    assert merge_usage(known, Usage(13, 4, 60, 0, 73)) == Usage(13, 4, 60, 0, 73)


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b'{"id":'])
def test_what_is_no_reply(body: bytes) -> None:
    """Anything but an object is none."""
    assert read_reply(body) is None


@pytest.mark.parametrize(
    ("body", "answer", "error"),
    [
        (b'{"object":"response","error":null}', True, False),
        (b'{"object":"response","error":{"message":"No."}}', True, True),
        (b'{"type":"message"}', True, False),
        (b'{"type":"error","error":{"message":"No."}}', False, True),
        (b'{"code":"x","error":"No."}', False, True),
    ],
)
def test_errors_and_answers(body: bytes, answer: bool, error: bool) -> None:
    """A failure with status 200 differs from an answer that reports a failure."""
    reply = read_reply(body)
    assert reply is not None
    assert (reply.is_answer, reply.has_error) == (answer, error)
