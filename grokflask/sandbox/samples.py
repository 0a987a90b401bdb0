"""Samples: a value that fits a JSON schema, for a tool call's arguments and for structured answers."""

import random
from typing import Any

from grokflask.sandbox.prose import topics_of

_MAX_DEPTH = 8
_FORMATS = {"date": "2026-11-02", "date-time": "2026-11-02T09:30:00Z", "email": "ines@example.com"}


def sample(schema: Any, prompt: str, rng: random.Random) -> Any:
    """Return a value for `schema`; strings are words of the prompt. Patterns are ignored."""
    root = schema if isinstance(schema, dict) else {}
    words = topics_of(prompt) or ["sandbox"]
    names = [word for word in words[1:] if word[0].isupper()]  # the first word has a capital anyway
    return _sample(root, root, rng.choice(names or words), 0)


def _sample(schema: Any, root: dict[str, Any], word: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    schema = _resolve(schema, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), None)
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties")
        items = properties.items() if isinstance(properties, dict) else ()
        return {name: _sample(inner, root, word, depth + 1) for name, inner in items}
    if kind == "array":
        count = schema.get("minItems")
        count = min(count, 5) if isinstance(count, int) else 1
        return [_sample(schema.get("items", {"type": "string"}), root, word, depth + 1)] * max(1, count)
    if kind in ("integer", "number"):
        low = schema.get("minimum", 1)
        return low if isinstance(low, int | float) else 1
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    return _FORMATS.get(str(schema.get("format")), word)


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow a local `$ref`, and take the first branch of anyOf, oneOf or allOf that is not null."""
    for _ in range(_MAX_DEPTH):
        branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if isinstance(reference := schema.get("$ref"), str):
            found: Any = root
            for step in reference.removeprefix("#/").split("/"):
                found = found.get(step) if isinstance(found, dict) else None
            schema = found if isinstance(found, dict) else {}
        elif isinstance(branches, list):
            useful = (one for one in branches if isinstance(one, dict) and one.get("type") != "null")
            schema = next(useful, {})
        else:
            break
    return schema
