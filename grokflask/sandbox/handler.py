"""The HTTP side: reading requests, the table of routes, keys, and the answers that need no model."""

import hmac
import re
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

import msgspec

from grokflask.sandbox.exchanges import ServedPost, send_json, send_whole
from grokflask.sandbox.faults import find_fault
from grokflask.sandbox.kept_routes import KEPT_ROUTES
from grokflask.sandbox.models import (
    IMAGE_TICKS,
    PRICES,
    VIDEO_TICKS,
    film_item,
    find_served,
    image_item,
    language_item,
    list_models,
    list_pictures,
    model_item,
    picture_item,
    short_item,
)
from grokflask.sandbox.pictures import draw_named
from grokflask.sandbox.plans import (
    CHAT_PATH,
    COMPACT_PATH,
    EDITS_PATH,
    IMAGES_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    TOKENIZE_PATH,
    VIDEO_PATHS,
    Call,
)
from grokflask.sandbox.refusals import (
    API_KEY_ID,
    TEAM_ID,
    RefusalError,
    mask_key,
    refuse,
    refuse_key,
    refuse_model,
)
from grokflask.sandbox.steps import ClientLeftError, Wire

if TYPE_CHECKING:
    import socket
    import socketserver

    from grokflask.sandbox.server import Sandbox

MAX_BODY_BYTES = 128 * 1024 * 1024
_IDLE_S = 600.0  # how long a connection may be silent, and a write wait for a client that does not read
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")
_CLOUD_HEADERS = {
    "set-cookie": "__cf_bm=sandbox; path=/; HttpOnly; Secure",
    "cf-ray": "0000000000000000-SBX",
    "cf-cache-status": "DYNAMIC",
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "*",
}
"""What stands in front of api.x.ai adds these; a gateway must not pass them on."""


