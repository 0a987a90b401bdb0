"""The server: one listening socket, a thread that accepts, and a thread for each connection.

It uses blocking calls of `socket` and `threading` only, so it also runs where gevent has patched these.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Self

from grokflask.sandbox.handler import Handler
from grokflask.sandbox.request import Clock, State

_BACKLOG = 1024
_ACCEPT_S = 0.5  # the accept loop checks at this interval whether it should end
_RETRY_S = 0.05  # pause after accept failed, for example with too many open files


class Sandbox(State):
    """An emulator of xAI's REST API on `host` and `port` (0 picks a free one), with a journal.

    It listens from construction, and serves from `ensure_running`. `events_per_s` is the pace of streams, 0
    for no pauses. If a `key` is given, no other bearer key is accepted. With `short_models`, `/v1/models` has
    its old form. All three may be changed while it runs. The owner calls `close`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        events_per_s: float = 40.0,
        key: str | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(events_per_s, key, clock)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.settimeout(_ACCEPT_S)
        self._address = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._acceptor: threading.Thread | None = None
        self._connections: set[socket.socket] = set()
        self._closed = False

    @property
    def origin(self) -> str:
        """Scheme, host and port: `http://127.0.0.1:PORT`."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def base_url(self) -> str:
        """The base URL to give to a client."""
        return f"{self.origin}/v1"

    def ensure_running(self) -> None:
        """Start serving in this process unless it does so already; raises RuntimeError once closed.

        A forked process serves on the same socket, with a journal of its own. The kernel chooses which
        process gets a connection.
        """
        if self._pid != os.getpid():  # the parent's threads do not run here, and its locks may be held
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._acceptor, self._connections = None, set()
            self.forget()
        with self._lock:
            if self._closed:
                raise RuntimeError("the sandbox is closed")
            if self._acceptor is None:
                name = self.origin.replace("http://", "sandbox-")
                self._acceptor = threading.Thread(target=self._accept, name=name, daemon=True)
                self._acceptor.start()

    def close(self) -> None:
        """Stop listening and break off the answers of this process. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            acceptor = self._acceptor if self._pid == os.getpid() else None
            connections = list(self._connections)
        if acceptor:
            with contextlib.suppress(OSError):
                socket.create_connection(self._address, timeout=_ACCEPT_S).close()  # wakes the accept loop
            acceptor.join()
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                if not self._closed:
                    time.sleep(_RETRY_S)
                continue
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: object) -> None:
        try:
            with contextlib.suppress(OSError):  # the client may have left
                connection.settimeout(None)
                if Handler(connection, address, self, self.origin).wire.open:
                    connection.shutdown(socket.SHUT_WR)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
