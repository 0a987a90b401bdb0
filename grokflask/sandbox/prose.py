"""Prose: small texts that differ with the prompt and are the same for the same prompt. No meaning is claimed.

Also says what a token is here: a word, or nine letters of a longer one, with the space before it.
"""

import random
import re

from grokflask.sandbox.markup import write_markup

_PIECE = re.compile(r"\s*\w{1,9}|\s*[^\w\s]{1,4}|\s+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_STORY = re.compile(r"\b(story|stories|tale|fable|fairy|bedtime|once upon)\b", re.IGNORECASE)
_WANTED_WORDS = re.compile(r"\b(\d{1,4})[ -]words?\b", re.IGNORECASE)
_MAX_TOKENS = 6_000
_DULL_WORDS = """
    about also been could does explain from give have help here into just know like make more most
    much need only over please short should some story tell than that their them then there these
    they this want were what when where which while will with words would write your
"""
_DULL = frozenset(_DULL_WORDS.split())

_SLOTS = {
    "hero": "a lighthouse keeper|a baker's youngest daughter|an old ferry pilot|a clockmaker|"
    "a shy cartographer|a goatherd|a night-train conductor|a violin maker|a retired astronaut|"
    "a librarian|a robot gardener|a postman",
    "name": "Ines|Tomas|Odile|Ravi|Marit|Yusuf|Nell|Kofi|Sunniva|Bram|Aiko|Leonie|Pavel|Zora",
    "place": "at the edge of a salt marsh|in a town built on stilts|under a very tall mountain|"
    "on an island of cats|beside the last railway stop|in a valley where it rained at four|"
    "above a quiet harbour|in a house of nine doors",
    "thing": "a brass key|a map with one road missing|a lantern that hummed|a letter without a sender|"
    "a stone as warm as bread|a small green door|a song with no ending|"
    "a compass that pointed at people|a jar of yesterday's weather",
    "friend": "a heron with opinions|a boy who counted stars|the oldest tortoise in the county|"
    "a tailor who never slept|a fox in a borrowed coat|her grandmother's radio|"
    "a whale that knew the tides|a very polite ghost",
    "weather": "the fog came in like slow milk|the wind forgot which way to blow|"
    "snow fell upward for an hour|the moon rose twice|thunder rolled about like a loose barrel|"
    "the rain stopped to listen",
    "place2": "the harbour wall|the top of the bell tower|the far side of the river|the orchard|"
    "the empty station|the mill",
    "lesson": "that a door is only a wall with patience|that most secrets want company|"
    "that the long way has better views|that nobody can be brave alone for long|"
    "that questions keep better than answers|that a kindness travels faster than a horse",
}
_OPENINGS = (
    "{place}, there lived {hero} named {name}.",
    "once, {place}, {hero} called {name} lost {thing}.",
    "nobody {place} had ever seen {hero} run, until the morning {name} did.",
)
_MIDDLES = (
    "One evening {weather}, and {name} knew that something had begun.",
    "On the step lay {thing}, wrapped in a page of last year's newspaper.",
    "“You had better come with me,” said {friend}, and did not wait for a reply.",
    "They walked as far as {place2}, where the path gave up and the grass took over.",
    "{name} asked three questions and got four answers, none of them to the questions.",
    "By midnight {weather}, and even {friend} had nothing clever to say.",
    "There, quite plainly, was {thing}, waiting as if it had been early.",
    "“Is it yours?” asked {friend}. “It is now,” said {name}, and felt taller.",
    "The whole town came out to {place2} with lamps and blankets and too much soup.",
    "It was not the treasure anyone had hoped for; it was better, because it fitted in a pocket.",
)
_ENDINGS = (
    "And {name}, who had meant only to be gone an hour, went home knowing {lesson}.",
    "They still tell it there, and they always end by saying {lesson}.",
    "In the morning everything looked the same, except to {name}, who had learned {lesson}.",
)

_ADVICE_OPENINGS = (
    "A good place to start with {a} is to say what you want from it.",
    "The short answer about {a}: less is usually more, as long as the right part stays.",
    "Let us take {a} first, because the rest hangs on it.",
)
_ADVICE = (
    "Once that is clear, {b} tends to sort itself out, and what is left fits on one page.",
    "Most people begin at the wrong end: they polish {a} before they know whether {b} will hold.",
    "Try the smallest version that could work, watch it for a day, and write down what surprised you.",
    "When {a} and {b} pull in different directions, prefer the one that is easier to undo.",
    "It helps to name the thing you would notice first if {b} went wrong.",
    "Two rules carry you far here: keep {a} visible, and change one thing at a time.",
    "If you have an hour, spend half of it on {b}; that is where the time usually goes anyway.",
    "There is a tidy answer and a true one, and for {a} the true one has a few rough edges.",
    "Ask someone who has done it before, then ask what they would skip.",
    "Numbers make {b} easier to talk about, even rough ones on the back of an envelope.",
)
_ADVICE_ENDINGS = (
    "This is the sandbox speaking, not Grok, so take it as a rehearsal of {a} rather than as advice.",
    "That is as far as a sandbox can take {a}; with a real key, Grok itself would go on from here.",
)
_THOUGHTS = (
    "The question is about {a}.",
    "I should keep {b} in mind and not promise too much.",
    "A short answer first, then one or two reasons.",
    "Perhaps an example would help, though not a long one.",
    "Let me check that {a} and {b} do not contradict each other.",
    "That seems sound; now to say it plainly.",
)


def split_tokens(text: str) -> list[str]:
    """Cut a text into the pieces that stand for tokens; joined they are the text again."""
    return _PIECE.findall(text)


def topics_of(prompt: str) -> list[str]:
    """Return up to four words of a prompt that an answer may come back to, in their order."""
    words = dict.fromkeys(word for word in _WORD.findall(prompt[:20_000]) if word.lower() not in _DULL)
    return list(words)[:4]


def write_answer(prompt: str, rng: random.Random) -> str:
    """Return what the prompt wants: a table, code, a story, else a paragraph; "300 words" in it are heard."""
    wanted = _WANTED_WORDS.search(prompt)
    tokens = min(int(wanted[1]) * 6 // 5, _MAX_TOKENS) if wanted else rng.randint(100, 150)
    if markup := write_markup(prompt):
        return markup
    if _STORY.search(prompt):
        return _compose(_OPENINGS, _MIDDLES, _ENDINGS, tokens, rng, _cast(rng))
    return _compose(_ADVICE_OPENINGS, _ADVICE, _ADVICE_ENDINGS, tokens, rng, _subjects(prompt, rng))


def write_thought(prompt: str, rng: random.Random) -> str:
    """Return a few sentences in the manner of a model that thinks aloud, about 25 to 50 tokens."""
    sentences = [_THOUGHTS[0], *rng.sample(_THOUGHTS[1:], 3)]
    return " ".join(_fill(sentence, _subjects(prompt, rng), rng) for sentence in sentences)


def _cast(rng: random.Random) -> dict[str, str]:
    """Return what stays the same through one story."""
    return {slot: rng.choice(_SLOTS[slot].split("|")) for slot in ("name", "hero", "thing", "friend")}


def _subjects(prompt: str, rng: random.Random) -> dict[str, str]:
    topics = topics_of(prompt) or ["the question", "the answer"]
    return {"a": topics[0], "b": rng.choice(topics[1:] or ["the rest"])}


def _compose(
    openings: tuple[str, ...],
    middles: tuple[str, ...],
    endings: tuple[str, ...],
    tokens: int,
    rng: random.Random,
    fixed: dict[str, str],
) -> str:
    """Return an opening, as many middles as bring the text near `tokens`, and an ending."""
    sentences = [_fill(rng.choice(openings), fixed, rng)]
    ending = _fill(rng.choice(endings), fixed, rng)
    room = tokens - len(split_tokens(sentences[0])) - len(split_tokens(ending))
    chosen: list[int] = []
    while room > 0:
        chosen = chosen or sorted(
            rng.sample(range(len(middles)), 5)
        )  # some, but in the order they make sense
        sentences.append(_fill(middles[chosen.pop(0)], fixed, rng))
        room -= len(split_tokens(sentences[-1]))
        if len(sentences) % 5 == 0:
            sentences.append("\n\n")
    return " ".join([*sentences, ending]).replace(" \n\n ", "\n\n")


def _fill(template: str, fixed: dict[str, str], rng: random.Random) -> str:
    chosen = {slot: rng.choice(words.split("|")) for slot, words in _SLOTS.items()}
    text = template.format(**{**chosen, **fixed})
    return text[0].upper() + text[1:]
