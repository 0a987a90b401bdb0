"""What all pages share: their frame, their look, and the headers that keep foreign code out of them.

Pages are whole without a build step and without another host. A page's style and scripts are files of ours,
under /static; nothing inline runs, and nothing from elsewhere is loaded.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from flask import Blueprint, Response, current_app, render_template, request

from grokflask.web.formats import FILTERS

STATIC = Path(__file__).parent / "static"

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "font-src": "'self'",
    "manifest-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
"""The Content-Security-Policy of a page, by directive."""

HEADERS = {
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
    """The page that `template` makes of `values`."""
    return guard(
        Response(render_template(template, **values), status, content_type="text/html; charset=utf-8")
    )


def guard(response: Response, **directives: str) -> Response:
    """`response` with the headers of a page; `directives` replace some of its policy (script_src="…")."""
    policy = POLICY | {name.replace("_", "-"): value for name, value in directives.items()}
    response.headers["Content-Security-Policy"] = "; ".join(f"{name} {what}" for name, what in policy.items())
    response.headers.update(HEADERS)
    return response


@blueprint.app_context_processor
def describe_gateway() -> dict[str, object]:
    """What the frame of every page needs to know."""
    services = current_app.extensions
    return {
        "asset": find_asset,
        "on_sandbox": services["upstream_name"] == "sandbox",
        "has_dashboard": services["settings"].admin_token is not None,
        "has_playground": services["settings"].playground,
    }


@blueprint.get("/favicon.ico")
def show_icon() -> Response:
    """What browsers ask for beside anything that they show."""
    return blueprint.send_static_file("icon.svg")


@blueprint.after_request
def keep_assets(response: Response) -> Response:
    """A file that is asked for by its content's hash never changes; any other is asked about each time."""
    if response.status_code == 200 and request.args.get("v"):
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@lru_cache(maxsize=64)
def find_asset(name: str) -> str:
    """The path of a file in `static`, with its content's hash. Raises FileNotFoundError."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


for _name, _filter in FILTERS.items():
    blueprint.add_app_template_filter(_filter, _name)
