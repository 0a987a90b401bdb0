"""What answers usually need, learnt from those of this process, for reservations that fit.

Kept for each model, effort and route, with a cap and without. Until MIN_SAMPLES answers have come, the
settings' default counts.
"""

from __future__ import annotations

import threading
from collections import deque
from statistics import median

from msgspec.structs import replace

from grokflask.billing.bill import Estimate
from grokflask.protocol.usage import Usage

SAMPLES = 256
"""The latest answers that count."""
MIN_SAMPLES = 8
"""After so many the figures are used, and each time so many more they are computed again."""
MAX_HABITS = 1000
"""Clients choose the names of models: beyond this number, the oldest is forgotten."""
MIN_PACE_TOKENS = 50
"""Shorter answers say nothing about the pace."""


class _Habit:
    """The latest answers of one kind."""

    def __init__(self) -> None:
        self.samples: deque[tuple[int, int, float]] = deque(maxlen=SAMPLES)
        self.count = 0
        self.visible_tokens = self.reasoning_tokens = 0
        self.pace: float | None = None

    def compute(self) -> None:
        visible, reasoning, paces = zip(*self.samples, strict=True)
        self.visible_tokens, self.reasoning_tokens = _find_q90(visible), _find_q90(reasoning)
        if known := [pace for pace in paces if pace]:
            self.pace = median(known)


class Learning:
    """What this process has learnt. Safe from any thread."""

    def __init__(self) -> None:
        self._habits: dict[tuple[str, str, str, bool], _Habit] = {}
        self._lock = threading.Lock()

    def expect(self, estimate: Estimate) -> Estimate:
        """The estimate with the 90th percentile of what such answers needed, if there were enough."""
        habit = self._habits.get(_name(estimate))
        if habit is None or habit.count < MIN_SAMPLES:
            return estimate
        expected = estimate.expect(habit.visible_tokens, habit.reasoning_tokens)
        return expected if habit.pace is None else replace(expected, pace=habit.pace)

    def note(self, estimate: Estimate, usage: Usage, tokens: int, seconds: float) -> None:
        """Takes in a complete answer that had so many `tokens`, its prompt included, and took `seconds`."""
        output_tokens, reasoning_tokens = tokens - (usage.prompt_tokens or 0), usage.reasoning_tokens or 0
        pace = output_tokens / seconds if output_tokens >= MIN_PACE_TOKENS else 0.0
        visible = max(0, output_tokens - reasoning_tokens) // estimate.answers
        name = _name(estimate)
        with self._lock:
            habit = self._habits.setdefault(name, _Habit())
            if len(self._habits) > MAX_HABITS:
                del self._habits[next(iter(self._habits))]
            habit.samples.append((visible, reasoning_tokens // estimate.answers, pace))
            habit.count += 1
            if habit.count % MIN_SAMPLES == 0:
                habit.compute()


def _name(estimate: Estimate) -> tuple[str, str, str, bool]:
    return estimate.model, estimate.effort, estimate.route, estimate.cap_tokens is not None


def _find_q90(figures: tuple[int, ...]) -> int:
    return sorted(figures)[len(figures) * 9 // 10]
