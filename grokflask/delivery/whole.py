"""A reply that is taken in whole before the client gets it: the counterpart of the relay.

One of more than a megabyte (pictures as base64, files) waits in a file, not in memory: see `spool`.

The same rules hold: a client that leaves ends the upstream call (or has it read to its end for the usage),
and every wait has a deadline with a name of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from mmap import mmap

import msgspec

from grokflask.delivery.clients import Departure
from grokflask.delivery.spool import MEMORY_BYTES, Spool
from grokflask.delivery.terms import Terms
from grokflask.errors import (
    FirstEventTimeoutError,
    GrokflaskError,
    IdleTimeoutError,
    TotalTimeoutError,
    UpstreamProtocolError,
)
from grokflask.protocol.upstream_errors import clean_failure, parse_error
from grokflask.protocol.usage import Usage
from grokflask.upstream.client import UpstreamCall
from grokflask.upstream.stream import UpstreamStream

_BODILESS = (202, 204)
"""Statuses that need no body: what was asked for is not there yet, or no more."""


class WholeReply(msgspec.Struct, frozen=True):
    """Upstream's answer, complete, and what can be read off it."""

    status: int
    headers: dict[str, str]
    body: bytes | Spool
    usage: Usage | None
    model_served: str | None
    retried: bool
    media_type: str = "application/json"


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
        body: bytes | Spool = b""
        try:
            with self._wait_for_head() as stream:
                body = self._read_body(stream)
            self._check_cancelled()
            self._departure.check()
        except GrokflaskError as error:
            _close(body)
            self._check_cancelled()  # then a broken connection is only the consequence
            self._call.cancel(error)
            raise
        finally:
            self._departure.end()
        if isinstance(body, bytes):
            return self._understand(stream, body, body)
        try:
            with body.view() as view:
                return self._understand(stream, body, view)
        except BaseException:
            body.close()
            raise

    def _understand(self, stream: UpstreamStream, body: bytes | Spool, data: bytes | mmap) -> WholeReply:
        """`body`, whose bytes are `data`, with what can be read off it. Raises UpstreamError."""
        if self._terms.any_type:
            kind = stream.media_type or "application/octet-stream"
            return WholeReply(stream.status, stream.headers, body, None, None, stream.retried, kind)
        if stream.status in _BODILESS and not body:
            return WholeReply(stream.status, stream.headers, body, None, None, stream.retried)
        if not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        reading = self._terms.dialect.read_reply(data)
        if reading is None:
            raise UpstreamProtocolError
        if reading.has_error:
            if not (reading.is_answer or self._terms.keeps_failures):  # xAI reports some with status 200
                raise parse_error(bytes(data), headers=stream.headers, secrets=self._terms.secrets)
            if isinstance(body, bytes):  # one that failed has nothing that makes it large
                body = clean_failure(body, self._terms.secrets)
        return WholeReply(
            stream.status,
            stream.headers,
            body,
            reading.read_usage(),
            reading.read_model(),
            stream.retried,
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

    def _read_body(self, stream: UpstreamStream) -> bytes | Spool:
        parts: list[bytes] = []
        size = 0
        spool: Spool | None = None
        try:
            for data in self._take(stream):
                size += len(data)
                if spool is not None:
                    spool.append(data)
                    continue
                parts.append(data)
                if size > MEMORY_BYTES:
                    spool = Spool()
                    while parts:
                        spool.append(parts.pop(0))
        except BaseException:
            if spool is not None:
                spool.close()
            raise
        return b"".join(parts) if spool is None else spool

    def _take(self, stream: UpstreamStream) -> Iterator[bytes]:
        """The body as it comes. Raises UpstreamError, for one that is too large as well."""
        size, most = 0, self._terms.max_reply_bytes
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
            size += len(data)
            if size > most:
                raise UpstreamProtocolError(f"The upstream API's answer is larger than {most} bytes.")
            yield data

    def _limit(self, deadline: float) -> float:
        """Seconds to wait now. Raises TotalTimeoutError when all time is over."""
        now = self._clock()
        if now >= self._total_at:
            raise TotalTimeoutError(f"The answer took longer than {self._terms.total_timeout_s:g} s.")
        return max(0.001, min(deadline - now, self._total_at - now))


def _close(body: bytes | Spool) -> None:
    if isinstance(body, Spool):
        body.close()
