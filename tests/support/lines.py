"""What stands between a gateway and its database elsewhere: a long line, and a pooler."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from support.databases import PostgresServer, find_user
from support.ports import reserve_port
from support.processes import Server


class LongLine:
    """Listens on 127.0.0.1, and passes all bytes to `target_port` and back, each way `delay_s` later."""

    def __init__(self, target_port: int, delay_s: float) -> None:
        self._target_port = target_port
        self._delay_s = delay_s
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._ends.append(near)
        time.sleep(2 * self._delay_s)  # the handshake
        try:
            far = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:  # the server has ended
            return
        self._ends.append(far)
        if self._listener.fileno() < 0:
            self.close()
            return
        for source, target in ((near, far), (far, near)):
            queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=self._read, args=(source, queue), daemon=True).start()
            threading.Thread(target=self._write, args=(target, queue), daemon=True).start()

    def _read(self, source: socket.socket, queue: SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"."
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            queue.put((time.monotonic() + self._delay_s, data))

    def _write(self, target: socket.socket, queue: SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = queue.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)


PGBOUNCER = Path("/usr/sbin/pgbouncer")


class PgBouncer(Server):
    """Debian's PgBouncer with its defaults, but for transaction mode and connections fewer than clients."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self.port = reserve_port()
        user = find_user()
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=tester\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n"
        )
        for path in (folder, *folder.parents):  # pytest's folders are for their owner alone
            if "user" in user and path.owner() == "root" and path.stat().st_mode & 0o5 != 0o5:
                os.chmod(path, path.stat().st_mode | 0o5)
        words = ["-u", "nobody"] if "user" in user else []
        super().__init__([str(PGBOUNCER), *words, str(config)], {}, folder, f"pgbouncer-{self.port}")
        self.wait_until_ready(self._listens)

    def make_url(self, url: str) -> str:
        """The database of `url`, by way of this pooler."""
        return f"postgresql://tester@127.0.0.1:{self.port}/{url.rpartition('/')[2]}"

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False
