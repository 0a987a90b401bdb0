"""Prose: short texts without meaning, always the same for the same prompt. Also defines what a token is here.

A token is a word, or nine letters of a longer one, with the space before it. A sample is a value that fits a
JSON schema, for a tool call's arguments and for structured answers.
"""

import random
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

_PIECE = re.compile(r"\s*\w{1,9}|\s*[^\w\s]{1,4}|\s+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_STORY = re.compile(r"\b(story|stories|tale|fable|fairy|bedtime|once upon)\b", re.IGNORECASE)
_WANTED_WORDS = re.compile(r"\b(\d{1,4})[ -]words?\b", re.IGNORECASE)
_MAX_TOKENS = 6_000
_TURN_TOKENS = 4096
_READ_CHARS = 10_000
"""An answer depends on so much of a prompt's beginning and of its end."""
_DULL_WORDS = """
    about also been could does explain from give have help here into just know like make more most
    much need only over please short should some story tell than that their them then there these
    they this want were what when where which while will with words would write your
"""

_SLOTS = {
    "hero": "a lighthouse keeper|an old ferry pilot|a clockmaker|a shy cartographer|a night-train conductor",
    "name": "Ines|Tomas|Odile|Ravi|Marit|Yusuf|Nell|Kofi|Sunniva|Bram|Aiko|Leonie|Pavel|Zora",
    "place": "at the edge of a salt marsh|in a town built on stilts|under a very tall mountain",
    "thing": "a brass key|a map with one road missing|a letter without a sender|a small green door",
    "friend": "a heron with opinions|a boy who counted stars|a fox in a borrowed coat|a very polite ghost",
    "weather": "the fog came in like slow milk|the moon rose twice|the rain stopped to listen",
    "lesson": "that a door is only a wall with patience|that the long way has better views|"
    "that questions keep better than answers|that a kindness travels faster than a horse",
}
_STORIES = """
{place}, there lived {hero} named {name}.
once, {place}, {hero} called {name} lost {thing}.

One evening {weather}, and {name} knew that something had begun.
On the step lay {thing}, wrapped in a page of last year's newspaper.
“You had better come with me,” said {friend}, and did not wait for a reply.
They walked to the far side of the river, where the path gave up and the grass took over.
{name} asked three questions and got four answers, none of them to the questions.
“Is it yours?” asked {friend}. “It is now,” said {name}, and felt taller.
The whole town came out with lamps and blankets and too much soup.

And {name}, who had meant only to be gone an hour, went home knowing {lesson}.
In the morning everything looked the same, except to {name}, who had learned {lesson}.
"""
_ADVICE = """
A good place to start with {a} is to say what you want from it.
Let us take {a} first, because the rest depends on it.

Once that is clear, {b} tends to sort itself out, and what is left fits on one page.
Most people begin at the wrong end: they polish {a} before they know whether {b} will hold.
Try the smallest version that could work, watch it for a day, and write down what surprised you.
When {a} and {b} pull in different directions, prefer the one that is easier to undo.
It helps to name the thing you would notice first if {b} went wrong.
Two rules carry you far here: keep {a} visible, and change one thing at a time.
Numbers make {b} easier to talk about, even rough ones on the back of an envelope.

This is the sandbox speaking, not Grok, so take it as a rehearsal of {a} rather than as advice.
That is as far as a sandbox can take {a}; with a real key, Grok itself would go on from here.
"""
_THOUGHTS = (
    "The question is about {a}.",
    "I should keep {b} in mind and not promise too much.",
    "A short answer first, then one or two reasons.",
    "Perhaps an example would help, though not a long one.",
    "Let me check that {a} and {b} do not contradict each other.",
)

_TABLE = re.compile(r"\b(in|as) a table\b|\btable of\b", re.IGNORECASE)
_CODE = re.compile(r"\bwrite (me )?(a|an|some)\b.{0,40}\b(function|code|script|program)\b", re.IGNORECASE)

_TABLE_ANSWER = """\
Here are three sorting algorithms:

| algorithm | average | worst | memory | stable |
| :-- | :-- | :-- | --: | :-: |
| merge sort | `n log n` | `n log n` | n | yes |
| quicksort | `n log n` | `n²` | log n | no |
| insertion sort | `n²` | `n²` | 1 | yes |

- **Merge sort** keeps equal items in order, and needs memory for it.
- **Insertion sort** is best for a few items, or for items that are nearly sorted.

This answer comes from the sandbox, which has only this table.
"""

_CODE_ANSWER = """\
A good password is long, and is not one that attackers try first.

```python
COMMON = {"password", "12345678", "qwertyuiop"}


def is_good(password: str, least: int = 12) -> bool:
    \"\"\"Long enough, and not among the common ones.\"\"\"
    return len(password) >= least and password.lower() not in COMMON
```

1. `len(password) >= least` asks for length.
2. `not in COMMON` rejects what attackers try first.

This answer comes from the sandbox, which has only this function.
"""


def split_tokens(text: str) -> list[str]:
    """Cut a text into tokens; joined they are the text again."""
    return _PIECE.findall(text)


def iterate_tokens(text: str) -> Iterator[str]:
    """Yield the tokens of a text that may be long."""
    return (match[0] for match in _PIECE.finditer(text))


def take_turns(tokens: Iterable[str]) -> Iterator[str]:
    """Yield what may be millions of tokens; other threads run in between, also under gevent."""
    for number, token in enumerate(tokens, 1):
        yield token
        if number % _TURN_TOKENS == 0:
            time.sleep(1e-9)  # as `runtime.step_aside`, which the sandbox does not import


def topics_of(prompt: str) -> list[str]:
    """Return the first words of a prompt that an answer can mention, up to four."""
    dull = set(_DULL_WORDS.split())
    words = dict.fromkeys(word for word in _WORD.findall(prompt[:20_000]) if word.lower() not in dull)
    return list(words)[:4]


def write_answer(prompt: str, rng: random.Random) -> str:
    """Return a table, code, a story or a paragraph, as the prompt wants; "300 words" sets the length."""
    if len(prompt) > 2 * _READ_CHARS:
        prompt = f"{prompt[:_READ_CHARS]}\n{prompt[-_READ_CHARS:]}"
    wanted = _WANTED_WORDS.search(prompt)
    tokens = min(int(wanted[1]) * 6 // 5, _MAX_TOKENS) if wanted else rng.randint(100, 150)
    if _TABLE.search(prompt[-2_000:]):
        return _TABLE_ANSWER
    if _CODE.search(prompt[-2_000:]):
        return _CODE_ANSWER
    if _STORY.search(prompt):
        cast = {slot: rng.choice(_SLOTS[slot].split("|")) for slot in ("name", "hero", "thing", "friend")}
        return _compose(_STORIES, tokens, rng, cast)
    return _compose(_ADVICE, tokens, rng, _choose_subjects(prompt, rng))


def write_thought(prompt: str, rng: random.Random) -> str:
    """Return the reasoning of a model that shows it, about 25 to 50 tokens."""
    sentences = [_THOUGHTS[0], *rng.sample(_THOUGHTS[1:], 3)]
    return " ".join(_fill(sentence, _choose_subjects(prompt, rng), rng) for sentence in sentences)


def _choose_subjects(prompt: str, rng: random.Random) -> dict[str, str]:
    topics = topics_of(prompt) or ["the question", "the answer"]
    return {"a": topics[0], "b": rng.choice(topics[1:] or ["the rest"])}


def _compose(templates: str, tokens: int, rng: random.Random, fixed: dict[str, str]) -> str:
    """Return an opening, as many sentences as bring the text near `tokens`, and an ending."""
    openings, middles, endings = (part.strip().split("\n") for part in templates.split("\n\n"))
    sentences = [_fill(rng.choice(openings), fixed, rng)]
    ending = _fill(rng.choice(endings), fixed, rng)
    room = tokens - len(split_tokens(sentences[0])) - len(split_tokens(ending))
    chosen: list[int] = []
    while room > 0:
        chosen = chosen or sorted(rng.sample(range(len(middles)), 5))  # in the order in which they make sense
        sentences.append(_fill(middles[chosen.pop(0)], fixed, rng))
        room -= len(split_tokens(sentences[-1]))
        if len(sentences) % 5 == 0:
            sentences.append("\n\n")
    return " ".join([*sentences, ending]).replace(" \n\n ", "\n\n")


def _fill(template: str, fixed: dict[str, str], rng: random.Random) -> str:
    chosen = {slot: rng.choice(words.split("|")) for slot, words in _SLOTS.items()}
    text = template.format(**{**chosen, **fixed})
    return text[0].upper() + text[1:]


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
