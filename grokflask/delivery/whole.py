"""Replies that are read whole before the client gets them: the counterpart of the relay.

The same rules hold: a client that leaves ends the upstream call (or has it read to its end for the usage),
and each wait has a deadline. A reply of more than a megabyte (pictures, files) waits in a temporary file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from mmap import mmap

import msgspec

from grokflask.billing.bill import count_output
from grokflask.delivery.clients import Departure
from grokflask.delivery.spool import Spool
from grokflask.delivery.terms import Terms
from grokflask.delivery.texts import BYTES_PER_TOKEN, measure_text
from grokflask.errors import ForeignAnswerError, GrokflaskError, UpstreamProtocolError
from grokflask.protocol.upstream_errors import REDACTED, clean_failure, encode_secrets, parse_error
from grokflask.protocol.usage import Usage
from grokflask.upstream.client import UpstreamCall
from grokflask.upstream.stream import UpstreamStream

_BODILESS = (202, 204)
"""Statuses of answers without a body: the object is not ready yet, or was deleted."""


class WholeReply(msgspec.Struct, frozen=True):
    """Upstream's complete answer, with its usage and model."""

    status: int
    headers: dict[str, str]
    body: bytes | Spool
    usage: Usage | None
    model_served: str | None
    retried: bool
    media_type: str = "application/json"
    text_tokens: int = 0
    """Of its text, about; counted only if it has no usage."""


class ReplyReader:
    """Reads one call's answer.

    Args:
        call: the request to upstream; the reader ends it.
        departure: watches the client.
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
        # A file's content is the client's own.
        self._secrets = () if terms.any_type else encode_secrets(terms.secrets)
        self._longest = max(map(len, self._secrets), default=0)

    def read(self) -> WholeReply:
        """The whole answer. Raises UpstreamError, or the reason for which the call was cancelled."""
        spool = Spool()
        try:
            with self._wait_for_head() as stream:
                for data in self._read_body(stream):
                    spool.append(data)
            self._check_cancelled()
            self._departure.check()
            if not spool.in_memory:
                with spool.view() as view:
                    return self._make_reply(stream, spool, view)
            body = spool.read()
            spool.close()
            return self._make_reply(stream, body, body)
        except GrokflaskError as error:
            spool.close()
            self._check_cancelled()  # a broken connection is then only the consequence
            self._call.cancel(error)
            raise
        except BaseException:
            spool.close()
            raise
        finally:
            self._departure.end()

    def _make_reply(self, stream: UpstreamStream, body: bytes | Spool, data: bytes | mmap) -> WholeReply:
        """`body`, whose bytes are `data`, with its usage and model. Raises UpstreamError."""
        if self._terms.any_type:
            kind = stream.media_type or "application/octet-stream"
            return WholeReply(stream.status, stream.headers, body, None, None, stream.retried, kind)
        if stream.status in _BODILESS and not body:
            return WholeReply(stream.status, stream.headers, body, None, None, stream.retried)
        if not stream.media_type.endswith("json"):
            raise ForeignAnswerError if stream.media_type == "text/html" else UpstreamProtocolError
        reading = self._terms.dialect.read_reply(data)
        if reading is None:
            raise UpstreamProtocolError
        if reading.has_error:
            if not (reading.is_answer or self._terms.keeps_failures):  # xAI reports some with status 200
                raise parse_error(data, headers=stream.headers, secrets=self._terms.secrets)
            if isinstance(body, bytes):  # failures are small
                body = clean_failure(body, self._terms.secrets)
        usage = reading.read_usage()
        return WholeReply(
            stream.status,
            stream.headers,
            body,
            usage,
            reading.read_model(),
            stream.retried,
            text_tokens=0 if count_output(usage or Usage()) else measure_text(data) // BYTES_PER_TOKEN,
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
                raise terms.make_first_event_timeout_error()

    def _read_body(self, stream: UpstreamStream) -> Iterator[bytes]:
        """The body as it arrives, without secrets. Raises UpstreamError, also for one that is too large."""
        size, most, rest = 0, self._terms.max_reply_bytes, b""
        deadline = self._clock() + self._terms.idle_timeout_s
        while (data := stream.read(self._limit(deadline))) != b"":
            now = self._clock()
            if data is None:
                if now >= deadline:
                    raise self._terms.make_idle_timeout_error()
                continue
            deadline = now + self._terms.idle_timeout_s
            size += len(data)
            if size > most:
                raise UpstreamProtocolError(f"The upstream API's answer is larger than {most} bytes.")
            if self._secrets:
                data = rest + data
                for secret in self._secrets:
                    if secret in data:
                        data = data.replace(secret, REDACTED)
                # The next piece may complete a secret that begins here.
                data, rest = data[: -self._longest], data[-self._longest :]
            yield data
        if rest:
            yield rest

    def _limit(self, deadline: float) -> float:
        """Seconds to wait now. Raises TotalTimeoutError when the whole time is over."""
        now = self._clock()
        if now >= self._total_at:
            raise self._terms.make_total_timeout_error()
        return max(0.001, min(deadline - now, self._total_at - now))
