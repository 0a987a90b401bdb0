"""The Flask application, which finds the view of a plain path in a table.

Werkzeug walks its tree of rules for each request, and twice for a stream, whose context is entered anew. Each
walk is made by a function that knows itself: a cycle, which only the garbage collector takes away.
"""

from __future__ import annotations

from flask import Flask, Request
from werkzeug.routing import MapAdapter, Rule


class Application(Flask):
    """Flask's. Rules are complete before the first request, as Flask wants it anyway."""

    _rules: dict[tuple[str, str], Rule] | None = None

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """What finds the request's rule: at once where the path is one of a rule without variables."""
        if request is None:
            return super().create_url_adapter(request)
        if self._rules is None:
            self._rules = self._list_rules()
        rule = self._rules.get((request.method, request.environ.get("PATH_INFO", "")))
        return super().create_url_adapter(request) if rule is None else _Found(rule)

    def _list_rules(self) -> dict[tuple[str, str], Rule]:
        """Those of the API without variables, by method and path. All others go Werkzeug's way."""
        return {
            (method, rule.rule): rule
            for rule in self.url_map.iter_rules()
            if not rule.arguments and hasattr(self.view_functions.get(rule.endpoint), "route")
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }


class _Found(MapAdapter):
    """Knows the rule. Nobody builds URLs in a view of the API."""

    def __init__(self, rule: Rule) -> None:
        self._found: tuple[Rule, dict[str, object]] = (rule, {})

    def match(self, *_args: object, **_options: object) -> tuple[Rule, dict[str, object]]:
        """The rule, and that its path has no variables."""
        return self._found
