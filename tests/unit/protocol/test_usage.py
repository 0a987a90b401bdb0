"""Usage read from chunks and replies."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from grokflask.protocol.chat_events import EventFilter
from grokflask.protocol.upstream_errors import parse_error
from grokflask.protocol.usage import MAX_SALVAGED_BYTES, Chunk, Usage, read_chunk

FULL = {
    "prompt_tokens": 12,
    "completion_tokens": 1,
    "total_tokens": 303,
    "prompt_tokens_details": {"text_tokens": 12, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 11},
    "completion_tokens_details": {"reasoning_tokens": 290, "audio_tokens": 0},
    "num_sources_used": 0,
    "cost_in_usd_ticks": 1466250,
}


def read(usage: Any) -> Usage | None:
    chunk = read_chunk(json.dumps({"choices": [], "usage": usage}).encode())
    assert chunk is not None
    return chunk.read_usage()


def test_all_figures() -> None:
    """Reasoning stands beside completion, cached tokens are part of the prompt, cost is in ticks."""
    assert read(FULL) == Usage(
        prompt_tokens=12,
        cached_tokens=11,
        completion_tokens=1,
        reasoning_tokens=290,
        total_tokens=303,
        cost_ticks=1466250,
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param({}, Usage(), id="empty"),
        pytest.param({"cost_in_usd_ticks": 0}, Usage(cost_ticks=0), id="zero-is-a-figure"),
        pytest.param({"prompt_tokens": 0, "total_tokens": None}, Usage(prompt_tokens=0), id="null-is-none"),
        pytest.param({"prompt_tokens_details": None}, Usage(), id="null-details"),
        pytest.param({"prompt_tokens_details": {}}, Usage(), id="empty-details"),
        pytest.param({"cost_in_usd_ticks": 10**15}, Usage(cost_ticks=10**15), id="large"),
        pytest.param({"prompt_tokens": 1, "new_tokens": "x"}, Usage(prompt_tokens=1), id="unknown-fields"),
        pytest.param(None, None, id="null"),
        pytest.param("many", None, id="text"),
        pytest.param([1], None, id="list"),
        pytest.param(
            {"prompt_tokens": "12", "total_tokens": 1.0},
            Usage(prompt_tokens=12, total_tokens=1),
            id="figure-as-text",
        ),
        pytest.param(
            {"prompt_tokens": 12, "completion_tokens": 2.5, "cost_in_usd_ticks": 8750.0},
            Usage(prompt_tokens=12, completion_tokens=2, cost_ticks=8750),
            id="fractions",
        ),
        pytest.param(
            {"prompt_tokens": 12, "prompt_tokens_details": [], "completion_tokens_details": 7},
            Usage(prompt_tokens=12),
            id="lists-for-objects",
        ),
        pytest.param(
            {"prompt_tokens": {}, "total_tokens": True, "cost_in_usd_ticks": 5},
            Usage(cost_ticks=5),
            id="objects-for-figures",
        ),
        pytest.param(
            {"prompt_tokens": 2**63, "completion_tokens": 2**70, "cost_in_usd_ticks": 5},
            Usage(cost_ticks=5),
            id="beyond-the-column",
        ),
        pytest.param(
            {"prompt_tokens": 12, "prompt_tokens_details": {"cached_tokens": 1.0, "text_tokens": []}},
            Usage(prompt_tokens=12, cached_tokens=1),
            id="odd-details",
        ),
    ],
)
def test_partial_and_odd_usage(usage: Any, expected: Usage | None) -> None:
    """Zero is a figure and None a missing one; a usage of another shape counts as none."""
    assert read(usage) == expected


@pytest.mark.parametrize(
    ("data", "choices", "error", "usage"),
    [
        (b"{}", False, False, False),
        (b'{"choices":[],"usage":{},"error":{}}', False, False, True),
        (b'{"choices":[ \r\n\t ],"usage":null,"error":null}', False, False, False),
        (b'{"choices":null}', False, False, False),
        (b'{"choices":[{}]}', True, False, False),
        (b'{"choices":[{"delta":{"content":"\\"usage\\":{}"}}]}', True, False, False),
        (b'{"choices":[{"usage":{"x":1},"error":"x"}]}', True, False, False),
        (b'{"error":"text"}', False, True, False),
        (b'{"error":false,"choices":[{}]}', True, False, False),
        (b'{"error":"","choices":[{}]}', True, False, False),
        (b'{"\\u0065rror":"text","us\\u0061ge":{}}', False, True, True),
    ],
)
def test_what_a_chunk_has(data: bytes, choices: bool, error: bool, usage: bool) -> None:
    """Only the top level counts, and null is not there."""
    chunk = read_chunk(data)
    assert chunk is not None
    assert (chunk.has_choices, chunk.has_error, chunk.has_usage) == (choices, error, usage)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (b'{"model":"grok-4.3"}', "grok-4.3"),
        (b'{"model":null}', None),
        (b'{"model":5}', None),
        (b'{"model":"\xff"}', None),
        (b"{}", None),
    ],
)
def test_model_that_answered(data: bytes, model: str | None) -> None:
    """The model is read where it is a text, and missing otherwise."""
    chunk = read_chunk(data)
    assert chunk is not None
    assert chunk.read_model() == model


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[DONE]",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b'{"a":1}x',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_data_that_are_no_chunk(data: bytes) -> None:
    """What is no JSON object is no chunk, and no crash."""
    assert read_chunk(data) is None


def test_a_figure_out_of_range_is_none_of_the_others_business() -> None:
    """Not even one that no float can hold."""
    chunk = read_chunk(b'{"usage":{"prompt_tokens":1e400,"completion_tokens":7,"cost_in_usd_ticks":-1e400}}')
    assert chunk is not None
    assert chunk.read_usage() == Usage(completion_tokens=7)


@pytest.mark.parametrize(
    "last", [{}, [], {"prompt_tokens": 0, "cost_in_usd_ticks": 0}, {"prompt_tokens": 12}]
)
def test_a_stream_whose_last_usage_says_less(last: Any) -> None:
    """What earlier chunks have said stays."""
    events = EventFilter(wants_usage=False)
    for usage in ({"prompt_tokens": 12}, FULL, last):
        events.take([json.dumps({"choices": [], "usage": usage}).encode()])
    events.take([b"[DONE]"])
    assert events.usage is not None
    assert (events.usage.cost_ticks, events.usage.total_tokens) == (1466250, 303)


@pytest.mark.parametrize("figure", ["-1", "1000000000000001", "1e300", "100000000000000000000000"])
def test_figures_that_cannot_be(figure: str) -> None:
    """A negative or monstrous figure counts as missing, and does not spoil the others."""
    data = f'{{"usage":{{"prompt_tokens":7,"completion_tokens":{figure},"cost_in_usd_ticks":{figure}}}}}'
    chunk = read_chunk(data.encode())
    assert chunk is not None
    usage = chunk.read_usage()
    assert usage == Usage(prompt_tokens=7)


def measure(action: Callable[[], object]) -> int:
    """The most bytes that `action` takes at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_fields_are_not_copied() -> None:
    """What an answer has in error, choices or usage is compared with null, and an error read, in place."""
    size = 2**22
    body = b'{"error":{"a":"%b"},"choices":["%b"],"usage":{"a":"%b"}}' % ((b"x" * size,) * 3)
    chunk = read_chunk(body)
    assert isinstance(chunk, Chunk)
    seen: list[object] = []
    used = measure(lambda: seen.extend((chunk.has_error, chunk.has_choices, chunk.has_usage)))
    assert (seen, used < size // 4) == ([True] * 3, True)
    assert measure(lambda: seen.append(parse_error(body).message)) < size // 4
    assert seen[3] == "The upstream API answered with status 502."


def test_an_odd_usage_of_megabytes() -> None:
    """Its fields do not become objects; a small one with the same odd field is read."""
    odd = {"total_tokens": 7, "input_tokens": "?"}
    assert read(odd) == Usage(total_tokens=7)
    assert read({**odd, **{f"a{n}": 1 for n in range(MAX_SALVAGED_BYTES // 8)}}) is None
