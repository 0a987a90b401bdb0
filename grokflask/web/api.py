"""The API: one view for every row of the table of routes, under both prefixes.

A row without an upstream path is answered here.
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
from grokflask.replay.idempotency import Idempotency, IdempotencyHeaders
from grokflask.shaping.request import FORWARDED_HEADERS, ClientRequest
from grokflask.web.body import drop_body, read_body, read_upload
from grokflask.web.current import get_app, get_notes, get_request
from grokflask.web.replies import reply_stream, reply_whole, wants_json
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


def find_route(app: Flask, asked: Request) -> Route | None:
    """The row that a request has matched, or None outside the API."""
    view = app.view_functions.get(asked.endpoint or "")
    return getattr(view, "route", None)


def is_counted() -> bool:
    """The current request counts against its key's requests: those that go upstream do."""
    route: Route | None = get_notes().get("route")
    return route is not None and bool(route.upstream_path)


def _make_view(route: Route) -> Callable[..., Response]:
    def view(model_id: str | None = None, item_id: str | None = None) -> Response:
        app, asked, notes = get_app(), get_request(), get_notes()
        gateway: Gateway = app.extensions["gateway"]
        given = asked.headers
        wanted = ClientRequest(
            route=route,
            request_id=notes.request_id,
            body=_read(route),
            media_type=given.get("Content-Type", "") if route.body == "form" else "",
            headers={name: given[name] for name in FORWARDED_HEADERS if name in given},
            model_id=model_id,
            item_id=item_id,
            query=_read_query(route, asked) if route.query else "",
            wants_json=wants_json(),
            client=asked.environ.get("gunicorn.socket"),
        )
        notes.opened = True  # from here on the exchange has a log line of its own
        try:
            if "HTTP_IDEMPOTENCY_KEY" in asked.environ and route.method == "POST":
                answer = _open_once(app, given, notes.api_key, wanted)
            else:
                answer = gateway.open(notes.api_key, wanted)
        finally:
            if isinstance(wanted.body, Spool):
                wanted.body.close()
        drop_body()
        if isinstance(answer, Reply):
            return reply_whole(answer)
        return reply_stream(answer)

    def answer() -> Response:
        return _ANSWERS[route.name]()

    found: Callable[..., Response] = view if route.upstream_path else answer
    found.route = route  # type: ignore[attr-defined]
    return found


def _read(route: Route) -> bytes | Spool:
    """The request's body, as its route takes it. Raises ClientError."""
    if route.method != "POST" or route.body == "none":
        return b""
    return read_upload() if route.body == "form" else read_body()


def _read_query(route: Route, asked: Request) -> str:
    """What of the query string goes upstream: the route's own names, the first value of each."""
    given = asked.args
    return urlencode({name: given[name] for name in route.query if name in given})


def _open_once(app: Flask, given: Headers, key: ApiKey, wanted: ClientRequest) -> Reply | StreamReply:
    """The answer to a request with an Idempotency-Key."""
    idempotency: Idempotency = app.extensions["idempotency"]
    headers = IdempotencyHeaders(
        given["Idempotency-Key"],
        resume=given.get("X-Stream-Resume", "").lower() == "true",
        last_event_id=given.get("Last-Event-ID", ""),
    )
    return idempotency.open(key, wanted, headers)


_ANSWERS: dict[str, Callable[[], Response]] = {"usage": show_usage}
"""What the gateway answers by itself."""
