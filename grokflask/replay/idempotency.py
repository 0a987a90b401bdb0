"""At most one exchange for each Idempotency-Key: a repeated request gets the answer of the first one.

The gateway sends the first request upstream as usual, but writes the answer to a recording. The first client
reads that recording, and so does every client that repeats the request, during the exchange or afterwards. To
the relay, the recording is a client that reads immediately, and leaves when its last reader has left. A
repeated request has a line in the log but no row in the ledger, because it is not an exchange.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from _thread import start_new_thread
from dataclasses import dataclass

from msgspec.structs import replace

from grokflask.billing.bill import FREE
from grokflask.config import Settings
from grokflask.delivery.answer import Reply, StreamReply
from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.delivery.relay import Relay
from grokflask.delivery.terms import HEARTBEAT
from grokflask.errors import (
    GrokflaskError,
    InvalidRequestError,
    RateLimitError,
    RecordingLostError,
    StoreUnavailableError,
    TooManyStreamsError,
)
from grokflask.gateway import Gateway
from grokflask.keys.limits import KeyLimits
from grokflask.keys.ring import ApiKey
from grokflask.ledger.row import make_id
from grokflask.limits.admission import Limits
from grokflask.replay.reader import Reader
from grokflask.replay.recording import Ending, Head, Recording, fail
from grokflask.replay.recordings import Recordings
from grokflask.runtime import take_turns
from grokflask.shaping.request import ClientRequest
from grokflask.times import to_day

MAX_KEY_CHARS = 255  #: Stripe's limit
MAX_READERS = 32  #: of one recording in one process

LINGER_S = 0.55
"""How long an exchange continues after its last client has left: SDKs wait half a second before they retry.
With the watcher's interval it still ends within a second."""

_STALE = ("x-ratelimit-", "x-request-id")  #: prefixes of headers that would be wrong in a repeated answer
_BOUNDARY = re.compile(r'(?i)boundary="?([!-~ ]{1,200}?)"?(?:;|$)')

_log = logging.getLogger("grokflask.replay")


