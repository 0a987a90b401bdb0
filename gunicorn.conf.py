"""gunicorn's settings, from the environment. Imports nothing of grokflask.

The gevent patch comes first: requests and ssl must never see the unpatched modules.
"""

# ruff: noqa: E402
import select

_epoll = getattr(select, "epoll", None)  # the patch takes it away

from gevent import monkey

monkey.patch_all()

import gevent

# Where each greenlet was spawned, which nobody here asks: time at each start, memory in each stream.
gevent.config.track_greenlet_tree = False

import errno
import functools
import gc
import itertools
import json
import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path

from dotenv import dotenv_values
from gevent.threadpool import ThreadPool
from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker


def _read_environ():
    """The environment over `.env`; that the file cannot be read is left for the app to report."""
    try:
        return {**dotenv_values(".env", interpolate=False), **os.environ}
    except (OSError, UnicodeDecodeError):
        return dict(os.environ)


# Not put into the environment, which would outlast a reload: the app reads the file by itself.
_environ = _read_environ()


def _number(name: str, default: int, most: int = 10**6) -> int:
    """A number from the environment; a wrong one is left for the app to report with all the others."""
    text = (_environ.get(name) or "").strip()
    return int(text) if text.isdecimal() and 0 < int(text) <= most else default


def _raise_descriptor_limit():
    """Lets the process have as many sockets as its administrator allows: each stream takes two.

    The usual soft limit of 1,024 is there for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_raise_descriptor_limit()


def _limit_connections(wanted):
    """No more than there are descriptors for: a stream takes two, and 100 are for files, stores and spare."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, (soft - 100) // 2))


def _make_offload():
    """Runs functions in threads of the operating system, apart from those where gevent looks names up."""
    threads = ThreadPool(8)

    def offload(function, arguments):
        def run():
            try:
                return function(*arguments), None
            except BaseException as error:  # raised there, gevent would print it as well
                return None, error

        result, error = threads.apply(run)
        if error is not None:
            raise error
        return result

    return offload


class _Wait:
    """Waits until a connection has something to read: called with seconds, it tells whether it has.

    gevent's own way is to try first, which nearly always fails, and to make a timer for each wait. This one's
    timer is set again only once it has run out, and is then found to have been too early.
    """

    LONGEST_S = 10.0  # a timer keeps what it belongs to alive

    def __init__(self, sock):
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(sock.fileno(), 1)
        self._pending = getattr(sock, "pending", None)  # tells what TLS has taken in already
        self._timer = None
        self._due = self._until = 0.0
        self._waiting = None

    def __call__(self, seconds):
        if self._pending is not None and self._pending():
            return True
        self._until = time.monotonic() + seconds
        if self._timer is None or self._due > self._until:
            self._set_timer(seconds)
        self._waiting = gevent.getcurrent()
        self._readable.start(self._waiting.switch, True)
        try:
            return self._hub.switch()
        finally:
            self._waiting = None
            self._readable.stop()

    def _set_timer(self, seconds):
        if self._timer is not None:
            self._timer.stop()
        seconds = min(seconds, self.LONGEST_S)
        self._due = time.monotonic() + seconds
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._ring)

    def _ring(self):
        self._timer = None
        left = self._until - time.monotonic()
        if self._waiting is None:
            return
        if left > 0.0:
            self._set_timer(left)
        else:
            self._waiting.switch(False)


def _calm_collector():
    """Has Python's garbage collector not look at what lives as long as the process.

    It looks at the rest as often as ever: an exchange leaves nothing to it, and what fails may.
    """
    gc.collect()
    gc.freeze()


def _keep_alive(sock):
    """Has the kernel find out, in a minute of silence, that a peer has vanished without a word.

    A stream's heartbeats would tell, but nothing is sent while a whole answer is waited for.
    """
    if sock.family != socket.AF_UNIX and hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class Response(wsgi.Response):
    """gunicorn's response, whose head goes out together with the first bytes of the body.

    gunicorn makes the head only when there is something to send behind it, so nothing waits for anything. Two
    sends for one are two wake-ups of the client, and a system call that costs more than most of a request.
    """

    _head = b""

    def send_headers(self):
        """Makes the head, and keeps it for `write` and `close`, which both begin with this."""
        if self.headers_sent:
            return
        lines = [*self.default_headers(), *[f"{name}: {value}\r\n" for name, value in self.headers], "\r\n"]
        self._head = "".join(lines).encode("latin-1")
        self.headers_sent = True

    def write(self, arg):
        """As gunicorn's."""
        super().write(arg)
        self._flush()  # what is left is the head of a response that has no body

    def _emit_body(self, data):
        if self.chunked:
            data = b"%s%X\r\n%s\r\n" % (self._head, len(data), data)
        elif self._head:
            data = self._head + data
        self._head = b""
        _send(self.sock, data)

    def sendfile(self, respiter):
        """Never: it would overtake the head."""
        return False

    def close(self):
        """Sends what a response needs to be whole."""
        self.send_headers()
        if self.chunked:
            self._head += b"0\r\n\r\n"
        self._flush()

    def _flush(self):
        if self._head:
            data, self._head = self._head, b""
            _send(self.sock, data)


