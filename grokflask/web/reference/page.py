"""The reference: /openapi.json, and /docs, where Swagger UI shows it and lets one try it.

Swagger UI's files come from the package flask-swagger-ui, of which nothing else is used: its page would run
a script within the page.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import msgspec
from flask import Blueprint, Response, current_app, request, send_from_directory

from grokflask.config import Settings
from grokflask.errors import RouteNotFoundError
from grokflask.runtime import VERSION
from grokflask.web.pages import reply_page
from grokflask.web.reference.document import build_document

FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
"""What of Swagger UI is served."""

CACHE_S = 300

_SPEC = find_spec("flask_swagger_ui")  # found, not imported
assert _SPEC is not None
assert _SPEC.origin is not None
_DIRECTORY = Path(_SPEC.origin).parent / "dist"

blueprint = Blueprint("reference", __name__)


@blueprint.get("/openapi.json")
def show_document() -> Response:
    """The document, or 304 where the client has it."""
    settings: Settings = current_app.extensions["settings"]
    body, tag = render(settings.auth_mode == "open")
    response = Response(body, content_type="application/json")
    response.set_etag(tag)
    response.headers["Cache-Control"] = f"public, max-age={CACHE_S}"
    response.make_conditional(request)
    return response


@blueprint.get("/docs/")
def show_page() -> Response:
    """Swagger UI in the frame of all pages."""
    return reply_page("reference.html", swagger=_find_file)


@blueprint.get("/docs/<name>")
def show_file(name: str) -> Response:
    """One of Swagger UI's files. Raises RouteNotFoundError for any other."""
    if name not in FILES:
        raise RouteNotFoundError
    response = send_from_directory(_DIRECTORY, name, max_age=CACHE_S)
    if request.args.get("v"):
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def render(anybody: bool) -> tuple[bytes, str]:
    """The document as JSON, and its tag. Made when it is first asked for, and kept."""
    body = msgspec.json.encode(build_document(VERSION, anybody=anybody))
    return body, hashlib.sha256(body).hexdigest()[:16]


@cache
def _find_file(name: str) -> str:
    """The path of one of Swagger UI's files, with its content's hash."""
    digest = hashlib.sha256((_DIRECTORY / name).read_bytes()).hexdigest()
    return f"/docs/{name}?v={digest[:12]}"
