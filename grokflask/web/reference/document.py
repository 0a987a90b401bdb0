"""/openapi.json: the API as an OpenAPI 3.1 document, built from the tables that the gateway uses. No IO.

Paths, methods and queries come from `protocol.routes`, errors from `errors`, descriptions from the modules
beside this one.
"""

from __future__ import annotations

import re
from typing import Any

from grokflask.protocol.dialects import MESSAGES
from grokflask.protocol.routes import PREFIXES, ROUTES, Route
from grokflask.web.reference import errors
from grokflask.web.reference.operations import API, OWN, Operation
from grokflask.web.reference.schemas import ANSWERS, TEXT, Schema, refer

_ABOUT = """A streaming gateway in front of xAI's API. All paths below `{prefix}` also exist below `{other}`.

Request bodies pass through to [xAI's API](https://docs.x.ai/docs/api-reference), which documents all their
fields; only the fields that the gateway reads itself are listed here. With `stream: true` the answer is a
stream of events (`text/event-stream`). Each event is a line `data: {{json}}` and a blank line, and the last
is `data: [DONE]` (`/responses` and `/messages` end as those APIs do). Comment lines keep an idle connection
open. An error inside a stream is an event with `error` in it, and the stream ends there.

<details><summary>All error codes</summary>

{codes}

</details>
"""

_HEADERS = {
    "X-Request-ID": "Your own id, or one made by the gateway. It is in every log line about the request.",
    "X-Upstream-Request-ID": "xAI's id of the request.",
    "X-Grokflask-Upstream": "`sandbox` if the answer is made up.",
    "X-RateLimit-Limit": "Requests that the key may make per window.",
    "X-RateLimit-Remaining": "Requests that are left.",
    "X-RateLimit-Reset": "When more requests are allowed, in seconds since 1970.",
    "X-RateLimit-Limit-Tokens": "Tokens that the key may use per minute.",
    "X-RateLimit-Remaining-Tokens": "Tokens that are left.",
    "X-Stream-Fallback": "Why a request to stream was answered whole: `vision`, `images` or `deferred`.",
    "X-Params-Dropped": "Fields that xAI would refuse, and that the gateway removed.",
    "X-Model-Served": "The model that answered, if it is not the requested one.",
    "Idempotent-Replayed": "`true` if an earlier request with the same Idempotency-Key got this answer.",
    "Age": "Seconds since the gateway fetched this from xAI.",
    "Retry-After": "Seconds to wait before trying again.",
    "x-should-retry": "`false` if OpenAI's SDKs should not try again.",
    "WWW-Authenticate": "`Bearer`.",
    "Allow": "The methods that this path has.",
    "ETag": "Changes with the document.",
}
_ON_ALL = list(_HEADERS)[:8]
_ON_POSTS = list(_HEADERS)[8:12]
_ON_ERRORS = [name for name in list(_HEADERS)[:10] if name not in list(_HEADERS)[1:3]]

