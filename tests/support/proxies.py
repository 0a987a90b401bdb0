"""A proxy in front of a gateway, with the faults that proxies have."""

from __future__ import annotations

import gzip
import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.scripted import WAIT_S

_OWN = ("transfer-encoding", "connection", "server", "date")


@dataclass
class Faults:
    """What a proxy does beside passing on; without any of it each piece goes out as it comes.

    Attributes:
        holds: the body is sent once it has come whole.
        compresses: and compressed.
        cuts_after_bytes: the client's connection is closed after so many of the body.
        idle_s: it hangs up when the gateway has sent nothing for so long.
        drops: headers that get lost, both ways, in lower case.
        adds: headers that the gateway gets.
        hides: paths that it answers itself, with 404.
        server: what it calls itself.
    """

    holds: bool = False
    compresses: bool = False
    cuts_after_bytes: int | None = None
    idle_s: float = WAIT_S
    drops: tuple[str, ...] = ()
    adds: dict[str, str] = field(default_factory=dict)
    hides: tuple[str, ...] = ()
    server: str = "proxy"


class Proxy:
    """Listens on 127.0.0.1. Set `faults`."""

    def __init__(self, target_port: int) -> None:
        self.faults = Faults()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy._pass(self, target_port)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def _pass(self, client: Any, target_port: int) -> None:
        faults = self.faults
        if client.path in faults.hides:
            client.send_error(404)
            return
        headers = {name: text for name, text in client.headers.items() if name.lower() not in faults.drops}
        gateway = http.client.HTTPConnection("127.0.0.1", target_port, timeout=faults.idle_s)
        try:
            gateway.request("GET", client.path, headers={**headers, **faults.adds})
            reply = gateway.getresponse()
            client.send_response_only(reply.status)
            client.send_header("Server", faults.server)
            for name, text in reply.getheaders():
                if name.lower() not in (*_OWN, *faults.drops, "content-length"):
                    client.send_header(name, text)
            if faults.compresses:
                client.send_header("Content-Encoding", "gzip")
            client.end_headers()  # HTTP/1.0: the body ends with the connection
            self._pass_body(client, reply)
        except TimeoutError:
            pass  # its client's connection is closed now
        finally:
            gateway.close()

    def _pass_body(self, client: Any, reply: http.client.HTTPResponse) -> None:
        faults = self.faults
        if faults.holds or faults.compresses:
            body = reply.read()
            client.wfile.write(gzip.compress(body) if faults.compresses else body)
            return
        left = faults.cuts_after_bytes
        while piece := reply.read1(65536):
            client.wfile.write(piece if left is None else piece[:left])
            client.wfile.flush()
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    return
