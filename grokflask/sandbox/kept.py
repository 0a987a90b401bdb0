"""What the sandbox keeps for later: deferred answers, videos, files and batches. In memory, bounded."""

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from grokflask.sandbox.refusals import refuse

MAX_ITEMS = 1_000
MAX_FILE_BYTES = 50 * 1024 * 1024
BATCH_DISCOUNT = 2
"""A batch costs the half."""

T = TypeVar("T")


class Shelf(Generic[T]):
    """The last thousand things of one kind, by id. Safe from any thread."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._items: dict[str, T] = {}
        self._lock = threading.Lock()

    def add(self, id: str, item: T) -> None:
        """Keep one."""
        with self._lock:
            self._items[id] = item
            while len(self._items) > MAX_ITEMS:
                del self._items[next(iter(self._items))]

    def find(self, id: str) -> T:
        """Return one; refuses with 404 what is not there."""
        found = self._items.get(id)
        if found is None:
            raise refuse(404, f"No {self._kind} was found with the id {id}.")
        return found

    def remove(self, id: str) -> None:
        """Forget one; refuses with 404 what is not there."""
        with self._lock:
            if self._items.pop(id, None) is None:
                raise refuse(404, f"No {self._kind} was found with the id {id}.")

    def list(self) -> list[tuple[str, T]]:
        """Return all of them, the newest first."""
        with self._lock:
            return list(self._items.items())[::-1]


@dataclass
class Job:
    """Work whose answer is fetched later: pending for so many polls, then `reply`."""

    reply: dict[str, Any]
    polls_left: int

    def poll(self) -> dict[str, Any] | None:
        """Return the answer, None while it is pending."""
        if self.polls_left > 0:
            self.polls_left -= 1
            return None
        return self.reply


@dataclass
class File:
    """An uploaded file."""

    name: str
    content: bytes
    purpose: str | None = None
    expires_after_s: int | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))


@dataclass
class Batch:
    """A batch; each result is made when its request comes. It holds `pending` until it is asked for."""

    name: str
    results: list[dict[str, Any]] = field(default_factory=list)
    cost_ticks: int = 0
    polls_left: int = 1
    cancelled: bool = False

    def show(self, id: str) -> dict[str, Any]:
        """Return its object, which has counters and no status."""
        count = len(self.results)
        pending = 0
        if self.polls_left > 0 and not self.cancelled:
            self.polls_left -= 1
            pending = count
        done = 0 if self.cancelled else count - pending
        return {
            "batch_id": id,
            "name": self.name,
            "state": {
                "num_requests": count,
                "num_pending": pending,
                "num_success": done,
                "num_error": 0,
                "num_cancelled": count if self.cancelled else 0,
            },
        }


class Kept:
    """All shelves. `pending_polls` is how often a new job is said to be pending."""

    def __init__(self) -> None:
        self.pending_polls = 1
        self.deferred: Shelf[Job] = Shelf("deferred completion")
        self.videos: Shelf[Job] = Shelf("video")
        self.files: Shelf[File] = Shelf("file")
        self.batches: Shelf[Batch] = Shelf("batch")

    def begin(self, shelf: Shelf[Job], reply: dict[str, Any]) -> dict[str, Any]:
        """Keep a job whose answer will be `reply`; return what its maker is told."""
        id = str(uuid.uuid4())
        shelf.add(id, Job(reply, self.pending_polls))
        return {"request_id": id}


def show_file(id: str, file: File) -> dict[str, Any]:
    """Return a file's object."""
    end = file.created_at + file.expires_after_s if file.expires_after_s else None
    return {
        "id": id,
        "object": "file",
        "bytes": len(file.content),
        "created_at": file.created_at,
        "expires_at": end,
        "filename": file.name,
        "purpose": file.purpose,
    }
