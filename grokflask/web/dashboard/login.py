"""The dashboard's blueprint: logging in and out, the guard of all its pages, and errors as pages.

The blueprint is registered only if there is an admin token. After the login a session cookie replaces the
token. Every form has a token against cross-site request forgery.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from flask import Blueprint, Response, g, redirect, request, session, url_for
from flask_wtf.csrf import generate_csrf, validate_csrf
from werkzeug.wrappers import Response as AnyResponse
from wtforms import ValidationError

from grokflask.errors import ClientError, RateLimitError
from grokflask.web.attempts import is_admin_token, refuse_token
from grokflask.web.body import ADMIN, read_form
from grokflask.web.current import get_current
from grokflask.web.dashboard.sessions import PATH, SESSION_S, is_dashboard
from grokflask.web.pages import reply_page
from grokflask.web.responses import reply_error, translate

MAX_FORM_BYTES = 64 * 1024
UNTIL = "until"
"""The session's entry for when the login ends, in epoch seconds."""

_OPEN = {"dashboard.show_login", "dashboard.log_in"}

blueprint = Blueprint("dashboard", __name__, url_prefix=PATH)

_log = logging.getLogger("grokflask.admin")


class SignedOutError(ClientError):
    """The request has no valid session."""

    status = 401
    code = "signed_out"
    default_message = "You are not signed in, or your session has ended: sign in again."


class FormExpiredError(ClientError):
    """The form's token is missing, too old, or belongs to another session."""

    status = 400
    code = "form_expired"
    default_message = (
        "This form belongs to another session or to a page that is too old, so nothing was done. "
        "Go back, reload the page and send it again."
    )


def is_signed_in() -> bool:
    """Whether the request has a session that has not ended."""
    until = session.get(UNTIL)
    return isinstance(until, (int, float)) and time.time() < until


@blueprint.before_request
def guard_request() -> Response | AnyResponse | None:
    """Sends visitors without a session to the login form, and checks the token of forms."""
    g.form = {}
    if request.endpoint not in _OPEN and not is_signed_in():
        is_page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
        if is_page and request.endpoint != "dashboard.show_part":
            return redirect(url_for("dashboard.show_login"), 303)
        raise SignedOutError
    if request.method not in ("GET", "HEAD"):
        g.caller = ADMIN if is_signed_in() else ""
        g.form = read_form(MAX_FORM_BYTES, *get_current())
        try:
            validate_csrf(g.form.pop("csrf_token", ""), time_limit=SESSION_S)
        except ValidationError:
            raise FormExpiredError from None
    return None


@blueprint.after_request
def forbid_storing(response: Response) -> Response:
    """Caches must not keep the dashboard's pages."""
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.context_processor
def describe_session() -> dict[str, Any]:
    """Values for the dashboard's frame."""
    return {"csrf_token": generate_csrf, "signed_in": is_signed_in()}


@blueprint.get("/login")
def show_login() -> Response | AnyResponse:
    """The form."""
    if is_signed_in():
        return redirect(url_for("dashboard.show_overview"), 303)
    return reply_page("dashboard/login.html")


@blueprint.post("/login")
def log_in() -> Response | AnyResponse:
    """A new session for the right token; an older session is discarded."""
    token = g.form.get("token", "").strip()
    if not is_admin_token(token):
        try:
            refuse_token("admin token", token, _log, action="login")
        except RateLimitError as error:
            response = reply_page("dashboard/login.html", error.status, problem=error.message)
            response.headers.update(error.headers)
            return response
        return reply_page("dashboard/login.html", 401, problem="That is not the admin token.")
    session.clear()
    g.pop("csrf_token", None)
    session.permanent = True  # the browser keeps the cookie until it expires
    session[UNTIL] = int(time.time()) + SESSION_S
    generate_csrf()  # into the session now, so that no later page sets the cookie again
    _log.info("login", extra={"fields": {"request_id": g.get("request_id"), "who": request.remote_addr}})
    return redirect(url_for("dashboard.show_overview"), 303)


@blueprint.post("/logout")
def log_out() -> AnyResponse:
    """Deletes the cookie."""
    session.clear()
    return redirect(url_for("dashboard.show_login"), 303)


_PASSED_ON = {"Retry-After", "Allow"}


@blueprint.errorhandler(Exception)
@blueprint.app_errorhandler(404)
@blueprint.app_errorhandler(405)
def reply_failure(failure: Exception) -> Response:
    """A page with the request's id. An unknown path or method outside the dashboard gets JSON."""
    error = translate(failure)
    if not is_dashboard(request.path):
        return reply_error(error)
    error.__traceback__ = None  # as in `reply_error`
    inside = request.blueprint == blueprint.name and is_signed_in()
    response = reply_page("dashboard/problem.html", error.status, error=error, signed_in=inside)
    response.headers.update({name: error.headers[name] for name in error.headers.keys() & _PASSED_ON})
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/")
def forward() -> AnyResponse:
    """The overview's path has no slash at its end."""
    return redirect(url_for("dashboard.show_overview"), 303)
