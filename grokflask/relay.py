"""The relay: upstream's events become the client's bytes, and the end of a stream is never a guess.

A `Relay` owns one upstream stream from its headers to `close`. It gives out every event at once and byte
for byte, withholds the usage-only event from clients that did not ask for it, and ends in one of two ways:
with `data: [DONE]`, or with an error event and no `[DONE]`. It does not know Flask. It is told what to do
when all is over by `on_settle`, which runs exactly once, after the last byte has gone out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grokflask.errors import (
    Outcome,
    StreamBrokenError,
    StreamTruncatedError,
    UpstreamError,
    UpstreamTimeoutError,
    render_event,
)
from grokflask.sse import EventDecoder, NamedEvent
from grokflask.upstream import UpstreamStream
from grokflask.upstream_errors import parse_error
from grokflask.usage import Settlement, Usage, read_chunk

DONE = b"[DONE]"

_log = logging.getLogger("grokflask.relay")


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How one stream is relayed.

    Attributes:
        wants_usage: pass the usage-only event on.
        wants_json: an error event is OpenAI's object, not the guide's text.
        first_event_timeout_s: until the first event. Comments are no events.
        idle_timeout_s: between two events.
        secrets: texts to cut out of upstream's messages.
    """

    wants_usage: bool
    wants_json: bool
    first_event_timeout_s: float
    idle_timeout_s: float
    secrets: tuple[str, ...] = ()


class Relay:
    """One stream on its way to one client. Iterate it once, then close it; closing early is an abort.

    Args:
        stream: upstream's answer, headers read; the relay closes it.
        options: see RelayOptions.
        on_settle: called once by `close`.
        started_at: when the client's request came, by `clock`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        stream: UpstreamStream,
        options: RelayOptions,
        on_settle: Callable[[Settlement], None],
        *,
        started_at: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstream_headers = stream.headers
        self._stream = stream
        self._options = options
        self._on_settle = on_settle
        self._clock = clock
        self._decoder = EventDecoder()
        self._started_at = started_at
        self._deadline = started_at + options.first_event_timeout_s
        self._first_event_at: float | None = None
        self._done = False  # [DONE] has been given out
        self._error: UpstreamError | None = None
        self._exhausted = False  # the consumer has taken everything, so all was written
        self._closed = False
        self._usage: Usage | None = None
        self._model_served: str | None = None
        self._events = 0
        self._bytes_out = 0

    def __iter__(self) -> Iterator[bytes]:
        # An iterator without a `close` of its own: whoever iterates (stream_with_context closes what it
        # has used up, before the last byte is out) must leave closing to the one call on the response.
        return iter(self._advance, b"")

    def close(self) -> None:
        """Ends the exchange wherever it is, closes or returns the connection, settles. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._done:
                self._stream.finish()
            else:
                self._stream.close()
        finally:
            self._on_settle(
                Settlement(
                    outcome=self._tell_outcome(),
                    error=self._error,
                    usage=self._usage,
                    model_served=self._model_served,
                    events=self._events,
                    bytes_out=self._bytes_out,
                    ttft_s=self._first_event_at - self._started_at
                    if self._events and self._first_event_at is not None
                    else None,
                )
            )

    def _tell_outcome(self) -> Outcome:
        if not self._exhausted:
            return Outcome.CLIENT_ABORT
        return self._error.outcome if self._error else Outcome.COMPLETE

    def _advance(self) -> bytes:
        """The next bytes for the client: all events that have come by now. b"" when it is over."""
        if self._done or self._error or self._closed:
            self._exhausted = not self._closed
            return b""
        out = b""
        if self._first_event_at is not None:  # the wait begins now, not while the client was taking its time
            self._deadline = self._clock() + self._options.idle_timeout_s
        try:
            while not out:
                out = self._take(self._read_events())
        except UpstreamError as error:
            out = self._fail(error)
        except Exception:
            # A fault of our own ends the stream as honestly as one of upstream's.
            _log.exception("the relay failed")
            out = self._fail(StreamBrokenError("The gateway failed inside the answer; it is incomplete."))
        self._bytes_out += len(out)
        return out

    def _read_events(self) -> list[bytes]:
        """The events that have come next, waiting for them until the deadline. Raises UpstreamError."""
        while True:
            left_s = self._deadline - self._clock()
            data = self._stream.read(left_s) if left_s > 0 else None
            if data is None:
                raise UpstreamTimeoutError(self._tell_silence())
            events = self._decoder.feed(data) if data else self._decoder.finish()
            if events:
                self._rearm()
                return events
            if not data:
                raise StreamTruncatedError

    def _rearm(self) -> None:
        now = self._clock()
        self._deadline = now + self._options.idle_timeout_s
        if self._first_event_at is None:
            self._first_event_at = now

    def _tell_silence(self) -> str:
        if self._first_event_at is None:
            return f"The upstream API sent nothing for {self._options.first_event_timeout_s:g} s."
        return f"The upstream API sent nothing more for {self._options.idle_timeout_s:g} s."

    def _take(self, events: list[bytes]) -> bytes:
        """The events as the client gets them, in one piece. b"" when all of them are withheld."""
        out = b"data: " + b"\n\ndata: ".join(events) + b"\n\n"
        # Nothing is parsed that is only passed on: three searches in the bytes tell whether to look closer.
        if b'"usage"' not in out and b'"error"' not in out and DONE not in out and not _any_named(events):
            self._events += len(events)
            return out
        kept: list[bytes] = []
        for event in events:
            if event.strip() == DONE:
                self._done = True
                kept.append(DONE)
                break
            if self._is_error(event):
                break
            if self._is_wanted(event):
                kept.append(event)
                self._events += 1
        out = b"".join(b"data: " + event + b"\n\n" for event in kept)
        return out + self._render_error() if self._error else out

    def _is_error(self, event: bytes) -> bool:
        """Upstream reports a failure inside the stream: an error object, or an event of that name."""
        named = isinstance(event, NamedEvent) and event.name == b"error"
        if not named:
            chunk = read_chunk(event) if b'"error"' in event else None
            if chunk is None or not chunk.has_error:
                return False
        self._error = parse_error(event, secrets=self._options.secrets, in_stream=True)
        return True

    def _is_wanted(self, event: bytes) -> bool:
        """Notes the usage in `event`; False when usage is all it holds and the client did not ask for it."""
        if b'"usage"' not in event:
            return True
        chunk = read_chunk(event)
        if chunk is None or not chunk.has_usage:
            return True
        self._usage = chunk.read_usage() or self._usage  # upstream counts up: the last one is the sum
        self._model_served = chunk.read_model() or self._model_served
        return self._options.wants_usage or chunk.has_choices

    def _fail(self, error: UpstreamError) -> bytes:
        self._error = error
        return self._render_error()

    def _render_error(self) -> bytes:
        assert self._error is not None
        return render_event(self._error, as_json=self._options.wants_json)


def _any_named(events: list[bytes]) -> bool:
    return any(type(event) is NamedEvent for event in events)
