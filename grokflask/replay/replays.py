"""At most one exchange for each Idempotency-Key: whoever repeats a request reads the answer of the first.

The first request with a key is carried by the gateway as any other, but its answer goes into a recording,
and its client reads that; so does everybody who sends the key again, while the exchange runs or after it.
The relay knows none of them: it has a client that takes all at once, and leaves when the last of them has
left. An attached request has a line in the log but no row in the ledger, for it is no exchange.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from _thread import start_new_thread
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from grokflask.config import Settings
from grokflask.delivery.answer import Reply, StreamReply
from grokflask.delivery.clients import ClientWatcher, Departure
from grokflask.delivery.relay import Relay
from grokflask.delivery.terms import HEARTBEAT
from grokflask.errors import GrokflaskError, InvalidRequestError, RecordingLostError
from grokflask.gateway import Gateway
from grokflask.keys.ring import ApiKey
from grokflask.replay.reader import Reader
from grokflask.replay.recording import Head, Recording, describe
from grokflask.replay.recordings import LINGER_S, Recordings
from grokflask.replay.shared import SharedRecordings
from grokflask.shaping.request import ClientRequest
from grokflask.sockets import limit_sending

MAX_KEY_CHARS = 255
"""As many characters has a key at the most (Stripe's limit)."""

_STALE = ("x-ratelimit-", "x-request-id")
"""Headers of the first answer, by their beginnings, that would not be true of a repeated one."""

_BOUNDARY = re.compile(r'(?i)boundary="?([!-~ ]{1,70}?)"?(?:;|$)')

_log = logging.getLogger("grokflask.replay")


@dataclass(frozen=True, slots=True)
class Repetition:
    """What a request's headers say of repetition.

    Attributes:
        key: its Idempotency-Key.
        resume: the client wants event ids, and the answer to go on for a while if it drops.
        last_event_id: it goes on behind this event; "" begins at the beginning.
    """

    key: str
    resume: bool = False
    last_event_id: str = ""


@dataclass(frozen=True, slots=True)
class _Log:
    """The line of a request that is no exchange. It keeps nothing of the request's body."""

    request_id: str
    key: str
    route: str

    def write(self, of: str | None, outcome: str, bytes_out: int) -> None:
        """`of` is the id of the request whose answer it got."""
        fields = {"request_id": self.request_id, "key": self.key, "route": self.route, "of": of}
        _log.info("replay", extra={"fields": {**fields, "outcome": outcome, "bytes_out": bytes_out}})


class Replays:
    """Opens requests that may be repeated. One for each process.

    Args:
        gateway: carries the exchanges.
        recordings: where their answers are kept.
        clients: knows who has left.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gateway: Gateway,
        recordings: Recordings | SharedRecordings,
        clients: ClientWatcher,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._recordings = recordings
        self._clients = clients
        self._settings = settings
        self._clock = clock

    def open(self, key: ApiKey, request: ClientRequest, repetition: Repetition) -> Reply | StreamReply:
        """The answer to `request`, or to the one that it repeats.

        Raises what `Gateway.open` does, or did for the first; KeyReusedError, KeyInUseError, StreamGoneError.
        """
        if not self._settings.replay_bytes:
            return self._gateway.open(key, request)
        log = _Log(request.request_id, key.name, request.route.name)
        try:
            reader, first = self._claim(key, request, repetition)
        except GrokflaskError as error:
            log.write(None, error.code, 0)
            raise
        if not first:
            of = reader.recording.request_id
            reader.on_close.append(lambda: log.write(of, reader.outcome, reader.bytes_out))
        try:
            self._seat(reader, request)
            return self._carry(key, request, reader) if first else self._attach(reader, repetition)
        except BaseException as error:
            if first:
                failure = error if isinstance(error, GrokflaskError) else GrokflaskError()
                self._recordings.end(reader.recording, complete=False, failure=describe(failure))
            elif isinstance(error, GrokflaskError):
                reader.outcome = error.code
            reader.close()
            raise

    def _claim(self, key: ApiKey, request: ClientRequest, repetition: Repetition) -> tuple[Reader, bool]:
        """A reader of the key's recording, and whether the exchange is still to be begun."""
        if not 1 <= len(repetition.key) <= MAX_KEY_CHARS or not repetition.key.isprintable():
            text = f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} printable characters."
            raise InvalidRequestError(text, param="Idempotency-Key")
        settings = self._settings
        name = _digest(key.limit_id, repetition.key)
        print_ = _take_fingerprint(request)
        grace_s = settings.resume_grace_s if repetition.resume else LINGER_S

        def make() -> Recording:
            return Recording(secrets.token_hex(6), name, print_, request.request_id, max(grace_s, LINGER_S))

        def enter(recording: Recording) -> Reader:
            reader = Reader(
                recording,
                dialect=request.route.dialect,
                wants_json=request.wants_json,
                with_ids=repetition.resume,
                heartbeat_s=settings.heartbeat_s,
                on_heartbeat=self._gateway.tallies.note_heartbeat,
                clock=self._clock,
            )
            reader.on_close.append(lambda: self._recordings.leave(recording, reader))
            return reader

        return self._recordings.claim(name, print_, None if repetition.last_event_id else make, enter)

    def _seat(self, reader: Reader, request: ClientRequest) -> None:
        """A reader has a place of its own in the gateway, for its connection outlasts the exchange."""
        exchanges = self._gateway.exchanges
        exchanges.start(lambda: reader)
        reader.on_close.append(lambda: exchanges.end(reader))
        limit_sending(request.client, self._settings.send_timeout_s)

        def dismiss(reason: GrokflaskError) -> None:
            reader.cancel(reason)
            self._recordings.leave(reader.recording, reader)

        departure = Departure(self._clients, request.client, dismiss, total_s=self._settings.total_timeout_s)
        reader.on_close.append(departure.end)

    def _carry(self, key: ApiKey, request: ClientRequest, reader: Reader) -> Reply | StreamReply:
        """The first request: an ordinary exchange, whose client is the recording."""
        recording, recordings = reader.recording, self._recordings
        answer = self._gateway.open(key, replace(request, client=None, bind_leave=recording.bind))
        kept = {name: text for name, text in answer.headers.items() if not name.lower().startswith(_STALE)}
        if isinstance(answer, Reply):
            recording.put_head(Head(answer.status, kept, stream=False))
            if len(answer.body) <= self._settings.replay_bytes:
                body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
                recordings.keep(recording, body)
                recordings.end(recording, complete=True)
            else:
                recordings.end(recording, complete=False, failure=describe(RecordingLostError()))
            reader.close()
            return answer
        relay = answer.relay
        assert isinstance(relay, Relay)
        try:
            recording.put_head(Head(200, kept, stream=True, answered=relay.answered))
            start_new_thread(self._fill, (recording, relay))
        except BaseException:
            relay.close()
            raise
        return StreamReply(reader, answer.headers)

    def _fill(self, recording: Recording, relay: Relay) -> None:
        """Takes the relay's bytes as they come, to its end."""
        failure = None
        try:
            for data in relay:
                if data is not HEARTBEAT:  # every reader has its own
                    self._recordings.keep(recording, data)
        except BaseException:
            _log.exception("a recording failed")
            failure = describe(GrokflaskError())
        finally:
            self._recordings.end(recording, complete=relay.complete and not failure, failure=failure)
            relay.close()

    def _attach(self, reader: Reader, repetition: Repetition) -> Reply | StreamReply:
        """A repeated request: the answer of the first, from its beginning or from where its client was."""
        head = reader.wait_for_head()
        headers = {**head.headers, "Idempotent-Replayed": "true"}
        if head.stream:
            if repetition.last_event_id:
                reader.seek(repetition.last_event_id)
            return StreamReply(reader, headers)
        body = reader.read_body()
        reader.close()
        return Reply(head.status, body, headers)

    def start(self) -> None:
        """Starts what runs beside the requests. Once for each process."""
        self._recordings.start()

    def close(self, timeout_s: float) -> None:
        """Ends what still runs here, for nobody reads it any more. Idempotent."""
        if self._recordings.running:
            self._gateway.exchanges.cut(timeout_s)
        self._recordings.close(timeout_s)


def _take_fingerprint(request: ClientRequest) -> str:
    """What two requests have in common only if they ask the same."""
    route, body = request.route, request.body
    where = _digest(route.upstream_path, request.model_id or "", request.item_id or "", request.query)
    if isinstance(body, bytes):
        return _digest(where, body)
    # A form's boundary is made anew for each try (RFC 2046, section 5.1.1), and says nothing.
    named = _BOUNDARY.search(request.media_type)
    boundary = named[1].encode() if named else b"\n"
    digest = hashlib.sha256(where.encode())
    rest = b""
    for piece in body:
        rest = (rest + piece).replace(boundary, b"")
        digest.update(rest[: -len(boundary)])  # what is left may be the beginning of one
        rest = rest[-len(boundary) :]
    digest.update(rest)
    return digest.hexdigest()


def _digest(*parts: str | bytes) -> str:
    """One short text for all of them, none of which can be told from it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
