"""The API: one view for every row of the table of routes, under both prefixes.

The gateway itself answers a row that has no upstream path.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from flask import Blueprint, Flask, Request, Response
from werkzeug.datastructures import Headers

from grokflask.delivery.answer import Reply, StreamReply
from grokflask.delivery.spool import Spool
from grokflask.gateway import Gateway
from grokflask.keys.ring import ApiKey
from grokflask.protocol.routes import PREFIXES, ROUTES, Route
from grokflask.register import HeldBody
from grokflask.replay.idempotency import Idempotency, IdempotencyHeaders
from grokflask.shaping.request import FORWARDED_HEADERS, ClientRequest
from grokflask.web.body import read_body, read_upload
from grokflask.web.current import Notes, get_current
from grokflask.web.responses import reply_stream, reply_whole, wants_json
from grokflask.web.usage import show_usage


def make_blueprints() -> list[Blueprint]:
    """A blueprint for each prefix, with the same routes."""
    blueprints = []
    for number, prefix in enumerate(PREFIXES):
        blueprint = Blueprint(f"api{number}", __name__, url_prefix=prefix)
        for index, route in enumerate(ROUTES):
            blueprint.add_url_rule(
                route.path,
                endpoint=f"{route.name}{index}",
                view_func=_make_view(route),
                methods=[route.method],
            )
        blueprints.append(blueprint)
    return blueprints


def find_route(app: Flask, flask_request: Request) -> Route | None:
    """The row that the request has matched; None outside the API."""
    view = app.view_functions.get(flask_request.endpoint or "")
    return getattr(view, "route", None)


def _make_view(route: Route) -> Callable[..., Response]:
    def view(model_id: str | None = None, item_id: str | None = None) -> Response:
        app, flask_request, notes = get_current()
        gateway: Gateway = app.extensions["gateway"]
        headers, args = flask_request.headers, flask_request.args if route.query else {}
        with HeldBody(gateway.exchanges, notes.api_key.limit_id) as held:
            client_request = ClientRequest(
                route=route,
                request_id=notes.request_id,
                body=_read(route, app, flask_request, notes, held),
                media_type=headers.get("Content-Type", "") if route.body == "form" else "",
                headers={name: headers[name] for name in FORWARDED_HEADERS if name in headers},
                model_id=model_id,
                item_id=item_id,
                query=urlencode({name: args[name] for name in route.query if name in args}),
                wants_json=wants_json(flask_request),
                once="HTTP_IDEMPOTENCY_KEY" in flask_request.environ,
                client=flask_request.environ.get("gunicorn.socket"),
            )
            notes.opened = True  # from here on the exchange writes its own log line
            try:
                if client_request.once and route.method == "POST":
                    reply = _open_once(app, headers, notes.api_key, client_request)
                else:
                    reply = gateway.open(notes.api_key, client_request)
            finally:
                if isinstance(client_request.body, Spool):
                    client_request.body.close()
        notes.pop("body", None)  # a stream may last for an hour and must not keep megabytes in memory
        return reply_whole(reply) if isinstance(reply, Reply) else reply_stream(reply)

    view_func: Callable[..., Response] = view if route.upstream_path else show_usage
    view_func.route = route  # type: ignore[attr-defined]
    return view_func


def _read(route: Route, app: Flask, flask_request: Request, notes: Notes, held: HeldBody) -> bytes | Spool:
    """The request's body, as its route takes it. Raises GrokflaskError."""
    if route.method != "POST" or route.body == "none":
        return b""
    if route.body == "form":
        return read_upload(app, flask_request, notes, held)
    return read_body(app, flask_request, notes, held=held)


def _open_once(
    app: Flask, headers: Headers, key: ApiKey, client_request: ClientRequest
) -> Reply | StreamReply:
    """The reply to a request with an Idempotency-Key."""
    idempotency: Idempotency = app.extensions["idempotency"]
    idempotency_headers = IdempotencyHeaders(
        headers["Idempotency-Key"],
        resume=headers.get("X-Stream-Resume", "").lower() == "true",
        last_event_id=headers.get("Last-Event-ID", ""),
    )
    return idempotency.open(key, client_request, idempotency_headers)
