"""The WSGI application, assembled from its services, blueprints and commands."""

from __future__ import annotations

import logging
import os
import secrets

from click import ClickException
from flask import Flask

from grokflask.cli import GROUPS
from grokflask.cli.doctor.broken import asks_for_doctor, make_broken_app
from grokflask.config import Settings, find_unknown, load_settings
from grokflask.errors import ConfigError, StoreUnavailableError
from grokflask.keys.store import KeyStore
from grokflask.limits.request_storage import RequestStorage
from grokflask.log import configure_logging
from grokflask.sandbox import Sandbox
from grokflask.services import build_services
from grokflask.web import admin, api, diagnose, health, hooks, metrics, pages, responses
from grokflask.web.addresses import TrustedProxies
from grokflask.web.attempts import LIMITS, Attempts
from grokflask.web.dashboard.sessions import set_up_sessions
from grokflask.web.playground import page as playground
from grokflask.web.reference import page as reference
from grokflask.web.request_limits import RequestLimiter, allow_origins
from grokflask.web.shortcuts import Application

_RUNS_COMMAND = "FLASK_RUN_FROM_CLI" in os.environ

_MODULES = (health, metrics, diagnose, admin, pages, reference)

_log = logging.getLogger("grokflask")


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. `settings` come from the environment and `.env` when not given.

    Raises:
        ConfigError: the settings cannot work; it lists every problem.
    """
    if settings is None:
        try:
            settings = load_settings()
        except ConfigError as error:
            return _make_doctor_app(error)
    configure_logging(settings.log_level, settings.secrets)
    app = _make_flask(settings)
    upstream_url, upstream_key = _find_upstream(app, settings)
    services = build_services(settings, upstream_url, upstream_key)
    app.extensions |= vars(services)

    # The order of hooks: request id, who calls, is there room, how often (flask-limiter), view, headers.
    hooks.register(app)
    app.extensions["request_limits"] = limits = RequestLimiter(app, settings, services.redis_pool)
    # In memory apart from requests, so that guesses do not push out the counts of keys.
    storage = limits.storage if services.redis_pool else RequestStorage()
    app.extensions["attempts"] = attempts = {kind: Attempts(kind, storage) for kind in LIMITS}
    services.keys.guesses = attempts["API key"]
    if settings.cors_origins:
        allow_origins(app, settings.cors_origins)
    responses.register_errors(app)
    for blueprint in (*api.make_blueprints(), *(module.blueprint for module in _MODULES)):
        app.register_blueprint(blueprint)
    _open_dashboard(app, settings.admin_token)
    if settings.playground:
        app.register_blueprint(playground.blueprint)
    for group in GROUPS:
        app.cli.add_command(group)
    if not _RUNS_COMMAND:  # a command prints its own output only
        _announce(settings, upstream_url, services.key_store)
    return app


def _make_flask(settings: Settings) -> Flask:
    app = Application("grokflask", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["BODY_TIMEOUT_S"] = settings.body_timeout_s
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # a doubled slash is a 404, not a redirect
    app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
    return app


def _find_upstream(app: Flask, settings: Settings) -> tuple[str, str | None]:
    """The base URL and the key of xAI, or of the built-in sandbox, which starts with the first request."""
    if not settings.uses_sandbox:
        app.extensions["upstream_name"] = settings.upstream_base
        return settings.upstream_base, settings.xai_api_key
    key = secrets.token_urlsafe(32)  # other programs on this machine can reach its port, and what it keeps
    sandbox = Sandbox(events_per_s=settings.sandbox_events_per_s, key=key)
    app.before_request(sandbox.ensure_running)  # not now: a server may fork after it has made the app
    app.extensions |= {"sandbox": sandbox, "upstream_name": "sandbox"}
    return sandbox.base_url, key


def _open_dashboard(app: Flask, admin_token: str | None) -> None:
    """Adds the dashboard if there is a token. Without one, not even its form library is loaded."""
    set_up_sessions(app, admin_token)
    if admin_token is None:
        return
    from grokflask.web.dashboard import overview as dashboard

    app.register_blueprint(dashboard.blueprint)


def _make_doctor_app(error: ConfigError) -> Flask:
    """An app for `flask doctor` alone. Raises `error` for everything else; commands print no traceback."""
    if not _RUNS_COMMAND:
        raise error
    if asks_for_doctor():
        return make_broken_app(error)
    raise ClickException(str(error)) from None


def _announce(settings: Settings, base_url: str, store: KeyStore) -> None:
    """Logs how this process is set up, and what its operator still has to do."""
    for warning in [*find_unknown(os.environ), *settings.find_weak_secrets()]:
        _log.warning(warning)
    upstream = f"the built-in sandbox at {base_url}" if settings.uses_sandbox else base_url
    fields = {"upstream": upstream, "auth": settings.auth_mode, "keys": len(settings.keys)}
    _log.info("ready", extra={"fields": fields})
    if settings.uses_sandbox:
        _log.warning("no XAI_API_KEY: answers come from the sandbox; they are made up and cost nothing")
    if settings.auth_mode == "keys" and not settings.keys and not _has_stored_keys(store):
        _log.warning(
            "there are no keys yet, so every call gets a 401: run `flask --app wsgi keys create NAME` "
            "or set GROKFLASK_KEYS=NAME:SECRET"
        )
    if settings.auth_mode == "open" and not settings.uses_sandbox:
        _log.warning("GROKFLASK_AUTH=open: everyone who can reach this address spends the xAI key's money")


def _has_stored_keys(store: KeyStore) -> bool:
    """There are keys in the database. True if it is unreachable, which is logged elsewhere."""
    try:
        return bool(store.list())
    except StoreUnavailableError:
        return True
