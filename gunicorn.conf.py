"""gunicorn's settings, from the environment. Imports nothing of grokflask.

The gevent patch comes first: requests and ssl must never see the unpatched modules.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import os

from dotenv import load_dotenv

load_dotenv(".env", interpolate=False)


def _number(name: str, default: int) -> int:
    """A number from the environment; a malformed one is left for the app to report with all the others."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else default


bind = f"0.0.0.0:{_number('PORT', 8000)}"
worker_class = "gevent"
workers = _number("WEB_CONCURRENCY", 1)
worker_connections = _number("GROKFLASK_WORKER_CONNECTIONS", 4000)
keepalive = _number("GROKFLASK_KEEPALIVE_S", 95)
graceful_timeout = _number("GROKFLASK_GRACE_S", 25)
# How long a worker's event loop may stall before it is killed. It does not limit a request.
timeout = 60
# The app opens sockets and threads of its own, so each worker makes it after the fork.
preload_app = False
# gunicorn's control socket runs a thread of its own in the master, which the patch above would stall.
control_socket_disable = True


def on_starting(server):
    """Tells the app how many workers there really are, also when `-w` says so."""
    os.environ["WEB_CONCURRENCY"] = str(server.cfg.workers)
