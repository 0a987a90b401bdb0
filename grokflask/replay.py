"""At most one exchange for each Idempotency-Key: whoever repeats a request reads the answer of the first.

The first request with a key is carried by the gateway as any other, but its answer goes into a recording,
and its client reads that; so does everybody who sends the key again, while the exchange runs or after it.
The relay knows none of them: it has a client that takes all at once, and leaves when the last of them has
left. An attached request has a line in the log but no row in the ledger, for it is no exchange.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from grokflask.clients import ClientWatcher, Departure, limit_sending
from grokflask.config import Settings
from grokflask.errors import GrokflaskError, InvalidRequestError
from grokflask.gateway import Gateway, Reply, StreamReply
from grokflask.keys import ApiKey
from grokflask.process import get_pid
from grokflask.reader import Reader
from grokflask.recording import Head, Recording, describe
from grokflask.recordings import Recordings
from grokflask.relay import Relay
from grokflask.shaping import ClientRequest
from grokflask.terms import HEARTBEAT

LINGER_S = 0.55
"""How long an exchange that nobody reads goes on for one that comes back at once: SDKs that retry begin with
half a second at the most. With the watcher's interval it ends within a second."""

MAX_KEY_CHARS = 255
"""As many characters has a key at the most (Stripe's limit)."""

_STALE = ("x-ratelimit-", "x-request-id")
"""Headers of the first answer, by their beginnings, that would not be true of a repeated one."""

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


class Replays:
    """Opens requests that may be repeated. One for each process.

    Args:
        gateway: carries the exchanges.
        clients: knows who has left.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gateway: Gateway,
        clients: ClientWatcher,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._clients = clients
        self._settings = settings
        self._clock = clock
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False
        self.recordings = Recordings(
            max_bytes=settings.replay_bytes,
            total_bytes=settings.replay_total_bytes,
            keep_s=settings.replay_keep_s,
            wake=self._wake.set,
            clock=clock,
        )

    def open(self, key: ApiKey, request: ClientRequest, repetition: Repetition) -> Reply | StreamReply:
        """The answer to `request`, or to the one that it repeats.

        Raises what `Gateway.open` does, or did for the first; KeyReusedError, KeyInUseError, StreamGoneError.
        """
        if not self._settings.replay_bytes:
            return self._gateway.open(key, request)
        if not 1 <= len(repetition.key) <= MAX_KEY_CHARS or not repetition.key.isprintable():
            raise InvalidRequestError(
                f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} printable characters.",
                param="Idempotency-Key",
            )
        reader, first = self._claim(key, request, repetition)
        try:
            self._seat(reader, request)
            if first:
                return self._carry(key, request, reader)
            self._log_at_close(reader, key, request)
            return self._attach(reader, repetition)
        except BaseException as error:
            if first:
                failure = error if isinstance(error, GrokflaskError) else GrokflaskError()
                self.recordings.end(reader.recording, complete=False, failure=describe(failure))
            elif isinstance(error, GrokflaskError):
                reader.outcome = error.code
            reader.close()
            raise

    def _claim(self, key: ApiKey, request: ClientRequest, repetition: Repetition) -> tuple[Reader, bool]:
        """A reader of the key's recording, and whether the exchange is still to be begun."""
        settings = self._settings
        name = _digest(key.limit_id, repetition.key)
        print_ = _digest(request.route.upstream_path, request.model_id or "", request.body)
        grace_s = settings.resume_grace_s if repetition.resume else LINGER_S

        def make() -> Recording:
            return Recording(secrets.token_hex(6), name, print_, request.request_id, max(grace_s, LINGER_S))

        def enter(recording: Recording) -> Reader:
            reader = Reader(
                recording,
                wants_json=request.wants_json,
                with_ids=repetition.resume,
                heartbeat_s=settings.heartbeat_s,
                clock=self._clock,
            )
            reader.on_close.append(lambda: self.recordings.leave(recording, reader))
            return reader

        return self.recordings.claim(name, print_, None if repetition.last_event_id else make, enter)

    def _seat(self, reader: Reader, request: ClientRequest) -> None:
        """A reader has a place of its own in the gateway, for its connection outlasts the exchange."""
        exchanges = self._gateway.exchanges
        exchanges.start(lambda: reader)
        reader.on_close.append(lambda: exchanges.end(reader))
        limit_sending(request.client, self._settings.send_timeout_s)

        def dismiss(reason: GrokflaskError) -> None:
            reader.cancel(reason)
            self.recordings.leave(reader.recording, reader)

        departure = Departure(self._clients, request.client, dismiss, total_s=self._settings.total_timeout_s)
        reader.on_close.append(departure.end)

    def _carry(self, key: ApiKey, request: ClientRequest, reader: Reader) -> Reply | StreamReply:
        """The first request: an ordinary exchange, whose client is the recording."""
        recording, recordings = reader.recording, self.recordings
        answer = self._gateway.open(key, replace(request, client=None, bind_leave=recording.bind))
        kept = {name: text for name, text in answer.headers.items() if not name.lower().startswith(_STALE)}
        if isinstance(answer, Reply):
            recording.put_head(Head(answer.status, kept, stream=False))
            recordings.keep(recording, answer.body)
            recordings.end(recording, complete=True)
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
                    self.recordings.keep(recording, data)
        except BaseException:
            _log.exception("a recording failed")
            failure = describe(GrokflaskError())
        finally:
            self.recordings.end(recording, complete=relay.complete and not failure, failure=failure)
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

    def _log_at_close(self, reader: Reader, key: ApiKey, request: ClientRequest) -> None:
        def log() -> None:
            fields = {
                "request_id": request_id,
                "key": name,
                "route": route,
                "of": reader.recording.request_id,
                "outcome": reader.outcome,
                "bytes_out": reader.bytes_out,
            }
            _log.info("replay", extra={"fields": fields})

        # Not the request itself, whose body would live as long as the stream.
        request_id, name, route = request.request_id, key.name, request.route.name
        reader.on_close.append(log)

    def start(self) -> None:
        """Starts the thread that lets go of what is due. Once for each process."""
        if self._thread is None or self._pid != get_pid():
            self._closed = False
            self._pid = get_pid()
            self._thread = threading.Thread(target=self._run, name="replays", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Ends what still runs here, for nobody reads it any more. Idempotent."""
        if self.recordings.running:
            self._gateway.exchanges.cut(timeout_s)
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed:
            try:
                wait_s = self.recordings.tick()
            except Exception:
                _log.exception("recordings cannot be let go")
                wait_s = LINGER_S
            self._wake.wait(wait_s)
            self._wake.clear()


def _digest(*parts: str | bytes) -> str:
    """One short text for all of them, none of which can be told from it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
