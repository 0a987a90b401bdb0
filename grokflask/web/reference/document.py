"""/openapi.json: the API as an OpenAPI 3.1 document, made from the tables that the gateway runs on. No IO.

Paths, methods and queries come from `routes`, errors from `errors`; what is said of them from
`openapi_operations` and `openapi_schemas`. Tests hold it against the routes of the application.
"""

from __future__ import annotations

import re
from typing import Any

from grokflask.protocol.dialects import MESSAGES
from grokflask.protocol.routes import PREFIXES, ROUTES, Route
from grokflask.web.reference import errors as openapi_errors
from grokflask.web.reference.answers import ANSWERS
from grokflask.web.reference.errors import Shape, build_responses, describe_codes, name_response
from grokflask.web.reference.operations import API, OWN, Words
from grokflask.web.reference.requests import REQUESTS, TEXT, Schema, refer, show_events

_ABOUT = """A streaming gateway in front of xAI's API. All paths below `{prefix}` are also below `{other}`.

Requests go on to xAI with all their fields; here are those that the gateway looks at itself. With
`stream: true` an answer comes as events (`text/event-stream`): one line `data: {{json}}` and a blank line
each, the last being `data: [DONE]` (on `/responses` and `/messages` as those APIs have it). While there is
nothing to send, comment lines come. An error inside a stream is an event with `error` in it, and nothing
follows.

<details><summary>All codes of errors</summary>

{codes}

</details>
"""

_HEADERS = {
    "X-Request-ID": "The client's own, or one made here. Every line of the log about it has it.",
    "X-Upstream-Request-ID": "xAI's id of the request.",
    "X-Grokflask-Upstream": "`sandbox`, where answers are made up.",
    "X-Stream-Fallback": "Why the answer to `stream: true` came whole: `vision`, `images` or `deferred`.",
    "X-Params-Dropped": "Fields that xAI would have refused, and that were left out.",
    "X-Model-Served": "The model that answered, where it is not the one asked for.",
    "X-RateLimit-Limit": "Requests that the key may make in a window.",
    "X-RateLimit-Remaining": "How many of them are left.",
    "X-RateLimit-Reset": "When there will be more, in seconds since 1970.",
    "X-RateLimit-Limit-Tokens": "Tokens that the key may use in a minute.",
    "X-RateLimit-Remaining-Tokens": "How many of them are left.",
    "Idempotent-Replayed": "`true`: the answer of an earlier request with this Idempotency-Key.",
    "Retry-After": "Seconds to wait before another try.",
    "x-should-retry": "`false`: OpenAI's SDKs need not try again.",
    "WWW-Authenticate": "`Bearer`.",
    "Allow": "The methods that there are.",
    "Age": "Seconds since xAI said so.",
    "ETag": "Changes when the document does.",
}
_ON_ANSWERS = (
    *("X-Request-ID", "X-Upstream-Request-ID", "X-Grokflask-Upstream", "X-RateLimit-Limit"),
    *("X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Limit-Tokens"),
    "X-RateLimit-Remaining-Tokens",
)
_ON_POSTS = ("X-Stream-Fallback", "X-Params-Dropped", "X-Model-Served", "Idempotent-Replayed")

