"""A gateway, started for a measurement and ended after it, with the servers that it needs."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nginx_files
import peers
import rig
from gateways import Gateway
from launches import Launch, Site, base_env
from peers import ROOT
from process_tree import ProcessTree
from scenarios import Bench

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.ports import reserve_port  # noqa: E402 - the path comes first

if TYPE_CHECKING:
    from support.databases import PostgresServer
    from support.processes import RedisServer


@dataclass(frozen=True)
class Started:
    """A gateway that answers.

    Attributes:
        start_cpu_s: what it used from its start until it answered.
    """

    bench: Bench
    start_cpu_s: float
    start_s: float


@dataclass
class Hall:
    """Everything around the gateways, started when it is first needed; `close` ends and removes all."""

    folder: Path
    cores: rig.Cores
    upstream: rig.Upstream
    _stack: contextlib.ExitStack
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _tls: tuple[str, Path] | None = None
    _servers: tuple[PostgresServer, RedisServer] | None = None

    def make_site(self, gateway: Gateway) -> Site:
        """A new folder and port, and the upstream and stores that `gateway` needs."""
        folder = self.folder / f"{gateway.name}-{next(self._numbers)}"
        folder.mkdir()
        upstream, authority = self._start_tls_end() if gateway.uses_tls else (self.upstream.url, None)
        stores = self._make_stores() if gateway.uses_stores else {}
        return Site(folder, reserve_port(), upstream, authority, stores)

    @contextlib.contextmanager
    def run(self, launch: Launch, site: Site, cores: frozenset[int] | None = None) -> Iterator[Started]:
        """The gateway, from its start to its end."""
        log_path = site.folder / "gateway.log"
        with log_path.open("wb") as log:
            process = rig.start_process(
                launch.command, env=launch.env, cores=cores or self.cores.gateway, cwd=site.folder, log=log
            )
            tree = ProcessTree(process.pid)
            try:
                yield self._wait(launch, site, process, tree, log_path)
            finally:
                end(process, tree)

    def _wait(
        self, launch: Launch, site: Site, process: subprocess.Popen[bytes], tree: ProcessTree, log: Path
    ) -> Started:
        started_at = time.monotonic()
        try:
            rig.wait_until_answering(f"http://127.0.0.1:{site.port}{launch.ready}", process)
        except rig.RigError as error:
            raise rig.RigError(f"{error}\n{log.read_text(errors='replace')[-3000:]}") from None
        target = rig.Target(site.port, launch.path, launch.keys_file, launch.headers)
        bench = Bench(self.folder, self.upstream, tree, target)
        return Started(bench, tree.read_cpu_s(), time.monotonic() - started_at)

    def _start_tls_end(self) -> tuple[str, Path]:
        """nginx with a throw-away certificate in front of the upstream: its URL, and whom to trust."""
        if self._tls is None:
            import trustme

            authority = trustme.CA()
            certificate = authority.issue_cert("localhost", "127.0.0.1")
            certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            (self.folder / "server.pem").write_bytes(chain)
            authority.cert_pem.write_to_path(str(self.folder / "authority.pem"))
            port, path = reserve_port(), self.folder / "tls-end.conf"
            path.write_text(nginx_files.render_tls_end(self.folder, port, self.upstream.url))
            command = [str(peers.find_nginx()), "-e", str(self.folder / "tls-start.log"), "-c", str(path)]
            process = rig.start_process(command, env=base_env())
            self._stack.callback(end, process, ProcessTree(process.pid))
            time.sleep(0.5)
            self._tls = (f"https://127.0.0.1:{port}", self.folder / "authority.pem")
        return self._tls

    def _make_stores(self) -> Mapping[str, str]:
        """An empty database and an empty Redis, on servers that are shared by all of the run."""
        if self._servers is None:
            from support.databases import PostgresServer
            from support.processes import RedisServer

            try:
                postgres = PostgresServer()
                self._stack.callback(postgres.close)
                redis = RedisServer(self.folder)
                self._stack.callback(redis.kill)
            except AssertionError as error:  # as tests tell what they miss
                raise rig.RigError(str(error)) from None
            self._servers = (postgres, redis)
        postgres, redis = self._servers
        with socket.create_connection(("127.0.0.1", redis.port), 5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(64)
        return {"DATABASE_URL": postgres.make_database(), "REDIS_URL": redis.url}


@contextlib.contextmanager
def open_hall() -> Iterator[Hall]:
    """The rig, compiled and with its upstream running. All but the gateway leave it its core."""
    cores = rig.Cores.divide()
    os.sched_setaffinity(0, cores.rest)
    # Inherited by all: not every gateway raises its own limit, and each stream takes two sockets.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="grokflask-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        rig.build(folder)
        upstream = rig.Upstream(folder)
        stack.callback(upstream.close)
        yield Hall(folder, cores, upstream, stack)


def end(process: subprocess.Popen[bytes], tree: ProcessTree) -> None:
    """Asks a process to end, and makes it and its children when they do not."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        tree.kill()
        process.wait()
