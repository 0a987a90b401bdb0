"""Live budgets: a stream takes more from its key's budgets as it grows, and ends when they have no more.

A stream begins with what was reserved at its admission. When three quarters of that are used, it takes a step
more, beside the stream and one at a time, so it waits only where the store is slower than the model.
"""

from __future__ import annotations

import logging
import threading
from _thread import start_new_thread

from grokflask.errors import BudgetUsedUpError, GrokflaskError, StoreUnavailableError
from grokflask.limits.holds import Hold

STEP_TOKENS = 1024
STEP_PART = 0.1
"""A step is the larger of so many tokens, and of this part of what the stream has already."""
LEAD = 0.25
"""The next step is due when so much of the last one is left."""
WAIT_S = 0.2
"""How long a stream that has used everything waits for its step."""

_log = logging.getLogger("grokflask.limits")


class Allowance:
    """How many tokens one stream may pass on.

    Args:
        hold: what is reserved, and can be extended.
        lends: the stream continues while the store does not answer.

    Attributes:
        due: the tokens at which `check` has something to do.
    """

    def __init__(self, hold: Hold, *, lends: bool) -> None:
        self._hold = hold
        self._prompt_ticks = hold.estimate.prompt_ticks
        self._price = hold.estimate.output_ticks
        self._lends = lends
        self._error: GrokflaskError | None = None
        self._answered = threading.Event()
        self._answered.set()
        self._granted = 0.0
        self.due = 0.0
        self._take_in(hold.ask.ticks)

    def check(self, used_tokens: int) -> GrokflaskError | None:
        """Takes a step if it is due; returns why the stream has to end."""
        if used_tokens < self.due:
            return None
        if used_tokens < self._granted:
            self._begin(used_tokens)
            self.due = self._granted
            return None
        self._begin(used_tokens)  # also after a refusal: other streams may have ended meanwhile
        if not self._answered.wait(WAIT_S):
            if not self._lends:
                return StoreUnavailableError("The gateway cannot count this key's budget right now.")
            self._granted = self.due = used_tokens + STEP_TOKENS
            return None
        return None if used_tokens < self._granted else self._error

    def _begin(self, used_tokens: int) -> None:
        """Starts a step beside the stream, unless one is under way."""
        if not self._answered.is_set():
            return
        self._answered.clear()
        tokens = max(used_tokens, self._granted)
        tokens += max(STEP_TOKENS, STEP_PART * tokens)
        start_new_thread(self._take, (self._prompt_ticks + int(tokens * self._price),))

    def _take(self, ticks: int) -> None:
        self._error = BudgetUsedUpError()
        try:
            self._take_in(self._hold.extend(ticks))
        except StoreUnavailableError as error:
            self._error = error
        except Exception:
            _log.exception("a stream could not take a step from its budget")
        self._answered.set()

    def _take_in(self, ticks: int) -> None:
        granted = (ticks - self._prompt_ticks) / self._price
        step = granted - self._granted
        self._granted = granted
        self.due = granted - LEAD * step if step > 0 else granted
