"""The shortcuts past library code still fit the installed versions of Flask, Werkzeug and Flask-Limiter."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_limiter import Limiter
from support.processes import CLIENT_KEY
from werkzeug.routing import MapAdapter, Rule

from grokflask.protocol.routes import PREFIXES, ROUTES
from grokflask.web.request_limits import RequestLimiter
from grokflask.web.shortcuts import PlainMatch

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
MODELS = PREFIXES[0] + "/models"


def list_plain_rules(app: Flask) -> list[Rule]:
    views = app.view_functions
    return [
        rule
        for rule in app.url_map.iter_rules()
        if not rule.arguments and hasattr(views[rule.endpoint], "route")
    ]


def test_the_table_of_plain_paths_gives_what_werkzeugs_matcher_gives(client: FlaskClient) -> None:
    app = client.application
    rules = list_plain_rules(app)
    assert len(rules) == sum("<" not in route.path for route in ROUTES) * len(PREFIXES)
    for rule in rules:
        (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        with app.test_request_context(rule.rule, method=method) as context:
            shortcut = app.create_url_adapter(context.request)
            matcher = Flask.create_url_adapter(app, context.request)
            assert isinstance(shortcut, PlainMatch)
            assert type(matcher) is MapAdapter
            assert shortcut.match(return_rule=True) == matcher.match(return_rule=True), (
                "Flask or Werkzeug has changed what MapAdapter.match returns: adapt web.shortcuts.PlainMatch"
            )
            assert (context.request.url_rule, context.request.view_args) == (rule, {}), (
                "Flask no longer takes the rule from the adapter of create_url_adapter: adapt "
                "web.shortcuts.Application"
            )


@pytest.mark.parametrize(
    ("path", "method"), [(MODELS, "HEAD"), (MODELS + "/x", "GET"), (MODELS, "PUT"), ("/", "GET")]
)
def test_all_other_requests_go_through_werkzeugs_matcher(client: FlaskClient, path: str, method: str) -> None:
    with client.application.test_request_context(path, method=method) as context:
        assert type(client.application.create_url_adapter(context.request)) is MapAdapter


def test_flask_asks_the_application_for_coroutines(client: FlaskClient) -> None:
    def view() -> None:
        pass

    assert client.application.ensure_sync(view) is Flask.ensure_sync(client.application, view) is view, (
        "Flask.ensure_sync no longer returns plain functions as they are: adapt web.shortcuts.Application"
    )


def test_flask_limiter_calls_the_method_that_is_overridden(client: FlaskClient) -> None:
    limiter = client.application.extensions["request_limits"]
    assert limiter._check_request_limit in client.application.before_request_funcs[None], (
        "Flask-Limiter no longer registers Limiter._check_request_limit as a hook: adapt "
        "web.shortcuts.DirectLimiter"
    )
    parameters = inspect.signature(Limiter._check_request_limit).parameters
    assert list(parameters) == ["self", "callable_name", "in_middleware"], (
        "Flask-Limiter has changed the parameters of Limiter._check_request_limit: adapt "
        "web.shortcuts.DirectLimiter"
    )


def test_the_shortcut_and_the_library_count_in_the_same_window(
    make_client: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that the library counts, because the shortcut met an error, is one less for the other way."""
    client = make_client(GROKFLASK_RATE_LIMIT="5/hour")
    assert ask(client) == "4"

    def fail(_self: RequestLimiter) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(RequestLimiter, "count_request", fail)
        assert ask(client) == "3", (
            "Flask-Limiter counts under another name than RequestLimiter.count_request: adapt "
            "web.request_limits._find_windows"
        )
    assert ask(client) == "2"


def ask(client: FlaskClient) -> str:
    """What is left of the limit after one request."""
    body = {"messages": [{"role": "user", "content": "hello"}]}
    answer = client.post(PREFIXES[0] + "/chat/completions", json=body, headers=AUTH)
    return answer.headers["X-RateLimit-Remaining"]
