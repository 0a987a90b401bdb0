"""The HTTP side: one connection, its requests, the key that is needed, and finding the route."""

import hmac
import re
import socket
import uuid
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import msgspec

from grokflask.sandbox.exchanges import serve_model
from grokflask.sandbox.plans import PLANNERS
from grokflask.sandbox.refusals import RefusalError, refuse, refuse_key
from grokflask.sandbox.request import Reply, Request, State
from grokflask.sandbox.routes import find_route
from grokflask.sandbox.steps import ClientLeftError, Wire

MAX_BODY_BYTES = 128 * 1024 * 1024
_IDLE_S = 600.0  # time limit for a silent connection, and for a write to a client that does not read
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")
_CLOUD_HEADERS = {
    "set-cookie": "__cf_bm=sandbox; path=/; HttpOnly; Secure",
    "cf-ray": "0000000000000000-SBX",
    "cf-cache-status": "DYNAMIC",
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "*",
}
"""The proxy in front of api.x.ai adds these; a gateway must not pass them on."""


class Handler(BaseHTTPRequestHandler):
    """One connection: its requests one after the other, until either side closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S

    def __init__(self, connection: socket.socket, address: Any, state: State, origin: str) -> None:
        self._state = state
        self._origin = origin
        self.wire = Wire(connection)
        super().__init__(connection, address, cast(Any, None))

    def handle(self) -> None:
        """Serve requests until the connection ends."""
        try:
            super().handle()
        except (OSError, ClientLeftError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def answer(self) -> None:
        """Answer one request of any method."""
        request_id = str(uuid.uuid4())
        self.wire.may_chunk = self.request_version != "HTTP/1.0"
        self.wire.extra_headers = {"x-request-id": request_id, **_CLOUD_HEADERS}
        if self.close_connection:
            self.wire.extra_headers["Connection"] = "close"
        try:
            self._serve(self._read_request(request_id))
        except RefusalError as refusal:
            body = b"" if self.command == "HEAD" else refusal.body
            self.wire.send_whole(refusal.status, refusal.headers, body)
        if not self.wire.open:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815 - the base class names them

    def _read_request(self, request_id: str) -> Request:
        """Read the body; refuses one that is chunked or too large, and closes the connection then."""
        length = self.headers.get("Content-Length", "0")
        refusal = None
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            refusal = refuse(411, "The sandbox accepts only bodies with a Content-Length.")
        elif int(length) > MAX_BODY_BYTES:
            refusal = refuse(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if refusal:
            self.close_connection = True
            self.wire.extra_headers["Connection"] = "close"
            raise refusal
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientLeftError
        path, _, query = self.path.partition("?")
        host = self.headers.get("Host", "")
        origin = f"http://{host}" if _HOST.fullmatch(host) else self._origin
        return Request(path, query, self.headers, body, origin, request_id, self._state)

    def _serve(self, request: Request) -> None:
        route = find_route(request.path)
        if request.path.startswith("/v1/"):
            self._check_key(request.bearer)
        if route is None:
            raise refuse(404, "No handler found on route.")
        methods, ids = route
        action = methods.get(self.command)
        if action is None:
            raise refuse(405, "This route does not support the method.", Allow=", ".join(methods))
        if request.path in PLANNERS:
            content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if content_type != "application/json" or not request.body.strip():
                raise refuse(415, "The request must have a body, and the Content-Type application/json.")
            serve_model(request, action, self.wire)
            return
        found = action(request, *ids)
        reply = found if isinstance(found, Reply) else Reply(msgspec.json.encode(found))
        self.wire.send_whole(reply.status, reply.headers, reply.body)

    def _check_key(self, bearer: str | None) -> None:
        key = self._state.key
        if key is None:
            return
        if bearer is None:
            raise refuse(401, "No API key was sent: the Authorization header must be a bearer key.")
        if not hmac.compare_digest(key.encode(), bearer.encode()):
            raise refuse_key(bearer)
