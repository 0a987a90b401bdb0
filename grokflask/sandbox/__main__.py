"""Runs the sandbox alone: `python -m grokflask.sandbox`."""

import argparse
import signal
import threading

from grokflask.sandbox.server import Sandbox


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m grokflask.sandbox", description="An emulator of xAI's REST API."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0 picks a free one")
    parser.add_argument("--events-per-s", type=float, default=40.0, help="pace of streams, 0 for no pause")
    parser.add_argument("--key", help="accept this bearer key only")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox = Sandbox(options.host, options.port, options.events_per_s, options.key)
    except OSError as error:
        parser.exit(1, f"cannot listen on {options.host}:{options.port}: {error.strerror}\n")
    header = f" -H 'Authorization: Bearer {sandbox.key}'" if sandbox.key else ""
    body = '{"model":"grok-4.3","stream":true,"messages":[{"role":"user","content":"Tell me a story"}]}'
    with sandbox:
        print(  # noqa: T201 - this is a command
            f"The sandbox is at {sandbox.base_url}\n\n"
            f"  curl -N {sandbox.base_url}/chat/completions \\\n"
            f"    -H 'Content-Type: application/json'{header} \\\n    -d '{body}'\n",
            flush=True,
        )
        stop.wait()


if __name__ == "__main__":
    main()
