"""The one place where all steps meet: a client's request goes in, its answer comes out.

Read `Gateway.open` from top to bottom and you have seen the life of a request. The end of a stream does
not come back here: the relay carries what is to be done then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from grokflask import vision
from grokflask.config import Settings
from grokflask.errors import GrokflaskError, Outcome, UpstreamError, UpstreamProtocolError
from grokflask.keys import ApiKey
from grokflask.ledger import LedgerEntry
from grokflask.relay import Relay, RelayOptions
from grokflask.shaping import ClientRequest, UpstreamRequest, shape_request
from grokflask.upstream import UpstreamClient, UpstreamStream
from grokflask.upstream_errors import parse_error
from grokflask.usage import Settlement, read_chunk


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer given whole: JSON, byte for byte as upstream sent it (but for `/vision/analyze`)."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamReply:
    """An answer given as events: iterate `relay` for its bytes, and close it whatever happens."""

    relay: Relay
    headers: dict[str, str] = field(default_factory=dict)


class Gateway:
    """Takes requests to upstream and answers back. One for each process; it holds no state of its own."""

    def __init__(
        self, upstream: UpstreamClient, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._upstream = upstream
        self._settings = settings
        self._clock = clock

    def open(self, key: ApiKey, request: ClientRequest) -> Reply | StreamReply:
        """The answer to `request`. Raises GrokflaskError while no byte of it has gone out."""
        started_at = self._clock()
        entry = LedgerEntry(request.request_id, key.name, request.route.name, started_at, clock=self._clock)
        changes: dict[str, str] = {}
        try:
            asked = shape_request(request, self._settings)
            entry.model, entry.stream = asked.model, asked.stream
            changes = _tell_changes(asked)
            stream = self._upstream.send(asked, key.upstream_key)
            with close_on_error(stream):
                entry.upstream_request_id = stream.headers.get("x-upstream-request-id")
                if asked.stream:
                    relay = self._relay(stream, asked, request, key, entry)
                    return StreamReply(relay, stream.headers | changes)
                body = self._read_reply(stream, request, key, entry)
            return Reply(stream.status, body, stream.headers | changes)
        except GrokflaskError as error:
            error.in_stream = entry.stream if entry.model else None
            error.headers |= changes
            entry.refuse(error)
            raise

    def _relay(
        self,
        stream: UpstreamStream,
        asked: UpstreamRequest,
        request: ClientRequest,
        key: ApiKey,
        entry: LedgerEntry,
    ) -> Relay:
        """Events, once upstream has proved that it sends events."""
        if stream.media_type != "text/event-stream":
            raise _explain_no_stream(stream, self._settings.idle_timeout_s, key)
        options = RelayOptions(
            wants_usage=asked.wants_usage,
            wants_json=request.wants_json,
            first_event_timeout_s=self._settings.first_event_timeout_s,
            idle_timeout_s=self._settings.idle_timeout_s,
            secrets=key.secrets,
        )
        return Relay(
            stream,
            options,
            lambda settlement: entry.settle(settlement, status=200),
            started_at=entry.started_at,
            clock=self._clock,
        )

    def _read_reply(
        self, stream: UpstreamStream, request: ClientRequest, key: ApiKey, entry: LedgerEntry
    ) -> bytes:
        """The whole answer."""
        with stream:
            body = stream.read_all(self._settings.idle_timeout_s)
        if not stream.media_type.endswith("json"):
            raise UpstreamProtocolError
        chunk = read_chunk(body)
        if chunk is None:
            raise UpstreamProtocolError
        entry.usage, entry.model_served = chunk.read_usage(), chunk.read_model()
        if chunk.has_error and not chunk.has_choices:  # xAI reports some failures with status 200
            raise parse_error(body, headers=stream.headers, secrets=key.secrets)
        if request.route.name == "vision":
            body = vision.read_analysis(body)
        settled = Settlement(
            Outcome.COMPLETE, usage=entry.usage, model_served=entry.model_served, bytes_out=len(body)
        )
        entry.settle(settled, status=stream.status)
        return body


@contextmanager
def close_on_error(stream: UpstreamStream) -> Iterator[None]:
    """`stream` is closed when the block fails, and left open for its new owner when it does not."""
    try:
        yield
    except BaseException:
        stream.close()
        raise


def _explain_no_stream(stream: UpstreamStream, timeout_s: float, key: ApiKey) -> UpstreamError:
    """A 200 that is no event stream: xAI reports some failures that way, as JSON."""
    body = stream.read_all(timeout_s)
    if not stream.media_type.endswith("json"):
        return UpstreamProtocolError()
    return parse_error(body, headers=stream.headers, secrets=key.secrets)


def _tell_changes(asked: UpstreamRequest) -> dict[str, str]:
    """The headers that say what the gateway did to the request."""
    headers = {}
    if asked.fallback:
        headers["X-Stream-Fallback"] = asked.fallback
    if asked.dropped:
        headers["X-Params-Dropped"] = ", ".join(asked.dropped)
    return headers
