"""The journal: what the sandbox was asked and what became of it, for tests and for the curious.

Only POSTs of JSON with an accepted key are noted, each when it has ended. Bounded, safe from any thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

MAX_EXCHANGES = 10_000

Outcome = Literal["complete", "client_left", "fault", "refused"]


class Exchange(msgspec.Struct, frozen=True):
    """One request and what became of it.

    `outcome`: "complete", the client got everything that this model sends; "fault", a fault model cut or
    refused it on purpose; "refused", the request was at fault; "client_left", the client went first.
    `events_sent` counts whole SSE events, [DONE] included. `usage` is the last usage object the client was
    sent, None if it was sent none. `prompt_tokens` and `output_tokens` (visible and reasoning) are charged,
    and `cost_ticks` is what they cost, told or not. `fields` are the names in the request's body, `user` is
    what it has under that name; `request_id` is the answer's `x-request-id`, sent or not.
    `cached_tokens` are those of the prompt that were charged less, `conv_id` is the conversation's id, in a
    header or in the body.
    """

    model: str
    path: str
    outcome: Outcome
    status: int
    stream: bool = False
    events_sent: int = 0
    usage: dict[str, Any] | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_ticks: int = 0
    client_left: bool = False
    fields: tuple[str, ...] = ()
    user: str | None = None
    request_id: str | None = None
    cached_tokens: int = 0
    conv_id: str | None = None


class Journal:
    """The last 10,000 exchanges, oldest first."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=MAX_EXCHANGES)
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.exchanges())

    def __getitem__(self, index: int) -> Exchange:
        return self.exchanges()[index]

    def exchanges(self) -> list[Exchange]:
        """Return what is noted now."""
        with self._changed:
            return list(self._exchanges)

    def add(self, exchange: Exchange) -> None:
        """Note an exchange that has ended."""
        with self._changed:
            self._exchanges.append(exchange)
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._exchanges.clear()

    def wait_for(self, wanted: Callable[[Exchange], bool], timeout_s: float = 60.0) -> Exchange:
        """Return the newest exchange that is `wanted`, waiting for one; raises TimeoutError.

        An exchange is noted just after its last byte was written, so a client may be here first.
        """
        found: list[Exchange] = []

        def look() -> bool:
            found[:] = [exchange for exchange in self._exchanges if wanted(exchange)]
            return bool(found)

        with self._changed:
            if not self._changed.wait_for(look, timeout_s):
                raise TimeoutError(f"no such exchange within {timeout_s} s")
            return found[-1]