_PARAMETERS = {
    "X-Request-ID": ("Your own id, which the answer and the log then have, if it is a plain one.", ""),
    "Idempotency-Key": ("New for each request: a repetition gets the first one's answer.", r"^[ -~]{1,255}$"),
    "X-Stream-Resume": ("`true`: events have ids, to go on from with Last-Event-ID.", ""),
    "Last-Event-ID": ("With the same Idempotency-Key: go on behind this event.", ""),
    "x-grok-conv-id": ("The conversation, for xAI's prompt cache.", ""),
}
_SEGMENT = TEXT | {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"}

_SCHEMES = {
    "clientKey": ("bearer", "A key of this gateway; with GROKFLASK_AUTH=passthrough, one of xAI's."),
    "adminToken": ("bearer", "GROKFLASK_ADMIN_TOKEN. While none is set there is nothing at these paths."),
    "metricsToken": ("bearer", "GROKFLASK_METRICS_TOKEN, or the admin's."),
}


def build_document(version: str, *, anybody: bool = False) -> dict[str, Any]:
    """The document of this version of the gateway; with `anybody`, clients need no key."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = PREFIXES[0] + re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _describe_route(route, path, anybody)
    for (method, path), words in OWN.items():
        paths.setdefault(path, {})[method.lower()] = _describe_own(method, path, words, anybody)
    tags = list(dict.fromkeys(words.tag for words in (*API.values(), *OWN.values())))
    about = _ABOUT.format(prefix=PREFIXES[0], other=PREFIXES[1], codes=describe_codes())
    return {
        "openapi": "3.1.0",
        "info": {"title": "grokflask", "version": version, "description": about},
        "servers": [{"url": "/", "description": "This gateway."}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": _list_components(),
    }


def _list_components() -> dict[str, Any]:
    schemes: dict[str, Any] = {
        name: {"type": "http", "scheme": scheme, "description": text}
        for name, (scheme, text) in _SCHEMES.items()
    }
    schemes["anthropicKey"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "schemas": {**REQUESTS, **ANSWERS, **openapi_errors.SCHEMAS, "OpenApi": {"type": "object"}},
        "responses": build_responses(),
        "headers": {name: {"description": text, "schema": TEXT} for name, text in _HEADERS.items()},
        "parameters": {name: _make_header(name, *told) for name, told in _PARAMETERS.items()},
        "securitySchemes": schemes,
    }


def _make_header(name: str, text: str, pattern: str) -> dict[str, Any]:
    schema = TEXT | ({"pattern": pattern} if pattern else {})
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _describe_route(route: Route, path: str, anybody: bool) -> dict[str, Any]:
    words = API[route.method, route.name]
    if words.answer == "Models" and "{" in path:
        words = Words(words.tag, words.summary, "Model")
    names = ["X-Request-ID"]
    if route.method == "POST":
        names.append("Idempotency-Key")
    if route.streams:
        names += ["X-Stream-Resume", "Last-Event-ID"]
    if route.billing == "tokens":
        names.append("x-grok-conv-id")
    security: list[dict[str, list[str]]] = [{"clientKey": []}]
    if route.dialect is MESSAGES:
        security.append({"anthropicKey": []})
    if anybody:
        security.append({})
    query = {name: {"type": "integer"} if name == "limit" else TEXT for name in route.query}
    return {
        **_begin(route.method, path, words, query, names),
        **_take_body(words, route.body),
        "responses": _list_answers(route, words),
        "security": security,
    }


def _list_answers(route: Route, words: Words) -> dict[str, Any]:
    shape: Shape = "Messages" if route.dialect is MESSAGES else "Stream" if route.streams else ""
    headers = list(_ON_ANSWERS)
    headers += _ON_POSTS if route.method == "POST" else ()
    headers += ("Age",) if route.catalogue else ()
    content = _show_answer(words)
    answer = {"description": words.summary + ".", "headers": _refer(headers), "content": content}
    responses = {str(words.status): answer, **_list_more(words, headers)}
    responses |= {
        str(status): refer(name_response(status, shape), "responses") for status in _list_refusals(route)
    }
    if route.upstream_path:
        responses["default"] = refer(name_response("Upstream", shape), "responses")
    return responses


def _list_refusals(route: Route) -> list[int]:
    """The statuses with which the gateway itself refuses what comes here."""
    statuses = {401, 403, 429, 500, 503}
    if route.upstream_path:
        statuses |= {502, 504}
    if "<" in route.path:
        statuses.add(404)
    if route.method == "POST":
        statuses |= {400, 404, 409, 410, 422}
        if route.body != "none":
            statuses |= {408, 413, 415}
    return sorted(statuses)


def _describe_own(method: str, path: str, words: Words, anybody: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": words.summary + ".",
        "headers": _refer(["X-Request-ID"]),
        "content": _show_answer(words),
    }
    responses = {str(words.status): answer, **_list_more(words, ["X-Request-ID"])}
    for status in sorted(words.errors):
        responses[str(status)] = refer(name_response(status, ""), "responses")
    security: list[dict[str, list[str]]] = [{token: []} for token in words.tokens]
    if anybody and "clientKey" in words.tokens:
        security.append({})
    if path == "/openapi.json":
        answer["headers"] |= _refer(["ETag"])
    return {
        **_begin(method, path, words, words.query, ["X-Request-ID"]),
        **_take_body(words, "json"),
        "responses": responses,
        "security": security,
    }


def _begin(
    method: str, path: str, words: Words, query: dict[str, Schema], headers: list[str]
) -> dict[str, Any]:
    """What all operations have."""
    segments = [
        {"name": name, "in": "path", "required": True, "schema": TEXT if words.tokens else _SEGMENT}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    queries = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    name = path.removeprefix(PREFIXES[0]).removeprefix("/").replace(":", "_now_")
    return {
        "operationId": "_".join(re.findall(r"[a-z0-9]+", f"{method} {name}".lower())),
        "tags": [words.tag],
        "summary": words.summary,
        "parameters": [*segments, *queries, *(refer(each, "parameters") for each in headers)],
    }


def _take_body(words: Words, kind: str) -> dict[str, Any]:
    if not words.body:
        return {}
    content: dict[str, Any] = {"schema": refer(words.body)}
    if words.examples:
        content["examples"] = {name: {"value": value} for name, value in words.examples.items()}
    media_type = "multipart/form-data" if kind == "form" else "application/json"
    return {"requestBody": {"required": words.body_required, "content": {media_type: content}}}


def _show_answer(words: Words) -> dict[str, Any]:
    content = {words.media_type: {"schema": refer(words.answer)} if words.answer else {}}
    return content | ({"text/event-stream": show_events(words.events)} if words.events else {})


def _list_more(words: Words, headers: list[str]) -> dict[str, Any]:
    """Answers with other statuses. That a deferred chat is not done is said without a body."""
    has_body = words.answer in ("Video", "Readiness", "Stopped")
    content = {"content": _show_answer(words)} if has_body else {}
    return {
        str(status): {"description": text, "headers": _refer(headers), **content}
        for status, text in words.more.items()
    }


def _refer(headers: list[str]) -> dict[str, Schema]:
    return {name: refer(name, "headers") for name in headers}
