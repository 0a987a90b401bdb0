"""One client of a recording: its position, its heartbeats and, if it asked for them, its event ids.

To the response it looks like a relay: bytes to iterate over, and `close`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from grokflask.delivery.terms import HEARTBEAT
from grokflask.errors import ClientGoneError, GrokflaskError, RecordingLostError, StreamGoneError
from grokflask.protocol.dialects import Dialect
from grokflask.replay.recording import EVENT_END, Cursor, Head, Recording


@dataclass(eq=False)
class Reader(Cursor):
    """One client of a recording. Iterate it once, or take its body; then close it."""

    recording: Recording
    dialect: Dialect  #: the shape of its error events
    wants_json: bool  #: an error event is OpenAI's object, not the guide's text
    with_ids: bool  #: each event gets an id, from which the client can resume
    heartbeat_s: float  #: seconds of silence after which a comment is sent
    on_heartbeat: Callable[[], object] = lambda: None  #: called for each comment
    outcome: str = ClientGoneError.outcome.value  #: how it ended, for the log
    bytes_out: int = 0  #: what the client has been sent
    on_close: list[Callable[[], object]] = field(default_factory=list)
    _events: int = 0
    _over: bool = False
    _heartbeat_at: float | None = None

    def wait_for_head(self) -> Head:
        """The head of the answer. Raises the error that prevented it, or the reason given to `cancel`."""
        recording = self.recording
        recording.wait(self, lambda: recording.head is not None or recording.ending is not None)
        if recording.head is not None:
            return recording.head
        failure = recording.ending.failure if recording.ending else None
        raise failure.make_error() if failure else RecordingLostError()

    def read_body(self) -> bytes:
        """The whole answer, when it is complete. Raises as `wait_for_head`."""
        body = b"".join(iter(lambda: self.recording.read(self, None) or b"", b""))
        self.bytes_out = len(body)
        self.outcome = "complete"
        return body

    def seek(self, event_id: str) -> None:
        """Continues behind the event with that id. Raises StreamGoneError if it is not in the recording."""
        recording = self.recording
        attempt, _, digits = event_id.rpartition("-")
        if attempt != recording.id or not (digits.isdecimal() and digits.isascii()) or len(digits) > 15:
            raise StreamGoneError
        position = int(digits)
        # A copy may be a moment behind what the first client has received.
        recording.wait(self, lambda: recording.end >= position or recording.ending is not None)
        if not recording.is_after_event(position):
            raise StreamGoneError
        self.position = position

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._advance, b"")  # without a `close` of its own, as the relay's

    def close(self) -> None:
        """The client has everything, or has left. Idempotent."""
        self._over = True
        actions, self.on_close = self.on_close, []
        for action in actions:
            action()

    def _advance(self) -> bytes:
        """What to send next; b"" at the end."""
        if self._over:
            return b""
        out = b""
        try:
            out = self._wait_for_bytes()
        except ClientGoneError:
            pass
        except GrokflaskError as error:
            self._over = True
            self.outcome = error.code
            out = self.dialect.render_event(error, as_json=self.wants_json, number=self._events)
        if not out:
            self._over = True
        self.bytes_out += len(out)
        return out

    def _wait_for_bytes(self) -> bytes:
        recording = self.recording
        now = time.monotonic()
        if self._heartbeat_at is None and recording.head and not recording.head.answered:
            self._heartbeat_at = now  # the response's head is sent with its first bytes
        else:
            self._heartbeat_at = now + self.heartbeat_s
        data = recording.read(self, self._heartbeat_at - now)
        if data is None:
            self.on_heartbeat()
            return HEARTBEAT
        if not data:
            self.outcome = "complete" if recording.ending and recording.ending.complete else "failed"
        self._events += data.count(EVENT_END)
        return self._add_ids(data) if self.with_ids else data

    def _add_ids(self, data: bytes) -> bytes:
        """Puts an id line before each event: the attempt, and the position behind the event."""
        position = self.position - len(data)
        out = []
        for event in data.split(EVENT_END)[:-1]:
            position += len(event) + len(EVENT_END)
            out.append(b"id: %s-%d\n%s\n\n" % (self.recording.id.encode(), position, event))
        return b"".join(out)
