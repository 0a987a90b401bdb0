"""gunicorn's settings, from the environment. The worker that they name is in `grokflask/server/`.

The gevent patch comes first: requests and ssl must never see the unpatched modules.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import contextlib
import os
import resource
import sys

import gevent
from dotenv import dotenv_values

# Unused here, and costly: starting a greenlet takes 3.5 µs instead of 9.1, and 0.6 KiB less.
gevent.config.track_greenlet_tree = False

# A reload runs this file again, and so reads changed files of the server's modules too.
for _name in [name for name in sys.modules if name.partition(".")[0] == "grokflask"]:
    del sys.modules[_name]

from grokflask.server.metric_slots import child_exit, on_exit, pre_fork  # noqa: F401 - gunicorn's hooks
from grokflask.server.worker import Worker

with contextlib.suppress(AttributeError):  # systems other than Linux have no epoll
    Worker.make_poll = monkey.get_original("select", "epoll")  # the patch has removed it


def _read_environ():
    """The environment over `.env`. The app reports a file that cannot be read."""
    try:
        return {**dotenv_values(".env", interpolate=False), **os.environ}
    except (OSError, UnicodeDecodeError):
        return dict(os.environ)


# Not put into the environment, which would outlast a reload: the app reads the file itself.
_environ = _read_environ()


def _number(name: str, default: int, most: int = 10**6) -> int:
    """A number from the environment. The app reports a wrong one, together with all other problems."""
    text = (_environ.get(name) or "").strip()
    return int(text) if text.isdecimal() and 0 < int(text) <= most else default


def _raise_descriptor_limit():
    """Lets the process open as many sockets as its administrator allows: each stream takes two.

    The usual soft limit of 1,024 protects programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_raise_descriptor_limit()


def _limit_connections(wanted):
    """As many as the limit of open files has room for: a stream takes two; 100 are for files and stores."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, (soft - 100) // 2))


bind = f"0.0.0.0:{_number('PORT', 8000, 65535)}"
worker_class = Worker
workers = _number("WEB_CONCURRENCY", 1, 256)
_wanted_connections = _number("GROKFLASK_WORKER_CONNECTIONS", 4000)
worker_connections = _limit_connections(_wanted_connections)
keepalive = _number("GROKFLASK_KEEPALIVE_S", 95)
graceful_timeout = _number("GROKFLASK_GRACE_S", 25)
# How long a worker's event loop may stall before the master kills it. It does not limit a request.
timeout = 60
# The app opens sockets and threads of its own, so each worker makes it after the fork.
preload_app = False
# gunicorn's control socket runs a thread of its own in the master, which the patch above would stall.
control_socket_disable = True
# No header may set the scheme or a path of the WSGI environment, wherever it comes from. By default gunicorn
# believes 127.0.0.1, where a proxy passes on everybody's. For proxies there is GROKFLASK_TRUSTED_PROXIES.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers = {}
header_map = "drop"


def on_starting(server):
    """Puts the real numbers of workers (`-w` overrides) and connections into the environment, for the app."""
    if server.cfg.workers != workers:
        os.environ["WEB_CONCURRENCY"] = str(server.cfg.workers)
    if worker_connections < _wanted_connections:
        os.environ["GROKFLASK_WORKER_CONNECTIONS"] = str(worker_connections)
        server.log.warning(
            "%d connections a worker, not %d: the limit of open files (ulimit -n) has room for no more",
            worker_connections,
            _wanted_connections,
        )
