"""Sessions, which only the dashboard has: a signed cookie below /admin that scripts cannot read.

Requests of the API, and all others, share one empty session that nothing is ever stored in.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta

from flask import Flask, Request, request
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface, SessionMixin

PATH = "/admin"
COOKIE = "grokflask_admin"
SESSION_S = 12 * 3600
"""How long a login lasts, from the login on, whatever is done meanwhile."""

_APART = PATH + "/api"
_NONE = NullSession()


class DashboardSessions(SecureCookieSessionInterface):
    """Flask's sessions, for the dashboard's paths and no others."""

    salt = "grokflask-dashboard"
    digest_method = staticmethod(hashlib.sha256)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """The cookie's, if it is of ours and not too old; outside the dashboard one that holds nothing."""
        path = request.environ.get("PATH_INFO", "")
        if not path.startswith(PATH) or not is_dashboard(path):
            return _NONE
        return super().open_session(app, request)

    def get_cookie_name(self, app: Flask) -> str:
        """Its own, for cookies know no port."""
        return COOKIE

    def get_cookie_path(self, app: Flask) -> str:
        """It is sent to the dashboard only."""
        return PATH

    def get_cookie_domain(self, app: Flask) -> None:
        """No other host gets it."""

    def get_cookie_httponly(self, app: Flask) -> bool:
        """No script sees it."""
        return True

    def get_cookie_samesite(self, app: Flask) -> str:
        """Other sites' links and forms come without it."""
        return "Strict"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Over https it never leaves again over http."""
        return request.is_secure

    def get_expiration_time(self, app: Flask, session: SessionMixin) -> datetime | None:
        """The browser forgets it when it is worth nothing any more."""
        return datetime.now(UTC) + timedelta(seconds=SESSION_S)

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        """Only when it has changed: using it makes it last no longer."""
        return session.modified


def is_dashboard(path: str) -> bool:
    """`path` is one of the dashboard's, and not of the admin API."""
    return (path == PATH or path.startswith(PATH + "/")) and not (
        path == _APART or path.startswith(_APART + "/")
    )


def set_up_sessions(app: Flask, admin_token: str | None) -> None:
    """Gives `app` these sessions, signed by what follows from the token.

    So they hold in all workers and after a restart, and with another token none of them does. Without a token
    there are none.
    """
    app.session_interface = DashboardSessions()
    app.permanent_session_lifetime = timedelta(seconds=SESSION_S)
    if admin_token is not None:
        app.secret_key = hmac.digest(admin_token.encode(), b"grokflask dashboard sessions", "sha256")
