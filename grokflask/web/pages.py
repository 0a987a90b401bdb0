"""The frame, files and headers of all pages.

Pages need no build step. Their styles and scripts are files below /static: the Content-Security-Policy allows
no inline code and no other host.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from flask import Blueprint, Response, current_app, render_template, request

from grokflask.web.formats import FILTERS

STATIC = Path(__file__).parent / "static"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

blueprint = Blueprint(
    "pages", __name__, template_folder="templates", static_folder="static", static_url_path="/static"
)


def reply_page(template: str, status: int = 200, **values: object) -> Response:
    """A page from `template`, or a part of one."""
    text = render_template(template, **values)
    return Response(text, status, HEADERS, content_type="text/html; charset=utf-8")


@blueprint.app_context_processor
def describe_gateway() -> dict[str, object]:
    """Values for the frame of all pages."""
    services = current_app.extensions
    return {
        "asset": find_asset,
        "on_sandbox": services["upstream_name"] == "sandbox",
        "has_dashboard": services["settings"].admin_token is not None,
        "has_playground": services["settings"].playground,
    }


@blueprint.get("/favicon.ico")
def show_icon() -> Response:
    """The icon that browsers request with every page."""
    return blueprint.send_static_file("icon.svg")


@blueprint.after_request
def keep_assets(response: Response) -> Response:
    """Lets clients keep a file for good if the request has its content's hash."""
    if response.status_code == 200 and request.args.get("v"):
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@lru_cache(maxsize=64)
def find_asset(name: str, folder: Path = STATIC, prefix: str = "/static") -> str:
    """The URL path of a file, with its content's hash. Raises FileNotFoundError."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return f"{prefix}/{name}?v={digest[:12]}"


for _filter in FILTERS:
    blueprint.add_app_template_filter(_filter, _filter.__name__.removeprefix("show_"))
