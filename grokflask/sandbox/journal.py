"""The journal: the requests to models and what became of them. Bounded and thread-safe.

Only POSTs of JSON with an accepted key are noted, each when it has ended.
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

    `outcome` is "complete" if the client was sent everything that the model sends, "fault" if a fault model
    cut or refused it, "refused" if the request was wrong, "client_left" if the client left first.
    `events_sent` counts whole SSE events, `[DONE]` included; `usage` is the last one sent. The tokens and
    `cost_ticks` are what is charged: output includes reasoning, prompt includes cached tokens. `fields` are
    the names in the request's body, `request_id` is the answer's `x-request-id`.
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
        with self._changed:
            return iter(list(self._exchanges))

    def __getitem__(self, index: int) -> Exchange:
        return self._exchanges[index]

    def add(self, exchange: Exchange) -> None:
        """Note an exchange that has ended."""
        with self._changed:
            self._exchanges.append(exchange)
            self._changed.notify_all()

    def clear(self) -> None:
        """Delete all notes."""
        with self._changed:
            self._exchanges.clear()

    def wait_for(self, wanted: Callable[[Exchange], bool], timeout_s: float = 5.0) -> Exchange:
        """Return the newest exchange that is `wanted`, waiting for one; raises TimeoutError.

        An exchange is noted just after its last byte was written, so a client may look too early.
        """

        def find_newest() -> Exchange | None:
            return next(filter(wanted, reversed(self._exchanges)), None)

        with self._changed:
            if found := self._changed.wait_for(find_newest, timeout_s):
                return found
        raise TimeoutError(f"no such exchange within {timeout_s} s")
