"""gunicorn's gevent worker, which also knows its idle connections and drains the app when it ends."""

from __future__ import annotations

import errno
import gc
import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
from gevent.threadpool import ThreadPool
from gunicorn.workers.ggevent import GeventWorker

from grokflask.runtime import keep_working, step_aside
from grokflask.server import private
from grokflask.server.bodies import linger
from grokflask.server.metric_slots import MetricsSlot
from grokflask.server.waits import ReadWait, make_offload
from grokflask.server.watchdog import Watchdog
from grokflask.sockets import keep_alive, limit_sending, shut_down

THREADS = 8
"""Threads for SQLite and for rendering metrics."""

_LOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Connections:
    """The connections of one worker, and which of them are idle: open, and between two requests.

    gunicorn counts an idle connection as busy. It would wait for it until the grace period ends, and count it
    against `worker_connections`; when that is full, new connections queue unseen. So idle ones are closed:
    all of them when the worker ends, the oldest when it is nearly full. A new connection is spared for
    FRESH_S in both cases, because its first request is on the way.

    Args:
        capacity: `worker_connections`; one in twenty is kept free.
    """

    FRESH_S = 2.0

    def __init__(self, capacity: int) -> None:
        self._most = int(capacity * 0.95) - 1
        self._open: set[Any] = set()
        # Since when, and whether it has had a request; the longest idle first.
        self._idle: dict[Any, tuple[float, bool]] = {}

    def add(self, sock: Any) -> None:
        """A new connection."""
        self._open.add(sock)
        self._idle[sock] = (time.monotonic(), False)
        self.make_room()

    def start_request(self, sock: Any) -> None:
        """The connection is busy."""
        self._idle.pop(sock, None)

    def end_request(self, sock: Any) -> None:
        """The connection is idle."""
        self._idle[sock] = (time.monotonic(), True)
        self.make_room()

    def remove(self, sock: Any) -> None:
        """The connection has ended."""
        self._open.discard(sock)
        self._idle.pop(sock, None)

    def make_room(self) -> None:
        """Closes the connections that have been idle longest, if the worker is nearly full."""
        surplus = len(self._open) - self._most
        if surplus > 0:
            for sock in list(itertools.islice(self._find_idle(), surplus)):
                self._hang_up(sock)

    def close_idle(self) -> None:
        """Closes all idle connections."""
        for sock in list(self._find_idle()):
            self._hang_up(sock)

    def close_all(self) -> None:
        """Closes every connection, and so ends every read and write on it."""
        for sock in list(self._open):
            self._hang_up(sock, socket.SHUT_RDWR)

    def _find_idle(self) -> Iterator[Any]:
        now = time.monotonic()
        return (sock for sock, (since, served) in self._idle.items() if served or now - since > self.FRESH_S)

    def _hang_up(self, sock: Any, how: int = socket.SHUT_RD) -> None:
        """Ends the wait for a next request as if the client had closed the connection."""
        self._idle.pop(sock, None)
        shut_down(sock, how)


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker.

    Shortly before the grace period ends it closes every connection, because the master kills the worker then:
    a client that reads nothing, or sends its request slowly, must not cost the others their ledger rows.

    Attributes:
        make_poll: `select.epoll`, which gevent's patch removes from `select`; None where there is none.
        metrics_slot: where this worker's metrics go; None without a directory.
        send_timeout_s: how long a client may accept no data; the app's setting.
    """

    LAST_S = 3.0
    TURN_REQUESTS = 8
    """After so many requests of one connection others run, if the next ones are there already."""

    make_poll: Callable[[], Any] | None = None
    metrics_slot: MetricsSlot | None = None
    send_timeout_s = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = Connections(self.worker_connections)
        self._last_at = 0.0

    def run(self) -> None:
        """Serves until the worker ends, with the app's services beside it."""
        services = self._find_services()
        if services:
            attach(services, self.make_poll, self.metrics_slot)
            self.send_timeout_s = services["settings"].send_timeout_s
        private.install()
        private.fix_settings(self.cfg)
        gevent.spawn(keep_working, "end-of-worker", self._drain)
        spare_collector()
        watchdog = Watchdog(services["tallies"].note_loop_delay if services else lambda _: None)
        watchdog.start()
        try:
            super().run()
        finally:
            if services:
                services["background"].close()
            watchdog.stop()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serves one connection, from its first request to its last."""
        keep_alive(client)
        limit_sending(client, self.send_timeout_s)
        self._connections.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._connections.remove(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serves one request. Raises StopIteration when the connection ends with it."""
        body, ends = private.replace_body(req), True
        self._connections.start_request(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
            ends = not body.complete
        except StopIteration:
            pass
        except OSError as error:
            if error.errno in _LOST:
                # gunicorn logs a traceback for these, but ignores a broken pipe.
                raise BrokenPipeError(errno.EPIPE, "the client has disconnected") from None
            raise
        finally:
            self._connections.end_request(sock)
        if ends:
            if not body.complete:
                linger(sock)
            raise StopIteration
        if req.req_number % self.TURN_REQUESTS == 0:
            step_aside()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that gunicorn refuses, or that failed before its answer began."""
        super().handle_error(req, client, addr, exc)
        if isinstance(exc, Exception):  # not when the greenlet is killed
            linger(client)

    def _drain(self) -> None:
        # No signal comes after `max_requests`; `alive` is what gunicorn itself looks at.
        while self.alive:
            gevent.sleep(0.2)
            self._connections.make_room()  # of connections that never sent a request, when all others stream
        services = self._find_services()
        if services:
            services["gateway"].exchanges.drain(self.cfg.graceful_timeout)
        last_s = max(self.cfg.graceful_timeout - self.LAST_S, self.LAST_S)
        self._last_at = self._last_at or time.monotonic() + last_s  # an error does not postpone it
        while time.monotonic() < self._last_at:
            self._connections.close_idle()
            gevent.sleep(0.1)
        self._connections.close_all()

    def _find_services(self) -> Mapping[str, Any]:
        """What the app keeps in `extensions`; nothing if it is wrapped, or not grokflask's."""
        extensions: Mapping[str, Any] = getattr(self.wsgi, "extensions", {})
        return extensions if "background" in extensions else {}


def attach(
    services: Mapping[str, Any], make_poll: Callable[[], Any] | None, metrics_slot: MetricsSlot | None
) -> None:
    """Gives the app's services what gevent needs in place of a thread's blocking calls, and starts them."""
    services["clients"].make_poll = make_poll
    services["upstream"].connector.make_wait = ReadWait
    # SQLite's calls would block every stream of the worker.
    services["database"].offload = offload = make_offload(ThreadPool(THREADS))
    if metrics_slot is not None:
        services["metrics"].offload = offload
        services["metrics"].share(*metrics_slot)
    services["background"].start()


def spare_collector() -> None:
    """Makes the garbage collector skip what lives as long as the process, and so stops no stream.

    A full collection of a loaded app takes 38 ms, and less than 0.1 ms after this.
    """
    gc.collect()
    gc.freeze()
