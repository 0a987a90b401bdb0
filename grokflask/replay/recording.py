"""One exchange's answer, kept while it comes and for a while after: one writes it, any number read it.

A `Recording` holds bytes and knows nothing of upstream or of clients. No reader holds up another, nor the
writer. A recording that has grown too large is given up: it then keeps only what its foremost reader still
needs, and the writer waits for that one, as it would for the client of an ordinary stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from grokflask.errors import GrokflaskError, RecordingLostError, UpstreamStatusError

READ_BYTES = 64 * 1024
"""How much a reader takes at once, if it is not a single event that is larger."""

WINDOW_BYTES = 64 * 1024
"""How far the writer of a recording that was given up may be ahead, and other readers behind, its foremost
reader."""

WAIT_S = 1.0
"""How often the writer of such a recording looks whether anybody is left."""

END = b"\n\n"
"""The end of an event, as the relay writes them."""


class Head(msgspec.Struct, frozen=True):
    """What comes before an answer's bytes.

    Attributes:
        stream: the bytes are events.
        answered: upstream had answered by then; else the response had to begin without it.
    """

    status: int
    headers: dict[str, str]
    stream: bool
    answered: bool = True


class Failure(msgspec.Struct, frozen=True):
    """An error as a value, for every reader to raise one of its own."""

    message: str
    status: int
    code: str
    kind: str
    param: str | None = None
    headers: dict[str, str] = {}
    in_stream: bool | None = None

    def make_error(self) -> GrokflaskError:
        """The error."""
        error = UpstreamStatusError(
            self.message,
            status=self.status,
            code=self.code,
            kind=self.kind,
            param=self.param,
            headers=self.headers,
        )
        error.in_stream = self.in_stream
        return error


def describe(error: GrokflaskError) -> Failure:
    """`error` as a value."""
    return Failure(
        error.message, error.status, error.code, error.type, error.param, dict(error.headers), error.in_stream
    )


class Place:
    """Where a reader of a recording is.

    Attributes:
        position: in the recording's bytes.
        cancelled: why it was ended from outside.
    """

    def __init__(self) -> None:
        self.position = 0
        self.cancelled: GrokflaskError | None = None


class Recording:
    """What has been answered so far. Its methods may be called from any thread.

    Args:
        id: of this attempt; unique.
        name: under which a repetition finds it.
        fingerprint: of the request, which a repetition must equal.
        request_id: of the request that began it.
        grace_s: how long it goes on without a reader.

    Attributes:
        head: None until it has come.
        start, end: where the bytes that are kept begin and end, counted from the answer's first.
        ended: nothing more comes.
        complete: it ended well.
        given_up: it is not kept for repetitions.
        readers: those that read it in this process.
    """

    def __init__(self, id: str, name: str, fingerprint: str, request_id: str, grace_s: float) -> None:
        self.id = id
        self.name = name
        self.fingerprint = fingerprint
        self.request_id = request_id
        self.grace_s = grace_s
        self.head: Head | None = None
        self.failure: Failure | None = None
        self.start = self.end = 0
        self.ended = self.complete = self.given_up = False
        self.readers: set[Place] = set()
        self._leave: Callable[[], None] | None = None
        self._left = False
        self._kept = bytearray()
        self._changed = threading.Condition()

    @property
    def left(self) -> bool:
        """It was let go: nobody reads it, or will."""
        return self._left

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.end - self.start

    def bind(self, leave: Callable[[], None]) -> None:
        """`leave` ends the upstream call for want of a client; called at once if that has come already."""
        self._leave = leave
        if self._left:
            leave()

    def leave(self) -> None:
        """No client is left."""
        self._left = True
        if self._leave is not None:
            self._leave()

    def put_head(self, head: Head) -> None:
        """The answer begins."""
        with self._changed:
            self.head = head
            self._changed.notify_all()

    def append(self, data: bytes) -> None:
        """More of the answer: whole events, or a whole body. Waits only when it was given up."""
        with self._changed:
            self._kept += data
            self.end += len(data)
            self._changed.notify_all()
            while self.given_up and not self._left and self.end - self._find_lead() > WINDOW_BYTES:
                self._changed.wait(WAIT_S)
            if self.given_up:
                self._trim(self._find_lead() - WINDOW_BYTES if self.readers else self.end)

    def finish(self, *, complete: bool, failure: Failure | None = None) -> None:
        """Nothing more comes. A `failure` is for readers to tell; without one it is told by the bytes."""
        with self._changed:
            if self.ended:
                return
            self.ended, self.complete, self.failure = True, complete, failure
            self._leave = None
            self._changed.notify_all()

    def give_up(self) -> None:
        """It is kept no longer; those who read it go on."""
        with self._changed:
            self.given_up = True

    def add(self, reader: Place) -> None:
        """One more reads it."""
        with self._changed:
            self.readers.add(reader)

    def remove(self, reader: Place) -> None:
        """One fewer. Idempotent."""
        with self._changed:
            self.readers.discard(reader)
            self._changed.notify_all()

    def cancel(self, reader: Place, reason: GrokflaskError) -> None:
        """Ends one reader, wherever it waits."""
        with self._changed:
            reader.cancelled = reader.cancelled or reason
            self._changed.notify_all()

    def wait(self, reader: Place, wanted: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Waits for something that `wanted` sees; whether it came. Raises the reason of `cancel`."""
        with self._changed:
            return self._wait(reader, wanted, timeout_s)

    def read(self, reader: Place, timeout_s: float) -> bytes | None:
        """Whole events from where `reader` is; None for none within `timeout_s`, b"" at the end.

        Raises the reason of `cancel`, what made the answer fail where its bytes do not tell, and
        RecordingLostError.
        """
        with self._changed:
            self._wait(reader, lambda: reader.position < self.end or self.ended, timeout_s)
            position = reader.position
            if position < self.start:
                raise RecordingLostError
            if position < self.end:
                data = bytes(memoryview(self._kept)[position - self.start : self._find_cut(position)])
                reader.position += len(data)
                if self.given_up:
                    self._changed.notify_all()
                return data
            if not self.ended:
                return None
            if self.failure:
                raise self.failure.make_error()
            return b""

    def read_all(self) -> bytes:
        """All of it, once it has ended."""
        with self._changed:
            if self.start:
                raise RecordingLostError
            return bytes(self._kept)

    def copy_from(self, position: int, most: int) -> bytes:
        """Bytes from `position` on, for whoever passes them on, about as many as `most`; b"" for none.

        Of a stream whole events.
        """
        with self._changed:
            at = position - self.start
            if at < 0:
                return b""
            streams = self.head is not None and self.head.stream
            return bytes(
                memoryview(self._kept)[at : self._find_cut(position, most) if streams else at + most]
            )

    def is_after_event(self, position: int) -> bool:
        """An event ends there, and all that follows it is kept."""
        with self._changed:
            at = position - self.start
            return position == 0 == at or (2 <= at <= self.size and self._kept[at - 2 : at] == END)

    def _wait(self, reader: Place, wanted: Callable[[], bool], timeout_s: float | None) -> bool:
        came = self._changed.wait_for(lambda: bool(reader.cancelled) or wanted(), timeout_s)
        if reader.cancelled:
            raise reader.cancelled
        return came

    def _find_cut(self, position: int, most: int = READ_BYTES) -> int:
        """Where in what is kept a read from `position` ends: behind an event."""
        at = position - self.start
        if len(self._kept) - at <= most:
            return len(self._kept)
        cut = self._kept.rfind(END, at, at + most)
        if cut < 0:
            cut = self._kept.find(END, at)
        return len(self._kept) if cut < 0 else cut + len(END)

    def _find_lead(self) -> int:
        return max((reader.position for reader in self.readers), default=self.end)

    def _trim(self, position: int) -> None:
        if position > self.start:
            del self._kept[: position - self.start]
            self.start = position
