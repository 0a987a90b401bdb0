"""The log of one answer: one writer appends to it, any number of readers read it at their own pace.

A recording that grows too large is given up. It then keeps only the bytes that its foremost reader still
needs, and its writer waits for that reader, as it would for the client of an ordinary stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from grokflask.errors import GrokflaskError, RecordingLostError, UpstreamStatusError

READ_BYTES = 64 * 1024  #: upper bound of one read, unless a single event is larger
WINDOW_BYTES = 64 * 1024  #: how far the others may be from the foremost reader of one that was given up
WAIT_S = 1.0  #: how often the writer of such a recording checks whether it still has a reader
EVENT_END = b"\n\n"  #: as the relay writes it
LEASE_S = 6.0  #: how long a worker that does not renew its leases counts as alive

Entry = tuple[int, int, bytes]  #: in Redis: the position behind it in the answer, its kind, its value
HEAD, DATA, LAST = 1, 2, 3


class Head(msgspec.Struct, frozen=True):
    """What precedes an answer's bytes."""

    status: int
    headers: dict[str, str]
    stream: bool  #: the bytes are events
    answered: bool = True  #: upstream had answered when the response began


class Failure(msgspec.Struct, frozen=True):
    """An error as a value, from which each reader makes an exception of its own."""

    message: str
    status: int
    code: str
    kind: str
    param: str | None = None
    headers: dict[str, str] = {}
    in_stream: bool | None = None

    def make_error(self) -> GrokflaskError:
        """The error."""
        fields = msgspec.structs.asdict(self)
        in_stream = fields.pop("in_stream")
        error = UpstreamStatusError(**fields)
        error.in_stream = in_stream
        return error


class Ending(msgspec.Struct, frozen=True):
    """How an answer ended. One that ended early without a `failure` has an error event as its last bytes."""

    complete: bool
    failure: Failure | None = None


def fail(error: GrokflaskError) -> Ending:
    """The ending of an answer that `error` cut off."""
    rest = (error.param, dict(error.headers), error.in_stream)
    return Ending(complete=False, failure=Failure(error.message, error.status, error.code, error.type, *rest))


class Cursor:
    """A reader's place in a recording."""

    recording: Recording
    position: int = 0  #: in the answer's bytes
    cancelled: GrokflaskError | None = None  #: why the reader has to stop

    def cancel(self, reason: GrokflaskError) -> None:
        """Stops it, even while it waits; a client that is still connected gets the reason."""
        self.cancelled = self.cancelled or reason
        self.recording.notify()


@dataclass(eq=False)
class Recording:
    """The log of one attempt. Its methods may be called from any thread."""

    id: str  #: unique to this attempt
    name: str  #: a digest of the client and its Idempotency-Key; for a copy, the attempt's id
    fingerprint: str  #: of the request; a repeated request must have the same one
    request_id: str  #: of the request that began the attempt
    grace_s: float  #: how long the exchange continues without a reader
    is_copy: bool = False  #: another worker writes it, and this one copies it
    head: Head | None = None  #: None until the answer begins
    ending: Ending | None = None  #: None until the answer has ended
    start: int = 0  #: position of the first byte kept
    end: int = 0  #: position behind the last byte
    given_up: bool = False  #: it is too large to be shared
    readers: tuple[Cursor, ...] = ()  #: those in this process, the oldest first
    holds: list[Callable[[], object]] = field(default_factory=list)  #: free a stream of the key each
    left_at: float | None = None  #: epoch seconds at which it was abandoned because it had no readers
    _on_leave: Callable[[], None] | None = None
    _kept: bytearray = field(default_factory=bytearray)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.end - self.start

    def bind(self, on_leave: Callable[[], None]) -> None:
        """Has `on_leave` called when `leave` is, or at once if that has already happened."""
        self._on_leave = on_leave
        if self.left_at is not None:
            on_leave()

    def leave(self) -> None:
        """No reader is left, and none will come."""
        self.left_at = time.time()
        if self._on_leave is not None:
            self._on_leave()

    def put_head(self, head: Head) -> None:
        """Begins the answer."""
        self.head = head
        self.notify()

    def append(self, data: bytes) -> None:
        """Appends whole events, or a whole body. Waits only for a recording that was given up."""
        with self._changed:
            self._kept += data
            self.end += len(data)
            self._changed.notify_all()
            while self.given_up and self.left_at is None and self.end - self._find_lead() > WINDOW_BYTES:
                self._changed.wait(WAIT_S)
            unneeded = self._find_lead() - WINDOW_BYTES if self.readers else self.end
            if self.given_up and unneeded > self.start:
                del self._kept[: unneeded - self.start]
                self.start = unneeded

    def finish(self, ending: Ending) -> None:
        """Ends the answer. Idempotent."""
        self.ending, self._on_leave = self.ending or ending, None
        self.notify()

    def notify(self) -> None:
        """Wakes all who wait, because an attribute has changed."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, reader: Cursor, condition: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits until `condition` is true. Raises why the reader was cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: reader.cancelled is not None or condition(), timeout_s)
            if reader.cancelled:
                raise reader.cancelled

    def read(self, reader: Cursor, timeout_s: float | None) -> bytes | None:
        """The next whole events; None if there are none within `timeout_s`, b"" at the end.

        Raises why the reader was cancelled, the answer's failure and RecordingLostError.
        """
        with self._changed:
            self.wait(reader, lambda: reader.position < self.end or self.ending is not None, timeout_s)
            if reader.position < self.start:
                raise RecordingLostError
            data = self.copy_from(reader.position)
            if data:
                reader.position += len(data)
                if self.given_up:
                    self._changed.notify_all()
                return data
            if self.ending and self.ending.failure:
                raise self.ending.failure.make_error()
            return b"" if self.ending else None

    def copy_from(self, position: int) -> bytes:
        """Up to READ_BYTES from `position` on, in a stream whole events; b"" if there are none."""
        with self._changed:
            at = position - self.start
            if at < 0:
                return b""
            end = min(at + READ_BYTES, self.size)
            if end < self.size and (self.head is None or self.head.stream):
                cut = self._kept.rfind(EVENT_END, at, end)
                if cut < 0:
                    cut = self._kept.find(EVENT_END, at)
                end = self.size if cut < 0 else cut + len(EVENT_END)
            return bytes(memoryview(self._kept)[at:end])

    def is_after_event(self, position: int) -> bool:
        """An event ends at `position`, and everything behind it is kept."""
        with self._changed:
            at = position - self.start
            return position == 0 == at or (2 <= at <= self.size and self._kept[at - 2 : at] == EVENT_END)

    def _find_lead(self) -> int:
        return max((reader.position for reader in self.readers), default=self.end)