class Handler(BaseHTTPRequestHandler):
    """One connection: its requests one after the other, until either side closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S

    def __init__(self, connection: "socket.socket", address: Any, sandbox: "Sandbox") -> None:
        self.sandbox = sandbox
        self.wire = Wire(connection)
        super().__init__(connection, address, cast("socketserver.BaseServer", sandbox))

    def handle(self) -> None:
        """Serve requests until the connection ends; a client that vanishes is no news."""
        try:
            super().handle()
        except (OSError, ClientLeftError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        """Answer one request of any method."""
        close = {"Connection": "close"} if self.close_connection else {}
        self.request_id = str(uuid.uuid4())
        self.wire.extra_headers = {"x-request-id": self.request_id, **_CLOUD_HEADERS, **close}
        try:
            self._route(self.path.partition("?")[0], self._read_body())
        except RefusalError as refusal:
            body = b"" if self.command == "HEAD" else refusal.body
            send_whole(self.wire, refusal.status, refusal.headers, body)
        if not self.wire.open:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815 - the base class names them

    def _read_body(self) -> bytes:
        """Return the request's body; refuses one that is chunked or too large, and closes the connection."""
        length = self.headers.get("Content-Length", "0")
        refusal = None
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            refusal = refuse(411, "The sandbox takes bodies with a Content-Length only.")
        elif int(length) > MAX_BODY_BYTES:
            refusal = refuse(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if refusal:
            self.close_connection = True
            self.wire.extra_headers["Connection"] = "close"
            raise refusal
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientLeftError
        return body

    def _route(self, path: str, body: bytes) -> None:
        methods = _find_route(path)
        if path.startswith("/v1/"):
            self._check_key()
        if methods is None:
            raise refuse(404, "No handler found on route.")
        action = methods.get(self.command)
        if action is None:
            raise refuse(405, "This route does not know that method.", headers={"Allow": ", ".join(methods)})
        action(self, path, body)

    def _bearer(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None

    def _check_key(self) -> None:
        key, bearer = self.sandbox.key, self._bearer()
        if key is None:
            return
        if bearer is None:
            raise refuse(401, "No API key was sent: the Authorization header must be a bearer key.")
        if not hmac.compare_digest(key.encode(), bearer.encode()):
            raise refuse_key(bearer)

    def post(self, path: str, body: bytes) -> None:
        """Answer a request to a model."""
        if self.headers.get_content_type() != "application/json" or "Content-Type" not in self.headers:
            raise refuse(415, "The Content-Type must be application/json.")
        host = self.headers.get("Host", "")
        origin = f"http://{host}" if _HOST.fullmatch(host) else self.sandbox.origin
        conv_id = self.headers.get("x-grok-conv-id")
        call = Call(path, body, self._bearer(), origin, self.sandbox.kept, self.sandbox.prompts, conv_id)
        may_chunk = self.request_version != "HTTP/1.0"
        if not may_chunk:
            self.close_connection = True
        pace = self.sandbox.events_per_s
        pause_s = 1 / pace if pace > 0 else 0.0
        sandbox = self.sandbox
        served = ServedPost(
            call, self.wire, sandbox.clock, pause_s, may_chunk, self.request_id, sandbox.stored
        )
        served.serve(self.sandbox.journal)

    def get_models(self, _path: str, _body: bytes) -> None:
        """List the models."""
        items = list_models()
        self._send({"object": "list", "data": [self._shorten(item) for item in items]})

    def get_model(self, path: str, _body: bytes) -> None:
        """Show one model; a retired id shows what serves it, a fault model shows as grok-4.3 does."""
        asked = path.removeprefix("/v1/models/")
        served = "grok-4.3" if find_fault(asked) else find_served(asked)
        if served:
            self._send(self._shorten(model_item(served)))
        elif asked in IMAGE_TICKS:
            self._send(self._shorten(image_item(asked)))
        else:
            raise refuse_model(asked)

    def get_language_models(self, _path: str, _body: bytes) -> None:
        """List the chat models in detail."""
        self._send({"models": [language_item(served) for served in PRICES]})

    def get_language_model(self, path: str, _body: bytes) -> None:
        """Show one chat model in detail."""
        asked = path.removeprefix("/v1/language-models/")
        served = find_served(asked)
        if served is None:
            raise refuse_model(asked)
        self._send(language_item(served))

    def _shorten(self, item: dict[str, Any]) -> dict[str, Any]:
        return short_item(item) if self.sandbox.short_models else item

    def get_media_models(self, path: str, _body: bytes) -> None:
        """List the models of pictures or videos, or show one."""
        kind, _, asked = path.removeprefix("/v1/").partition("/")
        known, show = (IMAGE_TICKS, picture_item) if kind.startswith("image") else (VIDEO_TICKS, film_item)
        if asked and asked not in known:
            raise refuse_model(asked)
        current = list_pictures() if known is IMAGE_TICKS else list(known)
        self._send(show(asked) if asked else {"models": [show(model) for model in current]})

    def get_response(self, path: str, _body: bytes) -> None:
        """Show a stored response."""
        self._send(self.sandbox.stored.find(path.rpartition("/")[2]).response)

    def delete_response(self, path: str, _body: bytes) -> None:
        """Forget a stored response."""
        response_id = path.rpartition("/")[2]
        self.sandbox.stored.remove(response_id)
        self._send({"id": response_id, "object": "response", "deleted": True})

    def get_api_key(self, _path: str, _body: bytes) -> None:
        """Show who the key belongs to: nobody."""
        made = "2026-01-05T08:00:00Z"
        person = "3b8f7c52-6d1e-4f0a-8c29-5a7e1d94b6f3"
        self._send(
            {
                "redacted_api_key": mask_key(self._bearer() or "sandbox"),
                "user_id": person,
                "name": "sandbox",
                "create_time": made,
                "modify_time": made,
                "modified_by": person,
                "team_id": TEAM_ID,
                "acls": ["api-key:endpoint:*", "api-key:model:*"],
                "api_key_id": API_KEY_ID,
                "team_blocked": False,
                "api_key_blocked": False,
                "api_key_disabled": False,
            }
        )

    def get_picture(self, path: str, _body: bytes) -> None:
        """Draw a picture."""
        picture = draw_named(path.removeprefix("/sandbox/images/").removesuffix(".png"))
        if picture is None:
            raise refuse(404, "There is no such picture.")
        send_whole(self.wire, 200, {"Content-Type": "image/png"}, picture)

    def get_journal(self, _path: str, _body: bytes) -> None:
        """Show the journal, oldest first."""
        self._send({"exchanges": self.sandbox.journal.exchanges()})

    def delete_journal(self, _path: str, _body: bytes) -> None:
        """Clear the journal."""
        self.sandbox.journal.clear()
        self._send({"exchanges": []})

    def _send(self, value: Any) -> None:
        send_json(self.wire, msgspec.json.encode(value))


Action = Callable[[Handler, str, bytes], None]

_ROUTES: list[tuple[re.Pattern[str], Mapping[str, Action]]] = [
    (re.compile(CHAT_PATH), {"POST": Handler.post}),
    *((re.compile(path), {"POST": Handler.post}) for path in (IMAGES_PATH, EDITS_PATH, TOKENIZE_PATH)),
    (re.compile(VIDEO_PATHS), {"POST": Handler.post}),
    *KEPT_ROUTES,
    (re.compile(RESPONSES_PATH), {"POST": Handler.post}),
    (re.compile(COMPACT_PATH), {"POST": Handler.post}),
    (
        re.compile(RESPONSES_PATH + "/[^/]+"),
        {"GET": Handler.get_response, "DELETE": Handler.delete_response},
    ),
    (re.compile(MESSAGES_PATH), {"POST": Handler.post}),
    (re.compile(r"/v1/models"), {"GET": Handler.get_models}),
    (re.compile(r"/v1/models/[^/]+"), {"GET": Handler.get_model}),
    (re.compile(r"/v1/language-models"), {"GET": Handler.get_language_models}),
    (re.compile(r"/v1/language-models/[^/]+"), {"GET": Handler.get_language_model}),
    (re.compile(r"/v1/(image|video)-generation-models(/[^/]+)?"), {"GET": Handler.get_media_models}),
    (re.compile(r"/v1/api-key"), {"GET": Handler.get_api_key}),
    (re.compile(r"/sandbox/images/[^/]+\.png"), {"GET": Handler.get_picture}),
    (re.compile(r"/sandbox/journal"), {"GET": Handler.get_journal, "DELETE": Handler.delete_journal}),
]


def _find_route(path: str) -> Mapping[str, Action] | None:
    return next((methods for pattern, methods in _ROUTES if pattern.fullmatch(path)), None)
