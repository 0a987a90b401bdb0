"""The one place where all steps meet: a client's request goes in, its answer comes out.

Read `Gateway.open` from top to bottom and you have seen the life of a request. The end of a stream does
not come back here: the relay carries what is to be done then.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from grokflask.catalogue import Catalogue, MovedModels, filter_models
from grokflask.config import Settings
from grokflask.delivery.answer import Reply, StreamReply
from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.delivery.relay import Relay
from grokflask.delivery.spool import Spool
from grokflask.delivery.terms import Terms
from grokflask.delivery.whole import ReplyReader, WholeReply
from grokflask.errors import (
    ClientGoneError,
    GrokflaskError,
    ModelNotAllowedError,
    Outcome,
    StoreUnavailableError,
    UpstreamProtocolError,
)
from grokflask.exchanges import Exchange, OpenExchanges, OpenStream, Rows
from grokflask.kept.custody import Custody
from grokflask.keys.limits import check_tools
from grokflask.keys.ring import ApiKey
from grokflask.ledger.entry import LedgerEntry
from grokflask.ledger.row import LedgerRow, clean, make_id
from grokflask.limits.admission import Hold, Limits
from grokflask.metrics.tallies import Deliveries, Tallies
from grokflask.protocol.usage import Settlement, Usage
from grokflask.shaping.affinity import make_salt
from grokflask.shaping.bodies import shape_request
from grokflask.shaping.request import ClientRequest, UpstreamRequest
from grokflask.sockets import limit_sending
from grokflask.upstream.client import UpstreamCall, UpstreamClient

MAX_READ_BYTES = 16 * 2**20
"""The largest reply that is read, and not only passed on: a list, what has been made."""


class Gateway:
    """Takes requests to upstream and answers back. One for each process.

    Attributes:
        exchanges: those that are open now.
        tallies: what is counted of them.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        clients: ClientWatcher,
        limits: Limits,
        rows: Rows,
        custody: Custody,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        tallies: Tallies | None = None,
    ) -> None:
        self.tallies = tallies or Tallies()
        self.exchanges = OpenExchanges(settings.max_exchanges)
        self._upstream = upstream
        self._clients = clients
        self._limits = limits
        self._rows = rows
        self._custody = custody
        self._settings = settings
        self._salt = make_salt(settings)
        self._catalogue = Catalogue(settings.models_cache_s, clock)
        self._moved = MovedModels()
        self._drains = threading.Semaphore(settings.drains)
        self._clock = clock

    def check(self) -> None:
        """Raises GatewayFullError, ShuttingDownError or StoreUnavailableError when there is no room."""
        self.exchanges.check()
        if self._settings.ledger_outage == "closed" and self._rows.is_full:
            raise StoreUnavailableError

    def open(self, key: ApiKey, request: ClientRequest) -> Reply | StreamReply:
        """The answer to `request`. Raises GrokflaskError while no byte of it has gone out."""
        entry = self._enter(key, request)
        changes: dict[str, str] = {}
        asked: UpstreamRequest | None = None
        try:
            caller = self._salt and self._salt + key.owner.encode()
            asked = shape_request(request, self._settings, caller)
            entry.row.model, entry.row.stream = clean(asked.model), asked.stream
            changes = _tell_changes(asked)
            self._custody.enter(key, request, asked)
            if asked.body is not None and asked.model and not key.limits.allows(asked.model):
                raise ModelNotAllowedError(
                    f"This API key may not use the model {asked.model}.", param="model"
                )
            if asked.tools:
                check_tools(asked.tools, key.limits.tools)
            if request.route.catalogue and (kept := self._catalogue.find(asked.path, key)):
                return self._tell_again(*kept, entry, key)
            terms = self._set_terms(asked, request, key)
            hold = self._admit(key, asked, entry.row)
            changes |= hold.headers
            exchange = self._start(key, asked, entry, hold)
            try:
                answer = (self._stream if asked.stream else self._read_whole)(exchange, terms, request)
            except BaseException as error:
                exchange.fail(error if isinstance(error, GrokflaskError) else GrokflaskError())
                raise
            answer.headers.update(changes)
            return answer
        except GrokflaskError as error:
            error.in_stream = asked.stream if asked else None
            error.headers |= changes
            entry.refuse(error)
            raise

    def _enter(self, key: ApiKey, request: ClientRequest) -> LedgerEntry:
        now = time.time()
        row = LedgerRow(
            make_id(now), request.request_id, key.name, request.route.name, "", now, self._rows.worker
        )
        return LedgerEntry(row, started_at=self._clock(), clock=self._clock)

    def _admit(self, key: ApiKey, asked: UpstreamRequest, row: LedgerRow) -> Hold:
        """Reserves what the request may use. Raises the error of the limit that stands against it."""
        return self._limits.admit(
            key.limit_id,
            key.limits,
            asked.estimate,
            id=row.id,
            request_id=row.request_id,
            day=row.day,
            stream=asked.stream,
        )

    def _start(self, key: ApiKey, asked: UpstreamRequest, entry: LedgerEntry, hold: Hold) -> Exchange:
        """Sends the request upstream and opens its row."""
        try:
            call = self.exchanges.start(lambda: self._upstream.call(asked, key.upstream_key))
        except BaseException:
            hold.settle()
            raise
        self._rows.open(entry.expect(asked.estimate))
        return Exchange(call, asked, key, entry, hold, self.exchanges, self._rows, self.tallies)

    def _stream(self, exchange: Exchange, terms: Terms, request: ClientRequest) -> StreamReply:
        """Events. Upstream's own headers come with them if it answers before the response must begin."""
        begun = False

        def settle(settlement: Settlement) -> None:
            exchange.entry.note_head(relay.headers, retried=relay.retried)
            failed = settlement.error if not begun else None
            exchange.settle(settlement, failed.status if failed else 200)

        relay = Relay(
            exchange.call,
            terms,
            self._watch(exchange.call, terms, request),
            exchange.finish,
            settle,
            started_at=exchange.entry.started_at,
            deliveries=Deliveries(self.tallies),
            on_id=lambda id: self._custody.keep(exchange.makes, id, exchange.key),
            clock=self._clock,
        )
        self.exchanges.show(exchange.call, OpenStream(exchange.entry.row, relay.count_sent))
        try:
            relay.wait_for_answer(self._settings.commit_s)
            begun = True
            served = relay.look_ahead(self._settings.heartbeat_s)
        except BaseException:
            relay.close()
            raise
        return StreamReply(relay, {**relay.headers, **self._tell_model(exchange, served)})

    def _read_whole(self, exchange: Exchange, terms: Terms, request: ClientRequest) -> Reply:
        """The whole answer, or nothing."""
        entry = exchange.entry
        departure = self._watch(exchange.call, terms, request)
        reader = ReplyReader(exchange.call, terms, departure, started_at=entry.started_at, clock=self._clock)
        reply = reader.read()
        entry.note_head(reply.headers, retried=reply.retried)
        entry.note_reply(self._tell_usage(exchange, request, reply), reply.model_served)
        try:
            answer = self._show(exchange, request, reply)
            if departure.left_at is not None:
                raise ClientGoneError
        except BaseException:
            if isinstance(reply.body, Spool):
                reply.body.close()
            raise
        exchange.settle(entry.sum_up(Outcome.COMPLETE, bytes_out=len(answer.body)), reply.status)
        answer.headers.update(self._tell_model(exchange, reply.model_served))
        return answer

    def _show(self, exchange: Exchange, request: ClientRequest, reply: WholeReply) -> Reply:
        """The reply as the client may see it."""
        route, key, headers = request.route, exchange.key, dict(reply.headers)
        if isinstance(reply.body, Spool) and not (exchange.makes or route.rewrites):
            return Reply(reply.status, reply.body, headers, reply.media_type)
        body = _read_all(reply.body)
        body = self._custody.leave(key, route, exchange.makes, request.item_id, body)
        if route.rewrite is not None:
            body = route.rewrite(body)
        if route.catalogue:
            self._catalogue.keep(exchange.path, key, body)
            try:
                body, headers["Age"] = filter_models(body, key.limits), "0"
            except ModelNotAllowedError as error:  # upstream has done its part
                exchange.settle(exchange.entry.sum_up(Outcome.COMPLETE), error.status)
                raise
        return Reply(reply.status, body, headers, reply.media_type)

    def _tell_model(self, exchange: Exchange, served: str | None) -> dict[str, str]:
        """The header that says so when another model than the one asked for has answered."""
        row = exchange.entry.row
        if not served or not row.model or served == exchange.model:
            return {}
        served = clean(served)
        self._moved.note(row.key, row.model, served, row.day)
        return {"X-Model-Served": served} if served.isascii() else {}

    def _tell_usage(self, exchange: Exchange, request: ClientRequest, reply: WholeReply) -> Usage | None:
        """What this exchange has used: nothing of what is paid when it is fetched, or has been paid then."""
        if request.route.billing == "free":
            return None  # what is fetched again tells what it once used
        if reply.usage is None:
            return Usage(cost_ticks=0) if exchange.makes in ("deferred", "video") else None
        route, id = request.route, request.item_id
        if route.billing == "fetched" and route.kind and id is not None:
            with suppress(StoreUnavailableError):  # rather twice than never
                if not self._custody.is_first(route.kind, id):
                    return None
        return reply.usage

    def _tell_again(self, body: bytes, age_s: int, entry: LedgerEntry, key: ApiKey) -> Reply:
        """What upstream said a moment ago. It has a line in the log, but no row: upstream was not asked."""
        body = filter_models(body, key.limits)
        entry.settle(entry.sum_up(Outcome.COMPLETE, bytes_out=len(body)), 200)
        return Reply(200, body, {"Age": str(age_s)})

    def _watch(self, call: UpstreamCall, terms: Terms, request: ClientRequest) -> Departure:
        """From here on the client's leaving ends the call, or has it drained."""
        limit_sending(request.client, self._settings.send_timeout_s)
        departure = Departure(
            self._clients,
            request.client,
            call.cancel,
            total_s=terms.total_timeout_s,
            drain_s=terms.drain_s,
            drains=self._drains,
        )
        if request.bind_leave:
            request.bind_leave(departure.leave)
        return departure

    def _set_terms(self, asked: UpstreamRequest, request: ClientRequest, key: ApiKey) -> Terms:
        settings = self._settings
        return Terms(
            wants_usage=asked.wants_usage,
            wants_json=request.wants_json,
            # Whoever reads a recorded answer has heartbeats of its own.
            heartbeat_s=math.inf if request.bind_leave else settings.heartbeat_s,
            first_event_timeout_s=settings.first_event_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            total_timeout_s=settings.total_timeout_s,
            # What can be fetched but once is read on, or its cost would never be known.
            drain_s=settings.drain_s
            if settings.on_abort == "drain" or request.route.billing == "fetched"
            else 0.0,
            secrets=key.secrets,
            max_reply_bytes=settings.max_reply_bytes,
            any_type=request.route.content,
            keeps_failures=request.route.kind == "video",
            dialect=request.route.dialect,
        )


def _read_all(body: bytes | Spool) -> bytes:
    """The body in memory, where it must be read whole. Raises UpstreamProtocolError for a large one."""
    if isinstance(body, bytes):
        return body
    if len(body) > MAX_READ_BYTES:
        raise UpstreamProtocolError
    data = b"".join(body)
    body.close()
    return data


def _tell_changes(asked: UpstreamRequest) -> dict[str, str]:
    """The headers that say what the gateway did to the request."""
    headers = {}
    if asked.fallback:
        headers["X-Stream-Fallback"] = asked.fallback
    if asked.dropped:
        headers["X-Params-Dropped"] = ", ".join(asked.dropped)
    return headers