def _send(sock, data):
    """As `sendall`, which asks each time how large the kernel's buffer is, though nearly all fits at once."""
    sent = sock.send(data)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def _write_error(sock, status, reason, message):
    """Answers what is no HTTP, and so never reaches the app, in the API's way; gunicorn's own is a page."""
    error = {
        "message": message or reason,
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
        "code": "malformed_request" if status < 500 else "internal_error",
    }
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(sock, head.encode("latin-1") + body)


@functools.lru_cache(maxsize=2)
def _format_second(second):
    return _format_date(second)


_format_date = util.http_date
# gunicorn asks for these by the names of its modules.
util.http_date = lambda timestamp=None: _format_second(int(time.time() if timestamp is None else timestamp))
wsgi.Response = Response
util.write_error = _write_error

_LOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Worker(GeventWorker):
    """gunicorn's gevent worker, which besides knows its idle connections and tells the app when it ends.

    gunicorn counts a connection that is kept alive as busy: it would wait for it to the end of the grace
    period, and count it against `worker_connections`, where a full count means that new connections queue
    unseen. So idle ones are closed: all of them when the worker ends, the oldest when it is nearly full. One
    that has just been opened is given a moment in both cases, for its first request is on the way.

    Shortly before the end of the grace period it hangs up on everybody, for the master kills the worker then:
    a client that takes nothing, or dribbles its request, must not cost the others their rows in the ledger.
    """

    FRESH_S = 2.0
    LAST_S = 3.0

    metrics_slot = None  # the directory of the metrics and this worker's number there

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._idle = {}  # socket between two requests -> (since when, has had one), the longest idle first
        self._open = set()

    def run(self):
        """As gunicorn's, with what the app runs beside its requests, and a look at how it ends."""
        services = getattr(self.wsgi, "extensions", {})  # none if somebody has wrapped the app
        if "clients" in services:
            services["clients"].make_poll = _epoll
        if "upstream" in services:
            services["upstream"].connector.make_wait = _Wait
        if "database" in services:
            # SQLite's calls would block every stream of the worker: they get threads that gevent leaves be.
            services["database"].offload = offload = _make_offload()
            if self.metrics_slot is not None:
                services["metrics"].offload = offload
                services["metrics"].share(*self.metrics_slot)
            services["background"].start()
        # They are fixed now, and to read one of them the usual way is a failed look-up and two calls.
        vars(self.cfg).update({name: setting.get() for name, setting in self.cfg.settings.items()})
        gevent.spawn(self._drain)
        _calm_collector()
        try:
            super().run()
        finally:
            if "background" in services:
                services["background"].close()

    def handle(self, listener, client, addr):
        """One connection, from its first request to its last."""
        _keep_alive(client)
        self._open.add(client)
        self._idle[client] = (time.monotonic(), False)
        self._make_room()
        try:
            super().handle(listener, client, addr)
        finally:
            self._open.discard(client)
            self._idle.pop(client, None)

    def handle_request(self, listener_name, req, sock, addr):
        """One request; the connection is idle before and after it."""
        self._idle.pop(sock, None)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        except OSError as error:
            if error.errno in _LOST:
                # A client that has vanished or stands still is no fault of ours: gunicorn passes a broken
                # pipe over in silence, and logs a traceback for these.
                raise BrokenPipeError(errno.EPIPE, "the client is gone") from None
            raise
        finally:
            self._idle[sock] = (time.monotonic(), True)
            self._make_room()

    def _make_room(self):
        """When the worker is nearly full, hangs up on those that have been idle longest."""
        surplus = len(self._open) - int(self.worker_connections * 0.95) + 1
        if surplus <= 0:
            return
        for sock in list(itertools.islice(self._find_idle(), surplus)):
            self._hang_up(sock)

    def _find_idle(self):
        """Connections on which no request is to be expected now, the longest idle first."""
        now = time.monotonic()
        return (sock for sock, (since, served) in self._idle.items() if served or now - since > self.FRESH_S)

    def _drain(self):
        # Also after max_requests, where no signal comes: `alive` is what gunicorn itself goes by.
        while self.alive:
            gevent.sleep(0.2)
            self._make_room()  # of connections that never sent anything, when all others are streams
        gateway = getattr(self.wsgi, "extensions", {}).get("gateway")  # none if somebody has wrapped the app
        if gateway is not None:
            gateway.exchanges.drain(self.cfg.graceful_timeout)
        last_at = time.monotonic() + max(self.cfg.graceful_timeout - self.LAST_S, self.LAST_S)
        while time.monotonic() < last_at:
            for sock in list(self._find_idle()):
                self._hang_up(sock)
            gevent.sleep(0.1)
        for sock in list(self._open):
            self._hang_up(sock, socket.SHUT_RDWR)

    def _hang_up(self, sock, how=socket.SHUT_RD):
        """Ends the wait for a next request as if the client had closed; with SHUT_RDWR, every wait on it."""
        self._idle.pop(sock, None)
        try:
            # Through a duplicate: gevent's own socket would raise in the greenlet that waits on it.
            with socket.socket(fileno=os.dup(sock.fileno())) as twin:
                twin.shutdown(how)
        except OSError:
            pass  # it has gone by itself


