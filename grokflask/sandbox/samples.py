"""Samples: a value that fits a JSON schema, for a tool call's arguments and for structured answers."""

import random
from typing import Any

from grokflask.sandbox.prose import topics_of

_MAX_DEPTH = 8


def sample(schema: Any, prompt: str, rng: random.Random) -> Any:
    """Return a value for `schema`; strings are words of the prompt. Patterns are not solved."""
    root = schema if isinstance(schema, dict) else {}
    return _sample(root, root, topics_of(prompt) or ["sandbox"], rng, 0)


def _sample(schema: Any, root: dict[str, Any], words: list[str], rng: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    schema = _resolve(schema, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), None)
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties")
        items = properties.items() if isinstance(properties, dict) else ()
        return {name: _sample(inner, root, words, rng, depth + 1) for name, inner in items}
    if kind == "array":
        one = _sample(schema.get("items", {"type": "string"}), root, words, rng, depth + 1)
        return [one] * max(1, _bounded(schema.get("minItems"), 5))
    return _sample_scalar(kind, schema, words, rng)


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow a local `$ref` and take the first useful branch of anyOf, oneOf or allOf."""
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            found: Any = root
            for step in reference.removeprefix("#/").split("/"):
                found = found.get(step) if isinstance(found, dict) else None
            schema = found if isinstance(found, dict) else {}
            continue
        branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if not isinstance(branches, list):
            break
        useful = [one for one in branches if isinstance(one, dict) and one.get("type") != "null"]
        if not useful:
            break
        schema = useful[0]
    return schema


def _sample_scalar(kind: Any, schema: dict[str, Any], words: list[str], rng: random.Random) -> Any:
    if kind == "boolean":
        return True
    if kind in ("integer", "number"):
        low = schema.get("minimum", 1)
        return low if isinstance(low, int | float) else 1
    if kind == "null":
        return None
    formats = {"date": "2026-11-02", "date-time": "2026-11-02T09:30:00Z", "email": "ines@example.com"}
    shaped = formats.get(str(schema.get("format")))
    if shaped:
        return shaped
    proper = [
        word for word in words[1:] if word[0].isupper()
    ]  # a name, likely; the first word's capital says nothing
    return rng.choice(proper or words)


def _bounded(value: Any, top: int) -> int:
    return min(value, top) if isinstance(value, int) else 1
