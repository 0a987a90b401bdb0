"""Steps of a stream: when they are taken, what the stream waits for, and how it ends."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.billing.bill import Estimate
from grokflask.errors import BudgetUsedUpError, StoreUnavailableError
from grokflask.limits import metering
from grokflask.limits.counters import Ask
from grokflask.limits.holds import Hold
from grokflask.limits.learning import MAX_HABITS, MIN_SAMPLES, SAMPLES, Learning
from grokflask.limits.metering import STEP_TOKENS, Allowance
from grokflask.protocol.usage import Usage

PROMPT = 1000
ESTIMATE = Estimate("tokens", "grok-4.3", 100, 400, PROMPT, PROMPT + 4000, 10)


class Purse:
    """A hold on a budget of some ticks, whose answers can be held back."""

    ask = Ask("a", "alice", "r", True, 500, ESTIMATE.ticks, "2026-11-24")
    estimate = ESTIMATE

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks
        self.asked: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.away = False

    def extend(self, ticks: int) -> int:
        self.asked.append(ticks)
        assert self.open.wait(WAIT_S)
        if self.away:
            raise StoreUnavailableError
        return min(ticks, self.ticks)


def make_allowance(purse: Purse, *, lends: bool) -> Allowance:
    return Allowance(cast("Hold", purse), lends=lends)


def wait_for_due(allowance: Allowance, due: float) -> None:
    wait_for(lambda: allowance.due == due, f"a step at {due}")


def test_a_stream_under_its_reservation_asks_nobody() -> None:
    """No step before three quarters are used."""
    purse = Purse(10**9)
    allowance = make_allowance(purse, lends=True)
    assert allowance.due == 300
    assert [allowance.check(tokens) for tokens in range(300)] == [None] * 300
    assert purse.asked == []


def test_steps_are_taken_one_at_a_time_and_beside_the_stream() -> None:
    """While one is under way no other begins, and the stream goes on with what it has."""
    purse = Purse(10**9)
    allowance = make_allowance(purse, lends=True)
    purse.open.clear()
    for tokens in (300, 310, 399):
        assert allowance.check(tokens) is None
    wait_for(lambda: len(purse.asked) == 1, "the step to begin")
    assert purse.asked == [PROMPT + 10 * (400 + STEP_TOKENS)]
    purse.open.set()
    wait_for_due(allowance, 400 + 0.75 * STEP_TOKENS)
    assert allowance.check(20_000) is None  # a burst: it waits for the step that covers it
    assert purse.asked[1:] == [PROMPT + 10 * 22_000]


def test_the_end_of_a_budget() -> None:
    """What is left is used up to the end; then the stream asks once more, and ends."""
    purse = Purse(PROMPT + 10 * 500)
    allowance = make_allowance(purse, lends=True)
    assert allowance.check(300) is None
    wait_for_due(allowance, 400 + 75)
    assert allowance.check(499) is None
    assert isinstance(allowance.check(500), BudgetUsedUpError)
    purse.ticks = 10**9  # another stream has ended
    assert allowance.check(501) is None


@pytest.mark.parametrize("lends", [True, False])
def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, lends: bool) -> None:
    """The stream waits a moment; then the outage's rule decides. A late refusal still ends it."""
    monkeypatch.setattr(metering, "WAIT_S", 0.01)
    purse = Purse(ESTIMATE.ticks)
    purse.open.clear()
    allowance = make_allowance(purse, lends=lends)
    error = allowance.check(400)
    assert isinstance(error, StoreUnavailableError) != lends
    if lends:
        assert allowance.check(500) is None
        monkeypatch.setattr(metering, "WAIT_S", WAIT_S)
        purse.open.set()
        wait_for_due(allowance, 400)
        assert isinstance(allowance.check(500), BudgetUsedUpError)


def test_a_store_that_is_away() -> None:
    """Where budgets are closed in an outage, its error ends the stream."""
    purse = Purse(0)
    purse.away = True
    assert isinstance(make_allowance(purse, lends=False).check(400), StoreUnavailableError)


# Learning


def note(
    learning: Learning, visible: int, reasoning: int = 0, seconds: float = 1.0, model: str = "m"
) -> None:
    usage = Usage(9, 0, visible, reasoning, 9 + visible + reasoning)
    learning.note(make_estimate(model), usage, 9 + visible + reasoning, seconds)


def make_estimate(model: str = "m", **fields: Any) -> Estimate:
    return Estimate("tokens", model, 9, 2048, 90, 90 + 20480, 10, reasons=True, **fields)


def test_reservations_are_what_nine_of_ten_needed() -> None:
    """After eight answers; text and reasoning apart, a cap below the usual counts instead."""
    learning = Learning()
    for number in range(MIN_SAMPLES):
        assert learning.expect(make_estimate()).output_tokens == 2048
        note(learning, 100 + number, 1000 * number)
    learnt = learning.expect(make_estimate())
    assert (learnt.output_tokens, learnt.reasoning_tokens) == (107 + 7000, 7000)
    assert learnt.ticks == 90 + 10 * learnt.output_tokens
    assert learnt.pace == pytest.approx(3600, rel=0.2)
    for other in (make_estimate(model="n"), make_estimate(effort='"low"'), make_estimate(cap_tokens=50)):
        assert learning.expect(other) is other
    assert learning.expect(make_estimate(answers=3)).output_tokens == 3 * 7107


def test_the_latest_answers_count_and_memory_is_bounded() -> None:
    """What is long ago is forgotten, and so are models that nobody asks for."""
    learning = Learning()
    for _ in range(SAMPLES):
        note(learning, 5000)
    for _ in range(SAMPLES):
        note(learning, 10)
    learnt = learning.expect(make_estimate())
    assert learnt.output_tokens == 10
    for number in range(MAX_HABITS + 5):
        note(learning, 10, model=f"model-{number}")
    assert len(learning._habits) == MAX_HABITS


def test_short_answers_say_nothing_about_the_pace() -> None:
    """Most of their time is the wait for the first word."""
    learning = Learning()
    for _ in range(MIN_SAMPLES):
        note(learning, 3, seconds=1.0)
    assert learning.expect(make_estimate()).pace == Estimate("tokens", "m").pace
