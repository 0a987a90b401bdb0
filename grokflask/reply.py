"""A reply that is taken in whole before the client gets it: the counterpart of the relay.

The same rules hold: a client that leaves ends the upstream call (or has it read to its end for the usage),
and every wait has a deadline with a name of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from grokflask.clients import Departure
from grokflask.errors import (
    FirstEventTimeoutError,
    GrokflaskError,
    IdleTimeoutError,
    TotalTimeoutError,
    UpstreamProtocolError,
)
from grokflask.terms import Terms
from grokflask.upstream import UpstreamCall
from grokflask.upstream_errors import parse_error
from grokflask.upstream_stream import MAX_REPLY_BYTES, UpstreamStream
from grokflask.usage import Usage, read_chunk

_BODILESS = (202, 204)
"""Statuses that need no body: what was asked for is not there yet, or no more."""


class WholeReply(msgspec.Struct, frozen=True):
    """Upstream's answer, complete, and what can be read off it."""

    status: int
    headers: dict[str, str]
    body: bytes
    usage: Usage | None
    model_served: str | None
    retried: bool


class ReplyReader:
    """Takes one call's answer in.

    Args:
        call: the request to upstream; the reader ends it.
        departure: knows whether the client is still there.
        started_at: when the client's request came, by `clock`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        call: UpstreamCall,
        terms: Terms,
        departure: Departure,
        *,
        started_at: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._terms = terms
        self._departure = departure
        self._started_at = started_at
        self._total_at = started_at + terms.total_timeout_s
        self._clock = clock

    def read(self) -> WholeReply:
        """The whole answer. Raises UpstreamError, or why the call was cancelled."""
        try:
            with self._wait_for_head() as stream:
                body = self._read_body(stream)
            self._check_cancelled()
            self._departure.check()
        except GrokflaskError as error:
            self._check_cancelled()  # then a broken connection is only the consequence
            self._call.cancel(error)
            raise
        finally:
            self._departure.end()
        if stream.status in _BODILESS and not body:
            return WholeReply(stream.status, stream.headers, body, None, None, stream.retried)
        if not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        chunk = read_chunk(body)
        if chunk is None:
            raise UpstreamProtocolError
        if chunk.has_error and not chunk.has_choices:  # xAI reports some failures with status 200
            raise parse_error(body, headers=stream.headers, secrets=self._terms.secrets)
        return WholeReply(
            stream.status, stream.headers, body, chunk.read_usage(), chunk.read_model(), stream.retried
        )

    def _check_cancelled(self) -> None:
        if self._call.cancelled:
            raise self._call.cancelled

    def _wait_for_head(self) -> UpstreamStream:
        terms = self._terms
        deadline = self._started_at + terms.first_event_timeout_s
        while True:
            stream = self._call.wait(self._limit(deadline))
            if stream is not None:
                return stream
            if self._clock() >= deadline:
                raise FirstEventTimeoutError(
                    f"The upstream API sent nothing for {terms.first_event_timeout_s:g} s."
                )

    def _read_body(self, stream: UpstreamStream) -> bytes:
        parts: list[bytes] = []
        size = 0
        deadline = self._clock() + self._terms.idle_timeout_s
        while (data := stream.read(self._limit(deadline))) != b"":
            now = self._clock()
            if data is None:
                if now >= deadline:
                    raise IdleTimeoutError(
                        f"The upstream API sent nothing more for {self._terms.idle_timeout_s:g} s."
                    )
                continue
            deadline = now + self._terms.idle_timeout_s
            parts.append(data)
            size += len(data)
            if size > MAX_REPLY_BYTES:
                raise UpstreamProtocolError(
                    f"The upstream API's answer is larger than {MAX_REPLY_BYTES} bytes."
                )
        return b"".join(parts)

    def _limit(self, deadline: float) -> float:
        """Seconds to wait now. Raises TotalTimeoutError when all time is over."""
        now = self._clock()
        if now >= self._total_at:
            raise TotalTimeoutError(f"The answer took longer than {self._terms.total_timeout_s:g} s.")
        return max(0.001, min(deadline - now, self._total_at - now))
