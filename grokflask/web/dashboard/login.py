"""The dashboard's door: its blueprint, who is let in, logging in and out, and its errors as pages.

The blueprint is registered only where there is an admin token. The token is typed into a form once; after
that a session's cookie stands for it. Every form carries a token against forgery by other sites.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from flask import Blueprint, Response, current_app, g, redirect, request, session, url_for
from flask_wtf.csrf import generate_csrf, validate_csrf
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse
from wtforms import ValidationError

from grokflask.errors import ClientError, GrokflaskError, RouteNotFoundError
from grokflask.web.attempts import Attempts
from grokflask.web.body import read_form
from grokflask.web.current import get_current
from grokflask.web.dashboard.sessions import PATH, SESSION_S, is_dashboard
from grokflask.web.pages import reply_page
from grokflask.web.responses import reply_error, translate

MAX_FORM_BYTES = 64 * 1024
UNTIL = "until"
"""The session's entry that makes it one of the operator: when it ends, epoch seconds."""

_OPEN = {"dashboard.show_login", "dashboard.log_in"}

blueprint = Blueprint("dashboard", __name__, url_prefix=PATH)

_log = logging.getLogger("grokflask.admin")


class SignedOutError(ClientError):
    """Nobody is logged in, or not any more."""

    status = 401
    code = "signed_out"
    default_message = "You are not signed in, or your session has ended: sign in again."


class ForgedError(ClientError):
    """A form without the token that its page was given, or with another session's."""

    status = 400
    code = "form_expired"
    default_message = (
        "This form belongs to another session or to a page that is too old, so nothing was done. "
        "Go back, reload the page and send it again."
    )


def is_signed_in() -> bool:
    """The request comes with a session of the operator that has not ended."""
    until = session.get(UNTIL)
    return isinstance(until, (int, float)) and time.time() < until


@blueprint.before_request
def guard_request() -> Response | AnyResponse | None:
    """Who is not signed in sees the login form; what changes something needs the token of a form of ours."""
    g.form = {}
    if request.endpoint not in _OPEN and not is_signed_in():
        is_page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
        if is_page and request.endpoint != "dashboard.show_part":
            return redirect(url_for("dashboard.show_login"), 303)
        raise SignedOutError
    if request.method not in ("GET", "HEAD"):
        g.form = read_form(MAX_FORM_BYTES, *get_current()[:2])
        try:
            validate_csrf(g.form.pop("csrf_token", ""), time_limit=SESSION_S)
        except ValidationError:
            raise ForgedError from None
    return None


@blueprint.after_request
def forbid_storing(response: Response) -> Response:
    """No cache keeps a page of the dashboard, nor what a fetch of it got."""
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.context_processor
def describe_session() -> dict[str, Any]:
    """What the dashboard's frame needs."""
    return {"csrf_token": generate_csrf, "signed_in": is_signed_in()}


@blueprint.get("/login")
def show_login() -> Response | AnyResponse:
    """The form."""
    if is_signed_in():
        return redirect(url_for("dashboard.show_overview"), 303)
    return reply_page("dashboard/login.html")


@blueprint.post("/login")
def log_in() -> Response | AnyResponse:
    """A new session for whoever has the token; what an older one held is gone."""
    attempts: Attempts = current_app.extensions["attempts"]
    address = request.remote_addr or "unknown"
    if not attempts.check(g.form.get("token", "").strip(), address):
        fields = {"request_id": g.get("request_id"), "who": address, "action": "login"}
        _log.warning("refused", extra={"fields": fields})
        return reply_page("dashboard/login.html", 401, problem="That is not the admin token.")
    session.clear()
    g.pop("csrf_token", None)
    session.permanent = True  # the browser keeps the cookie until it expires
    session[UNTIL] = int(time.time()) + SESSION_S
    generate_csrf()  # into the session now, so that no later page sets the cookie again
    _log.info("login", extra={"fields": {"request_id": g.get("request_id"), "who": address}})
    return redirect(url_for("dashboard.show_overview"), 303)


@blueprint.post("/logout")
def log_out() -> AnyResponse:
    """The cookie goes."""
    session.clear()
    return redirect(url_for("dashboard.show_login"), 303)


TITLES = {
    400: "That cannot be done",
    401: "Sign in again",
    404: "There is nothing here",
    405: "That cannot be done",
    409: "That cannot be done now",
    413: "That is too much",
    429: "Too many attempts",
    503: "Something is away",
}


def reply_problem(error: GrokflaskError) -> Response:
    """An error as a page: what happened, what to do, and the request's id to quote."""
    error.__traceback__ = None  # as in `reply_error`
    title = TITLES.get(error.status, "Something went wrong")
    inside = request.blueprint == blueprint.name and is_signed_in()
    response = reply_page("dashboard/problem.html", error.status, error=error, title=title, signed_in=inside)
    for name in ("Retry-After", "Allow"):
        if name in error.headers:
            response.headers[name] = error.headers[name]
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.errorhandler(Exception)
def reply_failure(error: Exception) -> Response:
    """Any error of the dashboard's views."""
    return reply_problem(translate(error))


@blueprint.app_errorhandler(404)
@blueprint.app_errorhandler(405)
def reply_nowhere(error: HTTPException) -> Response:
    """A path or method that there is not: a page below the dashboard, JSON elsewhere."""
    translated = translate(error)
    return reply_problem(translated) if is_dashboard(request.path) else reply_error(translated)


@blueprint.get("/")
def forward() -> AnyResponse:
    """The overview has no slash at its end."""
    return redirect(url_for("dashboard.show_overview"), 303)


def find_nothing() -> RouteNotFoundError:
    """The error for something that the path names and that there is not."""
    return RouteNotFoundError(f"There is nothing at {request.path[:200]}.")
