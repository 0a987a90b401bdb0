"""The reference: /openapi.json, and Swagger UI at /docs.

Swagger UI's files come from the package flask-swagger-ui, whose page is not used: it has an inline script.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path

import msgspec
from flask import Blueprint, Response, current_app, request, send_from_directory

from grokflask.config import Settings
from grokflask.errors import RouteNotFoundError
from grokflask.runtime import VERSION
from grokflask.web.pages import find_asset, keep_assets, reply_page
from grokflask.web.reference.document import build_document

FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
"""The files of Swagger UI that are served."""

CACHE_S = 300

_DIRECTORY = Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))

blueprint = Blueprint("reference", __name__)


@blueprint.get("/openapi.json")
def show_document() -> Response:
    """The document, or 304 if the client has it."""
    settings: Settings = current_app.extensions["settings"]
    body, tag = render(settings.auth_mode == "open")
    response = Response(body, content_type="application/json")
    response.set_etag(tag)
    response.headers["Cache-Control"] = f"public, max-age={CACHE_S}"
    response.make_conditional(request)
    return response


@blueprint.get("/docs/")
def show_page() -> Response:
    """Swagger UI."""
    return reply_page("reference.html", swagger=partial(find_asset, folder=_DIRECTORY, prefix="/docs"))


@blueprint.get("/docs/<name>")
def show_file(name: str) -> Response:
    """One of Swagger UI's files. Raises RouteNotFoundError."""
    if name not in FILES:
        raise RouteNotFoundError
    return keep_assets(send_from_directory(_DIRECTORY, name, max_age=CACHE_S))


@cache
def render(is_open: bool) -> tuple[bytes, str]:
    """The document as JSON, and its ETag."""
    body = msgspec.json.encode(build_document(VERSION, is_open=is_open))
    return body, hashlib.sha256(body).hexdigest()[:16]
