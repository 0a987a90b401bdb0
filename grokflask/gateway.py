"""The life of a request: a client's request comes in, and its answer goes out.

Read `Gateway.open` from top to bottom. A stream ends after `open` has returned, so the relay gets callbacks
for its end.
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
from grokflask.delivery.meter import Meter
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
from grokflask.exchanges import Exchange, Rows
from grokflask.kept.custody import Custody
from grokflask.keys.limits import check_tools
from grokflask.keys.ring import ApiKey
from grokflask.ledger.entry import LedgerEntry
from grokflask.ledger.row import LedgerRow, clean, make_id
from grokflask.limits.admission import Limits
from grokflask.limits.holds import Hold
from grokflask.limits.metering import Allowance
from grokflask.metrics.tallies import Deliveries, Tallies
from grokflask.protocol.usage import Usage
from grokflask.register import OpenExchanges, OpenStream
from grokflask.shaping.affinity import make_salt
from grokflask.shaping.bodies import shape_request
from grokflask.shaping.caps import cap_output
from grokflask.shaping.request import ClientRequest, UpstreamRequest
from grokflask.upstream.client import UpstreamCall, UpstreamClient

MAX_READ_BYTES = 16 * 2**20
"""The largest reply that the gateway reads and rewrites, such as a list; larger ones are only passed on."""
MAX_LISTED_VALUES = 200_000
"""In a list of files, batches or models, with the fields of each. Every one becomes an object."""


class Gateway:
    """Takes requests to upstream and brings answers back. One for each process.

    Args:
        exchanges: the register of open exchanges; each one holds a place in it.
        tallies: counts what /metrics shows.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        clients: ClientWatcher,
        limits: Limits,
        rows: Rows,
        custody: Custody,
        settings: Settings,
        exchanges: OpenExchanges,
        tallies: Tallies,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.exchanges = exchanges
        self.tallies = tallies
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
        entry = self._make_entry(key, request)
        upstream_request: UpstreamRequest | None = None
        notices: dict[str, str] = {}  # headers that say what the gateway changed, and what is left of limits
        try:
            caller = self._salt and self._salt + key.owner.encode()
            upstream_request = shape_request(
                request, self._settings, caller, limited=key.limits.tools != "all"
            )
            entry.row.model, entry.row.stream = clean(upstream_request.model), upstream_request.stream
            notices |= _describe_changes(upstream_request)
            self._check_permissions(key, request, upstream_request)
            if request.route.catalogue and (kept := self._catalogue.find(upstream_request.path, key)):
                return self._reply_from_cache(*kept, entry, key)
            terms = self._set_terms(upstream_request, request, key)
            hold = self._admit(key, upstream_request, entry.row)
            notices |= hold.headers
            if not upstream_request.stream and hold.ask.ticks < hold.estimate.ticks:
                upstream_request, changes = cap_output(upstream_request, hold.estimate, hold.ask.ticks)
                notices |= changes
            exchange = self._start(key, upstream_request, entry, hold, once=request.once)
            try:
                answer: Reply | StreamReply
                if upstream_request.stream:
                    answer = self._stream(exchange, terms, request, self._meter(hold))
                else:
                    answer = self._read_whole(exchange, terms, request)
            except BaseException as error:
                exchange.fail(error if isinstance(error, GrokflaskError) else GrokflaskError())
                raise
            answer.headers.update(notices)
            return answer
        except GrokflaskError as error:
            error.in_stream = upstream_request.stream if upstream_request else None
            error.headers |= notices
            entry.refuse(error)
            raise

    def _make_entry(self, key: ApiKey, request: ClientRequest) -> LedgerEntry:
        now = time.time()
        row = LedgerRow(
            make_id(now), request.request_id, key.name, request.route.name, "", now, self._rows.worker
        )
        return LedgerEntry(row, started_at=self._clock(), clock=self._clock)

    def _check_permissions(
        self, key: ApiKey, request: ClientRequest, upstream_request: UpstreamRequest
    ) -> None:
        """Raises ForbiddenError or RouteNotFoundError for what the key may not use."""
        self._custody.check_request(key, request, upstream_request)
        model = upstream_request.model
        if upstream_request.body is not None and model and not key.limits.allows(model):
            raise ModelNotAllowedError(f"This API key may not use the model {clean(model)}.", param="model")
        if upstream_request.tools:
            check_tools(upstream_request.tools, key.limits.tools)

    def _admit(self, key: ApiKey, upstream_request: UpstreamRequest, row: LedgerRow) -> Hold:
        """Reserves what the request may use. Raises the error of the limit that does not allow it."""
        return self._limits.admit(
            key.limit_id,
            key.limits,
            upstream_request.estimate,
            id=row.id,
            request_id=row.request_id,
            day=row.day,
            stream=upstream_request.stream,
        )

    def _start(
        self, key: ApiKey, upstream_request: UpstreamRequest, entry: LedgerEntry, hold: Hold, *, once: bool
    ) -> Exchange:
        """Sends the request upstream and opens its ledger row."""
        body = upstream_request.body
        free_body = self.exchanges.hold_sent(len(body)) if isinstance(body, bytes) else None
        try:
            call = self.exchanges.start(
                lambda: self._upstream.call(upstream_request, key.upstream_key, once=once, on_sent=free_body)
            )
        except BaseException:
            if free_body:
                free_body()
            hold.settle()
            raise
        self._rows.open(entry.expect(upstream_request.estimate))
        return Exchange(call, upstream_request, key, entry, hold, self.exchanges, self._rows, self.tallies)

    def _meter(self, hold: Hold) -> Meter:
        lends = self._settings.budgets_outage != "closed"
        return Meter(hold.silent_pace, Allowance(hold, lends=lends) if hold.is_metered else None)

    def _stream(self, exchange: Exchange, terms: Terms, request: ClientRequest, meter: Meter) -> StreamReply:
        """An answer as events, with upstream's headers if upstream answers before the response must begin."""
        relay = Relay(
            exchange.call,
            terms,
            self._watch(exchange.call, terms, request),
            exchange.finish,
            exchange.settle,
            started_at=exchange.entry.started_at,
            on_answer=exchange.entry.note_head,
            on_id=lambda id: self._custody.keep_beside(exchange.makes, id, exchange.key),
            deliveries=Deliveries(self.tallies),
            meter=meter,
            clock=self._clock,
        )
        self.exchanges.show(exchange.call, OpenStream(exchange.entry.row, relay.count_sent))
        try:
            relay.wait_for_answer(self._settings.commit_s)
            model_served = relay.look_ahead(self._settings.heartbeat_s)
        except BaseException:
            relay.close()
            raise
        return StreamReply(relay, {**relay.headers, **self._describe_model(exchange, model_served)})

    def _read_whole(self, exchange: Exchange, terms: Terms, request: ClientRequest) -> Reply:
        """The whole answer, or an error."""
        entry = exchange.entry
        departure = self._watch(exchange.call, terms, request)
        reader = ReplyReader(exchange.call, terms, departure, started_at=entry.started_at, clock=self._clock)
        reply = reader.read()
        entry.note_head(reply.headers, reply.retried)
        entry.note_reply(self._find_usage(exchange, request, reply), reply.model_served, reply.text_tokens)
        try:
            answer = self._make_reply(exchange, request, reply)
            if departure.left_at is not None:
                raise ClientGoneError
        except BaseException:
            if isinstance(reply.body, Spool):
                reply.body.close()
            raise
        exchange.settle(entry.sum_up(Outcome.COMPLETE, bytes_out=len(answer.body), status=reply.status))
        answer.headers.update(self._describe_model(exchange, reply.model_served))
        return answer

    def _make_reply(self, exchange: Exchange, request: ClientRequest, reply: WholeReply) -> Reply:
        """Upstream's reply as the client may see it."""
        route, key, headers = request.route, exchange.key, dict(reply.headers)
        if isinstance(reply.body, Spool) and not (exchange.makes or route.rewrites):
            return Reply(reply.status, reply.body, headers, reply.media_type)
        body = _read_all(reply.body)
        if (route.act == "list" or route.catalogue) and body.count(b",") > MAX_LISTED_VALUES:
            raise UpstreamProtocolError
        body = self._custody.filter_reply(key, route, exchange.makes, request.item_id, body)
        if route.rewrite is not None:
            body = route.rewrite(body)
        if route.catalogue:
            self._catalogue.keep(exchange.path, key, body)
            try:
                body, headers["Age"] = filter_models(body, key.limits), "0"
            except ModelNotAllowedError as error:  # upstream has done its part
                exchange.settle(exchange.entry.sum_up(Outcome.COMPLETE, status=error.status))
                raise
        return Reply(reply.status, body, headers, reply.media_type)

    def _describe_model(self, exchange: Exchange, model_served: str | None) -> dict[str, str]:
        """The header that names the model that answered, if it is not the requested one."""
        row = exchange.entry.row
        if not model_served or not row.model or model_served == exchange.model:
            return {}
        model_served = clean(model_served)
        self._moved.note(row.key, row.model, model_served, row.day)
        return {"X-Model-Served": model_served} if model_served.isascii() else {}

    def _find_usage(self, exchange: Exchange, request: ClientRequest, reply: WholeReply) -> Usage | None:
        """What the exchange used; None for a reply whose usage is booked elsewhere."""
        route, id = request.route, request.item_id
        if route.billing == "free":
            return None
        if reply.usage is None:
            return Usage(cost_ticks=0) if exchange.makes in ("deferred", "video") else None
        if route.billing == "fetched" and route.kind and id is not None:
            with suppress(StoreUnavailableError):  # booking it twice is better than never
                if not self._custody.is_first(route.kind, id):
                    return None
        return reply.usage

    def _reply_from_cache(self, body: bytes, age_s: int, entry: LedgerEntry, key: ApiKey) -> Reply:
        """A cached list of models. The request has a log line but no row, because it is not sent upstream."""
        body = filter_models(body, key.limits)
        entry.settle(entry.sum_up(Outcome.COMPLETE, bytes_out=len(body)))
        return Reply(200, body, {"Age": str(age_s)})

    def _watch(self, call: UpstreamCall, terms: Terms, request: ClientRequest) -> Departure:
        """Watches the client: if it leaves, the call is cancelled or drained."""
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

    def _set_terms(self, upstream_request: UpstreamRequest, request: ClientRequest, key: ApiKey) -> Terms:
        settings = self._settings
        # What can be fetched only once is always read to its end: its cost would never be known otherwise.
        drains = settings.on_abort == "drain" or request.route.billing == "fetched"
        return Terms(
            wants_usage=upstream_request.wants_usage,
            wants_json=request.wants_json,
            # The readers of a recorded answer have heartbeats of their own.
            heartbeat_s=math.inf if request.bind_leave else settings.heartbeat_s,
            first_event_timeout_s=settings.first_event_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            total_timeout_s=settings.total_timeout_s,
            drain_s=settings.drain_s if drains else 0.0,
            secrets=key.secrets,
            max_reply_bytes=settings.max_reply_bytes,
            any_type=request.route.content,
            keeps_failures=request.route.kind == "video",
            dialect=request.route.dialect,
        )


def _read_all(body: bytes | Spool) -> bytes:
    """The body in memory. Raises UpstreamProtocolError for one of more than MAX_READ_BYTES."""
    if isinstance(body, bytes):
        return body
    if len(body) > MAX_READ_BYTES:
        raise UpstreamProtocolError
    data = b"".join(body)
    body.close()
    return data


def _describe_changes(upstream_request: UpstreamRequest) -> dict[str, str]:
    """The headers that say what the gateway changed in the request."""
    headers = {}
    if upstream_request.fallback:
        headers["X-Stream-Fallback"] = upstream_request.fallback
    if upstream_request.dropped:
        headers["X-Params-Dropped"] = ", ".join(upstream_request.dropped)
    return headers
