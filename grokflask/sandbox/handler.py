"""The HTTP side: one connection, its requests, the key that is needed, the route, and the journal's entry."""

import hmac
import re
import socket
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, cast

import msgspec

from grokflask.sandbox.kept import Exchange, Outcome
from grokflask.sandbox.plans import PLANNERS, Plan
from grokflask.sandbox.refusals import RefusalError, refuse, refuse_key
from grokflask.sandbox.request import Reply, Request, State, decode
from grokflask.sandbox.routes import find_route
from grokflask.sandbox.steps import ClientLeftError, Progress, Wire, reply_whole

MAX_BODY_BYTES = 128 * 1024 * 1024
_IDLE_S = 600.0  # time limit for a silent connection, and for a write to a client that does not read
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")
_CLOUD_HEADERS = {
    "set-cookie": "__cf_bm=sandbox; path=/; HttpOnly; Secure",
    "cf-ray": "0000000000000000-SBX",
    "cf-cache-status": "DYNAMIC",
}
"""The proxy in front of api.x.ai adds these; a gateway must not pass them on. Its CORS headers are left
out: any web page could read what the sandbox keeps."""


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
            if refusal.status in (411, 413):  # the body may be unread
                self.close_connection = True
                self.wire.extra_headers["Connection"] = "close"
            body = b"" if self.command == "HEAD" else refusal.body
            self.wire.play(reply_whole(refusal.status, refusal.headers, body), Progress())
        if not self.wire.open:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815 - the base class names them

    def _read_request(self, request_id: str) -> Request:
        """Read the body; refuses one that is chunked or too large."""
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            raise refuse(411, "The sandbox accepts only bodies with a Content-Length.")
        if int(length) > MAX_BODY_BYTES:
            raise refuse(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
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
            _serve_model(request, action, self.wire)
            return
        found = action(request, *ids)
        reply = found if isinstance(found, Reply) else Reply(msgspec.json.encode(found))
        self.wire.play(reply_whole(reply.status, reply.headers, reply.body), Progress())

    def _check_key(self, bearer: str | None) -> None:
        key = self._state.key
        if key is None:
            return
        if bearer is None:
            raise refuse(401, "No API key was sent: the Authorization header must be a bearer key.")
        if not hmac.compare_digest(key.encode(), bearer.encode()):
            raise refuse_key(bearer)


def _serve_model(request: Request, make_plan: Callable[[Request], Plan], wire: Wire) -> None:
    """Answer as planned or with the plan's refusal, and note the exchange; raises ClientLeftError."""
    progress, client_left, pace = Progress(), False, request.state.events_per_s
    refused: Literal["fault", "refused"] | None = None
    try:
        plan = make_plan(request)
    except RefusalError as refusal:
        refused = "fault" if refusal.deliberate else "refused"
        plan = Plan(reply_whole(refusal.status, refusal.headers, refusal.body))
    journal = request.state.journal
    journal.begin()
    try:
        wire.play(plan.steps, progress, 1 / pace if pace > 0 else 0.0)
    except ClientLeftError:
        client_left = True
        raise
    finally:
        ended: Outcome = "complete" if progress.done else "client_left" if client_left else "fault"
        journal.end(_make_note(request, plan, progress, refused or ended, client_left))


def _make_note(
    request: Request, plan: Plan, progress: Progress, outcome: Outcome, client_left: bool
) -> Exchange:
    try:
        fields = decode(request.body, dict[str, Any])
    except RefusalError:
        fields = {}
    metadata = fields.get("metadata")  # on the messages route the user is in it
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return Exchange(
        model=str(fields.get("model", "")),
        path=request.path,
        outcome=outcome,
        status=progress.status,
        stream=fields.get("stream") is True,
        events_sent=progress.events,
        usage=progress.usage,
        client_left=client_left,
        fields=tuple(fields),
        user=fields.get("user") or user,
        request_id=request.id,
        conv_id=request.headers.get("x-grok-conv-id") or fields.get("prompt_cache_key"),
        **plan.charge(progress.tokens),
    )
