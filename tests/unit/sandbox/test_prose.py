"""The sandbox's words: what a token is, that texts are repeatable, and that samples fit their schemas."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.sandbox.prose import sample, split_tokens, topics_of, write_answer, write_thought


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    """Nothing is lost or added by cutting any text into tokens, and no token is empty."""
    pieces = split_tokens(text)
    assert "".join(pieces) == text
    assert all(pieces)


@given(st.integers(0, 10**6), st.sampled_from(["Tell me a story", "How do gears work?", ""]))
def test_an_answer_has_a_moderate_length(seed: int, prompt: str) -> None:
    """Unless a length is asked for, an answer has some 80 to 170 tokens, whatever the seed."""
    assert 80 <= len(split_tokens(write_answer(prompt, random.Random(seed)))) <= 175


def test_the_same_seed_writes_the_same() -> None:
    """Prose depends on prompt and seed alone."""
    texts = {write_answer("Tell me a story", random.Random(seed % 20)) for seed in range(40)}
    assert len(texts) == 20


def test_a_story_is_a_story_and_advice_keeps_to_the_subject() -> None:
    """A prompt that wants a story gets one; another gets a paragraph that uses its words."""
    advice = write_answer("How should I tune gunicorn timeouts?", random.Random(1))
    assert "gunicorn" in advice or "tune" in advice
    assert "sandbox" in advice
    assert "sandbox" not in write_answer("A bedtime story, please", random.Random(1))


def test_a_wanted_length_is_heard() -> None:
    """'800 words' gives about that many."""
    words = len(write_answer("Write a story of 800 words", random.Random(3)).split())
    assert 700 <= words <= 1000


def test_braces_in_a_prompt_are_only_text() -> None:
    """A prompt cannot reach into the templates."""
    assert write_answer("{name} {0} {a.__class__} explain braces", random.Random(1))
    assert write_thought("{name!r} %s", random.Random(1))
    assert topics_of("{a} explain braces, please") == ["braces"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}},
            {"a": True, "b": None},
        ),
        ({"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2}, ["x", "x"]),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 4}]}, 4),
        ({"type": ["null", "number"]}, 1),
        ({"$defs": {"d": {"const": 5}}, "properties": {"k": {"$ref": "#/$defs/d"}}}, {"k": 5}),
        ({"type": "string", "format": "date"}, "2026-11-02"),
        ({"type": "string", "default": "metric"}, "metric"),
        ({"type": "string"}, "Porto"),
        ({"$ref": "#/nowhere"}, "Porto"),
        (None, "Porto"),
    ],
)
def test_samples_fit_their_schemas(schema: Any, expected: Any) -> None:
    """Each kind of schema gets a value of its kind; strings are the prompt's names."""
    assert sample(schema, "weather near Porto", random.Random(0)) == expected


def test_a_schema_that_refers_to_itself_ends() -> None:
    """Recursion stops at some depth."""
    schema = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    assert "child" in sample(schema, "", random.Random(0))


@pytest.mark.parametrize(
    ("prompt", "sign"),
    [
        ("Compare three sorting algorithms in a table", "| --"),
        ("Show it as a table, please", "| --"),
        ("Write a Python function that checks a password", "```python"),
        ("write me some code", "```python"),
    ],
)
def test_markdown_on_demand(prompt: str, sign: str) -> None:
    """Who asks for a table or for code gets Markdown with it; all others get prose."""
    answer = write_answer(prompt, random.Random(1))
    assert sign in answer
    assert "".join(split_tokens(answer)) == answer
    assert "|" not in write_answer("What stands on the table?", random.Random(1))
