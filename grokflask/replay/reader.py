"""One client of a recording: its place in it, its heartbeats and, where it was asked for, its event ids.

To the response it looks like a relay: bytes to iterate over, and a `close`. It may begin behind the event
that its client had last, and whatever ends it early is told in the shape that this client reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from grokflask.delivery.terms import HEARTBEAT
from grokflask.errors import (
    ClientGoneError,
    GrokflaskError,
    RecordingLostError,
    StreamGoneError,
)
from grokflask.protocol.dialects import Dialect
from grokflask.replay.recording import END, Head, Place, Recording


class Reader(Place):
    """One client of a recording. Iterate it once, or take its body; then close it, which may come twice.

    Args:
        dialect: how an error is told.
        wants_json: an error event is OpenAI's object, not the guide's text.
        with_ids: each event is given an id, by which the client may go on after it.
        heartbeat_s: of silence, then a comment goes out.
        on_heartbeat: called for each.
        clock: monotonic seconds.

    Attributes:
        outcome: how it ended, for the log.
        bytes_out: what the client was given.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        dialect: Dialect,
        wants_json: bool,
        with_ids: bool,
        heartbeat_s: float,
        on_heartbeat: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.recording = recording
        self.outcome = ClientGoneError.outcome.value
        self.bytes_out = 0
        self.on_close: list[Callable[[], object]] = []
        self._dialect = dialect
        self._wants_json = wants_json
        self._events = 0
        self._with_ids = with_ids
        self._heartbeat_s = heartbeat_s
        self._on_heartbeat = on_heartbeat
        self._clock = clock
        self._over = self._closed = False
        self._heartbeat_at: float | None = None

    def cancel(self, reason: GrokflaskError) -> None:
        """Ends it, wherever it waits; the client is told, if it is still there."""
        self.recording.cancel(self, reason)

    def wait_for_head(self) -> Head:
        """How the answer begins. Raises what made it fail before that, and the reason of `cancel`."""
        recording = self.recording
        recording.wait(self, lambda: recording.head is not None or recording.ended)
        if recording.head is not None:
            return recording.head
        raise recording.failure.make_error() if recording.failure else RecordingLostError()

    def read_body(self) -> bytes:
        """A whole answer, once all of it is there. Raises as `wait_for_head`."""
        recording = self.recording
        recording.wait(self, lambda: recording.ended)
        if recording.failure:
            raise recording.failure.make_error()
        body = recording.read_all()
        self.bytes_out = self.position = len(body)
        self.outcome = "complete"
        return body

    def seek(self, event_id: str) -> None:
        """Goes on behind the event of that id. Raises StreamGoneError when it is not (or no longer) here."""
        recording = self.recording
        attempt, _, text = event_id.rpartition("-")
        if attempt != recording.id or not text.isdecimal() or not text.isascii() or len(text) > 15:
            raise StreamGoneError
        position = int(text)
        # What another process carries may be a moment behind what it has given its own client.
        recording.wait(self, lambda: recording.end >= position or recording.ended)
        if not recording.is_after_event(position):
            raise StreamGoneError
        self.position = position

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._advance, b"")  # without a `close` of its own, as the relay's

    def close(self) -> None:
        """The client has all, or has gone. Idempotent."""
        if self._closed:
            return
        self._closed = self._over = True
        for action in self.on_close:
            action()
        self.on_close.clear()

    def _advance(self) -> bytes:
        """What goes out next; b"" when it is over."""
        if self._over:
            return b""
        out = b""
        try:
            out = self._wait_for_bytes()
        except ClientGoneError:
            self._over = True
        except GrokflaskError as error:
            self._over = True
            self.outcome = error.code
            out = self._dialect.render_event(error, as_json=self._wants_json, number=self._events)
        if not out:
            self._over = True
        self.bytes_out += len(out)
        return out

    def _wait_for_bytes(self) -> bytes:
        recording = self.recording
        now = self._clock()
        if self._heartbeat_at is None and recording.head and not recording.head.answered:
            self._heartbeat_at = now  # the response's head goes out with the first bytes
        else:
            self._heartbeat_at = now + self._heartbeat_s
        data = recording.read(self, self._heartbeat_at - now)
        if data is None:
            self._on_heartbeat()
            return HEARTBEAT
        if not data:
            self.outcome = "complete" if recording.complete else "failed"
        self._events += data.count(END)
        return self._add_ids(data) if self._with_ids else data

    def _add_ids(self, data: bytes) -> bytes:
        """Puts a line with its id before each event: where the bytes behind it begin."""
        position = self.position - len(data)
        out = []
        for event in data.split(END)[:-1]:
            position += len(event) + len(END)
            out.append(b"id: %s-%d\n%s\n\n" % (self.recording.id.encode(), position, event))
        return b"".join(out)
