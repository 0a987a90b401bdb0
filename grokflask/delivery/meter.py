"""Counts what passes of one answer, in tokens: that is booked if the answer is cut before its usage comes.

Each event is a token, or more if it has more than four bytes of text. Events are not parsed: the meter looks
at one now and then, and takes what is not text in it for the same in all others. A model that
reasons without showing it is silent, and counts by the pace at which it usually writes. No IO.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from grokflask.billing.bill import count_output
from grokflask.delivery.texts import BYTES_PER_TOKEN, measure_frame
from grokflask.errors import GrokflaskError
from grokflask.protocol.chat_events import EventFilter
from grokflask.protocol.usage import Usage

SILENCE_S = 0.5
"""Silence up to this long is no reasoning: upstream reads the prompt, or the network is slow."""

FIRST_LOOK_BYTES = 1024
LOOK_BYTES = 32 * 1024
"""The meter looks at the first event, then after this much, doubled each time up to the larger one."""


CHECK_S = 0.25
"""The shortest time between two checks in a silence."""


class Allowance(Protocol):
    """How many tokens may pass."""

    due: float
    """The tokens at which `check` has something to do."""

    def check(self, used_tokens: int) -> GrokflaskError | None:
        """Returns why the stream has to end."""


class Meter:
    """The count of one answer.

    Args:
        pace: tokens a second that silence counts; 0 for a model that does not reason.
        allowance: how many tokens may pass, if that is limited.

    Attributes:
        tokens: those of the text that has passed, or of all output where upstream counts along.
        silent_tokens: those of silence.
        other_bytes: bytes that went out and are no events, minus those of events that did not go out.
        count_at: when so many bytes have gone out, `count` is due.
        check_at: when `check` is due if there are no events until then.
    """

    def __init__(self, pace: float = 0.0, allowance: Allowance | None = None) -> None:
        self.tokens = 0
        self.silent_tokens = 0
        self.other_bytes = 0
        self.count_at = 0
        self.check_at = inf
        self._pace = pace
        self._allowance = allowance
        self._events = 0
        self._bytes = 0
        self._frame = inf  # bytes of an event that are not text
        self._usage: Usage | None = None  # upstream's latest

    def begin(self, filter: EventFilter, now: float) -> None:
        """Counts what passes `filter` from now on."""
        self._filter = filter
        self.check_at = now + self._find_limit(0.0)

    def count(self, bytes_out: int, sample: bytes = b"") -> None:
        """Counts what is in the first `bytes_out`.

        `sample` is the latest of it. Without it the events are taken to be like those before.
        """
        events = self._filter.events - self._filter.other_events
        size = bytes_out - self.other_bytes - self._filter.other_bytes
        new = events - self._events
        if new > 0:
            if sample:
                self._frame = measure_frame(sample)
            text_bytes = max(0.0, size - self._bytes - new * self._frame)
            self.tokens += max(new, int(text_bytes / BYTES_PER_TOKEN))
            self._events, self._bytes = events, size
        usage = self._filter.usage
        if usage is not None and usage is not self._usage and (tokens := count_output(usage)):
            self._usage = usage
            self.tokens, self.silent_tokens = tokens, 0
        most = max(FIRST_LOOK_BYTES, size)
        if self._allowance is not None and self.tokens:
            left = self._allowance.due - self.tokens - self.silent_tokens
            most = min(most, max(FIRST_LOOK_BYTES, int(left * size / self.tokens)))
        self.count_at = bytes_out + min(LOOK_BYTES, most)

    def check(self, now: float = 0.0, silence_s: float = 0.0) -> GrokflaskError | None:
        """Why the stream has to end, or else None. May wait a moment, for a step of the allowance."""
        if self._allowance is None:
            return None
        error = self._allowance.check(self.tokens + self.silent_tokens + self.measure_silence(silence_s))
        if silence_s:
            self.check_at = now + self._find_limit(silence_s)
        return error

    def _find_limit(self, silence_s: float) -> float:
        """Seconds until `check` is due if the silence lasts."""
        if self._allowance is None or not self._pace:
            return inf
        left = self._allowance.due - self.tokens - self.silent_tokens
        return max(CHECK_S, left / self._pace + SILENCE_S - silence_s)

    def measure_silence(self, seconds: float) -> int:
        """The tokens that a silence of `seconds` may have been."""
        return int(self._pace * max(0.0, seconds - SILENCE_S))