bind = f"0.0.0.0:{_number('PORT', 8000, 65535)}"
worker_class = Worker
workers = _number("WEB_CONCURRENCY", 1, 256)
_wanted_connections = _number("GROKFLASK_WORKER_CONNECTIONS", 4000)
worker_connections = _limit_connections(_wanted_connections)
keepalive = _number("GROKFLASK_KEEPALIVE_S", 95)
graceful_timeout = _number("GROKFLASK_GRACE_S", 25)
# How long a worker's event loop may stall before it is killed. It does not limit a request.
timeout = 60
# The app opens sockets and threads of its own, so each worker makes it after the fork.
preload_app = False
# gunicorn's control socket runs a thread of its own in the master, which the patch above would stall.
control_socket_disable = True


def on_starting(server):
    """Tells the app how many workers there really are when `-w` says so, and how many connections."""
    if server.cfg.workers != workers:
        os.environ["WEB_CONCURRENCY"] = str(server.cfg.workers)
    if worker_connections < _wanted_connections:
        os.environ["GROKFLASK_WORKER_CONNECTIONS"] = str(worker_connections)
        server.log.warning(
            "%d connections a worker, not %d: the limit of open files (ulimit -n) has room for no more",
            worker_connections,
            _wanted_connections,
        )


def _make_metrics_dir(server):
    """Where the workers bring their metrics together: never a directory with old figures in it.

    With one worker as well: its counts go on in the next one, and beside it while the one replaces the other.
    """
    try:
        path = tempfile.mkdtemp(prefix="grokflask-metrics-", dir=server.cfg.worker_tmp_dir)
        if os.geteuid() == 0:
            os.chown(path, server.cfg.uid, server.cfg.gid)
    except OSError as error:
        server.log.warning("no directory for the metrics, each worker tells of itself: %s", error)
        return None
    return path


def pre_fork(server, worker):
    """Gives the worker a number that no living one has: its counts go on where the last one's end."""
    if not hasattr(server, "metrics_dir"):  # not before: a start that fails for its port has no `on_exit`
        server.metrics_dir = _make_metrics_dir(server)
    if server.metrics_dir is not None:
        slots = [getattr(each, "metrics_slot", None) for each in server.WORKERS.values()]
        taken = [slot[1] for slot in slots if slot]
        slot = next(number for number in itertools.count() if number not in taken)
        worker.metrics_slot = (server.metrics_dir, slot)


def child_exit(server, worker):
    """What the worker said of the present is not true any more; what it has counted stays."""
    if getattr(worker, "metrics_slot", None) is not None:
        directory, slot = worker.metrics_slot
        for path in Path(directory).glob(f"gauge_live*_{slot}.db"):
            path.unlink(missing_ok=True)


def on_exit(server):
    """Removes the directory of the metrics."""
    if getattr(server, "metrics_dir", None) is not None:
        shutil.rmtree(server.metrics_dir, ignore_errors=True)
