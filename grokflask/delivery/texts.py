"""How much of an answer's JSON is text that a model has written, found without parsing it. No IO."""

from __future__ import annotations

import re
from math import inf
from mmap import mmap

BYTES_PER_TOKEN = 4
SAMPLE_BYTES = 4096

# The fields of all three APIs, in replies and in events. In a text, quotes have a backslash before them.
_TEXT = re.compile(
    rb'"(?:content|reasoning_content|refusal|delta|text|thinking|arguments|partial_json)"\s*:\s*'
    rb'"([^"\\]*(?:\\.[^"\\]*)*)"',
    re.DOTALL,
)


def measure_text(data: bytes | mmap) -> int:
    """Bytes of text in the JSON of an answer, of an event or of several; escapes count as they stand."""
    return sum(map(len, _TEXT.findall(data)))


def measure_frame(events: bytes) -> float:
    """Bytes that are not text in one of the last of these events that has any; infinite if none has."""
    found = _TEXT.search(events, max(0, len(events) - SAMPLE_BYTES)) or _TEXT.search(events)
    if found is None:
        return inf
    start = events.rfind(b"\n\n", 0, found.start())
    end = events.find(b"\n\n", found.end())
    event = events[start + 2 if start >= 0 else 0 : end + 2]
    return len(event) - measure_text(event)
