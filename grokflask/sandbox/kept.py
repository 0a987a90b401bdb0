"""What is kept, in memory and bounded: the journal, prompts, responses, jobs, files and batches.

The journal has the requests to models and what became of them. Only POSTs of JSON with an accepted key are
noted, each when it has ended.
"""

import hashlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, repeat, takewhile
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

import msgspec

from grokflask.sandbox.refusals import refuse

MAX_ITEMS = 1_000
MAX_FILE_BYTES = 50 * 1024 * 1024
BLOCK_TOKENS = 128
"""Cached tokens are a multiple of this, as clients of xAI's have measured."""
MAX_BLOCKS = 1_000_000
"""When there are more, the oldest are dropped."""
MAX_EXCHANGES = 10_000

Outcome = Literal["complete", "client_left", "fault", "refused"]
T = TypeVar("T")


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
        self._running = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        with self._changed:
            return iter(list(self._exchanges))

    def __getitem__(self, index: int) -> Exchange:
        return self._exchanges[index]

    def begin(self) -> None:
        """Count an exchange as running, before the first byte of its answer; `end` notes it."""
        with self._changed:
            self._running += 1

    def end(self, exchange: Exchange) -> None:
        """Note an exchange that has ended, just after the last byte of its answer."""
        with self._changed:
            self._running -= 1
            self._exchanges.append(exchange)
            self._changed.notify_all()

    def clear(self) -> None:
        """Delete all notes."""
        with self._changed:
            self._exchanges.clear()

    def wait_for(self, wanted: Callable[[Exchange], bool], timeout_s: float = 60.0) -> Exchange:
        """Return the newest exchange that is `wanted`, waiting for one; raises TimeoutError."""

        def find_newest() -> Exchange | None:
            return next(filter(wanted, reversed(self._exchanges)), None)

        with self._changed:
            if found := self._changed.wait_for(find_newest, timeout_s):
                return found
        raise TimeoutError(f"no such exchange within {timeout_s} s")

    def wait_until_idle(self, timeout_s: float = 60.0) -> Self:
        """Return the journal once all exchanges that have begun are noted; raises TimeoutError."""
        with self._changed:
            if self._changed.wait_for(lambda: not self._running, timeout_s):
                return self
        raise TimeoutError(f"{self._running} exchanges still run after {timeout_s} s")


class Shelf(Generic[T]):
    """The last thousand items of one kind, by id. Thread-safe."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._lock = threading.Lock()

    def add(self, id: str, item: T) -> None:
        """Keep an item."""
        with self._lock:
            self._items[id] = item
            while len(self._items) > MAX_ITEMS:
                del self._items[next(iter(self._items))]

    def find(self, id: str) -> T:
        """Return an item; raises RefusalError (404)."""
        try:
            return self._items[id]
        except KeyError:
            raise refuse(404, f"No {self.kind} was found with the id {id}.") from None

    def remove(self, id: str) -> None:
        """Delete an item; raises RefusalError (404)."""
        with self._lock:
            self.find(id)
            del self._items[id]

    def list(self) -> list[tuple[str, T]]:
        """Return all ids and items, newest first."""
        with self._lock:
            return list(self._items.items())[::-1]


class StoredResponse(NamedTuple):
    """A response, and the chat messages up to its end."""

    response: dict[str, Any]
    messages: list[Any]

    def show(self, _: str) -> dict[str, Any]:
        """Return the response's object."""
        return self.response


Job = Iterator[dict[str, Any] | None]
"""An answer that is fetched later: what each poll finds, None while it is pending."""


@dataclass
class File:
    """An uploaded file."""

    name: str
    content: bytes
    purpose: str | None = None
    expires_after_s: int | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))

    def show(self, id: str) -> dict[str, Any]:
        """Return the file's object."""
        return {
            "id": id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "expires_at": self.created_at + self.expires_after_s if self.expires_after_s else None,
            "filename": self.name,
            "purpose": self.purpose,
        }


@dataclass
class Batch:
    """A batch. Its requests are answered at once, but count as pending until it is first shown."""

    name: str
    polls_left: int
    results: list[dict[str, Any]] = field(default_factory=list)
    cancelled: bool = False

    def show(self, id: str) -> dict[str, Any]:
        """Return the batch's object, which has counters and no status."""
        count = len(self.results)
        state = "cancelled" if self.cancelled else "pending" if self.polls_left > 0 else "success"
        if state == "pending":
            self.polls_left -= 1
        counts = {
            f"num_{each}": count if each == state else 0 for each in ("pending", "success", "cancelled")
        }
        return {"batch_id": id, "name": self.name, "state": {"num_requests": count, "num_error": 0, **counts}}


class PromptCache:
    """The prompt cache: which prefixes were read before, as digests of blocks of tokens. Thread-safe.

    At xAI each server has its own cache, and requests with the same conversation id go to the same server.
    Here each conversation has its own cache, and a request without an id finds nothing.
    """

    def __init__(self) -> None:
        self._blocks: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def read(self, conv_id: str, before: bytes, tokens: Iterable[str]) -> int:
        """Return how many of a prompt's first tokens are cached, and cache the whole prompt.

        `before` is what else has to be the same: the model, and what it reads ahead of the messages.
        """
        blocks = list(_digest_blocks(conv_id.encode("utf-8", "replace") + b"\0" + before, tokens))
        with self._lock:
            found = sum(1 for _ in takewhile(self._blocks.__contains__, blocks))
            for block in blocks:
                self._blocks.pop(block, None)
                self._blocks[block] = None  # the newest
            while len(self._blocks) > MAX_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return found * BLOCK_TOKENS


def _digest_blocks(before: bytes, tokens: Iterable[str]) -> Iterator[bytes]:
    """Yield one digest for each whole block, of all tokens up to its end."""
    state = hashlib.blake2b(before, digest_size=16)
    left = iter(tokens)
    while len(block := list(islice(left, BLOCK_TOKENS))) == BLOCK_TOKENS:
        state.update("\0".join(block).encode("utf-8", "replace") + b"\1")
        yield state.digest()


class Kept:
    """All shelves. A new job is pending for `pending_polls` polls."""

    def __init__(self) -> None:
        self.pending_polls = 1
        self.responses: Shelf[StoredResponse] = Shelf("response")
        self.deferred: Shelf[Job] = Shelf("deferred completion")
        self.videos: Shelf[Job] = Shelf("video")
        self.files: Shelf[File] = Shelf("file")
        self.batches: Shelf[Batch] = Shelf("batch")
        self.prompts = PromptCache()

    def begin(self, shelf: Shelf[Job], reply: dict[str, Any]) -> dict[str, Any]:
        """Keep a job that ends with `reply`; return the answer to the request that began it."""
        id = str(uuid.uuid4())
        shelf.add(id, chain(repeat(None, self.pending_polls), repeat(reply)))
        return {"request_id": id}
