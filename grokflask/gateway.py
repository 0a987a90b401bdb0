"""The one place where all steps meet: a client's request goes in, its answer comes out.

Read `Gateway.open` from top to bottom and you have seen the life of a request. The end of a stream does
not come back here: the relay carries what is to be done then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from grokflask import vision
from grokflask.clients import ClientWatcher, Departure, limit_sending
from grokflask.config import Settings
from grokflask.errors import ClientGoneError, GrokflaskError
from grokflask.exchanges import OpenExchanges
from grokflask.keys import ApiKey
from grokflask.ledger import LedgerEntry
from grokflask.relay import Relay
from grokflask.reply import ReplyReader
from grokflask.shaping import ClientRequest, UpstreamRequest, shape_request
from grokflask.terms import Terms
from grokflask.upstream import UpstreamCall, UpstreamClient
from grokflask.usage import Settlement


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
    """Takes requests to upstream and answers back. One for each process.

    Attributes:
        exchanges: those that are open now.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        clients: ClientWatcher,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.exchanges = OpenExchanges(settings.max_exchanges)
        self._upstream = upstream
        self._clients = clients
        self._settings = settings
        self._drains = threading.Semaphore(settings.drains)
        self._clock = clock

    def open(self, key: ApiKey, request: ClientRequest) -> Reply | StreamReply:
        """The answer to `request`. Raises GrokflaskError while no byte of it has gone out."""
        entry = LedgerEntry(
            request.request_id, key.name, request.route.name, started_at=self._clock(), clock=self._clock
        )
        changes: dict[str, str] = {}
        try:
            asked = shape_request(request, self._settings)
            entry.model, entry.stream = asked.model, asked.stream
            changes = _tell_changes(asked)
            terms = self._set_terms(asked, request, key)
            call = self.exchanges.start(lambda: self._upstream.call(asked, key.upstream_key))
            try:
                answer = (self._stream if asked.stream else self._read_whole)(call, terms, request, entry)
            except BaseException as error:
                call.cancel(error if isinstance(error, GrokflaskError) else GrokflaskError())
                self.exchanges.end(call)
                raise
            answer.headers.update(changes)
            return answer
        except GrokflaskError as error:
            error.in_stream = entry.stream if entry.model else None
            error.headers |= changes
            entry.refuse(error)
            raise

    def _stream(
        self, call: UpstreamCall, terms: Terms, request: ClientRequest, entry: LedgerEntry
    ) -> StreamReply:
        """Events. Upstream's own headers come with them if it answers before the response must begin."""

        def settle(settlement: Settlement) -> None:
            self.exchanges.end(call)
            entry.note_head(relay.headers, retried=relay.retried)
            entry.settle(settlement, status=200)

        departure = self._watch(call, terms, request)
        relay = Relay(call, terms, departure, settle, started_at=entry.started_at, clock=self._clock)
        try:
            relay.wait_for_answer(self._settings.commit_s)
        except BaseException as error:
            if isinstance(error, GrokflaskError):
                entry.refuse(error)
            relay.close()
            raise
        return StreamReply(relay, dict(relay.headers))

    def _read_whole(
        self, call: UpstreamCall, terms: Terms, request: ClientRequest, entry: LedgerEntry
    ) -> Reply:
        """The whole answer, or nothing."""
        departure = self._watch(call, terms, request)
        reader = ReplyReader(call, terms, departure, started_at=entry.started_at, clock=self._clock)
        try:
            reply = reader.read()
        finally:
            self.exchanges.end(call)
        entry.note_reply(reply.headers, reply.usage, reply.model_served, retried=reply.retried)
        body = vision.read_analysis(reply.body) if request.route.name == "vision" else reply.body
        if departure.left_at is not None:
            raise ClientGoneError
        entry.settle_reply(len(body), reply.status)
        return Reply(reply.status, body, dict(reply.headers))

    def _watch(self, call: UpstreamCall, terms: Terms, request: ClientRequest) -> Departure:
        """From here on the client's leaving ends the call, or has it drained."""
        limit_sending(request.client, self._settings.send_timeout_s)
        return Departure(
            self._clients,
            request.client,
            lambda: call.cancel(ClientGoneError()),
            drain_s=terms.drain_s,
            drains=self._drains,
        )

    def _set_terms(self, asked: UpstreamRequest, request: ClientRequest, key: ApiKey) -> Terms:
        settings = self._settings
        return Terms(
            wants_usage=asked.wants_usage,
            wants_json=request.wants_json,
            heartbeat_s=settings.heartbeat_s,
            first_event_timeout_s=settings.first_event_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            total_timeout_s=settings.total_timeout_s,
            drain_s=settings.drain_s if settings.on_abort == "drain" else 0.0,
            secrets=key.secrets,
        )


def _tell_changes(asked: UpstreamRequest) -> dict[str, str]:
    """The headers that say what the gateway did to the request."""
    headers = {}
    if asked.fallback:
        headers["X-Stream-Fallback"] = asked.fallback
    if asked.dropped:
        headers["X-Params-Dropped"] = ", ".join(asked.dropped)
    return headers
