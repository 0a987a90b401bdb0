"""The API: one view for every row of the table of routes, under both prefixes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from socket import SHUT_RD

from flask import Blueprint, Response, current_app, g, request
from werkzeug.exceptions import ClientDisconnected

from grokflask.clients import ClientWatcher, shut_down
from grokflask.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError, MediaTypeError
from grokflask.gateway import Gateway, Reply
from grokflask.routes import PREFIXES, ROUTES, Route
from grokflask.shaping import ClientRequest
from grokflask.web.replies import reply_json, reply_stream, wants_json

BLUEPRINTS = frozenset(f"api{number}" for number in range(len(PREFIXES)))


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


def find_route() -> Route | None:
    """The row that the current request has matched, or None outside the API."""
    view = current_app.view_functions.get(request.endpoint or "")
    return getattr(view, "route", None)


def _make_view(route: Route) -> Callable[..., Response]:
    def view(model_id: str | None = None) -> Response:
        gateway: Gateway = current_app.extensions["gateway"]
        asked = ClientRequest(
            route=route,
            request_id=g.request_id,
            body=_read_body() if route.method == "POST" else b"",
            headers={name.lower(): value for name, value in request.headers},
            model_id=model_id,
            wants_json=wants_json(),
            client=request.environ.get("gunicorn.socket"),
        )
        g.opened = True  # from here on the exchange has a log line of its own
        answer = gateway.open(g.api_key, asked)
        # A stream may run for an hour and must not keep a body of megabytes alive so long.
        g.pop("body", None)
        if isinstance(answer, Reply):
            return reply_json(answer.body, answer.status, answer.headers)
        return reply_stream(answer)

    view.route = route  # type: ignore[attr-defined]
    return view


def _read_body() -> bytes:
    """The body, if it comes whole and in time. Raises ClientError.

    A stated length over the limit is refused unread, a chunked body when it passes the limit.
    """
    if not request.is_json:
        raise MediaTypeError
    late = threading.Event()
    sock = request.environ.get("gunicorn.socket")

    def give_up() -> None:
        late.set()
        shut_down(sock, SHUT_RD)  # the read ends; the answer can still be sent

    clients: ClientWatcher = current_app.extensions["clients"]
    watch = clients.limit(sock, current_app.config["BODY_TIMEOUT_S"], give_up)
    try:
        body = _take_body()
    except (OSError, ClientDisconnected):
        body = b""
    finally:
        watch.stop()
    if late.is_set():
        raise BodyTimeoutError
    if len(body) < (request.content_length or 0):
        raise InvalidRequestError("The request's body ended before the length that was announced.")
    return body


def _take_body() -> bytes:
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    # Werkzeug ends a chunked body at its limit without a word: one byte more shows that there was more.
    request.max_content_length = limit + 1
    g.body = b""  # what an error finds when reading fails halfway
    g.body = body = request.get_data(cache=False)
    if len(body) > limit:
        raise BodyTooLargeError(f"The request's body is larger than {limit} bytes.")
    return body
