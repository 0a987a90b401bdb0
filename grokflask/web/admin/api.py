"""What all views of the admin API (/admin/api) share: its token, its parameters and its answers.

The token guards every path below the prefix, even those that do not exist. If no token is set, there is
nothing at any of them. Unknown fields and parameters are refused: otherwise a typing error in a limit's name
would silently leave the limit out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request

from grokflask.errors import MALFORMED, AuthenticationError, InvalidRequestError, RouteNotFoundError
from grokflask.keys.ring import read_bearer
from grokflask.web.attempts import is_admin_token, refuse_token
from grokflask.web.body import ADMIN, read_body
from grokflask.web.current import get_current

URL_PREFIX = "/admin/api"
MAX_BODY_BYTES = 64 * 1024

blueprint = Blueprint("admin_api", __name__, url_prefix=URL_PREFIX)

_log = logging.getLogger("grokflask.admin")


@blueprint.before_app_request
def check_token() -> None:
    """Raises AuthenticationError, RouteNotFoundError, or RateLimitError after too many wrong tokens."""
    if not f"{request.path}/".startswith(f"{URL_PREFIX}/"):
        return
    if current_app.extensions["settings"].admin_token is None:
        raise RouteNotFoundError(f"There is nothing at {request.path}.")
    token = read_bearer(request.headers.get("Authorization"))
    if not is_admin_token(token):
        refuse_token("admin token", token, _log)
        raise AuthenticationError(
            "The admin API needs its own token: send it as 'Authorization: Bearer <GROKFLASK_ADMIN_TOKEN>'."
        )
    g.caller = ADMIN


@blueprint.after_request
def forbid_storing(response: Response) -> Response:
    """Answers may contain secrets, so caches must not keep them."""
    response.headers["Cache-Control"] = "no-store"
    return response


def reply(document: dict[str, Any], status: int = 200) -> Response:
    """A response with `document` as JSON."""
    return Response(msgspec.json.encode(document), status, content_type="application/json")


def read_query(*names: str) -> dict[str, str]:
    """The query's parameters. Raises InvalidRequestError for one not in `names`, or one that is repeated."""
    values = {}
    for name, texts in request.args.lists():
        if name not in names:
            there_are = f"there are: {', '.join(names)}" if names else "there are none"
            raise InvalidRequestError(f"{name[:64]!r} is not a parameter; {there_are}.", param=name[:64])
        if len(texts) > 1:
            raise InvalidRequestError(f"{name!r} is given more than once.", param=name)
        values[name] = texts[0]
    return values


def read_fields() -> dict[str, Any]:
    """The request's body, a JSON object. Raises ClientError."""
    try:
        document = msgspec.json.decode(read_body(*get_current(), MAX_BODY_BYTES))
    except MALFORMED as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return document


def read_value(name: str, value: object, read: Callable[[object], Any]) -> Any:
    """`read(value)`, whose ValueError becomes an InvalidRequestError that names the parameter."""
    try:
        return read(value)
    except ValueError as error:
        raise InvalidRequestError(f"{name!r} {error}.", param=name) from None


def log_change(event: str, action: str, **more: object) -> None:
    """Logs what an admin has done, on a page or through the API. Secrets must not be in `more`."""
    fields = {"request_id": g.get("request_id"), "who": "admin", "action": action, **more}
    _log.info(event, extra={"fields": fields})