_PARAMETERS = {
    "X-Request-ID": ("Your own id for the request: up to 128 letters, digits and `. _ : -`.", {}),
    "Idempotency-Key": (
        "A new key for each request. A repetition gets the answer to the first request.",
        {"pattern": r"^[ -~]{1,255}$"},
    ),
    "X-Stream-Resume": ("`true` gives events ids, so that a broken stream can be resumed.", {}),
    "Last-Event-ID": ("With the same Idempotency-Key: resume the stream after this event.", {}),
    "x-grok-conv-id": ("An id of the conversation, for xAI's prompt cache.", {}),
}
_SEGMENT = TEXT | {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"}

_SCHEMES = {
    "clientKey": "A key of this gateway. With GROKFLASK_AUTH=passthrough: a key of xAI.",
    "adminToken": "GROKFLASK_ADMIN_TOKEN. Without one these paths do not exist.",
    "metricsToken": "GROKFLASK_METRICS_TOKEN or GROKFLASK_ADMIN_TOKEN.",
}


def build_document(version: str, *, anybody: bool = False) -> dict[str, Any]:
    """The document of this version of the gateway. `anybody`: clients need no key."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = PREFIXES[0] + re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _describe_route(route, path, anybody)
    for (method, path), operation in OWN.items():
        paths.setdefault(path, {})[method.lower()] = _describe_own(method, path, operation, anybody)
    tags = dict.fromkeys(operation.tag for operation in (*API.values(), *OWN.values()))
    about = _ABOUT.format(prefix=PREFIXES[0], other=PREFIXES[1], codes=errors.list_codes())
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
        name: {"type": "http", "scheme": "bearer", "description": text} for name, text in _SCHEMES.items()
    }
    schemes["anthropicKey"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "schemas": {**ANSWERS, **errors.SCHEMAS},
        "responses": errors.build_responses(_ON_ERRORS),
        "headers": {name: {"description": text, "schema": TEXT} for name, text in _HEADERS.items()},
        "parameters": {
            name: {"name": name, "in": "header", "description": text, "schema": TEXT | pattern}
            for name, (text, pattern) in _PARAMETERS.items()
        },
        "securitySchemes": schemes,
    }


def _describe_route(route: Route, path: str, anybody: bool) -> dict[str, Any]:
    operation = API[route.method, route.name]
    parameters = ["X-Request-ID"]
    headers = list(_ON_ALL)
    if route.method == "POST":
        parameters.append("Idempotency-Key")
        headers += _ON_POSTS
    if route.streams:
        parameters += ["X-Stream-Resume", "Last-Event-ID"]
    if route.billing == "tokens":
        parameters.append("x-grok-conv-id")
    if route.catalogue:
        headers.append("Age")
    shape = "Messages" if route.dialect is MESSAGES else "Stream" if route.streams else ""
    statuses = [*map(str, _list_refusals(route)), *(["Upstream"] if route.upstream_path else [])]
    refusals = {
        status.replace("Upstream", "default"): refer(f"{shape}Error{status}", "responses")
        for status in statuses
    }
    tokens = ("clientKey", "anthropicKey") if route.dialect is MESSAGES else ("clientKey",)
    query = {name: {"type": "integer"} if name == "limit" else TEXT for name in route.query}
    events = "UpstreamAnswer" if route.streams else ""
    return {
        **_describe(route.method, path, operation, query, parameters),
        **_describe_body(operation, "multipart/form-data" if route.body == "form" else "application/json"),
        "responses": _list_answers(operation, headers, events) | refusals,
        "security": _list_tokens(tokens, anybody),
    }


def _list_refusals(route: Route) -> list[int]:
    """The statuses with which the gateway itself refuses a request to `route`."""
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


def _describe_own(method: str, path: str, operation: Operation, anybody: bool) -> dict[str, Any]:
    headers = ["X-Request-ID", *(["ETag"] if path == "/openapi.json" else [])]
    events = "DiagnosisEvent" if operation.media_type == "text/event-stream" else ""
    refusals = {str(status): refer(f"Error{status}", "responses") for status in sorted(operation.errors)}
    return {
        **_describe(method, path, operation, operation.query, ["X-Request-ID"]),
        **_describe_body(operation, "application/json"),
        "responses": _list_answers(operation, headers, events) | refusals,
        "security": _list_tokens(operation.tokens, anybody),
    }


def _list_tokens(tokens: tuple[str, ...], anybody: bool) -> list[dict[str, list[str]]]:
    """Any of `tokens` will do; none is needed where `anybody` may call the API."""
    schemes: list[dict[str, list[str]]] = [{token: []} for token in tokens]
    return [*schemes, {}] if anybody and "clientKey" in tokens else schemes


def _describe(
    method: str, path: str, operation: Operation, query: dict[str, Schema], headers: list[str]
) -> dict[str, Any]:
    segment = TEXT if operation.tokens else _SEGMENT
    name = path.removeprefix(PREFIXES[0]).replace(":", "_now_")
    return {
        "operationId": "_".join(re.findall(r"[a-z0-9]+", f"{method}/{name}".lower())),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": segment}
                for name in re.findall(r"\{(\w+)\}", path)
            ),
            *({"name": name, "in": "query", "schema": schema} for name, schema in query.items()),
            *(refer(name, "parameters") for name in headers),
        ],
    }


def _describe_body(operation: Operation, media_type: str) -> dict[str, Any]:
    if operation.body is None:
        return {}
    content: dict[str, Any] = {"schema": operation.body}
    if operation.examples:
        content["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
    return {"requestBody": {"required": operation.body_required, "content": {media_type: content}}}


def _list_answers(operation: Operation, headers: list[str], events: str) -> dict[str, Any]:
    """The responses that are not errors, by status. A stream's events have the schema `events`.

    OpenAPI 3.1 cannot describe events, and the `itemSchema` of 3.2 would not be valid in it.
    """
    schema = {"schema": refer(operation.answer)} if operation.answer else {}
    content: dict[str, Any] = {operation.media_type: schema}
    if events:
        content["text/event-stream"] = {"schema": TEXT, "x-event-schema": refer(events)}
    answer = {"headers": {name: refer(name, "headers") for name in headers}}
    answers = {str(operation.status): answer | {"description": f"{operation.summary}.", "content": content}}
    for status, text in operation.more.items():
        answers[str(status)] = (
            answer | {"description": text} | ({} if status == 304 else {"content": content})
        )
    return answers
