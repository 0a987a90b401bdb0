"""The register of open exchanges and of request bodies: how many there may be, and how to end them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Container, Iterator
from typing import Protocol, Self, TypeVar

import msgspec

from grokflask.errors import (
    BodiesFullError,
    GatewayFullError,
    GrokflaskError,
    ShuttingDownError,
    StreamStoppedError,
)
from grokflask.ledger.row import LedgerRow
from grokflask.runtime import note_failure, start_thread

FAREWELL_S = 5.0
"""Time before the end of the grace period at which exchanges that are still open are ended."""

SMALL_BODY_BYTES = 16 * 1024
"""Bodies up to this size are never refused for want of memory: `capacity` limits their number."""

SPARED_PLACES = 8
"""So many bodies a caller may always send at once, whatever half of the capacity is."""

LEAD_S = 1.5
"""Time after the announcement in which new requests are still accepted: gunicorn's worker closes its listener
only after a second, and requests that arrive until then have nowhere else to go."""


class Cancellable(Protocol):
    """Something that holds a place: a call to upstream, or a client that reads a recorded answer."""

    def cancel(self, reason: GrokflaskError) -> None:
        """Ends it for that reason."""


C = TypeVar("C", bound=Cancellable)


class OpenStream(msgspec.Struct, frozen=True):
    """An open stream, as the admin API shows it.

    Attributes:
        row: its row in the ledger, still open.
        count_sent: returns the events and bytes that were given to the client so far.
    """

    row: LedgerRow
    count_sent: Callable[[], tuple[int, int]]


class OpenExchanges:
    """The register of open upstream calls, and of bodies. Safe from any thread.

    One caller's bodies take at most half of the places, and half of the memory. A caller is a key's limit_id,
    or "" for all who have no key.

    Args:
        capacity: the most calls that may be open at once.
        bodies_bytes: what the bodies of requests may take in memory together.

    Attributes:
        held_bytes: what they take now.
        draining: the process is about to end and not ready for new requests.
    """

    def __init__(self, capacity: int, bodies_bytes: int) -> None:
        self.held_bytes = 0
        self._bodies_bytes = bodies_bytes
        self._capacity = capacity
        self._count = 0
        self._uploads = 0
        # By caller; without those that have none.
        self._uploads_of: dict[str, int] = {}
        self._bytes_of: dict[str, int] = {}
        self._calls: dict[Cancellable, OpenStream | None] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.draining = False

    def __len__(self) -> int:
        return self._count

    def check(self) -> None:
        """Raises GatewayFullError or ShuttingDownError when `start` would."""
        if self._closed:
            raise ShuttingDownError
        if self._count + self._uploads >= self._capacity:
            raise GatewayFullError

    @contextlib.contextmanager
    def upload(self, caller: str) -> Iterator[None]:
        """Holds a place while a request's body is read, before the request is an exchange.

        Raises GatewayFullError if the caller has its share.
        """
        with self._lock:
            mine = self._uploads_of.get(caller, 0)
            if mine >= SPARED_PLACES and mine >= self._capacity // 2:
                raise GatewayFullError
            self._uploads += 1
            self._uploads_of[caller] = mine + 1
        try:
            yield
        finally:
            with self._lock:
                self._uploads -= 1
                _add(self._uploads_of, caller, -1)

    def resize_body(self, caller: str, before: int, size: int) -> None:
        """A body that took `before` bytes of memory takes `size` now. Raises BodiesFullError if it must not.

        It needs room for a copy as well, so large bodies are refused before small ones. The copy is not
        part of the caller's half.
        """
        with self._lock:
            held = self.held_bytes - before + size
            mine = self._bytes_of.get(caller, 0) - before + size
            if size > before and (held + size > self._bodies_bytes or mine > self._bodies_bytes // 2):
                raise BodiesFullError
            self.held_bytes = held
            _add(self._bytes_of, caller, size - before)

    def hold_sent(self, size: int) -> Callable[[], None] | None:
        """Counts a body of `size` bytes that upstream may still have to read. Returns what frees it.

        It is never refused: there was room for this copy when the client's body was read.
        """
        if size <= SMALL_BODY_BYTES:
            return None
        with self._lock:
            self.held_bytes += size

        def free() -> None:
            with self._lock:
                self.held_bytes -= size

        return free

    def start(self, begin: Callable[[], C]) -> C:
        """The call that `begin` makes, which holds a place until `end`.

        Raises GatewayFullError or ShuttingDownError; `begin` is not called then.
        """
        with self._lock:
            self.check()
            self._count += 1
        try:
            call = begin()
        except BaseException:
            with self._lock:
                self._count -= 1
            raise
        self._calls[call] = None
        return call

    def show(self, call: Cancellable, stream: OpenStream) -> None:
        """Lists the call among `streams` until `end`."""
        with self._lock:
            if call in self._calls:
                self._calls[call] = stream

    @property
    def streams(self) -> list[OpenStream]:
        """The open streams of this process."""
        return [stream for stream in list(self._calls.values()) if stream is not None]

    def stop(self, ids: Container[str]) -> int:
        """Ends the streams whose rows have these ids, with an error event. Returns their number."""
        found = [call for call, stream in list(self._calls.items()) if stream and stream.row.id in ids]
        for call in found:
            call.cancel(StreamStoppedError())
        return len(found)

    def end(self, call: Cancellable) -> None:
        """Frees the call's place. Idempotent."""
        with self._lock:
            if call in self._calls:
                del self._calls[call]
                self._count -= 1

    def drain(self, grace_s: float, lead_s: float = LEAD_S) -> None:
        """Announces the end of the process, and returns at once. Later calls change nothing.

        New exchanges are refused after `lead_s`. Those that are still open FAREWELL_S before the end of
        `grace_s` end with an error event.
        """
        if self.draining:
            return
        self.draining = True
        now = time.monotonic()
        end = now + max(0.0, grace_s - FAREWELL_S)
        start_thread("drain", lambda: self._end_all(now + lead_s, end))

    def _end_all(self, close_at: float, end: float) -> None:
        time.sleep(max(0.0, close_at - time.monotonic()))
        self._closed = True
        while self._count and time.monotonic() < end:
            time.sleep(0.1)
        while self._count:  # repeatedly: one may have been admitted a moment ago
            self._cancel_all()
            time.sleep(0.1)

    def cut(self, timeout_s: float) -> None:
        """Ends all open exchanges and waits up to `timeout_s` until they have ended."""
        end = time.monotonic() + timeout_s
        while self._count and time.monotonic() < end:
            self._cancel_all()
            time.sleep(0.05)

    def _cancel_all(self) -> None:
        for call in list(self._calls):
            try:
                call.cancel(ShuttingDownError("The gateway is shutting down; the answer is incomplete."))
            except Exception:
                note_failure("drain")  # the others end all the same


def _add(sums: dict[str, int], name: str, change: int) -> None:
    """Changes a sum, which is not kept when it becomes zero."""
    if total := sums.get(name, 0) + change:
        sums[name] = total
    else:
        del sums[name]


class HeldBody:
    """The memory of one request's body, freed at the end of the `with` block.

    Bytes count once they have arrived. Lengths that are only announced do not: clients that send nothing
    would keep others out. Up to SMALL_BODY_BYTES do not count either.
    """

    _counted = 0

    def __init__(self, exchanges: OpenExchanges, caller: str) -> None:
        self._exchanges = exchanges
        self._caller = caller

    def resize(self, size: int) -> None:
        """The body has `size` bytes in memory now. Raises BodiesFullError."""
        counted = size if size > SMALL_BODY_BYTES else 0
        if counted != self._counted:
            self._exchanges.resize_body(self._caller, self._counted, counted)
            self._counted = counted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)