@dataclass(frozen=True, slots=True)
class IdempotencyHeaders:
    """A request's headers for idempotency and resume."""

    key: str  #: Idempotency-Key
    resume: bool = False  #: X-Stream-Resume: event ids, and a grace after the last client has left
    last_event_id: str = ""  #: Last-Event-ID: continue behind that event


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Opens requests that have an Idempotency-Key. One for each process."""

    gateway: Gateway  #: carries the exchanges
    recordings: Recordings  #: keeps their answers
    clients: ClientWatcher  #: notices clients that leave
    settings: Settings
    limits: Limits  #: counts clients that read beside others

    def open(self, key: ApiKey, request: ClientRequest, headers: IdempotencyHeaders) -> Reply | StreamReply:
        """The answer to `request`, or to the one that it repeats.

        Raises as `Gateway.open`, also what that raised for the first request, and as `Recordings.claim`.
        """
        if not self.settings.replay_bytes:
            return self.gateway.open(key, request)
        fields = {"request_id": request.request_id, "key": key.name, "route": request.route.name}
        try:
            reader = self._make_reader(key, request, headers)
            first = self.recordings.claim(reader, begin=not headers.last_event_id)
        except GrokflaskError as error:
            _write_line(fields, None, error.code, 0)
            raise
        if not first:
            of = reader.recording.request_id
            reader.on_close.append(lambda: _write_line(fields, of, reader.outcome, reader.bytes_out))
        try:
            self._make_room(key, request, reader.recording)
            self._add_client(reader, request)
            return self._begin(key, request, reader) if first else _repeat(reader, headers.last_event_id)
        except BaseException as error:
            if first:
                failure = error if isinstance(error, GrokflaskError) else GrokflaskError()
                self.recordings.end(reader.recording, fail(failure))
            elif isinstance(error, GrokflaskError):
                reader.outcome = error.code
            reader.close()
            raise

    def _make_reader(self, key: ApiKey, request: ClientRequest, headers: IdempotencyHeaders) -> Reader:
        """A reader with a new recording, for the case that the request is the first."""
        if not 1 <= len(headers.key) <= MAX_KEY_CHARS or not headers.key.isprintable():
            text = f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} printable characters."
            raise InvalidRequestError(text, param="Idempotency-Key")
        reader = Reader(
            Recording(
                id=secrets.token_hex(6),
                name=_digest(key.limit_id, headers.key),
                fingerprint=_take_fingerprint(request),
                request_id=request.request_id,
                grace_s=max(LINGER_S, self.settings.resume_grace_s if headers.resume else 0.0),
            ),
            dialect=request.route.dialect,
            wants_json=request.wants_json,
            with_ids=headers.resume,
            heartbeat_s=self.settings.heartbeat_s,
            on_heartbeat=self.gateway.tallies.note_heartbeat,
        )
        reader.on_close.append(lambda: self.recordings.leave(reader))
        return reader

    def _make_room(self, key: ApiKey, request: ClientRequest, recording: Recording) -> None:
        """Counts a reader beside others as a stream of its key. Without room, it replaces the oldest one.

        A returning client is never refused: its old connection may be dead, and not yet noticed.
        """
        if len(recording.readers) < 2:
            return  # the exchange itself counts
        now = time.time()
        try:
            if len(recording.readers) > MAX_READERS:
                raise TooManyStreamsError
            hold = self.limits.admit(
                key.limit_id,
                KeyLimits(streams=key.limits.streams),
                FREE,
                id=make_id(now),
                request_id=request.request_id,
                day=to_day(now),
                stream=True,
            )
        except (RateLimitError, StoreUnavailableError):
            self.recordings.replace_oldest(recording)
        else:
            recording.holds.append(hold.settle)

    def _add_client(self, reader: Reader, request: ClientRequest) -> None:
        """Gives the client a place in the gateway, because its connection may outlast the exchange."""
        exchanges = self.gateway.exchanges
        exchanges.start(lambda: reader)
        reader.on_close.append(lambda: exchanges.end(reader))

        def dismiss(reason: GrokflaskError) -> None:
            reader.cancel(reason)
            self.recordings.leave(reader)

        departure = Departure(self.clients, request.client, dismiss, total_s=self.settings.total_timeout_s)
        reader.on_close.append(departure.end)

    def _begin(self, key: ApiKey, request: ClientRequest, reader: Reader) -> Reply | StreamReply:
        """The first request: an ordinary exchange, whose client is the recording."""
        recording, recordings = reader.recording, self.recordings
        answer = self.gateway.open(key, replace(request, client=None, bind_leave=recording.bind))
        headers = {name: text for name, text in answer.headers.items() if not name.lower().startswith(_STALE)}
        if isinstance(answer, Reply):
            recording.put_head(Head(answer.status, headers, stream=False))
            ending = fail(RecordingLostError())
            if len(answer.body) <= self.settings.replay_bytes:
                body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
                recordings.keep(recording, body)
                ending = Ending(complete=True)
            recordings.end(recording, ending)
            reader.close()
            return answer
        relay = answer.relay
        assert isinstance(relay, Relay)
        try:
            recording.put_head(Head(200, headers, stream=True, answered=relay.answered))
            start_new_thread(self._record, (recording, relay))
        except BaseException:
            relay.close()
            raise
        return StreamReply(reader, answer.headers)

    def _record(self, recording: Recording, relay: Relay) -> None:
        """Appends the relay's bytes as they come."""
        ending = fail(RecordingLostError())  # read by one that came after the last reader had left
        try:
            for data in relay:
                if data is not HEARTBEAT:  # every reader makes its own
                    self.recordings.keep(recording, data)
            if relay.complete or recording.left_at is None:
                ending = Ending(complete=relay.complete)
        except BaseException:
            _log.exception("recording an answer failed")
            ending = fail(GrokflaskError())
        finally:
            try:
                self.recordings.end(recording, ending)
            finally:
                relay.close()  # frees its place

    def start(self) -> None:
        """Starts the background threads, once in each process."""
        self.recordings.start()

    def close(self, timeout_s: float) -> None:
        """Ends the exchanges that continue without a client, and the threads. Idempotent."""
        if self.recordings.running:
            self.gateway.exchanges.cut(timeout_s)
        self.recordings.close(timeout_s)


def _repeat(reader: Reader, last_event_id: str) -> Reply | StreamReply:
    """The answer of the first request, from its beginning or behind an event."""
    head = reader.wait_for_head()
    headers = {**head.headers, "Idempotent-Replayed": "true"}
    if head.stream:
        if last_event_id:
            reader.seek(last_event_id)
        return StreamReply(reader, headers)
    body = reader.read_body()
    reader.close()
    return Reply(head.status, body, headers)


def _write_line(fields: dict[str, str], of: str | None, outcome: str, bytes_out: int) -> None:
    """The log line of a repeated request; `of` is the id of the request whose answer it got."""
    _log.info("replay", extra={"fields": {**fields, "of": of, "outcome": outcome, "bytes_out": bytes_out}})


def _take_fingerprint(request: ClientRequest) -> str:
    """A digest that is equal only for equal requests."""
    route, body = request.route, request.body
    where = _digest(route.upstream_path, request.model_id or "", request.item_id or "", request.query)
    if isinstance(body, bytes):
        return _digest(where, body)
    # A form's boundary is new in each attempt (RFC 2046, section 5.1.1), so it is left out.
    match = _BOUNDARY.search(request.media_type)
    boundary = match[1].encode() if match else b"\n"
    digest = hashlib.sha256(where.encode())
    rest = b""
    for piece in body:
        rest = (rest + piece).replace(boundary, b"")
        digest.update(rest[: -len(boundary)])  # the last bytes may be the beginning of a boundary
        rest = rest[-len(boundary) :]
    digest.update(rest)
    return digest.hexdigest()


def _digest(*parts: str | bytes) -> str:
    """A digest of all parts and of where each begins."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        for piece in take_turns(data):
            digest.update(piece)
    return digest.hexdigest()
