"""The relay: turns upstream's events into the client's bytes, and never guesses how a stream ended.

A `Relay` owns one upstream call until `close`. It passes on every event at once and byte for byte (without
the xAI key, if xAI quotes it), withholds the usage-only event from clients that did not ask for it, and keeps
a silent stream alive with comments. A stream ends in one of two ways: with its dialect's end (chat's
`data: [DONE]`), or with an error event and without that end. `on_settle` runs exactly once, after the last
byte went out. No Flask here.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain

from grokflask.delivery.clients import Departure
from grokflask.delivery.meter import SILENCE_S, Meter
from grokflask.delivery.terms import HEARTBEAT, Terms
from grokflask.errors import (
    ClientGoneError,
    GrokflaskError,
    Outcome,
    StreamBrokenError,
    StreamTruncatedError,
    UpstreamError,
)
from grokflask.metrics.tallies import Deliveries, Tallies
from grokflask.protocol.sse import EventDecoder
from grokflask.protocol.upstream_errors import REDACTED, encode_secrets
from grokflask.protocol.usage import Settlement
from grokflask.upstream.client import UpstreamCall
from grokflask.upstream.stream import UpstreamStream

LATEST_BYTES = 1024  # kept of what was yielded last: the last event is in it

_log = logging.getLogger("grokflask.relay")


class Stage(enum.Enum):
    """How far a relay has come. It only moves forward."""

    OPEN = enum.auto()
    """More bytes may follow."""

    ENDED = enum.auto()
    """The last bytes were yielded, but may not be written yet."""

    DELIVERED = enum.auto()
    """Everything was written: the server has asked for the next bytes."""

    CLOSED = enum.auto()


class Relay:
    """One stream on its way to one client. Iterate it once, then close it; closing early is an abort.

    Args:
        call: the request to upstream; the relay ends it.
        departure: watches the client, and knows what to do when it leaves.
        on_finish: called when upstream is done, before the last bytes are yielded; not after an abort.
        on_settle: called once by `close`.
        started_at: when the client's request came, by `clock`.
        on_answer: called with upstream's response headers that a client may see, and whether the request was
            sent a second time.
        on_id: called with the id under which upstream keeps the answer, before the client sees it.
        deliveries: records the time that bytes take from upstream to the client.
        meter: counts what passes.
        clock: monotonic seconds.

    Attributes:
        headers: upstream's response headers that a client may see; empty until its answer has come.
    """

    def __init__(
        self,
        call: UpstreamCall,
        terms: Terms,
        departure: Departure,
        on_finish: Callable[[Settlement], object],
        on_settle: Callable[[Settlement], None],
        *,
        started_at: float,
        on_answer: Callable[[dict[str, str], bool], object] | None = None,
        on_id: Callable[[str], object] | None = None,
        deliveries: Deliveries | None = None,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.headers: dict[str, str] = {}
        self._call = call
        self._stream: UpstreamStream | None = None
        self._terms = terms
        self._on_answer, self._on_finish, self._on_settle = on_answer, on_finish, on_settle
        self._departure = departure
        departure.is_ending = self._is_ending
        self._filter = terms.dialect.make_filter(wants_usage=terms.wants_usage, secrets=terms.secrets)
        self._filter.on_id = on_id
        self._meter = meter or Meter()
        self._meter.begin(self._filter, started_at)
        self._latest = b""  # the end of what was yielded last
        self._deliveries = deliveries or Deliveries(Tallies())
        self._clock = clock
        self._decoder = EventDecoder()
        self._secrets = encode_secrets(terms.secrets)
        self._started_at = started_at
        self._total_at = started_at + terms.total_timeout_s
        self._patience_s = terms.first_event_timeout_s  # how long before `_deadline` the silence began
        self._deadline = started_at + self._patience_s
        self._given_at: float | None = None  # when bytes were last yielded
        self._read_at: float | None = None  # when the bytes being written were read
        self._heartbeat_at = started_at  # until the answer has come a comment is due at once
        self._first_event_at: float | None = None
        self._stage = Stage.OPEN
        self._error: GrokflaskError | None = None  # why the stream broke
        self._status = 200
        self._ahead: bytes | None = None  # the bytes to yield first
        self._bytes_out = 0
        self._events_out = 0  # without those that are read after the client has left

    def wait_for_answer(self, timeout_s: float) -> None:
        """Waits up to `timeout_s` for upstream's headers; after that the stream begins without them.

        The response has no status yet, so a failure of upstream is raised as it is (GrokflaskError).
        """
        deadline = min(self._deadline, self._total_at)
        try:
            self._adopt(min(timeout_s, deadline - self._clock()))
            now = self._clock()
            if self._stream is not None:
                # The response's head goes out with its first bytes, so those must not be late.
                begin_at = max(now, self._started_at + timeout_s)
                self._heartbeat_at = min(now + self._terms.heartbeat_s, begin_at)
            elif now >= deadline:
                raise self._make_timeout_error(now)
        except BaseException as error:
            # The client is still there and gets a response of its own: closing now is not an abort.
            self._error = error if isinstance(error, GrokflaskError) else GrokflaskError()
            self._status = self._error.status
            self._stage = Stage.DELIVERED
            raise

    def look_ahead(self, timeout_s: float) -> str | None:
        """Reads the first bytes to yield; a comment after `timeout_s`. Returns the model in them, if any.

        This delays nothing: a WSGI server sends the head together with the first bytes (PEP 3333).
        Errors from here on are reported inside the stream.
        """
        if self._stream is not None:
            self._heartbeat_at = min(self._heartbeat_at, self._clock() + timeout_s)
            self._ahead = self._advance()
        return self._filter.model_served

    def _adopt(self, timeout_s: float) -> None:
        """Starts reading upstream's answer, if it comes within `timeout_s`."""
        self._stream = self._call.wait(timeout_s)
        if self._stream is not None:
            self.headers = self._stream.headers
            if self._on_answer is not None:
                self._on_answer(self.headers, self._stream.retried)

    @property
    def answered(self) -> bool:
        """Upstream's answer has come."""
        return self._stream is not None

    @property
    def complete(self) -> bool:
        """The whole answer was yielded, and upstream marked its end."""
        return self._stage is Stage.DELIVERED and self._filter.done and self._error is None

    def count_sent(self) -> tuple[int, int]:
        """Events and bytes that were yielded so far."""
        return self._events_out, self._bytes_out

    def __iter__(self) -> Iterator[bytes]:
        # An iterator without a `close` of its own: stream_with_context closes what it has used up before
        # the last byte is out, and closing must be left to the one call on the response.
        ahead, self._ahead = self._ahead, None
        if ahead == b"":
            return iter(())  # it was over before it began
        return chain(() if ahead is None else (ahead,), iter(self._advance, b""))

    def close(self) -> None:
        """Ends the exchange wherever it is, closes or returns the connection, settles. Idempotent."""
        if self._stage is Stage.CLOSED:
            return
        delivered, self._stage = self._stage is Stage.DELIVERED, Stage.CLOSED
        # The call was cancelled while the client was still reading.
        cut = None if delivered or self._departure.left_at is not None else self._call.cancelled
        try:
            if not self._filter.done and not self._error:
                self._departure.leave()
                self._drain()
            if self._stream is None:
                self._call.cancel(ClientGoneError())
            elif self._filter.done:
                self._stream.finish()
            else:
                self._stream.close()
        finally:
            self._departure.end()
            self._deliveries.report()
            self._error = self._error or cut
            on_settle = self._on_settle
            del self._on_settle, self._on_finish  # they may refer to the relay: a cycle
            on_settle(self._sum_up(reached_client=delivered or cut is not None))

    def _sum_up(self, *, reached_client: bool) -> Settlement:
        error = (self._error or self._filter.failure) if reached_client else None
        ttft_s = None
        if self._events_out and self._first_event_at is not None:
            ttft_s = self._first_event_at - self._started_at
        silent_tokens = self._meter.silent_tokens
        usage = self._filter.usage
        if usage is None or usage.cost_ticks is None or not self._filter.usage_final:
            self._meter.count(self._bytes_out)
            is_fault = isinstance(self._error, UpstreamError)  # then the silence was one of upstream
            if not self._filter.done and not is_fault:
                silent_tokens += self._measure_silence(self._clock())
        return Settlement(
            outcome=error.outcome if error else Outcome.COMPLETE if reached_client else Outcome.CLIENT_ABORT,
            error=error,
            usage=self._filter.usage,
            usage_final=self._filter.usage_final,
            model_served=self._filter.model_served,
            events=self._events_out,
            events_seen=self._filter.events,
            text_tokens=self._meter.tokens,
            silent_tokens=silent_tokens,
            bytes_out=self._bytes_out,
            ttft_s=ttft_s,
            status=self._status,
        )

    def _advance(self) -> bytes:
        """The next bytes for the client: all events that have come by now. b"" when it is over."""
        now = self._clock()
        if self._read_at is not None:
            self._deliveries.note(now - self._read_at)  # by now they have been written
            self._read_at = None
        if self._stage is not Stage.OPEN:
            if self._stage is Stage.ENDED:
                self._stage = Stage.DELIVERED
            return b""
        if self._given_at is not None:
            # Upstream was not read while the client took its time, so that silence does not count.
            self._deadline += now - self._given_at
        try:
            out = self._wait_for_bytes(now)
        except ClientGoneError:
            return b""
        except GrokflaskError as error:
            out = self._fail(error)
        except Exception:
            # A bug in the gateway must not end a stream silently either.
            _log.exception("the relay failed")
            out = self._fail(StreamBrokenError("The gateway failed inside the answer; it is incomplete."))
        size = len(out)
        self._latest = out if size < LATEST_BYTES else out[-LATEST_BYTES:]
        self._bytes_out += size
        self._events_out = self._filter.events
        if self._bytes_out >= self._meter.count_at:
            out += self._look(out)
        if self._filter.done or self._error:
            self._stage = Stage.ENDED
            self._on_finish(self._sum_up(reached_client=True))
        now = self._given_at = self._clock()
        self._heartbeat_at = now + self._terms.heartbeat_s
        return out

    def _wait_for_bytes(self, now: float) -> bytes:
        """The next bytes to yield: events, or a comment if there have been none for too long."""
        while True:
            until = min(self._deadline, self._total_at, self._heartbeat_at, self._meter.check_at)
            if now >= self._meter.check_at:
                self._check_silence(now)
                now = self._clock()
                continue
            if now >= until:
                if now >= self._deadline or now >= self._total_at:
                    raise self._make_timeout_error(now)
                self._read_at = None
                self._deliveries.note_heartbeat()
                self._meter.other_bytes += len(HEARTBEAT)
                return HEARTBEAT
            events = self._receive(until - now)
            out = self._filter.take(events) if events else b""
            for secret in self._secrets:
                if secret in out:
                    out = out.replace(secret, REDACTED)
            if self._filter.done:
                self._departure.check()  # the watcher looks at intervals, and nothing is sent after this
            # Only now: what was read counts and may hold the usage, even if the client has left meanwhile.
            self._check_cancelled()
            if self._filter.error:
                return out + self._fail(self._filter.error)
            if out:
                return out
            now = self._clock()

    def _receive(self, timeout_s: float) -> list[bytes]:
        """The events that arrived; [] if none do within `timeout_s`. Raises GrokflaskError at the end."""
        try:
            if self._stream is None:
                self._adopt(timeout_s)
                return []
            data = self._stream.read(timeout_s)
        except GrokflaskError:
            self._check_cancelled()
            raise
        if not data:
            self._check_cancelled()
        if data is None:
            return []
        now = self._clock()
        events = self._decoder.feed(data) if data else self._decoder.finish()
        if events:
            self._read_at = now
            if now - self._deadline + self._patience_s > SILENCE_S:
                self._meter.silent_tokens += self._measure_silence(now)
            self._patience_s = self._terms.idle_timeout_s
            self._deadline = now + self._patience_s
            if self._first_event_at is None:
                self._first_event_at = now
        elif not data:
            raise StreamTruncatedError
        return events

    def _look(self, out: bytes) -> bytes:
        """Counts what is in `out` and before; returns an error event if the key's budget is used up."""
        if self._error:
            return b""
        self._meter.count(self._bytes_out, out)
        if self._filter.done or (error := self._meter.check()) is None:
            return b""
        failure = self._fail(error)
        self._bytes_out += len(failure)
        return failure

    def _check_silence(self, now: float) -> None:
        """Silence may be reasoning, which uses up a budget as well. Raises why the stream has to end."""
        if error := self._meter.check(now, now - self._deadline + self._patience_s):
            raise error

    def _measure_silence(self, now: float) -> int:
        """The tokens for the silence since the latest event, or since the request came."""
        return self._meter.measure_silence(now - self._deadline + self._patience_s)

    def _is_ending(self) -> bool:
        """Only the usage is still to come. In chat, what names a `finish_reason` is the last with text."""
        return self._terms.dialect.make_filter.ending.search(self._latest) is not None

    def _check_cancelled(self) -> None:
        """Raises the reason if the call was cancelled: a broken connection is then only its consequence."""
        if self._call.cancelled:
            raise self._call.cancelled
        if self._departure.left_at is not None and self._stage is not Stage.CLOSED:
            raise ClientGoneError

    def _make_timeout_error(self, now: float) -> GrokflaskError:
        if now >= self._total_at:
            return self._terms.make_total_timeout_error()
        if self._first_event_at is None:
            return self._terms.make_first_event_timeout_error()
        return self._terms.make_idle_timeout_error()

    def _drain(self) -> None:
        """The client has left: if so configured, reads on for the usage and discards the events."""
        left_at = self._departure.left_at
        if not self._departure.drains_call or left_at is None:
            return
        deadline = min(left_at + self._departure.drain_s, self._total_at)
        try:
            while not self._filter.done and not self._filter.error:
                left_s = deadline - self._clock()
                if left_s <= 0:
                    return
                received = self._receive(left_s)
                if received:
                    self._meter.other_bytes -= len(self._filter.take(received))
        except GrokflaskError:
            pass  # no client is left to report it to

    def _fail(self, error: GrokflaskError) -> bytes:
        self._error = error
        out = self._terms.dialect.render_event(
            error, as_json=self._terms.wants_json, number=self._filter.events
        )
        self._meter.other_bytes += len(out)
        return out
